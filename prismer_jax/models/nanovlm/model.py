"""The model: a vision transformer, one linear layer on its shuffled tokens, a Llama-like decoder.

Source of every fact about the architecture: huggingface/nanoVLM at 4e0c096 (models/), and its tags v0.1 and v0.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from flax.core import FrozenDict

from prismer_jax.errors import choose
from prismer_jax.labels import CLASSES_KEY, WORDS_KEY, select
from prismer_jax.models.decoder_only import Columns, DecoderOnly, check_multiples, fields_of, real_tokens
from prismer_jax.models.vision import FEATURES, RESIZE  # noqa: F401 - of the family, see __init__.py
from prismer_jax.models.vlm import ordinals, text_mask
from prismer_jax.towers import layers
from prismer_jax.towers.causal_lm import CausalLM
from prismer_jax.towers.label_tokens import LabelTokens
from prismer_jax.towers.vit import ViT, pixel_shuffle
from prismer_jax.typing import Array, Float, typed

_SIGLIP_B = dict(patch_size=16, width=768, layers=12, heads=12, mlp_dim=3072)
_SMOLLM2_135M = dict(width=576, layers=30, heads=9, kv_heads=3, mlp_dim=1536)
_SMOLLM2_360M = dict(width=960, layers=32, heads=15, kv_heads=5, mlp_dim=2560)
_EXTRA = 66  # <|image|>, <|global_image|> and 64 places of tiles, behind SmolLM2's 49,152 ids

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": dict(  # of tests
        vision=dict(image_size=32, patch_size=4, width=48, layers=2, heads=4, mlp_dim=96),
        language=dict(width=72, layers=2, heads=6, kv_heads=2, mlp_dim=128, vocab_size=325),
        shuffle=4,
        image_token=259,
    ),
    "222m": dict(vision=dict(image_size=224, **_SIGLIP_B), language=dict(vocab_size=49152, **_SMOLLM2_135M), shuffle=2),
    "450m": dict(
        vision=dict(image_size=256, **_SIGLIP_B),
        language=dict(vocab_size=49153, **_SMOLLM2_360M),
        shuffle=2,
        image_token=49152,
    ),
    "230m_8k": dict(
        vision=dict(image_size=512, **_SIGLIP_B),
        language=dict(vocab_size=49152 + _EXTRA, **_SMOLLM2_135M),
        shuffle=4,
        image_token=49152,
    ),
    "460m_8k": dict(
        vision=dict(image_size=512, **_SIGLIP_B),
        language=dict(vocab_size=49152 + _EXTRA, **_SMOLLM2_360M),
        shuffle=4,
        image_token=49152,
    ),
}

FREEZE: dict[str, tuple[str, ...]] = {
    "none": (),
    "freeze_vision": ("vision/.*",),
    "freeze_lang": ("language/.*",),
    "freeze_lang_vision": ("vision/.*", "language/.*"),
    # Layers are stacked, so a name means all depths; of them, attention is a quarter (arXiv 2203.09795, section 4).
    "freeze_all_but_attention": (
        "vision/.*",
        "language/(word_embedding|norm/.*)",
        "language/blocks/(gate|up|down|norm_mlp|norm_attention)/.*",
    ),
}


IMAGE = "<|image|>"  # the word in whose places an image's tokens are read


class NanoVLM(DecoderOnly):
    """The model. All fields are hashable, so is the module.

    Attributes:
      vision: fields of towers.vit.ViT.
      language: fields of towers.causal_lm.CausalLM.
      shuffle: side of the blocks of patches that become one token.
      image_token: the id in `text` in whose places the image's tokens are read, in the order of a row's tiles; None for
        a model that reads them in front of the text (version 0.1).
      experts: names of prismer_jax.labels.EXPERTS whose label maps are added to the image's tokens (see LabelTokens).
      stem_width: channels of the stems that read these maps.
      classes: names of an expert's classes where a data set has its own.
      positions: 'token' counts a text's own tokens, so that nothing depends on padding; 'column' counts the columns of
        a row, as the reference does.
      dtype: of the computation; parameters, norms, softmax and logits are float32.
      remat: what the backward pass keeps, a name of towers.layers.REMAT.
    """

    vision: Mapping[str, Any]
    language: Mapping[str, Any]
    shuffle: int
    image_token: int | None = None
    positions: str = "token"
    experts: tuple[str, ...] = ()
    stem_width: int = 256
    classes: Mapping[str, tuple[str, ...]] = FrozenDict()
    dtype: str = "float32"
    remat: str = "none"
    rngs = ("dropout", "instance")

    def setup(self) -> None:
        dtype, init = jnp.dtype(self.dtype), nn.initializers.normal(0.02)
        self.encoder = ViT(**self.vision, remat=self.remat, dtype=dtype, name="vision")
        self.projector = layers.Dense(self.language["width"], use_bias=False, dtype=dtype, kernel_init=init)
        self.decoder = CausalLM(**self.language, remat=self.remat, dtype=dtype, name="language")
        if self.experts:
            grid, width = math.isqrt(self.image_tokens), self.language["width"]
            self.labels = LabelTokens(self.experts, grid, self.stem_width, width, self.classes, dtype)

    @property
    def image_tokens(self) -> int:
        """Returns how many tokens of the decoder's one tile takes."""
        return (self.vision["image_size"] // self.vision["patch_size"] // self.shuffle) ** 2

    def features(self, batch: Mapping[str, Any]) -> Float[Array, "b *m n c"]:
        """Returns the vision transformer's output for `image` [b (m) h w 3], of every tile; see FEATURES."""
        image = batch["image"]
        x = self.encoder(jnp.asarray(image.reshape(-1, *image.shape[-3:]), jnp.float32) / 255)
        self.sow("intermediates", "features", x)
        return x.reshape(*image.shape[:-3], *x.shape[1:])

    @typed
    def encode(self, batch: Mapping[str, Any], train: bool = False) -> Float[Array, "b n d"]:
        """Returns the tokens of a row's tiles, one tile after the other; none without `image` or its `features`.

        Label maps are laid out as the image is, [b (m) h w c].
        """
        if "image" not in batch and "features" not in batch:
            return jnp.zeros((len(batch["text"]), 0, self.language["width"]), self.dtype)
        x = batch["features"] if "features" in batch else self.features(batch)
        rows, tiles = len(x), _apart(batch, x.shape[1]) if x.ndim == 4 else batch
        x = jnp.asarray(x.reshape(-1, *x.shape[-2:]), self.dtype)
        x = self.projector(pixel_shuffle(x, self.shuffle))
        if self.experts:
            x = x + self.labels(tiles, train)
        return rearrange(x, "(b m) n d -> b (m n) d", b=rows)

    def photo_attention(self, kept: Mapping[str, Any]) -> tuple[Float[Array, "b t s"], int] | None:
        """Returns each column's attention, first to the tokens of one image in front of the text; their grid's side."""
        return None if self.image_token is not None else self.attention_to(kept, math.isqrt(self.image_tokens))

    def columns(self, encoded: Array, batch: Mapping[str, Any]) -> Columns:
        """Returns what the decoder reads: the text with an image's tokens in it, or with those in front of it."""
        text, real, seen, positions = batch["text"], batch["mask_input"], text_mask(batch), ordinals(batch) - 1
        image = (text == self.image_token) & real if self.image_token is not None else jnp.zeros_like(real)
        if self.image_token is None:
            size, length, there = encoded.shape[:2], text.shape[1], real_tokens(encoded, batch)
            front = jnp.tri(size[1], dtype=bool) & there[:, None]
            behind = jnp.broadcast_to(there[:, None], (size[0], length, size[1]))  # every text of a row sees the image
            seen = jnp.block([[front, jnp.zeros(behind.swapaxes(1, 2).shape, bool)], [behind, seen]])
            positions = positions + there.sum(1, keepdims=True) * real
            positions = jnp.concatenate([jnp.cumsum(there, axis=1) - 1, positions], axis=1)
            image = jnp.concatenate([jnp.ones(size, bool), image], axis=1)
            text = jnp.concatenate([jnp.zeros(size, text.dtype), text], axis=1)
            real = jnp.concatenate([there, real], axis=1)
        if self.positions == "column":
            positions = jnp.broadcast_to(jnp.arange(text.shape[1]), text.shape)
        x = self.decoder.embed(text)
        if encoded.shape[1]:
            which = jnp.clip(jnp.cumsum(image, axis=1) - 1, 0, encoded.shape[1] - 1)
            x = jnp.where(image[..., None], jnp.take_along_axis(encoded, which[..., None], axis=1), x)
        self.sow("intermediates", "spliced", x)
        return Columns(x, real, seen, jnp.maximum(positions, 0))


def _apart(batch: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Returns the label maps of a batch whose rows are the tiles, `count` a row, of another's.

    Tables of ids are a row's or, in rows of several samples, a tile's.
    """
    rows = {key for key, rank in ((CLASSES_KEY, 2), (WORDS_KEY, 3)) if key in batch and batch[key].ndim == rank}
    tiles = {key: x for key, x in batch.items() if key.startswith("labels/") and key not in rows}
    tiles = {key: rearrange(x, "b m ... -> (b m) ...") for key, x in tiles.items()}
    return tiles | {key: repeat(batch[key], "b ... -> (b m) ...", m=count) for key in rows}


def build(
    variant: str = "222m", experts: str | Sequence[str] = "none", tokenizer: Any = None, **overrides: Any
) -> NanoVLM:
    """Returns a model of one of the sizes in VARIANTS.

    Args:
      experts: as in labels.select: 'none', 'all', 'depth+edge' or a sequence.
      tokenizer: whose id of the image's token is read where there is such a token; the variant's by default.
      overrides: fields of NanoVLM; `vision` and `language` are merged into the variant's.

    Raises:
      UserError: an unknown variant or field, or sizes that do not fit together.
    """
    fields = fields_of(NanoVLM, VARIANTS, variant, overrides)
    if fields.get("image_token") is not None and tokenizer is not None and "image_token" not in overrides:
        fields["image_token"] = tokenizer.id_of(IMAGE)
    model = NanoVLM(**fields | {"experts": select(experts)})
    choose("positions", model.positions, ("token", "column"))
    check_multiples(
        ("language.width", model.language["width"], 2 * model.language["heads"]),
        ("patches on a side", model.image_size // model.vision["patch_size"], model.shuffle),
    )
    return model
