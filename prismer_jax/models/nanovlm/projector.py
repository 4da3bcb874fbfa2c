"""A fresh projector that starts with something to say: image tokens are the words of their photos' captions.

Tens of training steps then tell more of a photo than hundreds from a random projector (docs/nanovlm.md). That a linear
map from image features to words is enough is known from arXiv 2209.15162, which trains it; here it is a regression.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tokenizers

from prismer_jax import input, pp, tree
from prismer_jax.errors import UserError
from prismer_jax.files import progress
from prismer_jax.models.nanovlm.model import NanoVLM
from prismer_jax.towers.vit import pixel_shuffle

RIDGE = 0.1  # of the mean variance of what is regressed on
BATCH = 16  # photos of one pass


def fitted(
    model: NanoVLM, vision: Mapping[str, Any], words: np.ndarray, tokenizer: tokenizers.Tokenizer, source: Any
) -> dict[str, np.ndarray]:
    """Returns the encoder's last norm and the projector that fit photos with captions, {name: array}.

    The norm gives each channel mean 0 and variance 1 over the photos: of a DINOv2, a third of the mean square is the
    same everywhere. The projector makes each token of a photo its `targets` as well as a linear map can, with outputs
    as large as words, in mean square.

    Args:
      vision: the encoder's parameters, {name: array}.
      words: the language model's embeddings [v, w].
      source: of examples with `image` and `captions`.

    Raises:
      UserError: none of the photos can be read, or their captions share no word.
    """
    patches, length = model.shuffle**2, model.vision["width"]
    aims = targets([source[index]["captions"] for index in range(len(source))], words, tokenizer)
    encode = jax.jit(functools.partial(_encoded, model))
    params, count = tree.unflatten(vision), 0
    total, squares = np.zeros(patches * length), np.zeros([patches * length] * 2)
    products, aim = np.zeros((patches * length, words.shape[1])), np.zeros(words.shape[1])
    chain = pp.build(f"decode|tiles({model.image_size}, method='bilinear')")
    with progress.bar("photos to fit the projector to", len(source)) as advance:
        for number, batch in enumerate(input.eval_batches(source, chain, batch_size=BATCH)):
            there = np.flatnonzero(batch["_mask"])
            x = np.asarray(encode(params, batch["image"]))[there]  # [b, n, patches * length]
            y = aims[number * BATCH + there]
            total += x.sum((0, 1))
            squares += np.einsum("bni,bnj->ij", x, x, optimize=True)
            products += x.sum(1).T @ y
            aim += x.shape[1] * y.sum(0)
            count += x.shape[0] * x.shape[1]
            advance(min(BATCH, len(source) - number * BATCH))

    channels = total.reshape(patches, length).mean(0) / count
    variance = np.diag(squares).reshape(patches, length).mean(0) / count - channels**2
    deviation = np.sqrt(np.maximum(variance, 1e-12))  # a channel may be the same everywhere
    mean, scale = np.tile(channels, patches), np.tile(deviation, patches)
    centred = squares - np.outer(mean, total) - np.outer(total, mean) + count * np.outer(mean, mean)
    centred /= np.outer(scale, scale)
    ridge = RIDGE * np.trace(centred) / len(centred) * np.eye(len(centred))
    kernel = np.linalg.solve(centred + ridge, (products - np.outer(mean, aim)) / scale[:, None])
    power = np.sum(kernel * (centred @ kernel)) / (count * kernel.shape[1])
    kernel *= np.sqrt(np.mean(np.square(words, dtype=np.float64)) / power)

    norm = {name: vision[f"params/vision/norm/{name}"] for name in ("scale", "bias")}
    parameters = {
        "params/vision/norm/scale": norm["scale"] / deviation,
        "params/vision/norm/bias": (norm["bias"] - channels) / deviation,
        "params/projector/kernel": kernel,
    }
    return {name: np.asarray(x, np.float32) for name, x in parameters.items()}


def targets(captions: Sequence[Sequence[str]], words: np.ndarray, tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """Returns the mean word of each photo's captions [photos, w], less that of all photos.

    A word counts as often as a caption has it, times the logarithm of how few photos do (its inverse document
    frequency); of one photo alone nothing can be learnt.

    Raises:
      UserError: the captions share no word.
    """
    photos = [
        Counter(id for text in texts for id in set(tokenizer.encode(f" {text.lower()}", add_special_tokens=False).ids))
        for texts in captions
    ]
    shared = Counter(id for photo in photos for id in photo)
    rare = {id: np.log(len(photos) / number) for id, number in shared.items() if 1 < number < len(photos)}
    if not rare:
        raise UserError("--match-words: its captions share no word that tells photos apart. Give more photos.")
    centred = np.asarray(words, np.float64) - words.mean(0, dtype=np.float64)
    rows = np.zeros((len(photos), words.shape[1]))
    for row, photo in zip(rows, photos, strict=True):
        weights = {id: number * rare[id] for id, number in photo.items() if id in rare}
        if weights:
            row += np.average(centred[list(weights)], axis=0, weights=list(weights.values()))
    return rows - rows.mean(0)


def _encoded(model: NanoVLM, params: Any, image: jax.Array) -> jax.Array:
    x = model.apply(params, {"image": image}, method="features")
    return pixel_shuffle(x.reshape(-1, *x.shape[-2:]), model.shuffle)
