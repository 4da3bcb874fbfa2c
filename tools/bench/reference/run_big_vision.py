"""big_vision's PaliGemma as a worker of tools.bench.big_vision, run by a Python that has jax, flax and einops.

    PYTHON tools/bench/reference/run_big_vision.py ROW SETTINGS

SETTINGS is the JSON of both sides, and names the CHECKOUT of google-research/big_vision, whose code is run. The worker
prints 'ready'; for every line on stdin it does what the row says once and prints the seconds (on one core alone, the
processor's); at the end of stdin it prints the process's peak memory in bytes and, of training, XLA's count of the
step's temporaries. Imports nothing of this project. TensorFlow, of which big_vision.utils takes the functions for files
alone, is stood in for by empty modules: no file is read, and its memory is not counted as big_vision's.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import flax  # noqa: F401  (before there is a stand-in, which it would take for TensorFlow)
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from serving import serve_row  # beside this file

RATE = 3e-2  # of finetune_paligemma.ipynb


def import_from(settings: dict[str, Any], name: str) -> Any:
    """Returns a module of the checkout."""
    if settings["checkout"] not in sys.path:
        sys.path.insert(0, settings["checkout"])
        stand_ins = [types.ModuleType(part) for part in ("tensorflow", "tensorflow.io", "tensorflow.io.gfile")]
        stand_ins[0].io, stand_ins[1].gfile = stand_ins[1:]
        sys.modules |= {module.__name__: module for module in stand_ins}
        importlib.import_module("big_vision.utils")
        for module in stand_ins:  # einops takes what is there for the whole of TensorFlow
            del sys.modules[module.__name__]
    return importlib.import_module(f"big_vision.{name}")


def model_of(settings: dict[str, Any]) -> tuple[Any, Any]:
    """Returns the model, with float32 keys and values in its cache, and fresh weights.

    Gemma's depth, which big_vision's wrapper takes from the variant alone, is that of the settings.
    """
    gemma = import_from(settings, "models.ppp.gemma")
    sizes = ml_collections.ConfigDict({**gemma.get_config("gemma_2b"), **settings["llm"]})
    gemma.get_config = lambda _: ml_collections.ConfigDict(sizes)
    img = dict(settings["img"], patch_size=tuple(settings["img"]["patch_size"]), pool_type="none", scan=True)
    llm = dict(vocab_size=settings["llm"]["vocab_size"], cache_dtype="float32")
    fields = ml_collections.FrozenConfigDict(dict(img=img, llm=llm))
    model = import_from(settings, "models.proj.paligemma.paligemma").Model(**fields)

    def init(rng: jax.Array) -> Any:
        image = jnp.zeros((1, settings["image_size"], settings["image_size"], 3))
        return model.init(rng, image, jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4), jnp.int32))["params"]

    return model, jax.jit(init)(jax.random.key(0, impl="rbg"))  # Threefry needs twice the memory


def batch_of(settings: dict[str, Any], lengths: list[int]) -> dict[str, np.ndarray]:
    """Returns photos and prompts of these lengths [b], which are padded on the right and see all of themselves."""
    draw, size, longest = np.random.default_rng(0), settings["image_size"], max(lengths)
    valid = np.arange(longest) < np.array(lengths)[:, None]
    ids = draw.integers(3, settings["words"], valid.shape, np.int32)
    image = draw.uniform(-1, 1, (len(lengths), size, size, 3)).astype(np.float32)
    text = dict(text=np.where(valid, ids, 0), mask_input=valid, mask_ar=np.zeros(ids.shape, np.int32))
    return {"image": image, **text, "_mask": np.ones(len(lengths), bool)}


def decoding(settings: dict[str, Any]) -> Callable[[], Any]:
    """What its evaluators call: predict_fns.py's `decode`, of which no token ends a text."""
    (model, params), batch = model_of(settings), batch_of(settings, settings["prompts"])
    decode = import_from(settings, "trainers.proj.paligemma.predict_fns").get_all(model)["decode"]
    how = dict(devices=np.array(jax.devices()), max_decode_len=settings["max_new"], eos_token=-1)
    return lambda: np.asarray(decode({"params": params}, batch, **how))


def training(settings: dict[str, Any], batch_size: int, length: int) -> Callable[[], Any]:
    """The step of finetune_paligemma.ipynb, whose loss is that of train.py, with the attention of Gemma trained."""
    (model, params), batch = model_of(settings), batch_of(settings, [length] * batch_size)
    said = np.broadcast_to(np.arange(length) >= settings["prefix"], batch["text"].shape)
    batch |= {"mask_ar": said.astype(np.int32), "mask_loss": said.astype(np.float32)}
    utils = import_from(settings, "utils")
    trainable = utils.tree_map_with_names(lambda name, _: name.startswith("llm/layers/attn/"), params)

    def mean_cost(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        """Whole logits and one-hot targets, as theirs: what it takes of memory is what is measured."""
        read = (batch[name][:, :-1] for name in ("text", "mask_ar"))
        logits, _ = model.apply({"params": params}, batch["image"], *read, train=True)
        targets, weights = jax.nn.one_hot(batch["text"][:, 1:], logits.shape[-1]), batch["mask_loss"][:, 1:]
        costs = -(jax.nn.log_softmax(logits) * targets).sum(-1)
        return ((costs * weights).sum(-1) / jnp.maximum(weights.sum(-1), 1)).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def update(params: Any, batch: dict[str, jax.Array], rate: float) -> tuple[Any, jax.Array]:
        cost, gradient = jax.value_and_grad(mean_cost)(params, batch)
        moved = jax.tree.map(lambda x, g, trained: x - rate * g if trained else x, params, gradient, trainable)
        return moved, cost

    batch = jax.device_put(batch)
    compiled = update.lower(params, batch, RATE).compile()

    def step() -> float:
        nonlocal params
        params, cost = compiled(params, batch, RATE)
        return float(jax.block_until_ready((params, cost))[1])

    step.temporaries = compiled.memory_analysis().temp_size_in_bytes
    return step


ROWS = {
    "decode": decoding,
    "training": lambda settings: training(settings, settings["batch"], settings["text"]),
    "training_8": lambda settings: training(settings, *settings["recipe"]),
}

if __name__ == "__main__":
    serve_row(ROWS, *sys.argv[1:])
