"""Label maps in colour, sample panels, learning curves, and pages of runs, evaluations, comparisons and studies."""
