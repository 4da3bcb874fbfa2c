"""Durations in a config: so many steps, epochs, examples, or percent of the whole, whichever is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prismer_jax.errors import UserError


def duration_keys(name: str) -> tuple[str, ...]:
    """Returns the keys in which `steps` looks a duration up: ('warmup_steps', 'warmup_epochs', ...)."""
    return tuple(f"{name}_{unit}" for unit in ("steps", "epochs", "examples", "percent"))


def steps(
    section: Mapping[str, Any],
    name: str,
    *,
    batch_size: int,
    num_examples: int | None = None,
    total_steps: int | None = None,
    default: int | None = None,
    least: int = 0,
) -> int:
    """Returns a duration in steps, from exactly one of NAME_steps, NAME_epochs, NAME_examples, NAME_percent.

    Args:
      section: where the keys are looked up.
      name: 'total', 'warmup', 'evaluate', ...
      batch_size: examples a step.
      num_examples: examples an epoch; needed for epochs.
      total_steps: what percent refers to.
      default: the answer when no key is given; without it that is an error.
      least: 1 if there must be a step, else 0.

    Raises:
      UserError: none or several of the keys are given, or the value is below `least` or cannot be converted.
    """
    given = [key for key in duration_keys(name) if section.get(key) is not None]
    if not given and default is not None:
        return default
    if len(given) != 1:
        raise UserError(f"Give exactly one of {', '.join(duration_keys(name))}; the config has {given or 'none'}.")
    value, unit = section[given[0]], given[0].rpartition("_")[2]
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    if not number or (least and not value):
        raise UserError(f"Config key {given[0]!r} must be a number {'above' if least else 'from'} 0, not {value!r}.")
    units = dict(steps=(1, 1), epochs=(num_examples, batch_size), examples=(1, batch_size), percent=(total_steps, 100))
    times, parts = units[unit]
    if times is None:
        raise UserError(f"Config key {given[0]!r} cannot be used here; use {name}_steps.")
    return max(round(value * times / parts), 1 if value > 0 else 0)
