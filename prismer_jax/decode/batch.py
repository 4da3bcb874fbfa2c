"""Whole batches: encode the images, then decode or rank, compiled once for each model, shape and setting."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from prismer_jax import registry
from prismer_jax.batch import Batch, inputs
from prismer_jax.config import values
from prismer_jax.decode.cache import row_keys
from prismer_jax.errors import UserError, choose
from prismer_jax.typing import Array, Float, Int, typed

# Name -> module and function; imported when it is asked for.
METHODS = {
    "beam": "prismer_jax.decode.beam:beam_search",
    "big_vision_beam": "prismer_jax.decode.big_vision_beam:beam_search",
    "greedy": "prismer_jax.decode.greedy:greedy",
    "sample": "prismer_jax.decode.sampling:sample",
}
# Name -> function from prompts, masks and which rows count to prompts, masks and the length of a prompt.
PADDINGS = {"own": "prismer_jax.decode.batch:as_given", "reference": "prismer_jax.decode.padding:pad_as_reference"}
# Settings that are a name -> the table of these names.
NAMED = {"length": "prismer_jax.decode.lengths:LENGTHS", "filtering": "prismer_jax.decode.sampling:FILTERINGS"}
MOST = 1000  # sequences of an image at a time, beams or samples: each has a cache of its own
# Parameters that the program gives, and no config; of `generate` a config may set prompt_length.
_GIVEN = {"model", "variables", "prefill", "extend", "encoded", "batch", "answers", "answer_mask", "rng", "eos", "pad"}
_GIVEN |= {"prompt_length", "settings"}


@typed
def generate(
    model: Any,
    variables: Mapping[str, Any],
    batch: Mapping[str, Any],
    *,
    eos: int,
    pad: int,
    method: str = "beam",
    max_len: int = 0,
    min_len: int = 0,
    max_new: int = 0,
    min_new: int = 0,
    prompt_length: int | None = None,
    length: str = "",
    padding: str = "own",
    rng: Array | None = None,
    **settings: Any,
) -> tuple[Int[Array, "b n s"], Float[Array, "b n"]]:
    """Continues the prompts of a batch.

    Args:
      model: has `encode`, `prefill` and `extend` (see models.vlm), and is hashable.
      batch: `image`, `labels/...` and the prompts as `text` with its masks; what models do not read is ignored. Of `k`
        times as many texts as images each image has k, one after the other; it is encoded once. A batch that is sharded
        over a mesh is decoded where it lies, each device at its own pace.
      eos, pad: ids of the tokenizer.
      method: a name of METHODS; its own settings (num_beams=3, top_p=0.9 ...) follow as keywords.
      max_new: most tokens of the continuation; or max_len, which counts the prompt's columns too (the reference's way).
      min_new: no `eos` before so many tokens; or min_len, which counts the prompt's columns too.
      prompt_length: what the prompt counts in the length that a beam's score is divided by: its columns by default, as
        in the reference (NVlabs/prismer with transformers 4.26.1); 0 for models without, and by default for tiles.
      length: a name of decode.lengths.LENGTHS, which says what max_new, min_new (no ..._len) and beams count as length.
      padding: 'own' takes every prompt as it is given, so that its continuation depends on it alone; 'reference' as if
        all were padded on the right to the longest of the batch (decode/padding.py), for official checkpoints.
      rng: a typed key (jax.random.key) for method 'sample'; the others draw nothing. Each row draws with it and with
        its `draw` in the batch, by default its place.

    Returns:
      The tokens after the prompt, with pads after `eos`, n sequences an image; their scores.

    Raises:
      UserError: unknown method, padding or setting, a setting out of range, no max_len or max_new, a key missing in
        the batch, or sampling without rng.
    """
    function, width = registry.imported("decoding method", method, METHODS), Batch(batch)["text"].shape[1]
    own = dict(max_len=max_len, max_new=max_new, min_len=min_len, min_new=min_new, length=length, padding=padding)
    check({**settings, **own, "prompt_length": prompt_length}, f"decoding method {method!r}", function, generate)
    tiles = "image_mask" in batch  # whose prompts are cut to the longest of a batch
    if tiles and (max_len or min_len):
        raise UserError("max_len and min_len count columns, which tiles have as their batch needs: give ..._new.")
    if 0 < max_len <= width:
        raise UserError(f"max_len={max_len} counts the prompt, which already has {width} columns: raise max_len.")
    if method == "sample" and rng is None:
        raise UserError("Decoding method 'sample' draws at random: give it rng=jax.random.key(seed).")
    settings |= {"eos": eos, "pad": pad, "max_new": max_new, "min_new": min_new}
    if length:
        rules = importlib.import_module("prismer_jax.decode.lengths")
        settings |= rules.settled(length, width, max_new, min_new, method)
    elif tiles and prompt_length is None:
        prompt_length = 0
    settings |= {name: max(0, x - width) for name, x in (("max_new", max_len), ("min_new", min_len)) if x}
    if prompt_length is not None and "prompt_length" in inspect.signature(function).parameters:
        settings["prompt_length"] = prompt_length
    return run(model, variables, batch, {}, rng if method == "sample" else None, function, settings, padding)


def check(settings: Mapping[str, Any], where: str, *functions: Callable[..., Any], extra: Collection[str] = ()) -> None:
    """Raises a UserError that names `where` for settings that do not exist, or cannot be.

    They are those of functions, by default of the method and `generate`; messages also propose names of `extra`.
    """
    if not functions:
        functions = registry.imported(f"method of {where}:", settings.get("method", "beam"), METHODS), generate
    given = _GIVEN - {"prompt_length"} if generate in functions else _GIVEN
    kinds = {n: kind for function in functions for n, kind in values.kinds(function).items() if n not in given}
    for name in settings:
        choose(f"setting of {where}:", name, [*extra, *kinds])
    values.check(settings, kinds, where)
    defaults = {name: parameter.default for name, parameter in inspect.signature(functions[0]).parameters.items()}
    given = {"padding": "own", "temperature": 1, "top_p": 1, "top_k": 0, **defaults, **settings}
    choose(f"padding of {where}:", given["padding"], PADDINGS)
    for name in filter(given.get, NAMED):
        choose(f"{name} of {where}:", given[name], registry.imported("setting", name, NAMED))
    for name in {"num_beams", "num_samples"} & given.keys():
        least, most = defaults.get("num_return", 0), given[name]
        if not 1 <= most <= MOST:
            raise UserError(f"{where}: {name}={most}: must be from 1 to {MOST}.")
        if not least <= given.get("num_return", 0) <= most:
            raise UserError(f"{where}: num_return={given['num_return']}: must be from {least} to {name}={most}.")
    if given["temperature"] <= 0 or not 0 < given["top_p"] <= 1 or given["top_k"] < 0:
        raise UserError(f"{where}: needs temperature > 0 (at 0, method='greedy' is meant), 0 < top_p <= 1, top_k >= 0.")
    if given.get("repetition_penalty", 1) <= 0 or not 0 <= given.get("label_smoothing", 0) < 1:
        raise UserError(f"{where}: needs repetition_penalty > 0, and a label_smoothing from 0 to less than 1.")
    if below := [name for name in ("ahead", "prompt_length", "min_len", "min_new") if (given.get(name) or 0) < 0]:
        raise UserError(f"{where}: {below[0]}={given[below[0]]}: must not be negative.")
    if any(0 < settings.get(f"max_{unit}", 0) < settings.get(f"min_{unit}", 0) for unit in ("len", "new")):
        raise UserError(f"{where}: min_len is above max_len, or min_new above max_new: lower it.")
    most, least = {"max_len", "max_new"}, {"min_len", "min_new"}
    positive = {name for name in most | least if settings.get(name, 0) > 0}
    if (settings.keys() & most and len(positive & most) != 1) or positive >= least:
        raise UserError(f"{where}: give one of max_len and max_new, above 0, and at most one of min_len and min_new.")


def as_given(text: Array, mask_input: Array, counted: Array | None = None) -> tuple[Array, Array, int]:
    """Leaves prompts as they are; a prompt's length is their number of columns."""
    return text, mask_input, text.shape[1]


