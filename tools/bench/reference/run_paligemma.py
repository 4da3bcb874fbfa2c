"""transformers' PaliGemma as a worker of tools.bench.paligemma, run by a Python that has PyTorch and transformers.

    PYTHON tools/bench/reference/run_paligemma.py ROW SETTINGS

SETTINGS is the JSON of both sides. The worker prints 'ready'; for every line on stdin it does what the row says once
and prints the seconds (on one core alone, the processor's); at the end of stdin it prints the process's peak memory in
bytes. Imports nothing of this project.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from serving import serve_row, steps_of  # beside this file
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

RATE = 3e-2  # of big_vision's recipe for a T4


def model_of(settings: dict[str, Any]) -> Any:
    """Returns the model with fresh weights."""
    words = settings["language"]["vocab_size"]
    vision = {**settings["vision"], "model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh"}
    language = {**settings["language"], "model_type": "gemma", "hidden_activation": "gelu_pytorch_tanh"}
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config={**language, "vocab_size": words + 64},
        projection_dim=settings["language"]["hidden_size"],
        image_token_index=words,
    )
    return PaliGemmaForConditionalGeneration(config).float()


def batch_of(settings: dict[str, Any], lengths: list[int]) -> dict[str, torch.Tensor]:
    """Returns ids with an image's in front, padded on the left, and photos."""
    draw, size = torch.Generator().manual_seed(0), settings["vision"]["image_size"]
    tokens = (size // settings["vision"]["patch_size"]) ** 2
    longest = tokens + max(lengths)
    ids, mask = torch.zeros((len(lengths), longest), dtype=torch.long), torch.zeros((len(lengths), longest))
    for row, length in enumerate(lengths):
        text = torch.randint(3, 256_000, (length,), generator=draw)
        ids[row, -length - tokens :] = torch.cat([torch.full((tokens,), settings["language"]["vocab_size"]), text])
        mask[row, -length - tokens :] = 1
    photos = torch.rand((len(lengths), 3, size, size), generator=draw)
    return {"input_ids": ids, "attention_mask": mask.long(), "pixel_values": photos}


def decoding(settings: dict[str, Any], count: int = 0) -> Callable[[], Any]:
    """Answers prompts of several lengths, or so many of one; their photos are as many, as the model knows no other."""
    lengths = [settings["question"]] * count if count else settings["prompts"]
    model, batch = model_of(settings).eval(), batch_of(settings, lengths)
    how = dict(max_new_tokens=settings["max_new"], min_new_tokens=settings["max_new"], do_sample=False)

    def say() -> Any:
        with torch.inference_mode():
            return model.generate(**batch, **how)

    return say


def training(settings: dict[str, Any]) -> Callable[[], Any]:
    model, batch = model_of(settings).train(), batch_of(settings, [settings["text"]] * settings["batch"])
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "language_model" in name and ".self_attn." in name
        trained += [parameter] if parameter.requires_grad else []
    optimizer = torch.optim.SGD(trained, RATE)
    said = batch["input_ids"].shape[1] - settings["text"] + settings["prefix"]
    labels = torch.where(torch.arange(batch["input_ids"].shape[1]) < said, -100, batch["input_ids"])
    kinds = (torch.arange(labels.shape[1]) >= said).long().expand(labels.shape)
    return steps_of(model, optimizer, {**batch, "labels": labels, "token_type_ids": kinds})


ROWS = {
    "decode": decoding,
    "question": functools.partial(decoding, count=1),
    "questions": lambda settings: decoding(settings, settings["questions"]),
    "training": training,
}


if __name__ == "__main__":
    torch.manual_seed(0)
    serve_row(ROWS, *sys.argv[1:])
