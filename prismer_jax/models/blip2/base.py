"""What all models of BLIP-2 begin with: a vision transformer, and the queries that read its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict

from prismer_jax.models.vlm import init_from_shapes
from prismer_jax.towers.label_tokens import LabelTokens
from prismer_jax.towers.layers import Dense, LayerNorm, torch_uniform
from prismer_jax.towers.qformer import QFormer
from prismer_jax.towers.vit import ViT
from prismer_jax.typing import Array, Float, typed

# Of CLIP's images (openai/CLIP, clip/clip.py), shares of the largest value.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class Blip2Base(nn.Module):
    """The image side of the models. All fields are hashable, so is the module.

    Attributes:
      vision: fields of towers.vit.ViT.
      qformer: fields of towers.qformer.QFormer.
      language: fields of the language model that reads the queries, and its `tower`, a name of model.TOWERS; {} for the
        model of stage 1, whose Q-Former reads and writes itself.
      embed_dim: channels in which images and texts of stage 1 are compared.
      experts: names of prismer_jax.labels.EXPERTS whose label maps are added to the image's tokens (see LabelTokens).
      stem_width: channels of the stems that read these maps.
      classes: names of an expert's classes where a data set has its own.
      dtype: of the computation; parameters, norms, softmax and logits are float32.
      remat: what the backward pass keeps, a name of towers.layers.REMAT.
    """

    vision: Mapping[str, Any]
    qformer: Mapping[str, Any]
    language: Mapping[str, Any] = FrozenDict()
    embed_dim: int = 256
    experts: tuple[str, ...] = ()
    stem_width: int = 256
    classes: Mapping[str, tuple[str, ...]] = FrozenDict()
    dtype: str = "float32"
    remat: str = "none"
    rngs = ("dropout", "instance", "negatives")

    def setup(self) -> None:
        options = dict(remat=self.remat, dtype=jnp.dtype(self.dtype))
        self.encoder = ViT(**self.vision, **options, name="vision")
        self.norm_vision = LayerNorm()
        self.queries = QFormer(**self.qformer, **options, name="qformer")
        if self.experts:
            width = self.vision["width"]
            grid, dtype = self.vision["image_size"] // self.vision["patch_size"], options["dtype"]
            self.labels = LabelTokens(self.experts, grid, self.stem_width, width, self.classes, dtype)

    @property
    def image_size(self) -> int:
        return self.vision["image_size"]

    def features(self, batch: Mapping[str, Any]) -> Float[Array, "b n c"]:
        """Returns the vision transformer's output for `image` [b h w 3], before its norm; see FEATURES."""
        return self.encoder((jnp.asarray(batch["image"], jnp.float32) / 255 - MEAN) / DEVIATION)

    @typed
    def image_tokens(self, batch: Mapping[str, Any], train: bool = False) -> Float[Array, "b n c"]:
        """Returns the tokens of an image, a class token first where there is one, that the queries look at."""
        x = jnp.asarray(batch["features"] if "features" in batch else self.features(batch), self.dtype)
        x = self.norm_vision(x)
        self.sow("intermediates", "image_tokens", x)
        if self.experts:
            seen = self.labels(batch, train)
            x = jnp.concatenate([x[:, : -seen.shape[1]], x[:, -seen.shape[1] :] + seen], axis=1)
        return x

    @typed
    def queried(self, tokens: Float[Array, "b n c"]) -> tuple[Float[Array, "b q d"], dict[str, Any]]:
        """Returns the states of the queries that look at an image's tokens, and the keys of that pass."""
        parts, keys = self.queries({"query": self.queries.embedded_queries(len(tokens))}, tokens)
        return parts["query"][:, 0], keys

    def init_variables(self, rng: Array) -> dict[str, Any]:
        """Returns {'params'}, with experts also {'batch_stats', 'tables'}; no shape of theirs depends on a batch."""
        return init_from_shapes(self, rng, self.image_size)


class Blip2Stage2(Blip2Base):
    """The image side of stage 2: the queries, as wide as the states of the language model that reads them."""

    def setup(self) -> None:
        super().setup()
        draw = torch_uniform(self.qformer["width"])
        self.projector = Dense(self.language["width"], dtype=jnp.dtype(self.dtype), kernel_init=draw)

    @typed
    def encode(self, batch: Mapping[str, Any], train: bool = False) -> Float[Array, "b q d"]:
        """Returns the queries as the language model reads them."""
        hidden, _ = self.queried(self.image_tokens(batch, train))
        self.sow("intermediates", "queried", hidden)
        return self.projector(hidden)
