"""Models by name: tensors in, tensors out."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from prismer_jax.errors import choose
from prismer_jax.models import prismer

MODELS = {"prismer": prismer.build}


def build(name: str = "prismer", **fields: Any) -> nn.Module:
    """Returns the model of that name; `fields` go to its own build function.

    Raises:
      UserError: an unknown model, variant or field.
    """
    return choose("model", name, MODELS)(**fields)
