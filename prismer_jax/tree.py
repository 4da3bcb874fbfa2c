"""Names of the leaves of a tree: 'encoder/layer/kernel'. Freezing, learning rates, shardings, checkpoints use them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from prismer_jax.errors import UserError, nearest


def names(tree: Any) -> Any:
    """Returns a tree of the same structure whose leaves are the '/'-joined names of the leaves."""
    return jax.tree.map_with_path(lambda path, _: _name(path), tree)


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {'a/b': leaf} in the tree's own order; tuples and named tuples give their index or field as a name."""
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict of {'a/b': leaf}; the inverse of `flatten` for nested dicts."""
    nested: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return nested


def _name(path: Sequence[Any]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def first_match(patterns: Sequence[str], leaf_names: Iterable[str], where: str) -> dict[str, int]:
    """Returns {name: index of the first pattern that matches it}; names that no pattern matches are left out.

    Patterns are regular expressions that must match the *whole* name ('encoder/.*', '.*/bias').

    Raises:
      UserError: a pattern is no regular expression, or matches no name at all; `where` says whose it is.
    """
    leaf_names = list(leaf_names)
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise UserError(f"{where}: {error.pattern!r} is not a regular expression: {error}.") from None
    for pattern, regex in zip(patterns, compiled, strict=True):
        if not any(map(regex.fullmatch, leaf_names)):
            word = max(re.findall(r"\w+", pattern), key=len, default="")
            similar = [name for name in leaf_names if word and word in name] or leaf_names
            like = f"Names are like {', '.join(map(repr, similar[:3]))}."
            raise UserError(
                f"{where}: {pattern!r} matches no parameter. A pattern must match a whole name, as 'encoder/.*' does. "
                f"{nearest(pattern, leaf_names) if len(leaf_names) < 20 else like}"
            )
    hits = ((name, [i for i, regex in enumerate(compiled) if regex.fullmatch(name)]) for name in leaf_names)
    return {name: matches[0] for name, matches in hits if matches}
