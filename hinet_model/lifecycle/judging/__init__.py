"""Judging models on labelled rows: metrics with intervals per cell, aggregated on Spark."""
