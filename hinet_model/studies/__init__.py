"""Studies: many short trainings that answer one question, judged together."""
