"""A toy language model for the tests of decoding: it has the cache of a real one and is simple enough for NumPy."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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

    def run(self, function, prompt, *args, **settings):
        """Calls a decoding function, compiled once for each of its settings and shapes."""
        rng = {"rng": settings.pop("rng")} if "rng" in settings else {}
        return _run(self, np.asarray(prompt, np.int32), args, rng, function, tuple(settings.items()))

    def prefill(self, encoded, prompt, max_len):
        real = (prompt != PAD)[:, None]
        spare = max_len - prompt.shape[1]
        count = jnp.cumsum(real, -1)
        seen = jnp.pad(self._say(prompt[:, None], count), [(0, 0), (0, 0), (0, spare), (0, 0)])[None]
        rows = {"mask": jnp.pad(real, [(0, 0), (0, 0), (0, spare)]), "count": count[..., -1]}
        shared = {"image": jnp.asarray(encoded)[None, :, None]}  # [layers,B,N,D]
        cache = {"shared": shared, "layers": {"seen": seen}, "rows": rows, "index": jnp.int32(prompt.shape[1])}
        return self._logits(cache, jnp.asarray([prompt.shape[1]]))[:, :, 0], cache

    def extend(self, cache, tokens):
        index, length = cache["index"], tokens.shape[-1]
        count = cache["rows"]["count"][..., None] + 1 + jnp.arange(length)
        say = self._say(tokens, count)[None]
        rows = {
            "mask": jax.lax.dynamic_update_slice(cache["rows"]["mask"], jnp.ones(tokens.shape, bool), (0, 0, index)),
            "count": count[..., -1],
        }
        layers = {"seen": jax.lax.dynamic_update_slice(cache["layers"]["seen"], say, (0, 0, 0, index, 0))}
        cache = cache | {"rows": rows, "layers": layers, "index": index + length}
        return self._logits(cache, index + 1 + jnp.arange(length)), cache

    def _say(self, tokens, count):
        return jnp.asarray(self.words)[tokens] * jnp.cos(count[..., None] + jnp.arange(WIDTH))

    def _logits(self, cache, ends):
        """Logits after each of the columns counted by `ends` [T]: [B,K,T,V]."""
        columns = jnp.arange(cache["rows"]["mask"].shape[-1])
        use = cache["rows"]["mask"][..., None, :] & (columns < ends[:, None])
        state = jnp.einsum("bkts,bksd->bktd", use.astype(jnp.float32), cache["layers"]["seen"][0])
        return jnp.tanh(state + cache["shared"]["image"][0, :, :, None]) @ self.out + self.bias

    def log_probs(self, row: int, tokens: list[int], width: int) -> np.ndarray:
        """The same in NumPy, float64, from the tokens alone: log-probabilities [V] of what follows them."""
        real = [column >= width or token != PAD for column, token in enumerate(tokens)]
        state = self.image[row].astype(np.float64)
        for i, token in enumerate(tokens):
            state = state + real[i] * self.words[token] * np.cos(sum(real[: i + 1]) + np.arange(WIDTH))
        logits = np.tanh(state) @ self.out + self.bias
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@functools.partial(jax.jit, static_argnums=(4, 5))
def _run(model, prompt, args, rng, function, settings):
    return function(model.prefill, model.extend, model.image, prompt, *args, **rng, **dict(settings))


@pytest.fixture(scope="session")
def toy() -> type[Toy]:
    return Toy
