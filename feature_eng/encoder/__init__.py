"""The encoder: raw columns to indices and numbers, one state with two interpreters."""
