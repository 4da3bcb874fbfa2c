"""The official Dataset as a worker of tools.bench.loader, run by a Python that has PyTorch.

    PYTHON tools/bench/reference/run_dataset.py CHECKOUT FOLDER {train,evaluation} SIZE

Opens the captioned photos and label maps of FOLDER, laid out as the official repository has them, and prints 'ready'.
For every line on stdin it takes each sample once and prints the processor's seconds; at the end of stdin, the bytes of
a sample's tensors. Imports nothing of this project. torchvision, where it cannot be imported, is stood in for by the
same calls of Pillow and PyTorch that it makes for the few functions that the Dataset uses.
"""

from __future__ import annotations

import enum
import importlib
import json
import math
import os
import pathlib
import sys
import time
import types
from typing import Any


def stand_in_for_torchvision() -> None:
    """Makes the part of torchvision that dataset/utils.py imports.

    Source: the documented behaviour of torchvision.transforms (RandomResizedCrop.get_params, functional) on PIL images.
    """
    import numpy as np
    import torch
    from PIL import Image

    def get_params(img: Image.Image, scale: list[float], ratio: list[float]) -> tuple[int, int, int, int]:
        width, height = img.size
        log_ratio = torch.log(torch.tensor(ratio))
        for _ in range(10):
            area = width * height * torch.empty(1).uniform_(scale[0], scale[1]).item()
            aspect = torch.exp(torch.empty(1).uniform_(log_ratio[0], log_ratio[1])).item()
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top = torch.randint(0, height - h + 1, (1,)).item()
                return top, torch.randint(0, width - w + 1, (1,)).item(), h, w
        aspect = min(max(width / height, ratio[0]), ratio[1])
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        return (height - h) // 2, (width - w) // 2, h, w

    def to_tensor(image: Image.Image) -> torch.Tensor:
        pixels = np.array(image, copy=True)
        pixels = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255)

    def normalize(x: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
        mean, std = (torch.as_tensor(v).view(-1, 1, 1) for v in (mean, std))
        return x.clone().sub_(mean).div_(std)

    modes = enum.Enum("InterpolationMode", {"NEAREST": 0, "BICUBIC": 3})  # Pillow's numbers
    functional = types.ModuleType("torchvision.transforms.functional")
    functional.InterpolationMode = modes
    functional.crop = lambda image, top, left, h, w: image.crop((left, top, left + w, top + h))
    functional.resize = lambda image, size, mode: image.resize(tuple(size[::-1]), mode.value)
    functional.hflip = lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    functional.to_tensor, functional.normalize = to_tensor, normalize
    transforms = types.ModuleType("torchvision.transforms")
    transforms.RandomResizedCrop = types.SimpleNamespace(get_params=get_params)
    transforms.functional = functional
    package = types.ModuleType("torchvision")
    package.transforms = transforms
    sys.modules |= {m.__name__: m for m in (package, transforms, functional)}


def words_for_the_reference(folder: pathlib.Path) -> None:
    """Writes the reference's side files of words beside ours: {word: {'features': [64], 'text': ...}}."""
    import numpy as np
    import torch

    for path in (folder / "labels/ocr_detection").rglob("*.npz"):
        with np.load(path) as file:
            features, words = torch.tensor(file["features"].astype(np.float32)), [str(w) for w in file["words"]]
        torch.save({i: {"features": features[i], "text": w} for i, w in enumerate(words)}, path.with_suffix(".pt"))


def nbytes(value: Any) -> int:
    """Returns the bytes of the tensors in a sample."""
    if isinstance(value, dict):
        return sum(map(nbytes, value.values()))
    return value.numel() * value.element_size()


def main(checkout: str, folder: str, mode: str, size: int) -> None:
    try:
        importlib.import_module("torchvision.transforms")
    except (ImportError, RuntimeError):  # not installed, or made for another version of PyTorch
        stand_in_for_torchvision()
    import torch

    torch.set_num_threads(1)
    words_for_the_reference(pathlib.Path(folder))
    sys.path.insert(0, checkout)
    os.chdir(checkout)
    from dataset.caption_dataset import Caption

    settings = json.loads((pathlib.Path(folder) / "settings.json").read_text())
    dataset = Caption(settings | {"image_resolution": size}, train=mode == "train")
    sample, _ = dataset[0]
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        for i in range(len(dataset)):
            dataset[i]
        print(time.process_time() - start, flush=True)
    print(nbytes(sample), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
