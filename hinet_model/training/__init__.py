"""Distributed training: world, exchange, loop, checkpoints, watchdog, reports, worker and launch."""
