"""Benchmarks: speed, memory and quality, measured by the jobs that users run. They are no tests."""
