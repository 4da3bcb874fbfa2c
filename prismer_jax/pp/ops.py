"""The table of preprocessing ops and the chain that a config's string names.

An op is a function that takes its settings and returns `op(example, rng) -> example`: NumPy only, no state, all
randomness from `rng`. `@register` enters it in the table under its own name.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from prismer_jax import config, registry
from prismer_jax.config import values
from prismer_jax.errors import UserError, choose

Example = dict[str, Any]
Op = Callable[[Example, np.random.Generator], Example]

OPS: dict[str, Callable[..., Op]] = {}
# Ops of modules that are imported when a chain names one of them.
FURTHER = {
    "randaugment": "prismer_jax.pp.randaugment",
    "stretch": "prismer_jax.pp.bilinear",
    "tiles": "prismer_jax.pp.tiles",
    **dict.fromkeys(("flip", "negative", "noise_labels", "random_resized_crop"), "prismer_jax.pp.augment"),
    **dict.fromkeys(("blip_randaugment", "image_id", "prompt_template"), "prismer_jax.pp.blip"),
    **dict.fromkeys(("affix", "prefix_lm"), "prismer_jax.pp.prefix_lm"),
    **dict.fromkeys(("prefix_suffix", "seq2seq"), "prismer_jax.pp.seq2seq"),
    **dict.fromkeys(("ask", "chat", "turns"), "prismer_jax.pp.chat"),
    **dict.fromkeys(("describe", "detect", "label_objects", "outline", "segment"), "prismer_jax.pp.objects"),
}


def register(factory: Callable[..., Op]) -> Callable[..., Op]:
    """Enters an op in the table under the function's name; a second op of that name is a mistake."""
    if factory.__name__ in OPS:
        raise ValueError(f"an op named {factory.__name__!r} exists already")
    OPS[factory.__name__] = factory
    return factory


class Pipeline:
    """The chain of ops of a string: `pipeline(example, rng) -> example`. The example handed in is left as it was.

    Pickled as (spec, tokenizer), so that worker processes get it whatever closures its ops are.
    """

    def __init__(self, spec: str, tokenizer: Any = None) -> None:
        self.spec, self.tokenizer = spec, tokenizer
        self.ops = [make(name, args, kwargs, tokenizer) for name, args, kwargs in registry.parse(spec)]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        example = dict(example)
        for op in self.ops:
            example = op(example, rng)
        return example

    def __reduce__(self) -> tuple[type, tuple[str, Any]]:
        return Pipeline, (self.spec, self.tokenizer)


def make(name: str, args: tuple, kwargs: dict[str, Any], tokenizer: Any) -> Op:
    """Returns the op of that name with its settings; it gets the tokenizer if it takes one.

    Raises:
      UserError: as `Pipeline`'s.
    """
    if name in FURTHER:
        importlib.import_module(FURTHER[name])
    factory = choose("preprocessing op", name, {**FURTHER, **OPS})
    parameters = values.parameters(factory)
    if "tokenizer" in parameters:
        if tokenizer is None:
            raise UserError(f"The op {name} needs a tokenizer: pass one to pp.build.")
        kwargs = {**kwargs, "tokenizer": tokenizer}
    try:
        inspect.signature(factory).bind(*args, **kwargs)
        config.arguments(factory, {**dict(zip(parameters, args, strict=False)), **kwargs}, name, extra=())
    except (TypeError, UserError) as error:
        usage = f"{name}({', '.join(str(p) for p in parameters.values() if p.name != 'tokenizer')})"
        raise UserError(f"The op {name} does not take these arguments ({error}) Write {usage}.") from error
    return factory(*args, **kwargs)
