"""Numbers that a config or a flag may hold, and that not every generator or machine takes."""

from __future__ import annotations

from prismer_jax import runtime
from prismer_jax.errors import UserError

WORKERS = 16  # processes a core at most: more would only fill the memory, and take hours to start


def check_seed(seed: int | None) -> None:
    """Raises a UserError unless all generators take the seed: jax.random.key drops what is above 32 bits."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: must be a whole number from 0 to {2**32 - 1}.")


def check_workers(number: int | None) -> None:
    """Raises a UserError unless this machine can have so many loader processes; with 0 threads load."""
    cores = runtime.cores()
    if number is None or not 0 <= number <= WORKERS * cores:
        raise UserError(
            f"num_workers={number}: must be from 0, which loads in threads, to {WORKERS * cores}. One for each of the "
            f"{cores} cores that this process may use keeps them busy."
        )
