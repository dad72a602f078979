"""What is learned and measured: losses, moving task weights, metrics."""
