"""The shapes that a file's arrays have here, which say the sizes of a model where no other file does."""

from __future__ import annotations

import re

import numpy as np
from einops import EinopsError, rearrange

from prismer_jax.weights import rules

Shapes = dict[str, tuple[int, ...]]


def here(state: rules.State, table: rules.Table, where: str = "the checkpoint") -> Shapes:
    """Returns {'/'-joined name: shape} of those parameters that a state dict holds; no array is read.

    The first layer stands for all of a stack, whose first axis is the number of layers. An array with another number of
    axes than its row in the table is left out, and reported when the state dict is converted.

    Args:
      table: rows whose keys the state dict lacks are skipped, so that it may be of several kinds of models.
      where: names the file in errors.

    Raises:
      UserError: a key is there twice, see rules.Table.spell.
    """
    state = table.spell(state, where)
    shapes: Shapes = {}
    for rule in table.rules:
        pattern = re.compile(re.escape(rule.key).replace(r"\{\}", r"(\d+)"))
        layers = [key for key in state if pattern.fullmatch(key)]
        if rule.derived or not layers:
            continue
        theirs, ours = rules.LAYOUTS[rule.layout]
        shape = list(state[layers[0]].shape)
        if rule.axis < len(shape):
            shape[rule.axis] //= len(rule.names)
        try:
            array = np.broadcast_to(np.float32(0), shape)
            array = rearrange(array, f"{theirs} -> {ours}") if theirs else array
        except EinopsError:
            continue
        stack = (len(layers),) if "{}" in rule.key else ()
        shapes |= dict.fromkeys(rule.names, (*stack, *array.shape))
    return shapes
