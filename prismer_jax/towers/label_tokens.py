"""Label maps for any vision-language model: what experts see is added to the image's tokens, at first as nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.core import FrozenDict

from prismer_jax.labels import EXPERTS, MAX_IDS
from prismer_jax.towers import layers
from prismer_jax.towers.label_lookup import features, label_maps, label_tables
from prismer_jax.towers.stem import INSTANCE_ROWS, SCALE, STRIDES, Stem, add_instances, resize, resize_ids
from prismer_jax.typing import Array, Float


class LabelTokens(nn.Module):
    """Returns for each token of an image what its experts' stems read there, through a projection that starts at zero.

    A pre-trained model with experts attached therefore says at first, to the bit, what it said without them, as a
    ControlNet does (arXiv 2302.05543), and its sequence gets no longer. The stems are Prismer's (see towers.stem).

    Attributes:
      experts: names of prismer_jax.labels.EXPERTS.
      grid: tokens on a side of the image.
      width: channels of the stems.
      out: channels of the tokens that the result is added to.
      classes: names of an expert's classes where a data set has its own.
    """

    experts: tuple[str, ...]
    grid: int
    width: int
    out: int
    classes: Mapping[str, tuple[str, ...]] = FrozenDict()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], train: bool = False) -> Float[Array, "b n {self.out}"]:
        tables = {
            name: self.variable("tables", name, lambda table=table: jnp.asarray(table)).value
            for name, table in label_tables(self.experts, self.classes).items()
        }
        maps = jax.tree.map(jnp.asarray, label_maps(batch, self.experts))
        stems, parts = {}, []
        for expert, label in maps.items():
            kind, domain = "ids" if EXPERTS[expert].storage == "ids" else "scaled", EXPERTS[expert].stem
            size = (SCALE[kind] * self.grid,) * 2
            entry = features(expert, label, batch, tables)
            x = resize_ids(*entry, size) if isinstance(entry, tuple) else resize(entry, size)
            if domain not in stems:  # both segmentations share a stem
                stems[domain] = Stem(self.width, STRIDES[kind], train, dtype=self.dtype, name=f"stem_{domain}")
            x = stems[domain](x)
            if expert == "obj_detection":
                init = nn.initializers.normal(self.width**-0.5)
                embedding = self.param("instance_embedding", init, (INSTANCE_ROWS, self.width))
                x = add_instances(x, label[..., 0], self._rows(len(x), train), embedding)
            parts.append(rearrange(x, "b h w d -> b (h w) d"))
        zeros = nn.initializers.zeros
        return layers.Dense(self.out, dtype=self.dtype, kernel_init=zeros, name="out")(jnp.concatenate(parts, axis=-1))

    def _rows(self, count: int, train: bool) -> Array:
        """Returns the row of the instance embedding of every id: drawn in training, the id itself otherwise."""
        if train:
            return jax.random.randint(self.make_rng("instance"), (count, MAX_IDS), 0, INSTANCE_ROWS)
        return jnp.arange(MAX_IDS)[None] % INSTANCE_ROWS
