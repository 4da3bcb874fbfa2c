"""Models by name: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import linen as nn

from prismer_jax.errors import choose
from prismer_jax.models import prismer

MODELS = {"prismer": prismer.build}
FREEZE = {"prismer": prismer.FREEZE}
# {name of a parameter: function of (array, shape)} that fits it to another resolution of the image.
RESIZE = {"prismer": prismer.RESIZE}


def build(name: str = "prismer", **fields: Any) -> nn.Module:
    """Returns the model of that name; `fields` go to its own build function.

    Raises:
      UserError: an unknown model, variant or field.
    """
    return choose("model", name, MODELS)(**fields)


def frozen(name: str, freeze: str | Sequence[str]) -> tuple[str, ...]:
    """Returns regexes of the parameters that are not trained: those of a model's freezing mode, or the given ones.

    Raises:
      UserError: an unknown model or mode.
    """
    modes = choose("model", name, FREEZE)
    return choose("freezing mode", freeze, modes) if isinstance(freeze, str) else tuple(freeze)
