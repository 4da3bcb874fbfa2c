"""Config files are programs, `get_config(arg)`; here they are run, overridden, read strictly and kept with the results.

    python -m prismer_jax.train --config configs/quickstart.py:z,smoke --config.optim.lr=3e-4 --workdir runs/z

A key that is misspelt, of another type, or that nobody reads is a UserError before the first step. `command_line.py`
runs the file and overrides its keys, `section.py` and `durations.py` read, `values.py` checks, `keeping.py` writes.
"""

from prismer_jax.config.command_line import RECIPES, ArgumentParser, load, parse_arg
from prismer_jax.config.durations import duration_keys, steps
from prismer_jax.config.keeping import Workdir, locked_workdir, provenance, save_resolved, to_json
from prismer_jax.config.section import Section, arguments, assert_read, call, plain, strict
from prismer_jax.config.values import check_seed, check_workers

__all__ = ["RECIPES", "ArgumentParser", "Section", "Workdir", "arguments", "assert_read", "call"]
__all__ += ["check_seed", "check_workers", "duration_keys", "load", "parse_arg", "plain", "provenance", "save_resolved"]
__all__ += ["locked_workdir", "steps", "strict", "to_json"]
