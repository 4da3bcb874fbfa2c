"""The official Prismer as a worker of tools.bench.prismer; for a Python with PyTorch, transformers 4.26.1 and einops.

    PYTHON tools/bench/reference/run_prismer.py ROW SETTINGS

SETTINGS is the JSON of both sides; its `source` is a checkout of NVlabs/prismer, whose model is imported as it is. The
worker prints 'ready'; for every line on stdin it does what the row says once and prints the seconds (on one core alone,
the processor's); at the end of stdin it prints the process's peak memory in bytes. Imports nothing of this project.

What the official model downloads is stood in for: CLIP's and RoBERTa's weights are fresh ones of the same sizes, and
the tokenizer reads ids, written as numbers. The official beam search of more than one photo fails with the release of
transformers that its requirements.txt pins (4.26.1): transformers repeats the prompts for the beams, but not the
encoder's states. Both rows that search give it states that are repeated by `repeat_interleave(beams)`, which is all
that it lacks. The official code keeps no keys and values: every step reads the whole text again, and makes the keys and
values of the image again, for every beam and every candidate of a ranking.
"""

from __future__ import annotations

import os
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

try:
    import torch
    from einops import rearrange
    from serving import serve_row  # beside this file
    from transformers import BatchEncoding
except ImportError as error:
    sys.exit(f"{sys.executable}: {error}. Give --reference-python one with torch, transformers==4.26.1 and einops.")

START, PAD, END = 0, 1, 2  # RoBERTa's
SPECIAL = {"<s>": START, "</s>": END}


