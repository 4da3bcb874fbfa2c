"""Label maps in colour, sample panels, learning curves and the report page of a run."""

from prismer_jax.report.comparison import write_comparison
from prismer_jax.report.draw import colorize, contact, panel
from prismer_jax.report.evaluation import write_evaluation
from prismer_jax.report.page import write_report

__all__ = ["colorize", "contact", "panel", "write_comparison", "write_evaluation", "write_report"]
