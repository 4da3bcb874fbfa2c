"""The commands of this project: each has its own `--help`."""

import prismer_jax  # noqa: F401 - before any other, as it may start the program again (prismer_jax/programs.py)
