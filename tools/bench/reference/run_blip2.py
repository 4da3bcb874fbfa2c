"""transformers' BLIP-2 as a worker of tools.bench.blip2, run by a Python that has PyTorch and transformers.

    PYTHON tools/bench/reference/run_blip2.py ROW SETTINGS

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
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval

WORDS = 30_000  # ids that every text is made of
IMAGE = 32_100  # and one that none has; each language model has so many words


def model_of(settings: dict[str, Any], kind: str = "opt") -> Any:
    """Returns the model with fresh weights."""
    return Blip2ForConditionalGeneration(Blip2Config(**settings[kind], image_token_index=IMAGE)).float()


def photos(settings: dict[str, Any]) -> torch.Tensor:
    size = settings["opt"]["vision_config"]["image_size"]
    return torch.rand((settings["batch"], 3, size, size), generator=torch.Generator().manual_seed(0))


def ids(settings: dict[str, Any], length: int) -> torch.Tensor:
    """Returns texts behind an image's tokens."""
    text = torch.randint(4, WORDS, (settings["batch"], length), generator=torch.Generator().manual_seed(0))
    front = torch.full((settings["batch"], settings["opt"]["num_query_tokens"]), IMAGE)
    return torch.cat([front, text], dim=1)


def captions(settings: dict[str, Any], kind: str = "opt") -> Callable[[], Any]:
    model, looked = model_of(settings, kind).eval(), {"pixel_values": photos(settings), "input_ids": ids(settings, 1)}
    looked["attention_mask"] = torch.ones_like(looked["input_ids"])
    how = dict(max_new_tokens=settings["max_new"], min_new_tokens=settings["max_new"], num_beams=settings["beams"])
    if kind == "t5":
        how["decoder_start_token_id"] = 0

    def say() -> Any:
        with torch.inference_mode():
            return model.generate(**looked, **how, do_sample=False)

    return say


def rerank(settings: dict[str, Any]) -> Callable[[], Any]:
    """Matches all texts at once with a photo whose tokens are repeated for each, as LAVIS's compute_sim_matrix does."""
    reader = settings["opt"]["qformer_config"] | dict(use_qformer_text_input=True, vocab_size=settings["words"])
    model = Blip2ForImageTextRetrieval(Blip2Config(**settings["opt"] | dict(qformer_config=reader))).float().eval()
    text = torch.randint(4, WORDS, (settings["pairs"], settings["text"]), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = model.vision_model(photos(settings)[:1])[0]

    def match() -> Any:
        with torch.inference_mode():
            query = model.query_tokens.expand(len(text), -1, -1)
            front = dict(query_embeds=model.embeddings(input_ids=text, query_embeds=query), query_length=query.shape[1])
            seen = torch.ones(len(text), query.shape[1] + text.shape[1], dtype=torch.long)
            image = tokens.repeat(len(text), 1, 1)
            states = model.qformer(**front, attention_mask=seen, encoder_hidden_states=image).last_hidden_state
            return model.itm_head(states[:, : query.shape[1]]).mean(dim=1)

    return match


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


ROWS = {
    "captions": captions,
    "captions_t5": functools.partial(captions, kind="t5"),
    "rerank": rerank,
    "stage2": stage2,
}


if __name__ == "__main__":
    torch.manual_seed(0)
    serve_row(ROWS, *sys.argv[1:])
