"""Objects: UniDet, trained on COCO, Objects365, OpenImages and Mapillary at once, whose classes it learned to merge.

The label map shows instances, and of each its class; which of two objects is in front, the depth map decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from prismer_jax.errors import BadSample
from prismer_jax.experts import layers
from prismer_jax.experts.aspect_ratio import AspectRatioExpert, fit
from prismer_jax.experts.detection import cascade
from prismer_jax.experts.detection.instances import instance_map
from prismer_jax.experts.expert import Label
from prismer_jax.weights import modules, rules
from prismer_jax.weights.rules import Rule


def _conv_norm(key: str, name: str) -> list[Rule]:
    """detectron2's Conv2d, which holds its norm."""
    return modules.conv_norm(key, f"{key}.norm", name)


def _block(key: str, name: str) -> list[Rule]:
    """UniDet's BottleneckBlock; the convolution in the middle is a SplAtConv2d."""
    return [
        *_conv_norm(f"{key}.conv1", f"{name}/reduce"),
        *modules.conv(f"{key}.conv2.conv", f"{name}/split", bias=False),
        *modules.batch_norm(f"{key}.conv2.bn0", f"{name}/split/norm"),
        *modules.conv(f"{key}.conv2.fc1", f"{name}/split/squeeze/conv"),
        *modules.batch_norm(f"{key}.conv2.bn1", f"{name}/split/squeeze/norm"),
        *modules.conv(f"{key}.conv2.fc2", f"{name}/split/attend"),
        *_conv_norm(f"{key}.conv3", f"{name}/expand"),
        *_conv_norm(f"{key}.shortcut", f"{name}/shortcut"),
    ]


def _stage(stage: int) -> list[Rule]:
    key, name = f"backbone.bottom_up.res{stage + 2}", f"backbone/stage_{stage}"
    rest = [dataclasses.replace(rule, first=1) for rule in _block(f"{key}.{{}}", f"{name}_rest")]
    return [*_block(f"{key}.0", f"{name}_first"), *rest]


def _head(i: int) -> list[Rule]:
    key, name = f"roi_heads.box_head.{i}", f"stages_{i}"
    return [
        *(rule for n in range(4) for rule in _conv_norm(f"{key}.conv{n + 1}", f"{name}/boxes/conv_{n}")),
        *modules.dense(f"{key}.fc1", f"{name}/hidden"),
        *modules.dense(f"roi_heads.box_predictor.{i}.cls_score", f"{name}/classes"),
        *modules.dense(f"roi_heads.box_predictor.{i}.bbox_pred", f"{name}/deltas"),
    ]


class Detection(AspectRatioExpert):
    """Detects objects and draws them as instances.

    Source: NVlabs/prismer, experts/obj_detection/ and experts/generate_objdet.py. There a batch is padded to its
    largest photo, so that a label depends on those beside it; here every photo is padded to its own next multiple
    of 32.
    """

    name = "obj_detection"
    file = "Unified_learned_OCIM_RS200_6x+2x.pth"
    needs = ("depth",)
    network = cascade.UniDet
    table = rules.Table(
        rules=(
            *(
                rule
                for i in range(3)
                for rule in _conv_norm(f"backbone.bottom_up.stem.conv1_{i + 1}", f"backbone/stem_{i}")
            ),
            *(rule for stage in range(4) for rule in _stage(stage)),
            *(rule for n in (3, 4, 5) for rule in _conv_norm(f"backbone.fpn_lateral{n}", f"fpn/lateral_{n}")),
            *(rule for n in (3, 4, 5) for rule in _conv_norm(f"backbone.fpn_output{n}", f"fpn/output_{n}")),
            *(rule for n in (6, 7) for rule in modules.conv(f"backbone.top_block.p{n}", f"fpn/top_{n}")),
            *modules.conv("proposal_generator.rpn_head.conv", "rpn/conv"),
            *modules.conv("proposal_generator.rpn_head.objectness_logits", "rpn/objectness"),
            *modules.conv("proposal_generator.rpn_head.anchor_deltas", "rpn/deltas"),
            *(rule for i in range(len(cascade.WEIGHTS)) for rule in _head(i)),
        ),
        # Constants that detectron2 saved until 2021: of the normalisation, and of the anchors.
        ignored=(r"pixel_(mean|std)", r"proposal_generator\.anchor_generator\.cell_anchors\.\d+"),
    )

    def apply(self, variables: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        return self.module.apply(variables, batch["image"], batch["size"])

    def finish(self, output: Mapping[str, np.ndarray], size: tuple[int, int], needed: Mapping[str, Label]) -> Label:
        """Draws the instances.

        Raises:
          BadSample: there is no depth map of the photo's size.
        """
        if "depth" not in needed:
            raise BadSample(
                "Detection needs the photo's depth map: label it with the expert depth first.", "no label of depth"
            )
        depth = needed["depth"].map
        if depth.shape[:2] != size:
            raise BadSample(
                f"The depth map measures {depth.shape[1]}x{depth.shape[0]} pixels, its photo {size[1]}x{size[0]}: "
                "label the photo with the expert depth again.",
                "depth of another size",
            )
        valid = output["valid"]
        nearness = layers.resize_photo(depth[..., 0], fit(*size))
        drawn, classes = instance_map(output["boxes"][valid], output["classes"][valid], nearness)
        image = Image.fromarray(drawn).resize((size[1], size[0]), Image.Resampling.NEAREST)
        return Label(np.asarray(image)[..., None], classes)
