"""The official PyTorch experts as workers of tools.bench.experts, run by a Python that has PyTorch and their imports.

    PYTHON tools/bench/reference/run_expert.py CHECKOUT EXPERT BATCH

Builds the expert with fresh weights and prints 'ready'. For every line on stdin it runs one batch of 480x480 photos
through the network and prints the seconds; at the end of stdin, its peak memory in bytes. Imports nothing of this
project.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import resource
import sys
import time
import types
from collections.abc import Callable
from typing import Any


class Everything(type):
    """A class that has every attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Everything(name, (), {})


class Stub(types.ModuleType):
    """A module that has every name: for libraries that the reference imports and does not use here."""

    def __getattr__(self, name: str) -> Any:
        return getattr(Everything, name) if name.startswith("__") else Everything(name, (), {})


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stubs for libraries and all that is in them."""

    def __init__(self, *libraries: str) -> None:
        self.libraries = libraries

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] in self.libraries:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return Stub(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def detectron2() -> None:
    """Stands in for detectron2, fvcore and a compiled kernel, as far as Mask2Former runs them.

    Source: the interfaces of detectron2.layers (Conv2d, get_norm, ShapeSpec), detectron2.config.configurable and
    detectron2.utils.registry.Registry.
    """
    sys.meta_path.insert(0, Stubs("detectron2", "fvcore"))
    import detectron2.config
    import detectron2.layers
    import detectron2.modeling
    import detectron2.utils.registry
    import fvcore.nn.weight_init
    from torch import nn

    class Conv2d(nn.Conv2d):
        """A convolution, then its norm, then its activation."""

        def __init__(self, *args: Any, norm: Any = None, activation: Any = None, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self.norm, self.activation = norm or nn.Identity(), activation or nn.Identity()

        def forward(self, x: Any) -> Any:
            return self.activation(self.norm(super().forward(x)))

    class Registry:
        """Keeps nothing: the classes are taken from their modules."""

        def __init__(self, name: str) -> None:
            self.name = name

        def register(self) -> Callable[[type], type]:
            return lambda cls: cls

    detectron2.config.configurable = lambda init: init  # given its arguments, not a config
    detectron2.layers.Conv2d = Conv2d
    detectron2.layers.ShapeSpec = types.SimpleNamespace
    detectron2.layers.get_norm = lambda norm, channels: {"GN": nn.GroupNorm}[norm](32, channels)
    detectron2.utils.registry.Registry = Registry
    detectron2.modeling.BACKBONE_REGISTRY = detectron2.modeling.SEM_SEG_HEADS_REGISTRY = Registry("modeling")
    fvcore.nn.weight_init.c2_xavier_fill = lambda module: None  # PyTorch's own initial weights are as good here
    # Without the kernel the reference attends in PyTorch, as it does on any CPU.
    sys.modules["MultiScaleDeformableAttention"] = types.ModuleType("MultiScaleDeformableAttention")


def depth() -> Callable[[Any], Any]:
    from experts.depth.models import DPTDepthModel

    return DPTDepthModel(backbone="vitb_rn50_384", non_negative=True, enable_attention_hooks=False).eval()


def normal() -> Callable[[Any], Any]:
    import geffnet
    import torch
    from experts.normal.models.NNET import NNET

    # The encoder's ImageNet weights are not needed, nor the network to fetch them.
    torch.hub.load = lambda repository, name, **_: geffnet.create_model(name, pretrained=False)
    return NNET(types.SimpleNamespace(architecture="BN", sampling_ratio=0.4, importance_ratio=0.7)).eval()


def edge() -> Callable[[Any], Any]:
    from experts.edge.model import DexiNed

    return DexiNed().eval()


def ocr_detection() -> Callable[[Any], Any]:
    # Of what finds words in the network's maps, which is no part of the network.
    sys.meta_path.insert(0, Stubs("cv2", "shapely", "pyclipper", "editdistance"))
    import experts.ocr_detection.charnet.modeling.model as charnet

    charnet.OrientedTextPostProcessing = lambda **_: None
    model = charnet.CharNet().eval()

    def run(x: Any) -> Any:
        features = model.backbone(x)
        return model.word_detector(features), model.char_detector(features), model.char_recognizer(features)

    return run


def seg_coco() -> Callable[[Any], Any]:
    """Sizes: experts/segmentation/configs/coco/panoptic-segmentation/swin/maskformer2_swin_large_IN21k_384_*.yaml."""
    detectron2()
    sys.path.insert(0, "experts/segmentation/mask2former")  # the package above `modeling` wants data sets
    import torch
    from modeling.backbone.swin import SwinTransformer
    from modeling.meta_arch.mask_former_head import MaskFormerHead
    from modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder
    from modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder

    backbone = SwinTransformer(embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], window_size=12)
    shapes = {f"res{i}": types.SimpleNamespace(channels=48 * 2**i, stride=2**i) for i in range(2, 6)}
    pixels = MSDeformAttnPixelDecoder(
        shapes,
        transformer_dropout=0.0,
        transformer_nheads=8,
        transformer_dim_feedforward=1024,
        transformer_enc_layers=6,
        conv_dim=256,
        mask_dim=256,
        norm="GN",
        transformer_in_features=["res3", "res4", "res5"],
        common_stride=4,
    )
    decoder = MultiScaleMaskedTransformerDecoder(
        256,
        num_classes=133,
        hidden_dim=256,
        num_queries=200,
        nheads=8,
        dim_feedforward=2048,
        dec_layers=9,
        pre_norm=False,
        mask_dim=256,
        enforce_input_project=False,
    )
    head = MaskFormerHead(
        shapes,
        num_classes=133,
        pixel_decoder=pixels,
        transformer_predictor=decoder,
        transformer_in_feature="multi_scale_pixel_decoder",
    )
    backbone.eval()
    head.eval()

    def run(x: Any) -> Any:
        outputs = head(backbone(x))
        classes = outputs["pred_logits"].softmax(-1)[..., :-1]
        masks = torch.nn.functional.interpolate(outputs["pred_masks"], x.shape[-2:], mode="bilinear")
        return [torch.einsum("qc,qhw->chw", c, m.sigmoid()) for c, m in zip(classes, masks, strict=True)]

    return run


def obj_detection() -> Callable[[Any], Any]:
    """The whole detector, with detectron2's own Python files: installed, or a checkout of it beside the reference's.

    What they need has to be installed: fvcore, iopath, omegaconf, pycocotools, tabulate, termcolor. Of the compiled
    parts the detector uses three of torchvision's, which torchvision_ops.py beside this file stands in for, and none of
    detectron2's. Fresh weights find no object above the threshold of experts/model_bank.py.
    """
    import torchvision
    import torchvision.ops.boxes

    sys.path.append(os.path.dirname(__file__))
    import torchvision_ops

    torchvision.__version__ = "0.20"
    torchvision.ops.roi_align = torchvision_ops.roi_align
    torchvision.ops.nms = torchvision.ops.boxes.nms = torchvision_ops.nms
    torchvision.ops.boxes.batched_nms = torchvision_ops.batched_nms
    sys.path.append(os.path.join(os.pardir, "detectron2"))
    import detectron2

    detectron2._C = sys.modules["detectron2._C"] = types.ModuleType("detectron2._C")
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from experts.obj_detection.unidet.config import add_unidet_config

    cfg = get_cfg()
    add_unidet_config(cfg)
    cfg.merge_from_file("experts/obj_detection/configs/Unified_learned_OCIM_RS200_6x+2x.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.5])
    model = build_model(cfg).eval()
    return lambda x: model([{"image": photo * 255, "height": x.shape[2], "width": x.shape[3]} for photo in x])


MODELS: dict[str, Callable[[], Callable[[Any], Any]]] = {
    "depth": depth,
    "normal": normal,
    "edge": edge,
    "obj_detection": obj_detection,
    "ocr_detection": ocr_detection,
    "seg_coco": seg_coco,
}


def main(checkout: str, expert: str, batch: int) -> None:
    if expert not in MODELS:
        sys.exit(f"no reference of {expert} here")
    import torch

    sys.path.insert(0, checkout)
    os.chdir(checkout)
    sys.meta_path.insert(0, Stubs("torchvision"))  # timm's training code wants it, the experts do not
    said, sys.stdout = sys.stdout, sys.stderr  # the reference prints
    model, x = MODELS[expert](), torch.rand(batch, 3, 480, 480)
    print("ready", file=said, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        with torch.no_grad():
            model(x)
        print(time.perf_counter() - start, file=said, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=said, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
