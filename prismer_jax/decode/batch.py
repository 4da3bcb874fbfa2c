"""Whole batches: encode the images, then decode or rank, compiled once for each model, shape and setting."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from prismer_jax.decode.beam import beam_search
from prismer_jax.decode.cache import PAD
from prismer_jax.decode.ranking import rank
from prismer_jax.decode.sampling import greedy, row_keys, sample
from prismer_jax.errors import UserError, choose
from prismer_jax.typing import Array, Bool, Float, Int, typed

METHODS: dict[str, Callable[..., tuple[Array, Array]]] = {"beam": beam_search, "greedy": greedy, "sample": sample}
# Parameters that are no settings.
_TAKEN = ("prefill", "extend", "encoded", "prompt", "rng", "max_len", "min_len", "prompt_length")


@typed
def generate(
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, Any],
    *,
    method: str = "beam",
    max_len: int = 0,
    min_len: int = 0,
    max_new: int = 0,
    min_new: int = 0,
    padding: str = "own",
    rng: Array | None = None,
    **settings: Any,
) -> tuple[Int[Array, "b n s"], Float[Array, "b n"]]:
    """Continues the prompts of a batch.

    Args:
      model: has `encode(image, batch)`, `prefill` and `extend` (see prismer_jax.decode), and is hashable.
      batch: `image`, `labels/...` and the prompts as `text`; other keys are ignored. A batch that is sharded over a
        mesh is decoded where it lies, each device at its own pace.
      method: a name of METHODS; its own settings (num_beams=3, top_p=0.9 ...) follow as keywords.
      max_len: length of the result, prompt included (the reference's way of counting); or max_new, without the prompt.
      min_len: no `eos` before this length, prompt included; or min_new, without the prompt.
      padding: 'own' takes every prompt as it is given, so that its continuation depends on it alone; 'reference' as if
        all were padded on the right to the longest of the batch (see `pad_as_reference`), for official checkpoints.
      rng: a typed key (jax.random.key) for method 'sample'; the others draw nothing.

    Returns:
      Tokens with the prompt in front (in `padding`'s layout) and pads after `eos`, n of them an image; their scores.

    Raises:
      UserError: unknown method, padding or setting, a setting out of range, no max_len or max_new, or sampling without
        rng.
    """
    function, width = choose("decoding method", method, METHODS), batch["text"].shape[1]
    known = {name: None for name in inspect.signature(function).parameters if name not in _TAKEN}
    for name in settings:
        choose(f"setting of decoding method {method!r}:", name, known)
    if (max_len > 0) == (max_new > 0) or (min_len > 0 and min_new > 0):
        raise UserError("Give decoding one of max_len and max_new, above 0, and at most one of min_len and min_new.")
    if method == "sample" and rng is None:
        raise UserError("Decoding method 'sample' draws at random: give it rng=jax.random.key(seed).")
    settings["max_len"] = max_len or width + max_new
    settings["min_len"] = width + min_new if min_new else min_len
    return _run(model, variables, batch, {}, rng if method == "sample" else None, function, settings, padding)


@typed
def rank_answers(
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, Any],
    answers: Int[Any, "a l"],
    *,
    padding: str = "own",
    **settings: Any,
) -> tuple[Int[Array, " b"], Int[Array, "b k"], Float[Array, "b k"]]:
    """`rank` for a batch: as `generate`, with `answers` [A,L] as token ids and the settings of `rank` (k=...)."""
    return _run(model, variables, batch, {"answers": answers}, None, rank, settings, padding)


@typed
def pad_as_reference(
    prompt: Int[Array, "b t"], counted: Bool[Array, " b"] | None = None
) -> tuple[Int[Array, "b t"], Int[Array, ""]]:
    """Lays prompts out so that they continue as if padded on the right to the longest of the batch.

    The reference does that (model/prismer_vqa.py), so that it reads the first token of an answer off a pad wherever a
    question is not the longest of its batch: answers depend on their neighbours. How many pads there are does not
    matter, as they are never attended to and positions do not count them. So one of them is kept, behind the prompts
    that are shorter than the longest, and the rest goes to the left: every batch has the same shape.

    Args:
      prompt: token ids with pads anywhere.
      counted: the rows that are no filling of a last batch; all by default.

    Returns:
      The prompts, and the longest one's number of tokens.
    """
    real = prompt != PAD
    number = real.sum(-1)
    longest = number.max(initial=0, where=counted)
    prompt = jnp.take_along_axis(prompt, jnp.argsort(real, axis=-1, stable=True), axis=-1)
    return jnp.where((number < longest)[:, None], jnp.roll(prompt, -1, axis=-1), prompt), longest


def _run(
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, Any],
    constants: dict[str, Any],
    rng: Array | None,
    function: Callable[..., Any],
    settings: dict[str, Any],
    padding: str,
) -> Any:
    choose("padding", padding, {"own": None, "reference": None})
    inputs = {k: v for k, v in batch.items() if k in ("image", "text") or k.startswith("labels/")}
    sharding, mesh, axes = getattr(inputs["image"], "sharding", None), None, None
    if isinstance(sharding, NamedSharding) and sharding.spec and sharding.spec[0] is not None:
        mesh, axes = sharding.mesh, sharding.spec[0]
    static = tuple(sorted(settings.items()))
    counted = batch.get("_mask") if padding == "reference" else None
    return _compiled(
        variables, inputs, counted, constants, rng, model, function, static, padding == "reference", mesh, axes
    )


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8, 9, 10))
def _compiled(
    variables: Any,
    inputs: Any,
    counted: Any,
    constants: Any,
    rng: Any,
    model: Any,
    function: Any,
    static: Any,
    as_reference: bool,
    mesh: Any,
    axes: Any,
) -> Any:
    if as_reference:
        text, longest = pad_as_reference(inputs["text"], counted)
        inputs = {**inputs, "text": text}
        if "prompt_length" in inspect.signature(function).parameters:
            constants = {**constants, "prompt_length": longest}

    def decode(variables: Any, inputs: Any, constants: Any, by_row: Any) -> Any:
        encoded = model.apply(variables, inputs["image"], inputs, method="encode")
        prefill = functools.partial(model.apply, variables, method="prefill")
        extend = functools.partial(model.apply, variables, method="extend")
        return function(prefill, extend, encoded, inputs["text"], **constants, **by_row, **dict(static))

    if mesh is not None:
        # Left to XLA's partitioner, every column would wait for the slowest device (are *all* sequences done?), and
        # parameters sharded over the mesh would be gathered again for every token. Here they are gathered once and each
        # device loops over its own images, without any communication.
        rows, whole = PartitionSpec(axes), PartitionSpec()
        decode = jax.shard_map(decode, mesh=mesh, in_specs=(whole, rows, whole, rows), out_specs=rows, check_vma=False)
    by_row = {} if rng is None else {"rng": row_keys(rng, len(inputs["text"]))}
    return decode(variables, inputs, constants, by_row)
