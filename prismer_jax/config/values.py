"""What values a config or a flag may hold: of the types that annotations, or a table of keys, say; some numbers."""

from __future__ import annotations

import inspect
import numbers
import os
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prismer_jax import runtime
from prismer_jax.errors import UserError

WORKERS = 16  # processes a core at most: more would only fill the memory, and take hours to start
PATH, SECTION = str | os.PathLike, Mapping[str, Any]
# The types of the keys of a config, and of those of its sections, that are no function's arguments.
KEYS: dict[str, Any] = dict.fromkeys(("data", "evals", "tasks", "model", "loss", "optim"), SECTION)
KEYS |= dict.fromkeys(("targets", "mesh", "checkpoint", "report", "profile", "wandb"), SECTION | None)
KEYS |= dict.fromkeys(("freeze", "init_fresh"), str | Sequence[str] | None) | dict(batch_size=int, tokenizer=str)
KEYS |= dict.fromkeys(("accumulate", "num_workers"), int | None) | dict.fromkeys(("prng", "frozen_dtype"), str | None)
KEYS |= dict(init=PATH | None, files=PATH | Sequence | None, sharding=str | Sequence | None, distributed=bool | None)
KEYS |= dict(max_bad_fraction=float | None)
SECTIONS: dict[str, dict[str, Any]] = dict(data=dict(name=str, pp=str, pack=SECTION, features=str), tasks={})
SECTIONS |= dict(evals=dict(type=str, data=SECTION, train_data=SECTION | None, pp=str))
NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}
NAMES |= dict.fromkeys((Sequence, list, tuple), "a list") | dict.fromkeys((Mapping, dict), "a section")


def parameters(fn: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the parameters of a function or class by name; of a class also those that it hands on to its parents."""
    try:
        by_name = dict(inspect.signature(fn, eval_str=True).parameters)
    except NameError:  # of an annotation that only type checkers can read
        by_name = dict(inspect.signature(fn).parameters)
    if isinstance(fn, type) and fn.__base__ is not object and any(p.kind is p.VAR_KEYWORD for p in by_name.values()):
        return {**parameters(fn.__base__), **by_name}
    return by_name


def kinds(fn: Callable[..., Any]) -> dict[str, Any]:
    """Returns {name: annotation} of the parameters of a function or class, or of the fields of a dataclass."""
    if hasattr(fn, "__dataclass_fields__"):
        return typing.get_type_hints(fn)
    return {name: p.annotation for name, p in parameters(fn).items()}


def check(values: Mapping[str, Any], kinds: Mapping[str, Any], where: str) -> None:
    """Raises a UserError that begins with WHERE.KEY for the first value that is not of the type that `kinds` says."""
    for key in values:
        if key in kinds and not fits(value := values[key], kinds[key]):
            remedy = " A key with a default may be left out." if value is None else ""
            name = _name(kinds[key]) or kinds[key]
            raise UserError(f"{where}.{key} is {reprlib.repr(value)}; it must be {name}.{remedy}")


def check_keys(config: Mapping[str, Any]) -> None:
    """Raises a UserError for a top-level key, or a section of a data set, an evaluator or a task, of another type."""
    check(config, KEYS, "config")
    for name, kinds in SECTIONS.items():
        for key, section in config.get(name, {}).items():
            check({key: section}, {key: SECTION}, f"config.{name}")
            check(section, kinds, f"config.{name}.{key}")


def fits(value: Any, kind: Any) -> bool:
    """Returns whether a value is of an annotated type: a list may stand for a tuple, a whole number for a float."""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if origin in (int, float):
        return isinstance(value, numbers.Integral if origin is int else numbers.Real) and not isinstance(value, bool)
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list | tuple) or not inner:
            return isinstance(value, list | tuple)
        each = inner if origin is tuple and ... not in inner else inner[:1] * len(value)
        return len(each) == len(value) and all(map(fits, value, each))
    said = isinstance(origin, type) and origin not in (Any, inspect.Parameter.empty)
    return not said or isinstance(value, Mapping if issubclass(origin, Mapping) else origin)


def _name(kind: Any) -> str:
    """Returns a type in words, 'a number or None', or '' for one that has none."""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(filter(None, map(_name, inner))))
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    return NAMES.get(origin, "") + (f" of {len(inner)}" if origin is tuple and ... not in inner else "")


def check_seed(seed: int | None) -> None:
    """Raises a UserError unless all generators take the seed: jax.random.key drops what is above 32 bits."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: must be a whole number from 0 to {2**32 - 1}.")


def check_workers(number: int | None) -> None:
    """Raises a UserError unless this machine can have so many loader processes; with 0 threads load."""
    cores = runtime.cores()
    if number is None or not 0 <= number <= WORKERS * cores:
        said = f"must be from 0, which loads in threads, to {WORKERS * cores}"
        raise UserError(f"num_workers={number}: {said}. One for each of the {cores} cores keeps them busy.")
