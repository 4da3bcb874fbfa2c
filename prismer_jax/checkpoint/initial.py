"""What a run starts from: the variables of an exported model, or of another run's checkpoint, in a fresh state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prismer_jax import tree
from prismer_jax.checkpoint import arrays, layout
from prismer_jax.checkpoint.reading import find, is_variable
from prismer_jax.files.storage import PathLike

logger = logging.getLogger(__name__)


def load_into(
    state: Mapping[str, Any],
    path: PathLike,
    fresh: Sequence[str] = (),
    resize: Mapping[str, Callable[[np.ndarray, tuple[int, ...]], Any]] | None = None,
    optional: Sequence[str] = (),
    pack: Mapping[str, Callable[[np.ndarray], dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Returns the variables of a state with the values of an exported model, or of another run's checkpoint.

    Numbers with a fraction may be of another type in the file; they are converted.

    Args:
      state: initialised; its variables are everything but 'opt' and 'step'. Every leaf returned is placed like its own.
      path: whatever `find` accepts.
      fresh: regexes of whole names ('params/encoder/stems/.*'): what they match keeps its initial values and need not
        be in the file, or is in the file and need not be in the state.
      resize: {name: function of (saved array, expected shape)} of what may have another shape in the file, as position
        embeddings of another resolution have (see models.RESIZE).
      optional: regexes of names that keep their initial values if the file has none of them.
      pack: {name: function of the saved array -> {part: array}} of what the state may hold in parts, 'name/part'.

    Raises:
      UserError: there is nothing of the kind, a regex matches nothing, or the file and the state differ elsewhere.
    """
    folder = find(path)
    ours = {name: leaf for name, leaf in tree.flatten(state).items() if is_variable(name)}
    saved = {name: shape for name, shape in layout.saved_shapes(folder).items() if is_variable(name)}
    skipped = tree.first_match([*fresh, *optional], {**ours, **saved}, "init_fresh")
    if any(matched >= len(fresh) and name in saved for name, matched in skipped.items()):
        skipped = tree.first_match(fresh, {**ours, **saved}, "init_fresh")
    expected = {name: arrays.abstract(leaf) for name, leaf in ours.items() if name not in skipped}
    other = [n for n in resize or {} if n in expected and n in saved and saved[n].shape != expected[n].shape]
    as_saved = {name: jax.ShapeDtypeStruct(saved[name].shape, expected[name].dtype) for name in other}
    whole = {name: saved.pop(name) for name in pack or {} if name in saved}
    for name, x in whole.items():
        saved |= {f"{name}/{part}": array for part, array in jax.eval_shape(pack[name], x).items()}
    arrays.compare(folder, {n: x for n, x in saved.items() if n not in skipped}, {**expected, **as_saved}, start=True)
    read = {name: x for name, x in {**expected, **as_saved}.items() if name.rpartition("/")[0] not in whole}
    values = {**tree.flatten(state), **layout.read(folder, read)}
    with jax.transfer_guard("allow"):
        for name, x in ((name, expected[name]) for name in other):
            logger.warning("%s: resized from %s to %s.", name, [*saved[name].shape], [*x.shape])
            values[name] = jax.device_put(resize[name](values[name], x.shape).astype(x.dtype), x.sharding)
        for name, x in whole.items():  # one after the other: the file may be larger than the memory
            for part, array in jax.jit(pack[name])(layout.read(folder, {name: x})[name]).items():
                values[f"{name}/{part}"] = jax.device_put(array, expected[f"{name}/{part}"].sharding)
    variables = {key: part for key, part in state.items() if is_variable(key)}
    return jax.tree.map(values.__getitem__, tree.names(variables))
