"""What training repeats: its step."""
