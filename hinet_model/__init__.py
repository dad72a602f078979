"""The model side of HiNet on Spark: configuration, batches, models, losses, metrics and training."""
