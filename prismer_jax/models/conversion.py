"""Conversion of any family's checkpoints by its TABLE, and what `tools.convert` asks of a family.

A family whose files need no more than its table has no more than that. One with flags, checks or tasks of its own has
COMMANDS beside the table, {name: Command}.
"""

from __future__ import annotations

import argparse
import importlib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from prismer_jax import tree
from prismer_jax.errors import UserError
from prismer_jax.models import family
from prismer_jax.weights import rules

Put = Callable[[Any], Any]
PARTS = ("vision", "qformer", "language", "decoder", "classes")  # what is a dict among the arguments of models.build


def of_family(name: str) -> types.ModuleType:
    """Returns the module with a family's conversion TABLE: its own, or `conversion` of a family that is a package.

    A family of one module that is only trained here, as the student is, has none.
    """
    module = family(name)
    own = hasattr(module, "TABLE") or not hasattr(module, "__path__")
    return module if own else importlib.import_module(f"{module.__name__}.conversion")


def table_of(name: str, model: Any) -> rules.Table:
    """Returns the table of a family's model: TABLE, or what `table_of` makes where parts of models differ in kind."""
    module = of_family(name)
    if not (hasattr(module, "table_of") or hasattr(module, "TABLE")):
        raise UserError(f"A {name} has no names in the files of other frameworks: export it as orbax or msgpack.")
    return module.table_of(model) if hasattr(module, "table_of") else module.TABLE


@dataclass(frozen=True)
class Converted:
    """A model with the weights of other files, and what an export says of it.

    Attributes:
      model: the linen module.
      variables: all of its variables.
      description: {'model': arguments of models.build, 'tokenizer': its spec, 'tasks': how it is used}.
      files: {name: path, or content in bytes} of the tokenizer.
      note: what a user has to know, or ''.
    """

    model: Any
    variables: dict[str, Any]
    description: dict[str, Any]
    files: dict[str, Any] = field(default_factory=dict)
    note: str = ""


class Command(NamedTuple):
    """A command of tools.convert.

    Attributes:
      help: a sentence.
      flags: adds its flags to a parser.
      run: (parsed flags, function that puts each array where it belongs) -> Converted.
      fields: whether `run` reads the flags' `model`, the fields of --config.model.KEY.
    """

    help: str
    flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Put], Converted]
    fields: bool = True


def merged(fields: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of models.build with one's own on top of them, and so in each dict among them.

    Raises:
      UserError: a part of a model is given a value, which has fields of its own.
    """
    for name in PARTS:
        if not isinstance(own.get(name, {}), Mapping):
            raise UserError(
                f"--config.model.{name}={own[name]!r}: it has fields; give them, --config.model.{name}.KEY."
            )
    both = {
        k: {**fields[k], **own[k]} for k in own if isinstance(own[k], Mapping) and isinstance(fields.get(k), Mapping)
    }
    return {**fields, **own, **both}


def shapes_of(model: Any) -> dict[str, Any]:
    """Returns {'params/...' or 'batch_stats/...': shape and dtype} of a model, without computing anything."""
    variables = jax.eval_shape(model.init_variables, jax.random.key(0))
    return tree.flatten({k: variables[k] for k in ("params", "batch_stats") if k in variables})


def initial_values(model: Any, names: Sequence[str], seed: int = 0) -> dict[str, jax.Array]:
    """Returns {'/'-joined name: initial value} of these parameters; the others are not computed."""

    @jax.jit
    def init(rng: jax.Array) -> dict[str, jax.Array]:
        flat = tree.flatten(model.init_variables(rng))
        return {name: flat[name] for name in names}

    return init(jax.random.key(seed))


def from_torch(
    state: rules.State,
    model: Any,
    table: rules.Table,
    where: str = "the checkpoint",
    *,
    allow: Sequence[str] = (),
    put: Put = np.asarray,
) -> dict[str, Any]:
    """Returns the variables {'params'[, 'batch_stats']} of a state dict {key: array}.

    Args:
      where: names the file in errors.
      allow: regexes of keys that may be missing, unexpected or of another shape (see rules.from_torch).
      put: where each array is put as soon as it is made; only one is in memory twice.

    Raises:
      UserError: the keys or shapes do not fit the model; all of them, grouped.
    """
    fresh = lambda names: initial_values(model, names)  # noqa: E731
    flat = rules.from_torch(state, table, shapes_of(model), where, allow, fresh)
    return {"batch_stats": {}} | tree.unflatten({name: put(make()) for name, make in flat.items()})


def unwritable(description: Mapping[str, Any], lacks: str, other: str) -> UserError:
    """Returns the error for a model that its original's format cannot hold: what that lacks, and another format."""
    return UserError(f"{description['folder']}: {lacks}; use tools.export --format {other}.")


def check_held(model: Any, lost: Sequence[str], description: Mapping[str, Any], other: str = "orbax") -> None:
    """Raises a UserError for a model with experts, or with settings, by name, that its original's config.json lacks."""
    if model.experts:
        raise unwritable(description, "the original has no experts", "orbax")
    if lost:
        raise unwritable(description, f"the original has no setting for {', '.join(lost)}", other)


def to_torch(variables: Mapping[str, Any], table: rules.Table) -> dict[str, np.ndarray]:
    """Returns the state dict {key: array} of {'params'[, 'batch_stats']}, as views; gradients convert likewise."""
    flat = tree.flatten({k: variables[k] for k in ("params", "batch_stats") if k in variables})
    return rules.to_torch(flat, table)
