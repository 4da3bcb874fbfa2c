"""A toy language model for the tests of decoding: it has the cache of a real one and is simple enough for NumPy."""

from __future__ import annotations

import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.batch import prompts

PAD, EOS, WIDTH = 1, 2, 16


class Toy(NamedTuple):
    """The logits of the next token are tanh(image + Σ of what the tokens so far say at their positions) · out."""

    words: np.ndarray  # [V,D]
    out: np.ndarray  # [D,V]
    bias: np.ndarray  # [V]
    image: np.ndarray  # [B,D]

    @classmethod
    def random(cls, seed: int, *, vocab: int = 12, batch: int = 3, sharpness: float = 1.0, eos: float = 0.0) -> Toy:
        rng = np.random.default_rng(seed)
        bias = np.zeros(vocab, np.float32)
        bias[EOS] = eos
        words, image = rng.normal(size=(vocab, WIDTH)), rng.normal(size=(batch, WIDTH))
        out = sharpness * rng.normal(size=(WIDTH, vocab))
        return cls(words.astype(np.float32), out.astype(np.float32), bias, image.astype(np.float32))

    def run(self, function, prompt, *args, max_len=0, min_len=0, **settings):
        """Calls a decoding function, compiled once for each of its settings and shapes.

        Lengths, and the tokens that come back, count the prompt, as in the rules of the reference.
        """
        rng = {"rng": settings.pop("rng")} if "rng" in settings else {}
        prompt = np.asarray(prompt, np.int32)
        if not max_len:
            return _run(self, prompt, args, rng, function, tuple(settings.items()))
        width = prompt.shape[1]
        settings |= {"max_new": max_len - width, "min_new": max(0, min_len - width), "eos": EOS, "pad": PAD}
        if "prompt_length" in inspect.signature(function).parameters:
            settings["prompt_length"] = width
        tokens, scores = _run(self, prompt, args, rng, function, tuple(settings.items()))
        before = np.broadcast_to(prompt[:, None], (*tokens.shape[:2], width))
        return np.concatenate([before, tokens], axis=2), scores

    def prefill(self, encoded, batch, room):
        text, real = batch["text"], batch["mask_input"]
        count = jnp.cumsum(real, -1)
        said = (self._say(text, count) * real[..., None]).sum(1)  # [B,D]: all that a prompt says
        shared = {"image": jnp.asarray(encoded), "prompt": said}
        own = {"said": jnp.zeros((1, len(text), 1, room, WIDTH))}
        cache = {"shared": shared, "own": own, "rows": {"count": count[:, -1:]}, "index": jnp.int32(0)}
        return self._logits(cache, jnp.asarray([0]))[:, :, 0], cache

    def extend(self, cache, tokens, seen=None):
        index, length = cache["index"], tokens.shape[-1]
        if seen is not None:
            said = self._say(tokens, cache["rows"]["count"][..., None] + seen.sum(-1))
            return self._logits_of(cache, jnp.einsum("bkts,bksd->bktd", seen.astype(jnp.float32), said)), cache
        count = cache["rows"]["count"][..., None] + 1 + jnp.arange(length)
        own = jax.lax.dynamic_update_slice(cache["own"]["said"], self._say(tokens, count)[None], (0, 0, 0, index, 0))
        cache = cache | {"rows": {"count": count[..., -1]}, "own": {"said": own}, "index": index + length}
        return self._logits(cache, index + 1 + jnp.arange(length)), cache

    def _say(self, tokens, count):
        return jnp.asarray(self.words)[tokens] * jnp.cos(count[..., None] + jnp.arange(WIDTH))

    def _logits(self, cache, ends):
        """Logits after each of the generated columns counted by `ends` [T]: [B,K,T,V]."""
        own = cache["own"]["said"][0]
        use = jnp.arange(own.shape[2]) < ends[:, None]
        return self._logits_of(cache, jnp.einsum("ts,bksd->bktd", use.astype(jnp.float32), own))

    def _logits_of(self, cache, state):
        before = (cache["shared"]["image"] + cache["shared"]["prompt"])[:, None, None]
        return jnp.tanh(state + before) @ self.out + self.bias

    def log_probs(self, row: int, tokens: list[int], width: int) -> np.ndarray:
        """Returns the same in NumPy, float64, from the tokens alone: log-probabilities [V] of what follows them."""
        real = [column >= width or token != PAD for column, token in enumerate(tokens)]
        state = self.image[row].astype(np.float64)
        for i, token in enumerate(tokens):
            state = state + real[i] * self.words[token] * np.cos(sum(real[: i + 1]) + np.arange(WIDTH))
        logits = np.tanh(state) @ self.out + self.bias
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@functools.partial(jax.jit, static_argnums=(4, 5))
def _run(model, prompt, args, rng, function, settings):
    batch = prompts(prompt, prompt != PAD)
    masks = tuple(answers != PAD for answers in args)
    return function(model.prefill, model.extend, model.image, batch, *args, *masks, **rng, **dict(settings))


@pytest.fixture(scope="session")
def toy() -> type[Toy]:
    return Toy
