"""What the cases of experts that look at whole photos have in common: where they begin."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from prismer_jax.experts.expert import SquareExpert

from .case import Case


def begin(case: Case, expert: SquareExpert) -> tuple[Any, jax.Array]:
    """Returns the expert's variables, and its normalised input [b, h, w, 3]: stored (`x`), or made of a photo."""
    variables = jax.tree.map(jnp.asarray, expert.from_official(case.state(), case.name))
    if "in/image" in case.arrays:
        return variables, expert.normalize(jnp.asarray(expert.prepare(case["image"])["image"][None]))
    return variables, rearrange(jnp.asarray(case["x"]), "b c h w -> b h w c")
