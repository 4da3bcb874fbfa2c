"""Families of vision-language models by name; `models.vlm` says what a family and a model have."""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any

from prismer_jax import config
from prismer_jax.config import values
from prismer_jax.errors import UserError, choose
from prismer_jax.models import vlm

DEFAULT = "prismer"  # of sections that name none
# Name -> module, which is imported when a model of the family is asked for.
FAMILIES = {name: f"prismer_jax.models.{name}" for name in ("blip2", "nanovlm", "paligemma", "prismer", "student")}


def name_of(section: Mapping[str, Any]) -> str:
    """Returns the family of a config's or a checkpoint's section `model`."""
    return section.get("name", DEFAULT)


def family(name: str) -> types.ModuleType:
    """Returns the module of a family.

    Raises:
      UserError: an unknown family.
    """
    return importlib.import_module(choose("model", name, FAMILIES))


def build(name: str = DEFAULT, *, tokenizer: Any = None, lora: Any = None, quantize: Any = None, **fields: Any) -> Any:
    """Returns a model of that family; `fields` go to its own build function.

    Args:
      tokenizer: whose ids the model takes; the family's own (the official checkpoints') by default.
      lora, quantize: adapters beside its kernels, and kernels in few bits; see models.lora.

    Raises:
      UserError: an unknown family, variant or field, a family that lacks a part of the interface, or a tokenizer with
        more ids than the model.
    """
    module = family(name)
    if "variant" in fields:
        choose("variant", fields["variant"], module.VARIANTS)
    if "dtype" in fields:
        choose("config.model.dtype", fields["dtype"], ("float32", "bfloat16", "float16"))
    cls = inspect.signature(module.build, eval_str=True).return_annotation
    values.check(fields, {**values.kinds(cls), **values.kinds(module.build)}, "config.model")
    model = config.call(module.build, fields, f"config.model of the family {name!r}", tokenizer=tokenizer)
    vlm.check(model, module)
    if tokenizer is not None and getattr(model, "vocab_size", tokenizer.vocab_size) < tokenizer.vocab_size:
        raise UserError(
            f"The model has embeddings for {model.vocab_size} ids, the tokenizer {tokenizer.spec!r} has "
            f"{tokenizer.vocab_size}: take the tokenizer that it was trained with, or raise its vocab_size to that."
        )
    if lora or quantize:
        return importlib.import_module("prismer_jax.models.lora").adapt(model, lora, quantize)
    return model


def frozen(name: str, freeze: str | Sequence[str], model: Any = None) -> tuple[str, ...]:
    """Returns regexes of the parameters that are not trained: those of a family's freezing mode, or the given ones.

    Of a model with adapters, mode 'none' freezes all else. A string that cannot be a mode's name is a regex.

    Raises:
      UserError: an unknown family or mode.
    """
    if isinstance(freeze, str) and freeze.replace("-", "_").isidentifier():
        return getattr(model, "frozen", tuple)(choose("freezing mode", freeze, family(name).FREEZE))
    return (freeze,) if isinstance(freeze, str) else tuple(freeze)
