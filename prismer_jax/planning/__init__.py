"""What a training step will cost, before it runs: its memory, its program, its time."""