class Ids:
    """What the official model asks of RoBERTa's tokenizer, of texts such as '<s>23 7 199</s>'."""

    pad_token_id = PAD

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> Ids:
        return cls()

    def __call__(self, texts: str | Sequence[str], add_special_tokens: bool = True, **options: Any) -> BatchEncoding:
        if isinstance(texts, str):
            return BatchEncoding({"input_ids": self._ids(texts, add_special_tokens)})
        rows = [self._ids(text, add_special_tokens) for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": (ids != PAD).long()})

    def decode(self, ids: torch.Tensor, **_: Any) -> str:
        return written(ids.tolist())

    def _ids(self, text: str, ends: bool) -> list[int]:
        ids = [SPECIAL[word] if word in SPECIAL else int(word) for word in re.findall(r"</?s>|\d+", text)]
        return [START, *ids, END] if ends else ids


def written(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def model_of(settings: dict[str, Any], name: str) -> Any:
    """Returns the official model of a task, 'PrismerCaption' or 'PrismerVQA', with fresh weights."""
    os.chdir(settings["source"])
    sys.path.insert(0, settings["source"])
    clip = types.ModuleType("clip.clip")
    clip._download = None
    sys.modules |= {"clip": types.ModuleType("clip"), "clip.clip": clip}
    import model.prismer as official
    from model.modules.roberta import RobertaForCausalLMModified
    from model.modules.vit import VisionTransformer

    def load_encoder(name: str, experts: dict[str, int], image_resolution: int) -> Any:
        width, layers, patch = {"ViT-B/16": (768, 12, 16)}[name]  # of openai/CLIP
        return VisionTransformer(image_resolution, patch, width, layers, width // 64, experts)

    official.load_encoder = load_encoder
    official.load_decoder = lambda name, config: RobertaForCausalLMModified(config)
    official.RobertaTokenizer = Ids
    config = dict(experts=settings["experts"], prismer_model=settings["variant"], freeze="freeze_vision")
    module = {"PrismerCaption": "model.prismer_caption", "PrismerVQA": "model.prismer_vqa"}[name]
    network = getattr(__import__(module, fromlist=[name]), name)(config | {"image_resolution": settings["image_size"]})
    with torch.no_grad():
        network.text_decoder.lm_head.bias[END] = -1e4  # no text ends early
    return network.float()


def photos(settings: dict[str, Any], count: int) -> dict[str, Any]:
    """Returns photos and labels of the shapes that the official dataset/utils.py gives, of which ids are features."""
    draw, size = torch.Generator().manual_seed(0), settings["label_size"]
    channels = {"depth": 1, "edge": 1, "normal": 3}
    side = settings["image_size"]
    batch: dict[str, Any] = {"rgb": torch.randn((count, 3, side, side), generator=draw)}
    for expert in settings["experts"]:
        batch[expert] = torch.randn((count, channels.get(expert, 64), size, size), generator=draw)
    ids = torch.randint(0, settings["instances"] + 1, (count, 1, 8, 8), generator=draw)
    ids = ids.repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3)
    batch["obj_detection"] = {"label": batch["obj_detection"], "instance": ids}
    return batch


def texts(count: int, length: int) -> list[str]:
    ids = torch.randint(4, 50_264, (count, length), generator=torch.Generator().manual_seed(0))
    return [written(row) for row in ids.tolist()]


def states(model: Any, settings: dict[str, Any], count: int) -> torch.Tensor:
    """Returns fresh states of the shape that the encoder gives, tokens first."""
    width = model.text_decoder.config.vision_hidden_size
    tokens = len(model.expert_encoder.positional_embedding) + len(model.expert_encoder.resampler.latents)
    return torch.randn((tokens, count, width), generator=torch.Generator().manual_seed(0))


def encoding(settings: dict[str, Any]) -> Callable[[], Any]:
    model, batch = model_of(settings, "PrismerCaption").eval(), photos(settings, settings["batch"])

    def encode() -> Any:
        with torch.no_grad():
            return model.expert_encoder(batch)

    return encode


def captions(settings: dict[str, Any], *, encoded: bool = False) -> Callable[[], Any]:
    """The generation of model/prismer_caption.py, with the encoder's states repeated for the beams."""
    model = model_of(settings, "PrismerCaption").eval()
    batch, given = photos(settings, settings["batch"]), states(model, settings, settings["batch"])
    prefix = torch.tensor([[START, *range(5, 4 + settings["prefix"])]] * settings["batch"])
    how = dict(num_beams=settings["beams"], max_length=settings["length"], min_length=settings["shortest"])

    def say() -> Any:
        with torch.no_grad():
            seen = rearrange(given if encoded else model.expert_encoder(batch), "l b d -> b l d")
            seen = seen.repeat_interleave(settings["beams"], dim=0)
            mask = torch.ones_like(prefix)
            said = model.text_decoder.generate(input_ids=prefix, encoder_hidden_states=seen, attention_mask=mask, **how)
        if said.shape != (settings["batch"], settings["length"]):
            raise SystemExit(f"captions of shape {tuple(said.shape)} were said.")
        return said

    return say


def ranking(settings: dict[str, Any], row: str) -> Callable[[], Any]:
    """The ranking of model/prismer_vqa.py, of photos whose states are given."""
    model = model_of(settings, "PrismerVQA").eval()
    k, count = settings["ranked"][row]
    seen = states(model, settings, count)
    model.expert_encoder.forward = lambda _: seen
    questions = texts(count, settings["question"] - 1)  # the model puts <s> in front
    answers = [written(ids[:-1]) for ids in settings["answers"]]  # and </s> at the end

    def choose() -> Any:
        with torch.no_grad():
            return model({"rgb": seen}, questions, answers, train=False, inference="rank", k_test=k)

    return choose


def training(settings: dict[str, Any]) -> Callable[[], Any]:
    """A step of train_caption.py, in float32."""
    model, batch = model_of(settings, "PrismerCaption").train(), photos(settings, settings["trained"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.05)  # configs/caption.yaml
    captions = texts(settings["trained"], settings["length"] - 2)  # <s> and </s> are added
    prefix = written([5] * (settings["prefix"] - 1))

    def step() -> float:
        loss = model(batch, captions, prefix=prefix)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


ROWS: dict[str, Callable[[dict[str, Any]], Callable[[], Any]]] = {
    "encoder": encoding,
    "caption": captions,
    "decode": lambda settings: captions(settings, encoded=True),
    "vqa_rank16": lambda settings: ranking(settings, "vqa_rank16"),
    "vqa_rank128": lambda settings: ranking(settings, "vqa_rank128"),
    "training": training,
}


if __name__ == "__main__":
    torch.manual_seed(0)
    serve_row(ROWS, *sys.argv[1:])
