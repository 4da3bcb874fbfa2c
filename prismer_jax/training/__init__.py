"""What training repeats, its step, and what goes with it: kept features, the pace of a run, signals."""
