"""UniDet: maps, proposals, pooled boxes, each stage of the cascade and the detections; and label maps of instances."""

from __future__ import annotations

import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from prismer_jax.experts import winograd
from prismer_jax.experts.aspect_ratio import padded
from prismer_jax.experts.detection import Detection, boxes, cascade, roi_align, rpn
from prismer_jax.experts.detection.instances import instance_map
from prismer_jax.weights import rules

from .case import Case, Check, Mismatch, Outputs, check_shapes


def farthest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the largest difference of any coordinate, or infinity for another shape."""
    return float(np.abs(ours - theirs).max(initial=0)) if ours.shape == theirs.shape else np.inf


PIXELS = Check(farthest, 5e-3)


def expert_of(case: Case) -> Detection:
    """Builds the detector that a manifest's `config` describes."""
    config = case.config
    return Detection(
        blocks=tuple(config["blocks"]),
        stem=config["stem_width"],
        width=config["width_per_group"],
        stage_features=config["res2_out_channels"],
        features=config["fpn_channels"],
        box_convs=config["box_head"]["num_conv"],
        box_features=config["box_head"]["conv_dim"],
        hidden=config["box_head"]["fc_dim"],
        before=config["rpn"]["pre_nms_topk"],
        after=config["rpn"]["post_nms_topk"],
        threshold=config["score_thresh"],
        most=config["topk_per_image"],
    )


def check_keys(case: Case, expert: Detection) -> None:
    """Checks that the network converts to exactly the keys and shapes of the manifest."""
    check_shapes(rules.key_shapes(expert.table, expert.shapes), case.shapes)


def matching(ours: np.ndarray, theirs: np.ndarray, what: str) -> np.ndarray:
    """Returns which of our rows is each of theirs. Both are sorted by score, and equal scores come in any order."""
    distances = np.abs(ours[None] - theirs[:, None]).max(-1)
    order = distances.argmin(1)
    if len(set(order)) < len(theirs):
        raise Mismatch(f"{len(theirs) - len(set(order))} {what} have no counterpart")
    return order


def detection(case: Case) -> Outputs:
    """Detects from pixels. The order counts only as far as the reference's own does (see the manifest).

    All convolutions are plain, as the reference's: by the rounding errors of Winograd's, which are larger, another one
    of the 1,000 proposals of the official size is kept (`winograd` is compared with them by its own tests).
    """
    with mock.patch.object(winograd, "LEAST_PIXELS", math.inf):
        yield from _stages(case)


def _stages(case: Case) -> Outputs:
    expert = expert_of(case)
    check_keys(case, expert)
    variables = jax.tree.map(jnp.asarray, expert.from_official(case.state(), case.name))
    height, width = case["image"].shape[1:]
    image = np.zeros((1, *padded((height, width)), 3), np.float32)
    image[0, :height, :width] = rearrange(case["image"], "c h w -> h w c")[..., ::-1]  # blue, green, red in the case
    size = jnp.asarray([[height, width]])

    @jax.jit(static_argnums=0)
    def run(method: str, *args: jax.Array) -> tuple:
        return expert.module.apply(variables, *args, method=method, mutable=["intermediates"])

    levels, taps = run("pyramid", jnp.asarray(image), size)
    maps = {"stem": taps["intermediates"]["backbone"]["stem"][0]}
    maps |= {f"res{i}": x for i, x in enumerate(taps["intermediates"]["maps"][0], 2)}
    maps |= {f"p{i}": x for i, x in enumerate(levels, 3)}
    for name, x in maps.items():
        yield f"tap/{name}", rearrange(x, "b h w c -> b c h w")
    (logits, deltas), _ = run("objectness", levels)
    for i, (logit, delta) in enumerate(zip(logits, deltas, strict=True), 3):
        yield f"out/rpn_logits_p{i}", rearrange(logit, "b h w a -> b a h w")
        yield f"out/rpn_deltas_p{i}", rearrange(delta, "b h w d -> b d h w")

    one = [x[0] for x in logits], [x[0] for x in deltas], size[0]
    proposals, scores = jax.jit(rpn.propose, static_argnums=(3, 4))(*one, expert.module.before, expert.module.after)
    order = matching(np.asarray(proposals), case.arrays["out/proposal_boxes"], "proposals")
    proposals = proposals[order][None]
    yield "out/proposal_boxes", proposals[0], PIXELS
    yield "out/proposal_logits", scores[order]

    stacked, sizes = roi_align.stack(levels[: cascade.POOLED]), [x.shape[1:3] for x in levels[: cascade.POOLED]]

    def pool(rois: jax.Array) -> jax.Array:
        pooled = jax.jit(roi_align.roi_align, static_argnums=1)(stacked, tuple(sizes), rois)
        return rearrange(pooled, "1 n h w c -> n c h w")

    yield "out/pool_direct", pool(jnp.asarray(case["pool_boxes"][None]))
    (scores, corners), taps = run("cascade", levels, proposals, size)
    rois = proposals
    for i in range(len(cascade.WEIGHTS)):
        logits, deltas, next_boxes = taps["intermediates"][f"stage_{i}"][0]
        yield f"tap/stage{i}_pooled", pool(boxes.clip(rois, size))
        yield f"out/stage{i}_class_logits", logits[0]
        yield f"out/stage{i}_deltas", deltas[0]
        yield f"out/stage{i}_boxes", next_boxes[0], PIXELS
        rois = next_boxes
    yield "out/mean_scores", scores[0]
    corners = boxes.clip(corners, size)
    for name, threshold in (("out/det", "score_thresh"), ("tap/det_official_thr0.5", "official_score_thresh")):
        network = expert.module.clone(threshold=case.config[threshold])
        ours = jax.jit(lambda *args: network.apply({}, *args, method="detections"))(corners, scores)  # noqa: B023
        valid = np.asarray(ours["valid"][0])
        ours = {part: np.asarray(array[0])[valid] for part, array in ours.items()}
        theirs = {part: case.arrays[f"{name}_{part}"] for part in ("boxes", "classes", "scores")}
        order = matching(*(np.column_stack([x["boxes"], 1e3 * x["classes"]]) for x in (ours, theirs)), "detections")
        yield f"{name}_boxes", ours["boxes"][order], PIXELS
        yield f"{name}_classes", ours["classes"][order]
        yield f"{name}_scores", ours["scores"][order]
        yield f"{name.replace('out', 'tap')}_proposal_index", ours["proposals"][order]


def instances(case: Case) -> Outputs:
    """Draws label maps of boxes on depth maps."""
    for i in range(case.config["cases"]):
        drawn, classes = instance_map(case[f"c{i}_boxes"], case[f"c{i}_ids"], case[f"c{i}_depth"])
        yield f"out/c{i}_mask", drawn.astype(np.float32)
        yield f"out/c{i}_label_keys", np.arange(len(classes))
        yield f"out/c{i}_label_ids", np.asarray(classes, np.int32)
