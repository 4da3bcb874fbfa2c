"""How the models of a family are split over the axis tensor of a mesh."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from prismer_jax.models import family


def tensor_rules(name: str, model: Any) -> Sequence[tuple[str, Any]]:
    """Returns a family's rules for sharding='tensor': `tensor_rules` of its module, or of a package's `split`."""
    module = family(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{module.__name__}.split")
    rules = module.tensor_rules(model) if hasattr(module, "tensor_rules") else ()
    return model.tensor_rules(rules) if hasattr(model, "tensor_rules") else rules
