"""Segmentation: Mask2Former's backbone, pixel decoder, masks of every layer, and the label map."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax.experts import aspect_ratio
from prismer_jax.experts.segmentation import mask2former
from prismer_jax.experts.segmentation.expert import SegAde, SegCoco, Segmentation, strips
from prismer_jax.weights import rules

from .case import Case, Check, Outputs, check_shapes

MARGIN = 1e-4  # between the best two classes of a pixel: below it, which one wins is left to rounding
TAPS = ("backbone", "pixel_decoder", "class_head")  # modules whose outputs are stored


def expert_of(case: Case) -> Segmentation:
    """Builds the expert that a manifest's `config` describes."""
    swin, pixels, decoder = (case.config[key] for key in ("swin", "pixel_decoder", "decoder"))
    kind = SegAde if case.config["num_classes"] == 150 else SegCoco
    return kind(
        backbone={
            "width": swin["embed_dim"],
            "depths": tuple(swin["depths"]),
            "heads": tuple(swin["num_heads"]),
            "window": swin["window_size"],
        },
        pixels={
            "width": pixels["conv_dim"],
            "mask_width": pixels["mask_dim"],
            "depth": pixels["enc_layers"],
            "heads": pixels["heads"],
            "points": pixels["points"],
            "hidden": pixels["ffn"],
        },
        decoder={
            "width": decoder["hidden"],
            "queries": decoder["queries"],
            "depth": decoder["layers"],
            "heads": decoder["heads"],
            "hidden": decoder["ffn"],
        },
    )


def check_keys(case: Case, expert: Segmentation) -> None:
    """Checks that the network converts to the manifest's keys and shapes but those that are never used."""
    theirs = {key: shape for key, shape in case.shapes.items() if key not in case.config["unused_keys"]}
    check_shapes(rules.key_shapes(expert.table, expert.shapes), theirs)


def segmentation(case: Case) -> Outputs:
    expert = expert_of(case)
    check_keys(case, expert)
    variables = jax.tree.map(jnp.asarray, expert.from_official(case.state(), case.name))
    photo = rearrange(case["image"], "c h w -> h w c")  # blue, green, red: already as the network gets it
    size = aspect_ratio.padded(photo.shape[:2])
    image = jnp.zeros((1, *size, 3))
    image = image.at[0, : photo.shape[0], : photo.shape[1]].set(photo)
    sizes = jnp.asarray([photo.shape[:2]])
    yield "tap/input", channels_first(aspect_ratio.normalize(image, sizes, mask2former.MEAN, mask2former.STD))

    def is_stored(module: nn.Module, method: str) -> bool:
        return module.name in TAPS

    @jax.jit
    def run(variables: Any, image: Any, sizes: Any) -> Any:
        outputs, state = expert.module.apply(
            variables, image, sizes, capture_intermediates=is_stored, mutable=["intermediates"]
        )
        return outputs, mask2former.semantic(*outputs, size), state["intermediates"]

    (logits, masks), scores, taps = run(variables, image, sizes)
    for name, x in taps["backbone"]["__call__"][0].items():
        yield f"tap/{name}", channels_first(x)
    mask_features, maps = taps["pixel_decoder"]["__call__"][0]
    yield "tap/mask_features", channels_first(mask_features)
    for i, x in enumerate(maps):
        yield f"tap/multi_scale_{i}", channels_first(x)
    for i, x in enumerate(taps["decoder"]["class_head"]["__call__"]):
        yield f"tap/layer{i}_pred_logits", x
    for i, blocked in enumerate(taps["decoder"]["blocked"]):
        yield f"tap/attn_mask_packed_{i}", np.packbits(blocked)
    yield "out/pred_logits", logits
    yield "out/pred_masks", channels_first(masks)

    height, width = case["height_width"].tolist()
    output = {"scores": np.asarray(scores[0]), "size": np.asarray(sizes[0])}
    sem_seg = np.concatenate(list(strips(output["scores"], photo.shape[:2], (height, width))))
    yield "out/sem_seg", rearrange(sem_seg, "h w c -> c h w")
    two = np.partition(sem_seg, -2, axis=-1)[..., -2:]
    yield "tap/label_margin", two[..., 1] - two[..., 0]
    clear = case.arrays["tap/label_margin"] > MARGIN
    label = expert.finish(output, (height, width), {}).map[..., 0]
    yield "out/label_map", label, Check(functools.partial(differing, clear), 0)


def channels_first(x: Any) -> np.ndarray:
    return rearrange(np.asarray(x), "b h w c -> b c h w")


def differing(where: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the share of pixels that differ, infinity for another shape or type."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return np.inf
    return float((ours != theirs)[where].mean())
