"""Prismer's parameters: keys of the official state dict <-> our names, and what a state dict says of its model.

Source of the keys: NVlabs/prismer at 4f27ab3, model/modules/{vit,resampler,roberta}.py.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismer_jax.errors import UserError
from prismer_jax.labels import EXPERTS
from prismer_jax.models import sizes
from prismer_jax.models.prismer.model import VARIANTS, Prismer
from prismer_jax.towers.layers import resize_positions
from prismer_jax.weights import modules, rules, shapes
from prismer_jax.weights.rules import Rule

POSITIONS = "expert_encoder.positional_embedding"
_PATCHES = "expert_encoder.conv1.rgb.weight"
_STEMS = tuple(dict.fromkeys(expert.stem for expert in EXPERTS.values()))


def _stem(domain: str) -> list[Rule]:
    """A PyTorch Sequential: 0 resizes, 1, 4, 7, 10 are convolutions, 2, 5, 8, 11 BatchNorms, 13 the 1x1 convolution."""
    key, name = f"expert_encoder.conv1.{domain}", f"encoder/stem_{domain}"
    convs = [Rule(f"{key}.{1 + 3 * i}.weight", (f"params/{name}/conv_{i}/kernel",), "conv") for i in range(4)]
    norms = [rule for i in range(4) for rule in modules.batch_norm(f"{key}.{2 + 3 * i}", f"{name}/norm_{i}")]
    return [*convs, *norms, Rule(f"{key}.13.weight", (f"params/{name}/out/kernel",), "conv")]


_RESBLOCK = "expert_encoder.transformer.resblocks.{}"
_PERCEIVER = "expert_encoder.resampler.perceiver_blocks.{}"
_EMBEDDINGS = "text_decoder.roberta.embeddings"
_LAYER = "text_decoder.roberta.encoder.layer.{}"

TABLE = rules.Table(
    rules=(
        Rule(POSITIONS, ("params/encoder/position_embedding",)),
        Rule("expert_encoder.instance_embedding", ("params/encoder/instance_embedding",)),
        Rule(_PATCHES, ("params/encoder/patch_embedding",), "conv"),
        *(rule for domain in _STEMS for rule in _stem(domain)),
        *modules.clip_block(f"{_RESBLOCK}.0", "encoder/blocks"),
        *modules.mlp(f"{_RESBLOCK}.1.adaptor.down_proj", f"{_RESBLOCK}.1.adaptor.up_proj", "encoder/blocks/adaptor"),
        *modules.norm(f"{_RESBLOCK}.1.adaptor_ln", "encoder/blocks/norm_adaptor"),
        Rule("expert_encoder.resampler.latents", ("params/encoder/resampler/latents",)),
        *modules.packed_attention(f"{_PERCEIVER}.attn", "encoder/resampler/blocks/attention"),
        *modules.norm(f"{_PERCEIVER}.ln_1", "encoder/resampler/blocks/norm_latents"),
        *modules.norm(f"{_PERCEIVER}.ln_2", "encoder/resampler/blocks/norm_tokens"),
        *modules.mlp(f"{_PERCEIVER}.mlp.c_fc", f"{_PERCEIVER}.mlp.c_proj", "encoder/resampler/blocks/mlp"),
        *modules.norm(f"{_PERCEIVER}.ln_ff", "encoder/resampler/blocks/norm_mlp"),
        *modules.norm("expert_encoder.ln_pre", "encoder/norm_pre"),
        *modules.norm("expert_encoder.ln_post", "encoder/norm_post"),
        *modules.roberta_embeddings(_EMBEDDINGS, "decoder"),
        *modules.roberta_layer(f"{_LAYER}.0", "decoder/layers"),
        *modules.roberta_attention(f"{_LAYER}.1", "decoder/layers/cross_attention"),
        *modules.norm(f"{_LAYER}.1.output.LayerNorm", "decoder/layers/norm_cross"),
        *modules.mlp(f"{_LAYER}.2.adaptor.down_proj", f"{_LAYER}.2.adaptor.up_proj", "decoder/layers/adaptor"),
        *modules.norm(f"{_LAYER}.2.adaptor_ln", "decoder/layers/norm_adaptor"),
        *modules.roberta_layer("text_decoder.roberta.encoder.output_layer", "decoder/output_layer"),
        *modules.roberta_head("text_decoder.lm_head", "decoder"),
    ),
    constants=modules.position_ids(_EMBEDDINGS, "decoder"),
    spellings=modules.OLD_NORMS,
)


def resized(state: rules.State, key: str, rows: int, skip: int = 0) -> dict[str, np.ndarray]:
    """Returns a state dict whose image positions have as many rows as a square grid of another resolution needs.

    Args:
      key: of the positions [n, width].
      rows: how many the result has; a square number.
      skip: rows before those of the grid, which are dropped (CLIP's class token).
    """
    out = dict(state)
    if key in out and out[key].ndim == 2 and len(out[key]) > skip:
        table = np.asarray(out[key][skip:])
        if len(table) != rows and round(len(table) ** 0.5) ** 2 == len(table):
            side = round(rows**0.5)
            table = np.asarray(resize_positions(table.astype(np.float32), (side, side)))
        out[key] = table
    return out


@dataclass(frozen=True)
class Facts:
    """What the shapes of a checkpoint say of its model.

    Attributes:
      variant: a name of VARIANTS, or None.
      stems: of the experts.
      grid: image patches on a side.
      resolution: an image size whose patches they are: the variant's own if it is.
    """

    variant: str | None
    stems: frozenset[str]
    grid: int
    resolution: int


def facts_of(state: rules.State) -> Facts | None:
    """Returns what a state dict says of its model; None if it is no Prismer's."""
    state = TABLE.spell(state)
    words = state.get(f"{_EMBEDDINGS}.word_embeddings.weight")
    patches, positions = state.get(_PATCHES), state.get(POSITIONS)
    if words is None or patches is None or positions is None or (words.ndim, patches.ndim, positions.ndim) != (2, 4, 2):
        return None
    sizes = (patches.shape[3], patches.shape[0], count(state, _RESBLOCK), words.shape[1], count(state, _LAYER))
    variant = next((name for name, fields in VARIANTS.items() if sizes_of(fields) == sizes), None)
    stems = {m[1] for m in (re.match(r"expert_encoder\.conv1\.(\w+)\.", key) for key in state) if m} - {"rgb"}
    grid, patch = round(len(positions) ** 0.5), sizes[0]
    own = VARIANTS[variant]["image_size"] if variant else 0
    return Facts(variant, frozenset(stems), grid, own if own // patch == grid else grid * patch)


def fields_by_shapes(state: rules.State, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the arguments of `build` that a state dict says: a variant, and in what the model differs from it.

    The resampler has the reference's number of heads, which is one for all sizes of models, unless one is given.

    Args:
      given: the fields that the user gave.
      where: names the file in errors.

    Raises:
      UserError: nothing says how many heads the image encoder or the decoder has.
    """
    known = shapes.here(state, TABLE, where)
    published = {name: fields for name, fields in VARIANTS.items() if not name.startswith(sizes.LEAST)}
    ours = [{**fields, "mlp_dim": 4 * fields["width"]} for fields in published.values()]
    read = functools.partial(sizes.vit, at="params/encoder")
    vision = sizes.of_part(read, known, "", given, ours, where)
    texts = sizes.published(VARIANTS, "decoder")
    decoder = sizes.of_part(sizes.roberta, known, "decoder", given.get("decoder", {}), texts, where)
    if not vision or not decoder:
        raise UserError(
            f"{where}: is no whole checkpoint of Prismer: its encoder or decoder has no layers. Fetch it again."
        )
    fields = {name: vision[name] for name in ("patch_size", "width", "layers", "heads", "image_size")}
    if (latents := known.get("params/encoder/resampler/latents")) is not None:
        layers = known["params/encoder/resampler/blocks/norm_mlp/scale"][0]
        fields |= {"latents": latents[0], "resampler_layers": layers}
    defaults = dict(latents=Prismer.latents, resampler_layers=Prismer.resampler_layers)
    for name, variant in published.items():
        alike = {**defaults, **variant, "image_size": fields["image_size"]}
        if variant["decoder"] == decoder and all(alike[key] == value for key, value in fields.items()):
            return {"variant": name, "image_size": fields["image_size"]}
    return {"variant": "base", **fields, "decoder": decoder}


def sizes_of(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns what tells the sizes of models apart: patch, width, layers, and width and layers of the decoder."""
    decoder = fields["decoder"]
    return (*(fields[k] for k in ("patch_size", "width", "layers")), decoder["width"], decoder["layers"])


def count(state: rules.State, key: str) -> int:
    """Returns how many layers a state dict has under a key with '{}' for the layer."""
    pattern = re.compile(re.escape(key).replace(r"\{\}", r"(\d+)") + r"\.")
    return len({m[1] for m in map(pattern.match, state) if m})
