"""salesforce/LAVIS's BLIP-2 as a worker of tools.bench.lavis, run by a Python that has PyTorch and transformers.

    PYTHON tools/bench/reference/run_lavis.py ROW SETTINGS

transformers is 4.33 for LAVIS of today and 4.26 for LAVIS before 720f689. SETTINGS is the JSON of both sides, in which
`source` is the checkout. The worker prints 'ready'; for every line on stdin it does what the row says once and prints
the seconds (on one core alone, the processor's); at the end of stdin it prints the process's peak memory in bytes.
Imports nothing of this project.

The classes, their `forward` and their `generate` are LAVIS's. What it downloads is made anew from configs of the sizes
of SETTINGS, all in float32, and texts are ids. Stood in for are: the packages `lavis` and `lavis.models`, which import
every model and data set; modules of which nothing is used here (STAND_INS), and three little functions of timm, whose
versions of that time do not start beside PyTorch of today; and the projection to OPT-350M, whose words are narrower
than its states, as those of the OPTs that LAVIS knows are not.
"""

from __future__ import annotations

import functools
import importlib
import pathlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from serving import serve_row, steps_of  # beside this file
from transformers import BatchEncoding

WORDS = 30_000  # ids that every text is made of
NEWLINE = 50_118  # what ends a text of OPT
STAND_INS: dict[str, dict[str, Any]] = {
    "lavis.models.clip_vit": dict(create_clip_vit_L=None),
    "lavis.common.utils": dict(get_abs_path=None, is_url=None),
    "omegaconf": dict(OmegaConf=None),
    "timm": {},
    "timm.models": {},
    "timm.models.hub": {},
    "timm.models.layers": dict(drop_path=None, to_2tuple=lambda x: (x, x), trunc_normal_=torch.nn.init.trunc_normal_),
    "timm.models.registry": dict(register_model=lambda function: function),
}


class Ids:
    """A tokenizer whose texts are ids with spaces between, all of one length; `start` stands before each.

    Attributes:
      said: the ids that were decoded last.
    """

    pad_token_id = 0

    def __init__(self, words: int, start: Sequence[int] = ()) -> None:
        self.words, self.start = words, list(start)
        self.bos_token_id = words - 1

    def __len__(self) -> int:
        return self.words

    def add_special_tokens(self, *_: Any) -> None:
        pass

    def __call__(self, texts: Any, return_tensors: str | None = None, max_length: int | None = None, **_: Any) -> Any:
        if return_tensors is None:  # LAVIS asks so for the id of a line's end alone
            return BatchEncoding({"input_ids": [NEWLINE]})
        texts = [texts] if isinstance(texts, str) else texts
        ids = torch.tensor([(self.start + [int(word) for word in text.split()])[:max_length] for text in texts])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def batch_decode(self, ids: torch.Tensor, **_: Any) -> list[str]:
        self.said = ids
        return [" ".join(map(str, row)) for row in ids.tolist()]


def made(function: Callable[..., Any]) -> Any:
    """Returns what stands for a class: its `from_pretrained` calls `function`, for whatever name."""
    return types.SimpleNamespace(from_pretrained=lambda *_, **given: function(**given))


def official(settings: dict[str, Any], name: str) -> Any:
    """Returns the module of the official code in which all that is downloaded is made from the settings."""
    source = pathlib.Path(settings["source"])
    for package in ("lavis", "lavis.models"):
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(source.joinpath(*package.split(".")))]
    for module, names in STAND_INS.items():
        sys.modules[module] = types.ModuleType(module)
        vars(sys.modules[module]).update(names)
    sys.modules["lavis.models"].BaseModel = importlib.import_module("lavis.models.base_model").BaseModel
    front = importlib.import_module("lavis.models.blip2_models.blip2")
    eva = importlib.import_module("lavis.models.eva_vit")
    vision, reader = settings["opt"]["vision_config"], settings["opt"]["qformer_config"]

    def vit(img_size: int, drop_path_rate: float, use_checkpoint: bool, precision: str) -> Any:
        sizes = dict(embed_dim=vision["hidden_size"], depth=vision["num_hidden_layers"])
        sizes |= dict(num_heads=vision["num_attention_heads"], patch_size=vision["patch_size"])
        return eva.VisionTransformer(
            img_size=img_size,
            use_mean_pooling=False,
            mlp_ratio=vision["intermediate_size"] / vision["hidden_size"],
            qkv_bias=True,
            drop_path_rate=drop_path_rate,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=vision["layer_norm_eps"]),
            use_checkpoint=use_checkpoint,
            **sizes,
        )

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config, model = front.BertConfig, front.BertLMHeadModel
    front.create_eva_vit_g = vit
    front.BertConfig = made(lambda: config(**{name: reader[name] for name in names}))
    front.BertLMHeadModel = made(lambda config: model(config))
    front.BertTokenizer = made(lambda **_: Ids(settings["words"]))
    return importlib.import_module(f"lavis.models.blip2_models.{name}")


