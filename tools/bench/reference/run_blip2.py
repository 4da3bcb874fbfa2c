"""transformers' BLIP-2 as a worker of tools.bench.blip2, run by a Python that has PyTorch and transformers.

    PYTHON tools/bench/reference/run_blip2.py ROW SETTINGS

SETTINGS is the JSON of both sides. The worker prints 'ready'; for every line on stdin it does what the row says once
and prints the seconds (on one core alone, the processor's); at the end of stdin it prints the process's peak memory in
bytes. Imports nothing of this project.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from serving import serve_row, steps_of  # beside this file
from transformers import Blip2Config, Blip2ForConditionalGeneration

IMAGE = 50_265  # an id that no text of OPT has


def model_of(settings: dict[str, Any]) -> Any:
    """Returns the model with fresh weights."""
    return Blip2ForConditionalGeneration(Blip2Config(**settings["config"], image_token_index=IMAGE)).float()


def photos(settings: dict[str, Any]) -> torch.Tensor:
    size = settings["config"]["vision_config"]["image_size"]
    return torch.rand((settings["batch"], 3, size, size), generator=torch.Generator().manual_seed(0))


def ids(settings: dict[str, Any], length: int) -> torch.Tensor:
    """Returns texts behind an image's tokens."""
    text = torch.randint(4, 50_000, (settings["batch"], length), generator=torch.Generator().manual_seed(0))
    front = torch.full((settings["batch"], settings["config"]["num_query_tokens"]), IMAGE)
    return torch.cat([front, text], dim=1)


def captions(settings: dict[str, Any]) -> Callable[[], Any]:
    model, looked = model_of(settings).eval(), {"pixel_values": photos(settings), "input_ids": ids(settings, 1)}
    looked["attention_mask"] = torch.ones_like(looked["input_ids"])
    how = dict(max_new_tokens=settings["max_new"], min_new_tokens=settings["max_new"], num_beams=settings["beams"])

    def say() -> Any:
        with torch.inference_mode():
            return model.generate(**looked, **how, do_sample=False)

    return say


def stage2(settings: dict[str, Any]) -> Callable[[], Any]:
    model = model_of(settings).train()
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith(("vision_model.", "language_model."))
        trained += [parameter] if parameter.requires_grad else []
    optimizer = torch.optim.AdamW(trained, 1e-4, weight_decay=0.05)
    text = ids(settings, settings["text"])
    batch = dict(pixel_values=photos(settings), input_ids=text, attention_mask=torch.ones_like(text))
    batch["labels"] = torch.where(text == IMAGE, -100, text)
    return steps_of(model, optimizer, batch)


ROWS = {"captions": captions, "stage2": stage2}


if __name__ == "__main__":
    torch.manual_seed(0)
    serve_row(ROWS, *sys.argv[1:])
