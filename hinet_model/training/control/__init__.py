"""The driver and its workers: launch, reports, monitor, watchdog."""
