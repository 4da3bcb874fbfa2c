"""Trains a codec of masks (objects/codec.py), as PaliGemma's `vae-oid.npz` is one, on masks of one's own.

First without codes, as an autoencoder; then the codes begin at the centres of what its encoder says (k-means), and both
are trained together: the gradient goes straight through the nearest code, the code is drawn to what is nearest to it,
and a code that nothing is nearest to begins anew.

Source: van den Oord et al., Neural Discrete Representation Learning (arXiv 1711.00937); Ning et al. (2301.02229).
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prismer_jax import datasets, pp
from prismer_jax.datasets import scenes
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import progress, storage
from prismer_jax.objects import shapes
from prismer_jax.objects.codec import EMBEDDING, FILE, MaskCodec, features, nearest, painted
from prismer_jax.objects.codec import shapes as layer_shapes
from prismer_jax.objects.spelling import CODES

COMMITMENT = 0.25  # how much an encoder is drawn to its codes
REVIVAL = 50  # steps after which codes that nothing was nearest to begin anew
ROUNDS = 10  # of k-means
LEAST = 12  # pixels of an object of scenes


def masks_in(source: Any, chain: Any, most: int) -> np.ndarray:
    """Returns float32 [n, 64, 64] of at most so many objects that have masks, of examples in random order.

    Args:
      source: examples.
      chain: ops that make their `objects`.
    """

    def every() -> Iterator[np.ndarray]:
        for index in np.random.default_rng(0).permutation(len(source)).tolist():
            try:
                example = chain(source[index], np.random.default_rng([0, index]))
            except BadSample:
                continue
            for one in example["objects"]:
                if one.get("segmentation") is not None:
                    yield shapes.crop(shapes.mask_of(one["segmentation"], one["size"]), one["box"])

    masks = [mask for mask, _ in zip(every(), range(most), strict=False)]
    if len(masks) < CODES:
        raise UserError(f"{len(masks)} objects with masks are too few to train a codec of {CODES} codes.")
    return np.stack(masks)


def train(
    masks: np.ndarray,
    *,
    steps: int = 1200,
    width: int = 32,
    dim: int = 32,
    batch_size: int = 32,
    rate: float = 2e-3,
    seed: int = 0,
    quiet: bool = False,
) -> MaskCodec:
    """Returns a codec that was trained on masks [n, 64, 64] in [0, 1], and on their mirror images.

    Args:
      steps: a third of them without codes.
      width, dim: of `objects.codec.shapes`; PaliGemma's has 128 and 512.
      rate: of Adam, which falls to nothing as a cosine.
      quiet: show no progress.
    """
    rng = np.random.default_rng(seed)
    weights = {key: jnp.asarray(_initial(key, shape, rng)) for key, shape in layer_shapes(width, dim).items()}
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    state, used, first = optimizer.init(weights), np.zeros(CODES, int), steps // 3
    with progress.bar("codec of masks", steps, unit="steps", enabled=not quiet) as advance:
        for step in range(steps):
            if step == first:
                weights[EMBEDDING] = jnp.asarray(_centres(_some_features(weights, masks, rng), rng))
            elif step > first and step % REVIVAL == 0 and step < 0.8 * steps:
                weights[EMBEDDING] = _revived(weights, masks, used, rng)
                used[:] = 0
            batch = masks[rng.integers(len(masks), size=batch_size)]
            batch = np.where(rng.random((batch_size, 1, 1)) < 0.5, batch[:, :, ::-1], batch)
            weights, state, codes = _update(optimizer.update, weights, state, batch, float(step >= first))
            if step >= first:
                used += np.bincount(np.asarray(codes).ravel(), minlength=CODES)
            advance(1)
    return MaskCodec(jax.device_get(weights))


def overlap(codec: MaskCodec, masks: np.ndarray) -> float:
    """Returns the mean intersection over union of masks [n, 64, 64] in [0, 1] and what a codec makes of them."""
    drawn, there = codec.decode(codec.encode(masks)) > 0, masks >= 0.5
    both, either = (drawn & there).sum((1, 2)), (drawn | there).sum((1, 2))
    return float(np.mean(both / np.maximum(either, 1)))


def of_scenes(path: str | pathlib.Path | None = None, *, size: int = 96, count: int = 4000, steps: int = 1200) -> str:
    """Returns the file of a codec for the objects of rendered scenes; it is trained, in a minute or two, if need be.

    Args:
      path: of the file; by default it lies beside the scenes.
      size, count: of the scenes, as of `datasets.load("scenes")`.
      steps: of the training.
    """
    name = f"masks-{count}-{size}px-{steps}steps"
    default = storage.data_folder(None) / "scenes" / name / scenes.VERSION / FILE
    path = default if path is None else storage.on_disk(path)
    if not path.exists():
        masks = masks_in(scenes.load("train", size=size, count=count), pp.build(chain_of_scenes()), 6000)
        path.parent.mkdir(parents=True, exist_ok=True)
        train(masks, steps=steps).save(path)
    return str(path)


def chain_of_scenes(experts: str = "obj_detection") -> str:
    """Returns the ops that make the objects of scenes, with the maps of these experts; obj_detection is one."""
    return f"labels_for({experts!r})|decode|label_objects({scenes.CLASSES!r}, {LEAST})"


def of_list(path: str, images: str | None, most: int) -> np.ndarray:
    """Returns the masks of a list that `datasets.load("objects")` reads."""
    return masks_in(datasets.load("objects", path=path, images=images), lambda example, rng: example, most)


@functools.partial(jax.jit, static_argnums=0)
def _update(update: Any, weights: Any, state: Any, batch: jax.Array, coded: jax.Array) -> tuple[Any, Any, jax.Array]:
    """Takes a step; `coded` is 1 with codes and 0 without. Returns weights, the optimiser's state and the codes."""
    fixed = jax.lax.stop_gradient

    def loss(weights: Any) -> tuple[jax.Array, jax.Array]:
        z = features(weights, batch, _convolution)
        codes = nearest(fixed(weights), fixed(z))
        embedded = weights[EMBEDDING][codes]
        pull = jnp.mean((fixed(z) - embedded) ** 2) + COMMITMENT * jnp.mean((z - fixed(embedded)) ** 2)
        drawn = painted(weights, z + coded * fixed(embedded - z), _convolution)
        return jnp.mean((drawn - (2 * batch - 1)) ** 2) + coded * pull, codes

    grads, codes = jax.grad(loss, has_aux=True)(weights)
    updates, state = update(grads, state, weights)
    return optax.apply_updates(weights, updates), state, codes


