"""The official PyTorch experts as workers of tools.bench_experts, run by a Python that has PyTorch and their imports.

    PYTHON tools/bench_reference.py CHECKOUT EXPERT BATCH

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
    import experts.ocr_detection.charnet.modeling.model as charnet

    # What finds words in the network's maps is no part of the network.
    charnet.OrientedTextPostProcessing = lambda **_: None
    model = charnet.CharNet().eval()

    def run(x: Any) -> Any:
        features = model.backbone(x)
        return model.word_detector(features), model.char_detector(features), model.char_recognizer(features)

    return run


MODELS: dict[str, Callable[[], Callable[[Any], Any]]] = {
    "depth": depth,
    "normal": normal,
    "edge": edge,
    "ocr_detection": ocr_detection,
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
