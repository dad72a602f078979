"""Models: each takes a Batch and returns one logit per task for each row's own scenario."""