def _convolution(x: jax.Array, kernel: jax.Array, bias: jax.Array, stride: int = 1, pad: int = 0) -> jax.Array:
    """Convolves as objects.codec.convolution does, in JAX."""
    names = ("NHWC", "OIHW", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, ((pad, pad),) * 2, dimension_numbers=names) + bias


def _initial(key: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Returns He's initialisation; of a transposed convolution a quarter of the pixels meet each place."""
    if len(shape) != 4:
        return np.zeros(shape, np.float32)
    transposed = key.startswith("decoder") and shape[2] == 4
    fan = shape[0] * 4 if transposed else np.prod(shape[1:])
    return (rng.standard_normal(shape) * np.sqrt(2 / fan)).astype(np.float32)


def _some_features(weights: Any, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    some = masks[rng.integers(len(masks), size=256)]
    vectors = np.asarray(jax.jit(features, static_argnums=2)(weights, some, _convolution))
    return vectors.reshape(-1, vectors.shape[-1])


def _centres(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the centres of k-means."""
    centres = points[rng.permutation(len(points))[:CODES]]
    for _ in range(ROUNDS):
        codes = nearest({EMBEDDING: centres}, points)
        sums = np.zeros_like(centres)
        np.add.at(sums, codes, points)
        number = np.bincount(codes, minlength=CODES)[:, None]
        centres = np.where(number > 0, sums / np.maximum(number, 1), centres)
    return centres.astype(np.float32)


def _revived(weights: Any, masks: np.ndarray, used: np.ndarray, rng: np.random.Generator) -> jax.Array:
    table, points = np.array(weights[EMBEDDING]), _some_features(weights, masks, rng)
    unused = np.flatnonzero(used == 0)
    table[unused] = points[rng.integers(len(points), size=len(unused))]
    return jnp.asarray(table)
