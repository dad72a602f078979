"""What a step reads: the plan of an epoch, its rows through Petastorm, and the batch."""
