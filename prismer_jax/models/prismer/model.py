"""The model: image and expert labels in, text logits out; encode, prefill, extend as models.vlm describes them.

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

from prismer_jax.config import values
from prismer_jax.errors import UserError, choose
from prismer_jax.labels import BACKGROUND, EXPERTS, MAX_IDS, select
from prismer_jax.models.prismer.encoder import VisionEncoder
from prismer_jax.models.vlm import init_from_shapes, ordinals, text_mask
from prismer_jax.towers.label_lookup import features, label_maps, label_tables
from prismer_jax.towers.layers import appended, resize_positions, unfilled
from prismer_jax.towers.roberta import TextDecoder
from prismer_jax.towers.stem import INSTANCE_ROWS
from prismer_jax.typing import Array, Bool, Float, Int, UInt8, typed

# CLIP's normalisation of images, which the reference applies to every photo (dataset/utils.py: Transform).
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

_SCENES = dict(vocab_size=640, max_positions=104, dropout=0.0, initializer_range=0.06)  # learnt from nothing
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
        decoder=dict(width=96, layers=2, heads=4, mlp_dim=384, **_SCENES),
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
RESIZE = {"params/encoder/position_embedding": lambda x, shape: resize_positions(x, (math.isqrt(shape[0]),) * 2)}


class Prismer(nn.Module):
    """The model; `experts=()` is PrismerZ. All fields are hashable, so is the module.

    Attributes:
      experts: names of prismer_jax.labels.EXPERTS whose labels are read.
      image_size: side of the (square) image; labels may have any size.
      places: unlike the reference, stems read on the grid of patches, and what they read there and the map's mean are
        added to each patch's token behind the image encoder as well, through a projection.
      decoder: sizes of the text decoder: width, layers, heads, mlp_dim, vocab_size, max_positions[, dropout,
        initializer_range, pad]; positions count on from `pad`, the tokenizer's id of padding (RoBERTa's by default).
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
    places: bool = False
    classes: Mapping[str, tuple[str, ...]] = FrozenDict()
    dtype: str = "float32"
    remat: str = "none"
    rngs = ("dropout", "instance")

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        sizes = self.image_size, self.patch_size, self.width, self.layers, self.heads
        resampler = self.latents, self.resampler_layers, self.resampler_heads, self.places
        self.vision = VisionEncoder(self.experts, *sizes, *resampler, self.remat, dtype, name="encoder")
        self.text = TextDecoder(**self.decoder, remat=self.remat, dtype=dtype, name="decoder")
        self.tables = {
            name: self.variable("tables", name, lambda table=table: jnp.asarray(table))
            for name, table in label_tables(self.experts, self.classes).items()
        }

    @property
    def vocab_size(self) -> int:
        return self.decoder["vocab_size"]

    @property
    def pad(self) -> int:
        return self.decoder.get("pad", TextDecoder.pad)

    def __call__(self, batch: Mapping[str, Array], train: bool = False) -> Float[Array, "b t v"]:
        """Returns float32 logits of the next token at every position of `text`.

        Training needs the rngs 'dropout' and, with object detection, 'instance', and a mutable 'batch_stats'.
        """
        return self.read(self.encode(batch, train), batch, train)

    @typed
    def encode(
        self, batch: Mapping[str, Any], train: bool = False, instance_rows: Int[Array, "#b 256"] | None = None
    ) -> Float[Array, "b n {self.width}"]:
        """Returns the tokens of an image and its labels.

        Args:
          batch: `image` [b h w 3], square, of side `image_size`, and `labels/...`, maps of any size. A map that is
            missing is the background everywhere.
          instance_rows: row of the instance embedding of every instance id. Default: drawn for every image in training
            (rng 'instance'), and else the id itself, so that a caption does not change from run to run. (The reference
            draws in inference too, once per id of the whole batch.)
        """
        image, maps = batch["image"], label_maps(batch, self.experts)
        if image.ndim != 4:
            raise UserError(f"Prismer reads one image a row, [batch, height, width, 3]; the batch has {image.shape}.")
        tables = {name: table.value for name, table in self.tables.items()}
        inputs = {name: features(name, label, batch, tables) for name, label in maps.items()}
        instances = None
        if "obj_detection" in maps:
            if instance_rows is None and train:
                shape = (len(image), MAX_IDS)
                instance_rows = jax.random.randint(self.make_rng("instance"), shape, 0, INSTANCE_ROWS)
            elif instance_rows is None:
                instance_rows = jnp.arange(MAX_IDS)[None] % INSTANCE_ROWS
            instances = (maps["obj_detection"][..., 0], instance_rows)
        return self.vision(normalize(image), inputs, instances, train)

    @typed
    def read(
        self, encoded: Float[Array, "b n d"], batch: Mapping[str, Any], train: bool = False
    ) -> Float[Array, "b t v"]:
        """Returns the logits of the next token at every position of `text`, given the images' tokens."""
        text, _, masks, positions = self._prompt(batch)
        logits, _ = self.text(text, positions, masks, encoded, train=train)
        return logits[:, 0]

    @typed
    def prefill(
        self, encoded: Float[Array, "b n d"], batch: Mapping[str, Any], room: int
    ) -> tuple[Float[Array, "b 1 v"], dict[str, Any]]:
        """Reads the prompt `text`. Returns the logits after its last column and a cache with room for `room` tokens.

        The cache: `shared` {'keys': of the image [layers b h s d] and the prompt [layers b s h d], 'mask': real columns
        of the prompt [b t]}, `own` (leaves [layers b 1 room h d]), `rows` {'count': tokens [b 1]} and `index`, the
        columns of `own` that are filled.
        """
        text, real, masks, positions = self._prompt(batch, room)
        logits, keys = self.text(text, positions, masks, encoded, last_only=True, collect=True)
        news = {name: part.pop("new") for name, part in keys.items()}
        for name, new in news.items():
            keys[name]["prompt"] = jax.tree.map(lambda x: x[:, :, 0], new)
        own = unfilled(news, room)
        rows = {"count": real.sum(-1, dtype=jnp.int32)[:, None]}
        shared = {"keys": keys, "mask": real}
        return logits[:, 0], {"shared": shared, "own": own, "rows": rows, "index": jnp.zeros((), jnp.int32)}

    @typed
    def extend(
        self, cache: dict[str, Any], tokens: Int[Array, "b k t"], seen: Bool[Array, "b k t t"] | None = None
    ) -> tuple[Float[Array, "b k t v"], dict[str, Any]]:
        """Appends tokens to every sequence. Returns the logits after each of them and the cache with their columns.

        Generated columns are always attended to; an id of padding gets no position of its own, as in the reference.
        """
        index, count, length = cache["index"], cache["rows"]["count"], tokens.shape[2]
        room = jax.tree.leaves(cache["own"])[0].shape[3]
        masks = {
            "new": jnp.tri(length, dtype=bool) if seen is None else seen,
            "own": (jnp.arange(room) < index)[None],
            "prompt": cache["shared"]["mask"][:, None, None],
        }
        real = tokens != self.pad
        positions = ((masks["new"] & real[..., None, :]).sum(-1, dtype=jnp.int32) + count[..., None]) * real + self.pad
        logits, keys = self.text(tokens, positions, masks, None, cache, collect=True)
        if seen is not None:
            return logits, cache
        own = appended(cache["own"], {name: part["new"] for name, part in keys.items()}, index)
        rows = {"count": count + real.sum(-1, dtype=jnp.int32)}
        return logits, {**cache, "own": own, "rows": rows, "index": index + length}

    def _prompt(self, batch: Mapping[str, Any], room: int = 0) -> tuple[Array, Array, dict[str, Array], Array]:
        """Returns ids [b 1 t], real columns [b t], masks and positions [b 1 t]: RoBERTa's count on from `pad`."""
        text = batch["text"]
        length, most = text.shape[1] + room, self.decoder["max_positions"] - self.pad - 1
        if length > most:
            raise UserError(f"A text of {length} tokens does not fit: decoder.max_positions allows {most}.")
        masks = {"new": text_mask(batch)[:, None]}
        return text[:, None], batch["mask_input"], masks, (ordinals(batch) + self.pad)[:, None]

    def photo_attention(self, kept: Mapping[str, Any]) -> tuple[Float[Array, "b t n"], int]:
        """Returns the cross-attention of each column, and the side of the grid of patches: see decode.attention."""
        weights = kept["decoder"]["layers"]["cross_attention"]["weights"][0]
        return weights.mean(0)[:, 0], self.image_size // self.patch_size

    def init_variables(self, rng: Array) -> dict[str, Any]:
        """Returns {'params', 'batch_stats', 'tables'}; no shape of theirs depends on a batch."""
        return {"batch_stats": {}, "tables": {}, **init_from_shapes(self, rng, self.image_size)}


