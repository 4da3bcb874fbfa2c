"""Prismer and PrismerZ (arXiv 2303.02506): image and expert labels in, text logits out; encode, prefill, extend.

Source of every fact about the architecture: NVlabs/prismer at 4f27ab3 (configs/prismer.json, model/).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict

from prismer_jax.errors import UserError, choose
from prismer_jax.labels import (
    BACKGROUND,
    CLASSES_KEY,
    EXPERTS,
    FEATURES,
    MAX_IDS,
    WORDS_KEY,
    background_vector,
    class_vectors,
    select,
)
from prismer_jax.towers.layers import resize_positions
from prismer_jax.towers.roberta import BOS, PAD, TextDecoder
from prismer_jax.towers.stem import rows_read
from prismer_jax.towers.vit import INSTANCE_ROWS, Features, VisionEncoder
from prismer_jax.typing import Array, Float, Int, UInt8, typed

# CLIP's normalisation of images, which the reference applies to every photo (dataset/utils.py: Transform).
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

_ROBERTA = dict(vocab_size=50265, max_positions=514)
_ROBERTA_BASE = dict(width=768, layers=12, heads=12, mlp_dim=3072, **_ROBERTA)
_ROBERTA_LARGE = dict(width=1024, layers=24, heads=16, mlp_dim=4096, **_ROBERTA)

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": dict(  # of tests
        image_size=96,
        patch_size=16,
        width=64,
        layers=2,
        heads=4,
        decoder=dict(width=64, layers=3, heads=4, mlp_dim=128, vocab_size=199, max_positions=66),
    ),
    "small": dict(  # learns the embedded data set in minutes on a laptop
        image_size=96,
        patch_size=16,
        width=96,
        layers=3,
        heads=4,
        latents=16,
        resampler_layers=1,
        decoder=dict(
            width=96,
            layers=2,
            heads=4,
            mlp_dim=384,
            vocab_size=640,
            max_positions=104,
            dropout=0.0,
            initializer_range=0.06,
        ),
    ),
    "base": dict(image_size=480, patch_size=16, width=768, layers=12, heads=12, decoder=_ROBERTA_BASE),
    "large": dict(image_size=480, patch_size=14, width=1024, layers=24, heads=16, decoder=_ROBERTA_LARGE),
    "huge": dict(image_size=480, patch_size=14, width=1280, layers=32, heads=20, decoder=_ROBERTA_LARGE),
}

_VISION = (r"encoder/blocks/(?!.*adaptor).*",)
_LANGUAGE = (r"decoder/layers/(?!.*(adaptor|cross)).*",)
# Names of parameters that each freezing mode of the reference keeps as they are (model/prismer.py: prepare_to_train).
FREEZE: dict[str, tuple[str, ...]] = {
    "none": (),
    "freeze_vision": _VISION,
    "freeze_lang": _LANGUAGE,
    "freeze_lang_vision": _LANGUAGE + _VISION,
}

# What fits a checkpoint of one resolution to a model of another, as the reference does before it fine-tunes.
RESIZE = {
    "params/encoder/position_embedding": lambda table, shape: resize_positions(table, (math.isqrt(shape[0]),) * 2)
}


class Prismer(nn.Module):
    """The model; `experts=()` is PrismerZ. All fields are hashable, so is the module.

    Attributes:
      experts: names of prismer_jax.labels.EXPERTS whose labels are read.
      image_size: side of the (square) image; labels may have any size.
      decoder: sizes of the text decoder: width, layers, heads, mlp_dim, vocab_size, max_positions[, dropout,
        initializer_range].
      classes: names of an expert's classes where a data set has its own; the official number of classes otherwise.
      dtype: of the computation; parameters, norms, softmax and logits are float32.
      remat: what the backward pass keeps, a name of towers.layers.REMAT.
    """

    experts: tuple[str, ...]
    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    decoder: Mapping[str, Any]
    latents: int = 64
    resampler_layers: int = 4
    resampler_heads: int = 8
    classes: Mapping[str, tuple[str, ...]] = FrozenDict()
    dtype: str = "float32"
    remat: str = "none"

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        self.vision = VisionEncoder(
            self.experts,
            self.image_size,
            self.patch_size,
            self.width,
            self.layers,
            self.heads,
            self.latents,
            self.resampler_layers,
            self.resampler_heads,
            self.remat,
            dtype,
            name="encoder",
        )
        self.text = TextDecoder(**self.decoder, remat=self.remat, dtype=dtype, name="decoder")
        self.tables = {
            name: self.variable("tables", name, lambda table=table: jnp.asarray(table))
            for name, table in label_tables(self.experts, self.classes).items()
        }

    def __call__(self, batch: Mapping[str, Array], train: bool = False) -> Float[Array, "b t v"]:
        """Returns float32 logits of the next token at every position of `batch["text"]`.

        Training needs the rngs 'dropout' and, with object detection, 'instance', and a mutable 'batch_stats'.
        """
        encoded = self.encode(batch["image"], batch, train)
        return self.decode(encoded, batch["text"], train)

    @typed
    def encode(
        self,
        image: UInt8[Array, "b h w 3"],
        labels: Mapping[str, Any],
        train: bool = False,
        instance_rows: Int[Array, "#b 256"] | None = None,
    ) -> Float[Array, "b n {self.width}"]:
        """Returns the tokens of an image and its labels.

        Args:
          image: square, of side `image_size`.
          labels: a Batch, or the part of it whose keys start with 'labels/'. Maps may have any size. One that is
            missing is the background everywhere (of the size of the other maps, or of the image if there is none).
          instance_rows: row of the instance embedding of every instance id. Default: drawn for every image in training
            (rng 'instance'), and else the id itself, so that a caption does not change from run to run. (The reference
            draws in inference too, once per id of the whole batch.)
        """
        pixels = normalize(image)
        sizes = [labels[EXPERTS[e].key].shape[1:3] for e in self.experts if EXPERTS[e].key in labels]
        size = sizes[0] if sizes else image.shape[1:3]
        maps = {e: labels.get(EXPERTS[e].key) for e in self.experts}
        maps = {e: _blank(e, (len(image), *size)) if m is None else m for e, m in maps.items()}
        features = {e: self._features(e, m, labels) for e, m in maps.items()}
        instances = None
        if "obj_detection" in maps:
            if instance_rows is None and train:
                shape = (len(image), MAX_IDS)
                instance_rows = jax.random.randint(self.make_rng("instance"), shape, 0, INSTANCE_ROWS)
            elif instance_rows is None:
                instance_rows = jnp.arange(MAX_IDS)[None] % INSTANCE_ROWS
            instances = (maps["obj_detection"][..., 0], instance_rows)
        return self.vision(pixels, features, instances, train)

    @nn.nowrap
    def rows_read(self, side: int) -> np.ndarray:
        """The rows (and columns) of a map of ids that `encode` reads: the others need not come to the device."""
        return rows_read(side, self.patch_size)

    def encode_features(
        self,
        image: Float[Array, "b h w 3"],
        features: Features,
        instances: tuple[UInt8[Array, "b ih iw"], Int[Array, "#b 256"]] | None = None,
        train: bool = False,
    ) -> Float[Array, "b n {self.width}"]:
        """`encode` after the labels' lookup and all scaling: what the reference's network takes (see vit.Features)."""
        return self.vision(image, features, instances, train)

    def _features(self, expert: str, label: Array, labels: Mapping[str, Array]) -> Array | tuple[Array, Array]:
        """Scales a map of intensities to [-1, 1], or says the vector of each of the 256 ids of a map of ids."""
        if (embed := EXPERTS[expert].embed) == "scaled":
            x = label.astype(jnp.float32) / 255
            low, high = x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True)
            return 2 * (x - low) / (high - low + 1e-6) - 1
        ids, table = label[..., 0], self.tables[expert].value
        classes = len(table) - 1  # the last row is the background
        if embed == "words":
            words = labels.get(WORDS_KEY, jnp.zeros((1, MAX_IDS, FEATURES)))
            return ids, jnp.where((jnp.arange(MAX_IDS) == BACKGROUND)[:, None], table[-1], words.astype(jnp.float32))
        rows = jnp.arange(MAX_IDS)[None]
        if embed == "instances":
            rows = labels.get(CLASSES_KEY, jnp.full((1, MAX_IDS), -1))
        known = (rows >= 0) & (rows < classes) & (jnp.arange(MAX_IDS) != BACKGROUND)
        return ids, table[jnp.where(known, rows, classes)]

    @typed
    def decode(
        self, encoded: Float[Array, "b n d"], text: Int[Array, "b t"], train: bool = False
    ) -> Float[Array, "b t v"]:
        """Returns the logits of the next token at every position; padding is never attended to.

        Every <s> after the first begins another text about the same image, which sees nothing of those before it.
        """
        self._check_length(text.shape[1])
        real, part = (text != PAD)[:, None], jnp.cumsum(text[:, None] == BOS, -1)
        count = _positions(real)
        begins = jax.lax.cummax(jnp.where(text[:, None] == BOS, count - PAD - 1, 0), axis=2)
        mask = _causal(real) & (part[..., None] == part[..., None, :])
        logits, _ = self.text(text[:, None], jnp.maximum(count - begins, PAD), mask, encoded, train=train)
        return logits[:, 0]

    @typed
    def prefill(
        self, encoded: Float[Array, "b n d"], text: Int[Array, "b t"], max_len: int
    ) -> tuple[Float[Array, "b 1 v"], dict[str, Any]]:
        """Reads a prompt. Returns the logits after its last column and a cache of `max_len` columns.

        The cache: `shared` (keys and values of the image, [layers b n h d]), `layers` (every leaf
        [layers b k max_len h d]), `rows` (every leaf [b k ...]) and `index`, the columns filled; k is 1.
        """
        self._check_length(max_len)
        real = (text != PAD)[:, None]
        logits, kept = self.text(text[:, None], _positions(real), _causal(real), encoded, last_only=True, collect=True)
        spare = max_len - text.shape[1]

        def pad(x: Array) -> Array:
            return jnp.pad(x, [(0, 0)] * 3 + [(0, spare)] + [(0, 0)] * 2)

        rows = {"mask": jnp.pad(real, [(0, 0), (0, 0), (0, spare)]), "count": real.sum(-1, dtype=jnp.int32)}
        index = jnp.asarray(text.shape[1], jnp.int32)
        return logits[:, 0], {**kept, "layers": jax.tree.map(pad, kept["layers"]), "rows": rows, "index": index}

    @typed
    def extend(
        self, cache: dict[str, Any], tokens: Int[Array, "b k t"]
    ) -> tuple[Float[Array, "b k t v"], dict[str, Any]]:
        """Appends tokens to every beam. Returns the logits after each of them and the cache with their columns.

        Generated columns are always attended to, a padding id gets no position of its own.
        """
        rows, index = cache["rows"], cache["index"]
        length, real = tokens.shape[2], tokens != PAD
        columns = jnp.arange(rows["mask"].shape[-1])
        filled = rows["mask"] | ((columns >= index) & (columns < index + length))
        mask = filled[:, :, None] & (columns <= index + jnp.arange(length)[:, None])
        logits, kept = self.text(tokens, _positions(real, rows["count"]), mask, None, cache, collect=True)

        def put(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice(old, new, (0, 0, 0, index, 0, 0))

        return logits, {
            "shared": cache["shared"],
            "layers": jax.tree.map(put, cache["layers"], kept["layers"]),
            "rows": {"mask": filled, "count": rows["count"] + real.sum(-1, dtype=jnp.int32)},
            "index": index + length,
        }

    def _check_length(self, length: int) -> None:
        most = self.decoder["max_positions"] - PAD - 1
        if length > most:
            raise UserError(f"A text of {length} tokens does not fit: decoder.max_positions allows {most}.")

    def init_variables(self, rng: Array, batch_shapes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns {'params', 'batch_stats', 'tables'}; no shape of theirs depends on the batch, so none is needed."""
        if batch_shapes is None:
            image = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.uint8)
            batch_shapes = {"image": image, "text": jax.ShapeDtypeStruct((1, 2), jnp.int32)}
        batch = {k: jnp.zeros(v.shape, v.dtype) for k, v in batch_shapes.items()}
        variables = self.init(rng, batch)
        return {"batch_stats": {}, "tables": {}, **variables}


