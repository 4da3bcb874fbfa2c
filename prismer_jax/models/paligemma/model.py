"""The model: a SigLIP, one linear layer, and a Gemma whose attention is full over image and prompt.

Sources: arXiv 2407.07726 and 2412.03555; google-research/big_vision at 0127fb6, models/proj/paligemma/paligemma.py and
models/ppp/gemma.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.core import FrozenDict

from prismer_jax.errors import choose
from prismer_jax.labels import select
from prismer_jax.models.decoder_only import Columns, DecoderOnly, behind, fields_of, real_tokens
from prismer_jax.towers import layers
from prismer_jax.towers.causal_lm import CausalLM
from prismer_jax.towers.label_tokens import LabelTokens
from prismer_jax.towers.vit import ViT
from prismer_jax.typing import Array, Float, typed

WORDS = 256_000  # Gemma's
VOCABULARY = WORDS + 1024 + 128  # places <loc0000> to <loc1023>, and <seg000> to <seg127> of the masks' codec

_SO400M = dict(patch_size=14, width=1152, layers=27, heads=16, mlp_dim=4304)
_GEMMA = dict(
    head_dim=256,
    rope_base=10_000.0,
    stretched=False,
    epsilon=1e-6,
    activation="gelu_tanh",
    norm_offset=1.0,
    vocab_size=VOCABULARY,
)
_GEMMA2 = dict(_GEMMA, post_norms=True, attention_cap=50.0, logit_cap=30.0)
_LANGUAGE = {
    "2b": dict(_GEMMA, width=2048, layers=18, heads=8, kv_heads=1, mlp_dim=16384),
    "3b": dict(_GEMMA2, width=2304, layers=26, heads=8, kv_heads=4, mlp_dim=9216),
    "10b": dict(_GEMMA2, width=3584, layers=42, heads=16, kv_heads=8, mlp_dim=14336),
    "28b": dict(
        _GEMMA2,
        width=4608,
        layers=46,
        heads=32,
        kv_heads=16,
        head_dim=128,
        mlp_dim=36864,
        query_scale=(4608 / 32) ** -0.5,
    ),
}
# Named after the published files: pt_224 is PaliGemma 1 with Gemma 2B, 3b_pt_448 PaliGemma 2 with Gemma 2 2B.
VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": dict(  # of tests
        vision=dict(image_size=56, patch_size=14, width=32, layers=2, heads=2, mlp_dim=72),
        language=dict(_GEMMA, width=64, layers=2, heads=4, kv_heads=1, head_dim=16, mlp_dim=128, vocab_size=300),
    ),
    **{
        f"{name}pt_{size}": dict(vision=dict(image_size=size, **_SO400M), language=_LANGUAGE[tower])
        for name, tower in (("", "2b"), ("3b_", "3b"), ("10b_", "10b"), ("28b_", "28b"))
        for size in (224, 448, 896)
    },
}

FREEZE: dict[str, tuple[str, ...]] = {
    "none": (),
    "freeze_vision": ("vision/.*", "projector/.*"),  # img/.* of the original, whose head the projector is
    "freeze_lang": ("language/.*",),
    "experts_only": (r"(?!labels/).*",),  # trains what reads the experts' label maps
    "attention_only": (r"(?!language/blocks/(query|key|value|out)/).*",),
}

# What big_vision's weight decay leaves alone: it decays what its files call kernel, which Gemma's parameters are not.
NOT_DECAYED = "language/.*|.*/(norm.*|bias)|vision/(position_embedding|patch_bias)"


def _resized(table: Array, shape: tuple[int, int]) -> Array:
    """Returns positions [n d] for another square grid: linear between aligned corners.

    Source: scipy.ndimage.zoom(order=1), as big_vision's models/vit.py loads a checkpoint of another resolution.
    """
    old, new = (round(size**0.5) for size in (table.shape[0], shape[0]))
    at = np.linspace(0, old - 1, new)
    low = np.minimum(at.astype(int), max(old - 2, 0))
    matrix = np.zeros((new, old), np.float32)
    np.add.at(matrix, (np.arange(new), low), 1 - (at - low))
    np.add.at(matrix, (np.arange(new), np.minimum(low + 1, old - 1)), at - low)
    grid = rearrange(jnp.asarray(table), "(a b) d -> a b d", a=old)
    return rearrange(jnp.einsum("ia,jb,abd->ijd", matrix, matrix, grid, precision="highest"), "i j d -> (i j) d")


RESIZE = {"params/vision/position_embedding": _resized}


class PaliGemma(DecoderOnly):
    """The model. All fields are hashable, so is the module.

    Attributes:
      vision: fields of towers.vit.ViT; a `dtype` among them is that of the image encoder alone.
      language: fields of towers.causal_lm.CausalLM.
      cap: 'reference' leaves the logits of a given text, and of the first word after a prompt, without language's
        logit_cap, as big_vision does, and bounds those of the words after it; 'always' bounds all.
      experts: names of prismer_jax.labels.EXPERTS whose label maps are added to the image's tokens (see LabelTokens).
      stem_width: channels of the stems that read these maps.
      classes: names of an expert's classes where a data set has its own.
      dtype: of the computation; parameters, norms, softmax and logits are float32.
      remat: what the backward pass keeps, a name of towers.layers.REMAT.
    """

    vision: Mapping[str, Any]
    language: Mapping[str, Any]
    cap: str = "reference"
    experts: tuple[str, ...] = ()
    stem_width: int = 256
    classes: Mapping[str, tuple[str, ...]] = FrozenDict()
    dtype: str = "float32"
    remat: str = "none"
    rngs = ("dropout", "instance")

    def setup(self) -> None:
        dtype, width = jnp.dtype(self.dtype), self.language["width"]
        self.encoder = ViT(**{"dtype": dtype, **self.vision}, remat=self.remat, name="vision")
        self.projector = layers.Dense(width, dtype=dtype)
        language = {"word_scale": width**0.5, **self.language}
        self.decoder = CausalLM(**language, remat=self.remat, dtype=dtype, name="language")
        if self.experts:
            self.labels = LabelTokens(self.experts, self.encoder.grid, self.stem_width, width, self.classes, dtype)

    @typed
    def encode(self, batch: Mapping[str, Any], train: bool = False) -> Float[Array, "b n d"]:
        """Returns the tokens of `image`: [b h w 3], or the frames of a video [b m h w 3], one after the other."""
        image = batch["image"]
        frames = image if image.ndim == 4 else rearrange(image, "b m ... -> (b m) ...")
        x = self.encoder(jnp.asarray(frames, jnp.float32) / 255 * 2 - 1)
        self.sow("intermediates", "features", x)
        x = self.projector(x)
        if self.experts:
            x = x + self.labels(batch, train)
        return rearrange(x, "(b m) n d -> b (m n) d", b=len(image))

    def first_logits(self, hidden: Array) -> Array:
        return self.decoder.logits(hidden, capped=self.cap == "always")

    def photo_attention(self, kept: Mapping[str, Any]) -> tuple[Float[Array, "b t s"], int]:
        """Returns each column's attention, first to the tokens of one image, and their grid's side."""
        return self.attention_to(kept, self.vision["image_size"] // self.vision["patch_size"])

    def columns(self, encoded: Array, batch: Mapping[str, Any]) -> Columns:
        """Returns the image's tokens and the text behind them; image and prompt (`mask_ar` 0) all see each other."""
        words = self.decoder.embed(batch["text"])
        self.sow("intermediates", "words", words)
        columns = behind(encoded, real_tokens(encoded, batch), words, batch, mutual=True)
        return columns._replace(positions=jnp.maximum(columns.positions, 0))


def build(
    variant: str = "3b_pt_224", experts: str | Sequence[str] = "none", tokenizer: Any = None, **overrides: Any
) -> PaliGemma:
    """Returns a model of one of the sizes in VARIANTS.

    Args:
      experts: as in labels.select: 'none', 'all', 'depth+edge' or a sequence.
      overrides: fields of PaliGemma; `vision` and `language` are merged into the variant's.

    Raises:
      UserError: an unknown variant or field, or sizes that do not fit together.
    """
    model = PaliGemma(**fields_of(PaliGemma, VARIANTS, variant, overrides) | {"experts": select(experts)})
    choose("cap", model.cap, ("reference", "always"))
    return model