def shape_of(settings: dict[str, Any]) -> dict[str, Any]:
    queries, size = settings["opt"]["num_query_tokens"], settings["opt"]["vision_config"]["image_size"]
    return dict(vit_precision="fp32", img_size=size, num_query_token=queries, max_txt_len=settings["text"])


def model_of(settings: dict[str, Any], kind: str) -> Any:
    """Returns the model of stage 2, 'opt' or 't5'."""
    module, text = official(settings, f"blip2_{kind}"), settings[kind]["text_config"]
    config = {key: value for key, value in text.items() if key != "model_type"}
    if kind == "t5":
        t5, t5_config = module.T5ForConditionalGeneration, module.T5Config
        module.T5TokenizerFast = made(lambda: Ids(text["vocab_size"], start=[1]))
        module.T5Config = made(lambda: t5_config(**config, decoder_start_token_id=0))
        module.T5ForConditionalGeneration = made(lambda config: t5(config))
        return module.Blip2T5(**shape_of(settings)).float()
    opt, opt_config = module.OPTForCausalLM, module.OPTConfig
    module.AutoTokenizer = made(lambda **_: Ids(text["vocab_size"], start=[2]))
    module.OPTForCausalLM = made(lambda **_: opt(opt_config(**config)))
    model = module.Blip2OPT(**shape_of(settings))
    model.opt_proj = torch.nn.Linear(model.opt_proj.in_features, text["word_embed_proj_dim"])
    return model.float()


def photos(settings: dict[str, Any], count: int) -> torch.Tensor:
    size = settings["opt"]["vision_config"]["image_size"]
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(0))


def texts(count: int, length: int) -> list[str]:
    ids = torch.randint(4, WORDS, (count, length), generator=torch.Generator().manual_seed(0))
    return [" ".join(map(str, row)) for row in ids.tolist()]


def captions(settings: dict[str, Any], kind: str = "opt") -> Callable[[], Any]:
    """LAVIS's `generate`; no caption may end before its last token."""
    model = model_of(settings, kind).eval()
    tokenizer = model.opt_tokenizer if kind == "opt" else model.t5_tokenizer
    # A start that is not of the prompt is among what is decoded; LAVIS of today counts that of OPT in `max_length`.
    start = 0 if "lavis.models.blip2_models.modeling_opt" in sys.modules else 1
    new, looked = settings["max_new"], {"image": photos(settings, settings["batch"])}
    how = dict(num_beams=settings["beams"], max_length=new + (start if kind == "opt" else 0), min_length=new + 1)

    def say() -> Any:
        with torch.no_grad():
            model.generate(looked, **how)
        if tokenizer.said.shape != (settings["batch"], start + new):
            raise SystemExit(f"captions of shape {tuple(tokenizer.said.shape)} were said.")
        return tokenizer.said

    return say


def rerank(settings: dict[str, Any]) -> Callable[[], Any]:
    """Matches all texts at once with a photo whose tokens are repeated for each, as compute_sim_matrix does."""
    model = official(settings, "blip2_qformer").Blip2Qformer(**shape_of(settings)).eval()
    text = model.tokenizer(texts(settings["pairs"], settings["text"]), return_tensors="pt")
    with torch.no_grad():
        tokens = model.forward_image(photos(settings, 1))[1][0]

    def match() -> Any:
        with torch.no_grad():
            image = tokens.repeat(settings["pairs"], 1, 1)
            return model.compute_itm(image_inputs=image, text_ids=text.input_ids, text_atts=text.attention_mask)

    return match


def steps(model: Any, settings: dict[str, Any]) -> Callable[[], float]:
    """Returns the step of runners/runner_base.py: AdamW, without decay where a parameter is a vector or a bias."""
    kept = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [dict(params=kept, weight_decay=0.05), dict(params=rest, weight_decay=0)]
    batch = dict(image=photos(settings, settings["batch"]), text_input=texts(settings["batch"], settings["text"]))
    model.train()

    def told(**samples: Any) -> Any:
        return types.SimpleNamespace(loss=model(samples)["loss"])

    return steps_of(told, torch.optim.AdamW(groups, 1e-4), batch)


def stage1(settings: dict[str, Any]) -> Callable[[], Any]:
    """The three losses, in the one process of a group, without which LAVIS's `forward` does not run."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return steps(official(settings, "blip2_qformer").Blip2Qformer(**shape_of(settings)), settings)


ROWS: dict[str, Callable[[dict[str, Any]], Callable[[], Any]]] = {
    "captions": captions,
    "captions_uncached": captions,
    "captions_t5": functools.partial(captions, kind="t5"),
    "rerank": rerank,
    "stage2": lambda settings: steps(model_of(settings, "opt"), settings),
    "stage1": stage1,
}


if __name__ == "__main__":
    torch.manual_seed(0)
    serve_row(ROWS, *sys.argv[1:])
