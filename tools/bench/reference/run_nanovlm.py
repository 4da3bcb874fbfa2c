"""huggingface/nanoVLM as a worker of tools.bench.nanovlm, run by a Python that has PyTorch, torchvision and einops.

    PYTHON tools/bench/reference/run_nanovlm.py SOURCE ROW FOLDER

SOURCE is a folder of the original's code, of the generation that the row is about: v0.1, or HEAD. FOLDER has
`settings.json`, which both sides read, and photos. The worker prints 'ready'; for every line on stdin it does what the
row says once and prints the seconds (on one core alone, the processor's); at the end of stdin it prints the process's
peak memory in bytes, or, of `packing`, the share of columns that are tokens. Imports nothing of this project.
transformers, of which the original takes tokenizers alone, is stood in for by a module that makes none: texts are ids.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from serving import serve  # beside this file

EXTRA = {"image_token": "<|image|>"}  # of HEAD at the size of 222M: one tile a photo needs no other word
IGNORED = -100  # a label without loss


class Ids:
    """What the original's model asks of a tokenizer."""

    eos_token_id, pad_token_id, image_token_id = 0, 0, 49152
    eos_token = "<|endoftext|>"

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> Ids:
        return cls()


def stand_in_for_transformers() -> None:
    module = types.ModuleType("transformers")
    module.AutoTokenizer = Ids
    sys.modules["transformers"] = module


def declare_operators() -> torch.library.Library:
    """Declares what torchvision's import asks for, where its compiled part is of another build of PyTorch.

    The original uses its transforms alone, which are Pillow and PyTorch.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def model_of(settings: dict[str, Any]) -> Any:
    """Returns the model with fresh weights, of the 222M size."""
    from models.config import VLMConfig
    from models.vision_language_model import VisionLanguageModel

    fields = {field.name for field in dataclasses.fields(VLMConfig)}
    sizes = {key: value for key, value in settings["sizes"].items() if key in fields}
    if "vlm_extra_tokens" in fields:
        sizes |= {"vlm_extra_tokens": EXTRA, "lm_vocab_size": settings["sizes"]["lm_vocab_size"] + len(EXTRA)}
    return VisionLanguageModel(VLMConfig(**sizes), load_backbone=False)


def batch_of(settings: dict[str, Any], count: int, length: int, tokens: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ids [count, tokens + length], of which the first are an image's, and photos."""
    draw = torch.Generator().manual_seed(0)
    size = settings["sizes"]["vit_img_size"]
    ids = torch.randint(3, settings["sizes"]["lm_vocab_size"], (count, length), generator=draw)
    ids = torch.cat([torch.full((count, tokens), Ids.image_token_id), ids], dim=1)
    return ids, torch.rand((count, 3, size, size), generator=draw)


def answers(settings: dict[str, Any], *, head: bool, count: int, max_new: int) -> Callable[[], Any]:
    """Answers as the original's generate.py asks for them: sampled, and with the generation's own defaults."""
    model = model_of(settings).eval()
    ids, photos = batch_of(settings, count, settings["prompt"], settings["image_tokens"] if head else 0)
    return lambda: model.generate(ids, photos, max_new_tokens=max_new)


def training(settings: dict[str, Any], *, projector_alone: bool = False) -> Callable[[], Any]:
    """A step of v0.1's train.py, in float32; `projector_alone` as HEAD's train.py does it for rates of 0."""
    model = model_of(settings).train()
    backbones = [*model.decoder.parameters(), *model.vision_encoder.parameters()]
    groups = [{"params": list(model.MP.parameters()), "lr": 2e-3}]
    if projector_alone:
        for parameter in backbones:
            parameter.requires_grad = False
    else:
        groups.append({"params": backbones, "lr": 1e-4})
    optimizer = torch.optim.AdamW(groups)
    ids, photos = batch_of(settings, settings["batch"], settings["text"])
    labels = torch.where(torch.arange(settings["text"]) < settings["prompt"] - 1, IGNORED, ids.roll(-1, dims=1))
    mask = torch.ones_like(ids)

    def step() -> float:
        optimizer.zero_grad()
        _, loss = model(ids, photos, attention_mask=mask, targets=labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def images(settings: dict[str, Any], folder: pathlib.Path, *, head: bool) -> Callable[[], Any]:
    """Photos from their files to tensors, as the datasets of both generations make them."""
    from data.processors import get_image_processor
    from PIL import Image

    sizes = settings["tiles"]
    prepare = get_image_processor(*sizes, True) if head else get_image_processor(settings["sizes"]["vit_img_size"])
    paths = sorted(folder.glob("*.jpg"))

    def work() -> None:
        for path in paths:
            image = Image.open(path)
            prepare(image if image.mode == "RGB" else image.convert("RGB"))

    return work


def packing(settings: dict[str, Any]) -> float:
    """Returns the share of columns that are tokens, in rows as HEAD's loader gives them to the model."""
    from data.advanced_datasets import ConstantLengthDataset
    from data.collators import VQACollator

    class Samples:
        """A data set of samples of given tokens and photos."""

        tokenizer, mp_image_token_length, dataset = Ids(), 64, settings["samples"]

        def __len__(self) -> int:
            return len(self.dataset)

        def __getitem__(self, index: int) -> dict[str, Any]:
            tokens, _, photos = self.dataset[index]
            ids = torch.full((tokens,), 5)
            return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids), "images": [None] * photos}

    length = settings["row"]
    options = {"max_sample_length": length, "seq_length": length, **settings["packing"]}
    rows, collate = ConstantLengthDataset(Samples(), **options), VQACollator(Ids(), length)
    masks = [collate([row])["attention_mask"] for row in rows]
    return float(torch.cat(masks).float().mean())


ROWS: dict[str, Callable[[dict[str, Any], pathlib.Path], Callable[[], Any]]] = {
    "answers_v01": lambda s, _: answers(s, head=False, count=1, max_new=s["answer"]),
    "answers_v01_batch": lambda s, _: answers(s, head=False, count=s["batch"], max_new=s["answer"]),
    "answers_head": lambda s, _: answers(s, head=True, count=1, max_new=s["answer"]),
    "answers_head_batch": lambda s, _: answers(s, head=True, count=s["batch"], max_new=s["answer"]),
    "answers_short": lambda s, _: answers(s, head=True, count=1, max_new=s["max_new"]),
    "training": lambda s, _: training(s),
    "projector": lambda s, _: training(s, projector_alone=True),
    "images_v01": lambda s, folder: images(s, folder, head=False),
    "images_head": lambda s, folder: images(s, folder, head=True),
}


def main(source: str, row: str, folder: str) -> None:
    stand_in_for_transformers()
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # the package index's build, beside PyTorch for CPUs alone
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = declare_operators()  # noqa: F841 - they are there as long as it is
    sys.path.insert(0, source)
    settings = json.loads((pathlib.Path(folder) / "settings.json").read_text())
    torch.manual_seed(0)
    if row == "packing":
        print("ready", flush=True)
        print(packing(settings), flush=True)
        return
    serve(lambda: ROWS[row](settings, pathlib.Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