@typed
def normalize(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Returns what the vision encoder takes of photos, float32."""
    return (image.astype(jnp.float32) / 255 - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)


def _positions(real: Array, before: Array | int = 0) -> Array:
    """RoBERTa's positions: real tokens count on from PAD + 1, also across padding; padding has position PAD."""
    before = jnp.asarray(before, jnp.int32)[..., None]
    return (jnp.cumsum(real, -1, dtype=jnp.int32) + before) * real + PAD


def _causal(real: Array) -> Array:
    return real[..., None, :] & np.tri(real.shape[-1], dtype=bool)


def _blank(expert: str, shape: tuple[int, ...]) -> Array:
    return jnp.full((*shape, EXPERTS[expert].channels), EXPERTS[expert].fill, jnp.uint8)


def label_tables(experts: Sequence[str], classes: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Returns, for each expert whose maps hold ids, the vectors [classes + 1, 64] of its classes and the background.

    They are a function of the classes' names; a checkpoint carries them, with the official tables where it has them.
    """
    tables = {}
    for name in experts:
        expert = EXPERTS[name]
        if expert.storage == "ids":
            names = classes.get(name) or [f"{name}/{i}" for i in range(expert.num_classes or 0)]
            tables[name] = np.concatenate([class_vectors(names), background_vector()[None]])
    return tables


def build(variant: str = "base", experts: str | Sequence[str] = "all", **overrides: Any) -> Prismer:
    """Returns a model of one of the sizes in VARIANTS.

    Args:
      experts: as in labels.select: 'all', 'none', 'depth+edge' or a sequence.
      overrides: fields of Prismer; `decoder` and `classes` are dicts, of which `decoder` is merged into the variant's.

    Raises:
      UserError: an unknown variant, expert or field, or sizes that do not fit together.
    """
    fields = dict(choose("variant", variant, VARIANTS))
    known = {k: None for k in Prismer.__dataclass_fields__ if k not in ("parent", "name")}
    decoder = dict(overrides.pop("decoder", {}))
    for kind, given, valid in (
        ("field of the model", overrides, known),
        ("field of the decoder", decoder, {**fields["decoder"], "dropout": None, "initializer_range": None}),
    ):
        for key in given:
            choose(kind, key, valid)
    fields |= overrides
    fields["decoder"] = FrozenDict({**fields["decoder"], **decoder})
    names = {k: tuple(v) for k, v in dict(fields.get("classes", {})).items()}
    for name, classes in names.items():
        if EXPERTS[choose("expert", name, {e: e for e in EXPERTS})].embed not in ("classes", "instances"):
            raise UserError(f"classes: {name} has no classes; only segmentation and detection have.")
        if len(classes) > BACKGROUND and EXPERTS[name].embed == "classes":
            raise UserError(f"classes: {name} names {len(classes)} classes, an id map holds at most {BACKGROUND}.")
    model = Prismer(experts=select(experts), **{**fields, "classes": FrozenDict(names)})
    for what, width, heads in (
        ("width", model.width, model.heads),
        ("width (resampler)", model.width, model.resampler_heads),
        ("decoder.width", model.decoder["width"], model.decoder["heads"]),
    ):
        if width % heads:
            raise UserError(f"{what} {width} is not a multiple of {heads} heads.")
    return model
