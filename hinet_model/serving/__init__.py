"""Scores from raw rows: one scorer for REST, Spark and evaluation."""