@typed
def normalize(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Returns what the vision encoder takes of photos, float32."""
    return (image.astype(jnp.float32) / 255 - np.float32(IMAGE_MEAN)) / np.float32(IMAGE_STD)


def build(
    variant: str = "base", experts: str | Sequence[str] = "all", tokenizer: Any = None, **overrides: Any
) -> Prismer:
    """Returns a model of one of the sizes in VARIANTS.

    Args:
      experts: as in labels.select: 'all', 'none', 'depth+edge' or a sequence.
      tokenizer: whose id of padding the decoder takes; RoBERTa's by default.
      overrides: fields of Prismer; `decoder` and `classes` are dicts, of which `decoder` is merged into the variant's.

    Raises:
      UserError: an unknown variant, expert or field, or sizes that do not fit together.
    """
    fields = dict(choose("variant", variant, VARIANTS))
    decoder = dict(overrides.pop("decoder", {}))
    if tokenizer is not None:
        decoder.setdefault("pad", tokenizer.pad)
    for key in overrides:
        choose("field of the model", key, Prismer.__dataclass_fields__.keys() - {"parent", "name"})
    for key in decoder:
        choose("field of the decoder", key, (*fields["decoder"], "dropout", "initializer_range", "pad"))
    values.check(decoder, values.kinds(TextDecoder), "config.model.decoder")
    fields |= overrides
    fields["decoder"] = FrozenDict({**fields["decoder"], **decoder})
    class_names = {k: tuple(v) for k, v in dict(fields.get("classes", {})).items()}
    for name, classes in class_names.items():
        if choose("expert", name, EXPERTS).embed not in ("classes", "instances"):
            raise UserError(f"classes: {name} has no classes; only segmentation and detection have.")
        if len(classes) > BACKGROUND and EXPERTS[name].embed == "classes":
            raise UserError(f"classes: {name} names {len(classes)} classes, an id map holds at most {BACKGROUND}.")
    model = Prismer(experts=select(experts), **{**fields, "classes": FrozenDict(class_names)})
    for what, width, heads in (
        ("width", model.width, model.heads),
        ("width (resampler)", model.width, model.resampler_heads),
        ("decoder.width", model.decoder["width"], model.decoder["heads"]),
    ):
        if not 0 < heads <= width or width % heads:
            raise UserError(f"{what} {width} is not a multiple of {heads} heads.")
    if not 0 < model.patch_size <= model.image_size:
        sizes = f"image_size={model.image_size} must be at least patch_size={model.patch_size}"
        raise UserError(f"config.model: {sizes}, and both above 0.")
    return model