def run(
    model: Any,
    variables: Mapping[str, Any],
    batch: Mapping[str, Any],
    constants: dict[str, Any],
    rng: Array | None,
    function: Callable[..., Any],
    settings: dict[str, Any],
    padding: str,
) -> Any:
    """Returns what a function of this package, such as `rank`, makes of a batch, with constants and settings."""
    lay_out = registry.imported("padding", padding, PADDINGS)
    arrays = inputs(batch)
    sharding, mesh, axes = getattr(arrays.get("image"), "sharding", None), None, None
    if isinstance(sharding, NamedSharding) and sharding.spec and sharding.spec[0] is not None:
        mesh, axes = sharding.mesh, sharding.spec[0]
    static = tuple(sorted((key, tuple(x) if isinstance(x, list) else x) for key, x in settings.items()))
    return _compiled(variables, arrays, constants, rng, model, function, static, lay_out, mesh, axes)


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 8, 9))
def _compiled(variables: Any, batch: Any, constants: Any, rng: Any, *how: Any) -> Any:
    model, function, static, lay_out, mesh, axes = how
    batch = Batch(batch)
    text, mask, prompt_length = lay_out(batch["text"], batch["mask_input"], batch.get("_mask"))
    batch = {**batch, "text": text, "mask_input": mask}
    if "prompt_length" in inspect.signature(function).parameters:
        constants = {"prompt_length": prompt_length, **constants}

    def decode(variables: Any, batch: Any, constants: Any, by_row: Any) -> Any:
        batch, count = Batch(batch), len(batch["text"])

        def repeat(x: Array) -> Array:  # rows of images, each of which has as many texts that follow one another
            return jnp.repeat(x, count // len(x), axis=0) if len(x) < count else x

        encoded = jax.tree.map(repeat, model.apply(variables, batch, method="encode"))
        if "image_mask" in batch:
            batch["image_mask"] = repeat(batch["image_mask"])
        prefill = functools.partial(model.apply, variables, method="prefill")
        extend = functools.partial(model.apply, variables, method="extend")
        return function(prefill, extend, encoded, batch, **{**constants, **dict(static)}, **by_row)

    if mesh is not None:
        # Left to XLA's partitioner, every column would wait for the slowest device (are *all* sequences done?), and
        # parameters sharded over the mesh would be gathered again for every token. Here they are gathered once and each
        # device loops over its own images, without any communication.
        rows, whole = PartitionSpec(axes), PartitionSpec()
        decode = jax.shard_map(decode, mesh=mesh, in_specs=(whole, rows, whole, rows), out_specs=rows, check_vma=False)
    by_row = {} if rng is None else {"rng": row_keys(rng, batch.get("draw", jnp.arange(len(batch["text"]))))}
    return decode(variables, batch, constants, by_row)
