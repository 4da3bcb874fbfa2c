"""What families share whose language model reads the image's tokens and the text as one sequence.

The cache of such a model has in `shared` the keys and values of image and prompt, which are read once, and in `own`
those of what is generated.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from flax.core import FrozenDict

from prismer_jax.config import values
from prismer_jax.errors import UserError, choose
from prismer_jax.losses import label_costs
from prismer_jax.models.vlm import init_from_shapes, ordinals, text_mask
from prismer_jax.towers import layers
from prismer_jax.towers.causal_lm import CausalLM, windowed
from prismer_jax.towers.vit import ViT
from prismer_jax.typing import Array, Bool, Float, Int, typed


def fields_of(
    cls: type[nn.Module],
    variants: Mapping[str, Mapping[str, Any]],
    variant: str,
    overrides: Mapping[str, Any],
    towers: Mapping[str, type[nn.Module]] = MappingProxyType({"vision": ViT, "language": CausalLM}),
) -> dict[str, Any]:
    """Returns the fields of a model: those of a variant, with those of its `towers` merged into the variant's.

    Raises:
      UserError: an unknown variant or field, or towers whose sizes do not fit.
    """
    fields = dict(choose("variant", variant, variants))
    own = dict.fromkeys(name for name in cls.__dataclass_fields__ if name not in ("parent", "name"))
    for key in overrides:
        choose("field of the model", key, own)
    fields |= overrides
    for name, tower in towers.items():
        part = dict(overrides.get(name, {}))
        for key in part:
            choose(f"field of {name}", key, tower.__dataclass_fields__)
        values.check(part, values.kinds(tower), f"config.model.{name}")
        fields[name] = FrozenDict({**variants[variant].get(name, {}), **part})
    names = {name: tuple(classes) for name, classes in dict(fields.get("classes", {})).items()}
    vision, language = fields["vision"], fields.get("language", {})
    check_multiples(
        ("vision.width", vision["width"], vision["heads"]),
        ("language.heads", language.get("heads", 1), language.get("kv_heads", 1)),
        ("vision.image_size", vision["image_size"], vision["patch_size"]),
    )
    return fields | {"classes": FrozenDict(names)}


def check_multiples(*sizes: tuple[str, int, int]) -> None:
    """Raises a UserError unless each (name, whole, part) is a whole number of parts, one at least."""
    for what, whole, part in sizes:
        if not 0 < part <= whole or whole % part:
            raise UserError(f"{what} {whole} is not a multiple of {part}; both must be above 0.")


class Columns(NamedTuple):
    """The columns that the language model reads.

    Attributes:
      x: embeddings [b s d].
      real: bool [b s], no padding.
      seen: bool [b s s], which columns each column sees.
      positions: int32 [b s], of the rotary embedding.
    """

    x: Array
    real: Array
    seen: Array
    positions: Array


def real_tokens(encoded: Array, batch: Mapping[str, Any]) -> Array:
    """Returns bool [b n], which of the image's tokens [b n d] are of real tiles or frames, as `image_mask` says."""
    if "image_mask" not in batch:
        return jnp.ones(encoded.shape[:2], bool)
    mask = batch["image_mask"]
    return repeat(mask, "b m -> b (m n)", n=encoded.shape[1] // mask.shape[1])


def behind(encoded: Array, there: Array, words: Array, batch: Mapping[str, Any], mutual: bool) -> Columns:
    """Returns the columns of an image's tokens [b n d] and of the texts behind them, all of which see the image.

    Args:
      there: bool [b n], which of the image's tokens there are.
      words: embeddings [b t d] of a batch's text.
      mutual: the image's tokens all see each other, and a text without a causal token; else what is before them.
    """
    size = encoded.shape[:2]
    front = {"mask_input": there, "mask_ar": jnp.full(size, not mutual, jnp.int32)}
    front["segment"] = jnp.zeros(size, jnp.int32)
    joined = {key: jnp.concatenate([part, batch[key]], axis=1) for key, part in front.items()}
    seen = text_mask(joined)
    # Texts of further segments see the image, too.
    image = seen[:, :, : size[1]] | (there[:, None, :] & (mutual | (jnp.arange(seen.shape[1]) >= size[1])[:, None]))
    seen = seen.at[:, :, : size[1]].set(image)
    x = jnp.concatenate([encoded.astype(words.dtype), words], axis=1)
    # Padding stands at -1, of which only a table of learned positions may take notice.
    positions = jnp.where(batch["mask_input"], there.sum(1, keepdims=True) + ordinals(batch), 0) - 1
    places = jnp.where(there, jnp.cumsum(there, axis=1), 0) - 1
    return Columns(x, joined["mask_input"], seen, jnp.concatenate([places, positions], axis=1))


class DecoderOnly(nn.Module):
    """A model whose `decoder` is a towers.causal_lm.CausalLM, or like one; families say what is in its `columns`."""

    @property
    def image_size(self) -> int:
        return self.vision["image_size"]

    @property
    def vocab_size(self) -> int:
        return self.language["vocab_size"]

    def encode(self, batch: Mapping[str, Any], train: bool = False) -> Float[Array, "b n d"]:
        """Returns the image's tokens."""
        raise NotImplementedError

    def columns(self, encoded: Array, batch: Mapping[str, Any]) -> Columns:
        """Returns what the decoder reads of an image and a text."""
        raise NotImplementedError

    def first_logits(self, hidden: Array) -> Array:
        """Returns the logits of a text that is given, and of what follows a prompt."""
        return self.decoder.logits(hidden)

    @typed
    def __call__(self, batch: Mapping[str, Any], train: bool = False) -> Float[Array, "b t v"]:
        """Returns float32 logits of the next token at every position of `text`."""
        return self.first_logits(self._hidden(batch, train))

    @typed
    def text_costs(
        self, batch: Mapping[str, Any], label_smoothing: float, chunk: int, train: bool = False
    ) -> Float[Array, " b"]:
        """Returns losses.token_costs of a batch, with the logits of `chunk` columns in memory at once.

        Of 257,152 words the logits of a batch, and their gradient, are otherwise the largest arrays of a step. While
        a chunk's are there the gradient of the hidden states is made of them, as in arXiv 2410.10989: only where the
        words are trained, too, does the backward pass compute logits again.
        """
        hidden = self._hidden(batch, train)[:, :-1]
        labels, weights = batch["text"][:, 1:], batch["mask_loss"][:, 1:]
        fixed = jax.lax.stop_gradient(hidden)

        def in_chunks(x: Array) -> Array:
            """Returns [b t ...] as [chunks b chunk ...]; the padding weighs nothing."""
            x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk), *[(0, 0)] * (x.ndim - 2)])
            return rearrange(x, "b (n t) ... -> n b t ...", t=chunk)

        @jax.checkpoint
        def costs(part: tuple[Array, ...]) -> tuple[Array, Array]:
            x, *targets = part
            each, pull = jax.vjp(lambda x: label_costs(self.first_logits(x), *targets, label_smoothing), x)
            return each, jax.lax.stop_gradient(pull(jnp.ones_like(each))[0])  # an example's cost is of its row alone

        each, gradient = jax.lax.map(costs, tuple(map(in_chunks, (fixed, labels, weights))))
        # 0, of which the derivative is the gradient. In float32, or the factor of an example's cost would be rounded.
        zero = (hidden - fixed).astype(jnp.float32)
        return each.sum(0) + jnp.einsum("nbtd,nbtd->b", in_chunks(zero), gradient)

    @typed
    def prefill(
        self, encoded: Float[Array, "b n d"], batch: Mapping[str, Any], room: int
    ) -> tuple[Float[Array, "b 1 v"], dict[str, Any]]:
        """Reads the prompt. The cache's `shared` has the keys and values of image and prompt, and the real columns."""
        hidden, keys, columns = self.read(encoded, batch)
        own = layers.unfilled(keys, room)
        shared = {"keys": jax.tree.map(lambda x: x[:, :, 0], keys)}
        shared |= {"mask": columns.real, "positions": columns.positions}
        rows = {"count": columns.positions.max(-1, keepdims=True) + 1}
        logits = self.first_logits(hidden[:, -1:])
        return logits, {"shared": shared, "own": own, "rows": rows, "index": jnp.zeros((), jnp.int32)}

    @typed
    def extend(
        self, cache: dict[str, Any], tokens: Int[Array, "b k t"], seen: Bool[Array, "b k t t"] | None = None
    ) -> tuple[Float[Array, "b k t v"], dict[str, Any]]:
        """Appends tokens to every sequence. Returns the logits after each of them and the cache with their columns.

        `seen` makes them a tree, see models.vlm.
        """
        index, count, length = cache["index"], cache["rows"]["count"], tokens.shape[2]
        room = cache["own"]["k"].shape[3]
        masks = {
            "new": jnp.tri(length, dtype=bool) if seen is None else seen,
            "own": (jnp.arange(room) < index)[None],
            "prompt": cache["shared"]["mask"][:, None, None],
        }
        positions = count[..., None] + masks["new"].sum(-1, dtype=jnp.int32) - 1
        places = {"new": positions, "prompt": cache["shared"]["positions"][:, None]}
        places["own"] = (count - index)[..., None] + jnp.arange(room)
        masks = self._masks(masks, positions, places)
        hidden, news = self.decoder(self.decoder.embed(tokens), positions, masks, cache)
        if seen is not None:
            return self.decoder.logits(hidden), cache
        own, rows = layers.appended(cache["own"], news, index), {"count": count + length}
        return self.decoder.logits(hidden), {**cache, "own": own, "rows": rows, "index": index + length}

    def attention_to(self, kept: Mapping[str, Any], side: int) -> tuple[Float[Array, "b t s"], int]:
        """Returns how a text attends to all columns, first a square of image tokens of this side: `photo_attention`."""
        return kept["language"]["blocks"]["weights"][0].mean(0)[:, 0, side**2 :], side

    def init_variables(self, rng: Array) -> dict[str, Any]:
        """Returns {'params'}, with experts also {'batch_stats', 'tables'}; no shape of theirs depends on a batch."""
        return init_from_shapes(self, rng, self.image_size)

    def _hidden(self, batch: Mapping[str, Any], train: bool) -> Array:
        """Returns the hidden states [b t d] of a text."""
        return self.read(self.encode(batch, train), batch)[0][:, -batch["text"].shape[1] :]

    def read(self, encoded: Array, batch: Mapping[str, Any]) -> tuple[Array, Any, Columns]:
        """Returns the hidden states [b s d] of image and text, keys and values, and the columns that were read."""
        columns = self.columns(encoded, batch)
        positions = columns.positions[:, None]
        masks = self._masks({"new": columns.seen[:, None]}, positions, {"new": positions})
        hidden, keys = self.decoder(columns.x[:, None], positions, masks)
        return hidden[:, 0], keys, columns

    def _masks(self, masks: dict[str, Array], positions: Array, places: dict[str, Array]) -> dict[str, Any]:
        """Returns the decoder's masks of columns [b k t] at `positions`, of the keys [b k s] at `places`."""
        if not self.decoder.window:
            return masks
        back = {name: positions[..., None] - places[name][..., None, :] for name in masks}
        return {name: windowed(mask, back[name], self.decoder.window, name == "new") for name, mask in masks.items()}
