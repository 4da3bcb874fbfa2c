"""Fetches published files: python -m tools.download WHAT [NAMES ...] [--output DIR] [--dry-run]

    python -m tools.download prismer caption_prismer_base
    python -m tools.download experts depth normal edge

  prismer       checkpoints {pretrain,caption,vqa}_{prismer,prismerz}_{base,large} (CC BY-NC-SA 4.0)
  experts       weights of depth, normal, edge, seg_coco, seg_ade, obj_detection, ocr_detection
  clip          ViT-B/16, ViT-L/14, ViT-L/14@336px, ViT-H/14
  roberta       base, large
  nanovlm       nanoVLM-222M, nanoVLM-450M, nanoVLM-230M-8k, nanoVLM-460M-8k
  siglip        google/siglip-base-patch16-224, google/siglip2-base-patch16-256, google/siglip2-base-patch16-512
  smollm2       HuggingFaceTB/SmolLM2-135M, -360M-Instruct and others, each with its tokenizer
  paligemma     google/paligemma-3b-pt-224, google/paligemma2-3b-mix-448 and others, each with its tokenizer; whoever
                fetches them accepts Gemma's licence on the page of each, and has a token in HF_TOKEN
  blip2         pretrained_opt2.7b, caption_flant5xl and others, as LAVIS calls them: its file and the parts that it
                lacks; bert-base-uncased, which stage 1 begins with, and EVA's ViT-g; or Salesforce/blip2-opt-2.7b
                and others, or a language model alone, such as facebook/opt-1.3b
  sentences     all-MiniLM-L6-v2, which makes vectors of captions
  tokenizer     RoBERTa's vocab.json and merges.txt
  label-tables  vectors of class names, and the PCA of words (NVIDIA's non-commercial licence)
  words         CLIP's tokenizer and a list of known words (for research only); ocr_detection needs them, ViT-L/14 of
                clip, and the PCA of label-tables

Without names, all of them (of those with names of models, name some). What is there is compared, what broke
off goes on; every file is compared with its checksum. Without a network it says which file to put where.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prismer_jax import config
from prismer_jax.errors import UserError, choose, run_main
from prismer_jax.files import storage
from prismer_jax.files.published import Facts, HubFile, Repository, Unreachable, WebFile
from prismer_jax.pp import tokenizer

# Names of files and repositories: NVlabs/prismer at 4f27ab3, download_checkpoints.py, experts/model_bank.py,
# model/modules/vit.py and configs/prismer.json.
PRISMER = "shikunl/prismer"
EXPERTS = {
    "depth": "dpt_hybrid-midas-501f0c75.pt",
    "normal": "scannet.pt",
    "edge": "10_model.pth",
    "seg_coco": "model_final_f07440.pkl",
    "seg_ade": "model_final_e0c58e.pkl",
    "obj_detection": "Unified_learned_OCIM_RS200_6x+2x.pth",
    "ocr_detection": "icdar2015_hourglass88.pth",
}
CLIP = "https://openaipublic.azureedge.net/clip/models"
CLIP_SHA256 = {  # they are part of the addresses
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L/14@336px": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}
OPENCLIP = HubFile("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "open_clip_pytorch_model.bin")
ROBERTA = "FacebookAI/roberta"
# Names of repositories: huggingface/nanoVLM at 4e0c096, README.md and models/config.py, and its tags.
NANOVLM = [f"nanoVLM-{size}" for size in ("222M", "450M", "230M-8k", "460M-8k")]
SIGLIP = [
    f"google/{name}" for name in ("siglip-base-patch16-224", "siglip2-base-patch16-256", "siglip2-base-patch16-512")
]
SMOLLM2 = [f"HuggingFaceTB/SmolLM2-{size}{kind}" for size in ("135M", "360M", "1.7B") for kind in ("", "-Instruct")]
MODEL = ("config.json", "model.safetensors")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
SENTENCES = ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
# Names of repositories: the announcements of PaliGemma and PaliGemma 2. Which shards each has, the hub says.
PALIGEMMA = [
    f"google/{model}-{kind}-{size}"
    for model in ("paligemma-3b", "paligemma2-3b", "paligemma2-10b", "paligemma2-28b")
    for kind, sizes in (("pt", (224, 448, 896)), ("mix", (224, 448)))
    for size in sizes
]
# Names of files: salesforce/LAVIS at 506965b, configs/models/blip2/*.yaml, models/eva_vit.py and models/clip_vit.py;
# of repositories: transformers, convert_blip_2_original_to_pytorch.py.
LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2"
EVA, CLIP_L, BERT = "eva_vit_g.pth", "clip_vit_L.pth", "google-bert/bert-base-uncased"
BLIP2 = {  # its vision transformer, where the file holds none, and who reads the queries
    "pretrained": (EVA, BERT),
    "finetune_coco": ("", BERT),
    "pretrained_vitL": (CLIP_L, BERT),
    "pretrained_flant5xl_vitL": (CLIP_L, "google/flan-t5-xl"),
    **{f"pretrained_opt{size}": (EVA, f"facebook/opt-{size}") for size in ("2.7b", "6.7b")},
    **{f"caption_opt{size}": ("", f"facebook/opt-{size}") for size in ("2.7b", "6.7b")},
    **{f"pretrained_flant5{size}": (EVA, f"google/flan-t5-{size}") for size in ("xl", "xxl")},
    "caption_flant5xl": ("", "google/flan-t5-xl"),
}
BLIP2_HUB = [
    *(f"Salesforce/blip2-{name}" for name in ("opt-2.7b", "opt-6.7b", "flan-t5-xl", "flan-t5-xxl")),
    *(f"Salesforce/blip2-{name}-coco" for name in ("opt-2.7b", "opt-6.7b", "flan-t5-xl")),
    *(f"facebook/opt-{size}" for size in ("125m", "350m", "1.3b", "2.7b", "6.7b")),
    *(f"google/flan-t5-{size}" for size in ("small", "base", "large", "xl", "xxl")),
]
NAMED = ("prismer", "nanovlm", "siglip", "smollm2", "paligemma", "blip2")  # groups that are not fetched as a whole
OFFICIAL = "https://github.com/NVlabs/prismer/raw/4f27ab37e8ff5436707c5badd0ec744980608edd"
TABLES = f"{OFFICIAL}/dataset"
TABLE_FACTS = {  # SHA-256 and bytes, of that commit
    "coco_features.pt": ("ccf18221afe8dddef3ffb9daad31d5c7a92cdc2f2f434d77cbeb48031bc75756", 36651),
    "ade_features.pt": ("4cb5c802ef9eaf9c9213219bdc5f8f2d6579400275ab443c43905fdcdd805e5a", 41899),
    "detection_features.pt": ("c38ba9352b2a9f832b14fdc19ac407527ffeaa2903958a73f6eb649f78119c76", 198443),
    "background_features.pt": ("5f5bf8e158715633a9e0f307be1947ca74c294e522b705e1e61bd49361088092", 1003),
    "clip_pca.pkl": ("064950869bce7d622ff7e733dc64c8e1be18be926c3f64e66ae57164df3f8bc5", 401612),
}
WORDS = {  # address, SHA-256 and bytes
    "bpe_simple_vocab_16e6.txt.gz": (
        "https://github.com/openai/CLIP/raw/3bee28119e6b28e75b82b811b87b56935314e6a5/clip",
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
        1356917,
    ),
    "GenericVocabulary.txt": (
        f"{OFFICIAL}/experts/ocr_detection/datasets/ICDAR2015/test",
        "8a24c1f4b020c36b21c2c250d3e9b3904a218bc6df0d3cee561a8dd3a9fba3d1",
        814293,
    ),
}


@dataclass(frozen=True)
class Item:
    """A file to fetch: where from, and where it goes in the group's folder."""

    source: HubFile | WebFile
    target: str


def _clip() -> dict[str, Item]:
    items = {}
    for name, sha256 in CLIP_SHA256.items():
        file = f"{re.sub('[/@]', '-', name)}.pt"
        items[name] = Item(WebFile(f"{CLIP}/{sha256}/{file}", sha256), file)
    return {**items, "ViT-H/14": Item(OPENCLIP, f"ViT-H-14/{OPENCLIP.path}")}


def _repositories(names: Sequence[str], files: Sequence[str], owner: str = "") -> dict[str, list[Item]]:
    """Returns the files of whole models, which are fetched together, each model in a folder of its own name."""
    return {
        name: [Item(HubFile(f"{owner}{name}", file), f"{name.rpartition('/')[2]}/{file}") for file in files]
        for name in names
    }


def _blip2() -> dict[str, Any]:
    """Returns whole models under LAVIS's names; files that several of them share are fetched once."""
    bert = {name: Item(HubFile(BERT, name), f"bert/{name}") for name in ("model.safetensors", "tokenizer.json")}
    found: dict[str, Any] = {name: Repository(name) for name in BLIP2_HUB}
    found[BERT.partition("/")[2]] = [*bert.values(), Item(WebFile(f"{LAVIS}/{EVA}"), EVA)]
    for name, (vision, language) in BLIP2.items():
        files = [file for file in (f"blip2_{name}.pth", vision) if file]
        parts: list[Any] = [Item(WebFile(f"{LAVIS}/{file}"), file) for file in files]
        found[name] = [*parts, bert["tokenizer.json"] if language == BERT else Repository(language)]
    return found


GROUPS: dict[str, Mapping[str, Any]] = {  # name: an Item, a Repository, or a list of these
    "prismer": {
        name: Item(HubFile(PRISMER, f"{name}/pytorch_model.bin"), f"{name}/pytorch_model.bin")
        for stage in ("pretrain", "caption", "vqa")
        for name in (f"{stage}_{model}_{size}" for model in ("prismer", "prismerz") for size in ("base", "large"))
    },
    "experts": {name: Item(HubFile(PRISMER, f"expert_weights/{file}"), file) for name, file in EXPERTS.items()},
    "clip": _clip(),
    "roberta": {
        size: Item(HubFile(f"{ROBERTA}-{size}", "pytorch_model.bin"), f"roberta-{size}/pytorch_model.bin")
        for size in ("base", "large")
    },
    "nanovlm": _repositories(NANOVLM, MODEL, "lusxvr/"),
    "siglip": _repositories(SIGLIP, MODEL),
    "smollm2": _repositories(SMOLLM2, (*MODEL, *TOKENIZER)),
    "paligemma": {name: Repository(name) for name in PALIGEMMA},
    "blip2": _blip2(),
    "sentences": _repositories(["all-MiniLM-L6-v2"], (*MODEL, *TOKENIZER, *SENTENCES), "sentence-transformers/"),
    "tokenizer": {name: Item(HubFile(f"{ROBERTA}-base", name), name) for name in ("vocab.json", "merges.txt")},
    "words": {name: Item(WebFile(f"{where}/{name}", *facts), name) for name, (where, *facts) in WORDS.items()},
    "label-tables": {name: Item(WebFile(f"{TABLES}/{name}", *facts), name) for name, facts in TABLE_FACTS.items()},
}


def select(group: str, names: Sequence[str]) -> list[Item]:
    """Returns the files of a group that are named, or all.

    Raises:
      UserError: an unknown group or name, no name of a group that is not fetched as a whole, or a repository whose
        files only the hub knows, which does not answer.
    """
    items = choose("kind of file", group, GROUPS)
    if group in NAMED and not names:
        raise UserError(f"Name the checkpoints to fetch: {', '.join(items)}.")
    chosen = [choose(f"name of {group}", name, items) for name in names] if names else list(items.values())
    return list(dict.fromkeys(item for entry in chosen for item in _items(entry)))


def _items(entry: Item | list[Any] | Repository) -> list[Item]:
    if isinstance(entry, list):
        return [item for part in entry for item in _items(part)]
    if isinstance(entry, Item):
        return [entry]
    try:
        files = entry.files(".json", ".safetensors", ".model", ".txt", ".bin")
    except Unreachable as error:
        page = f"https://huggingface.co/{entry.name}"
        raise UserError(
            f"{page} does not answer ({error}). Fetch its files elsewhere, and convert that folder."
        ) from None
    if any(file.path.endswith(".safetensors") for file in files):  # the same weights as in PyTorch's files
        files = [file for file in files if not file.path.endswith((".bin", ".bin.index.json"))]
    return [Item(file, f"{entry.name.rpartition('/')[2]}/{file.path}") for file in files]


def plan(items: Sequence[Item], folder: pathlib.Path) -> None:
    """Prints the size, the source and the destination of every file, and the sum where all sizes are known."""
    sizes = []
    for item in items:
        target = folder / item.target
        try:
            size = item.source.stated.size or item.source.facts().size
            shown = "unknown" if size is None else _bytes(size)
        except Unreachable:
            size, shown = None, "unknown offline"
        sizes.append(size)
        there = f", {_bytes(target.stat().st_size)} there already" if target.exists() else ""
        print(f"{target}: {shown}{there}, from {item.source.address}")
    if len(sizes) > 1 and None not in sizes:
        print(f"{len(sizes)} files, {_bytes(sum(sizes))} in all")


def weigh(name: str) -> None:
    """Prints what the weights of a BLIP-2 take in memory, in each type of `tools.convert blip2 --dtype`."""
    import jax  # here: most files are fetched without it

    from prismer_jax import models
    from prismer_jax.models import conversion
    from prismer_jax.models.blip2.conversion import PACKED, QUANTIZED

    if name not in models.family("blip2").VARIANTS:
        return
    plain = models.build("blip2", variant=name)
    halves = {key: jax.ShapeDtypeStruct(x.shape, "bfloat16") for key, x in conversion.shapes_of(plain).items()}
    sizes = []
    for kind in ("bfloat16", *PACKED):
        packs = {}
        if kind in PACKED:
            model = models.build("blip2", variant=name, quantize=dict(match=QUANTIZED, kind=kind))
            packs = {key: jax.eval_shape(pack, halves[key]) for key, pack in model.loading["pack"].items()}
        sizes.append(f"{kind} {_bytes(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(halves | packs)))}")
    print(f"{name}: weights in memory take {', '.join(sizes)} (tools.convert blip2 --dtype).")


def fetch(items: Sequence[Item], folder: pathlib.Path) -> None:
    """Fetches what is not there.

    Raises:
      UserError: a file is there but another one, arrives damaged, or cannot be had: where to get it is printed.
    """
    missing: list[tuple[Item, str]] = []
    for item in items:
        target = folder / item.target
        if target.exists():
            _compare(item, target)
            continue
        try:
            item.source.fetch(target)
            print(f"{target}: fetched, {_bytes(target.stat().st_size)}.")
        except Unreachable as error:
            missing.append((item, str(error)))
    if missing:
        for item, _ in missing:
            print(f"{folder / item.target}: put here what is at {item.source.address}")
        files = "1 file" if len(missing) == 1 else f"{len(missing)} files"
        item, reason = missing[0]
        raise UserError(
            f"{files} cannot be fetched: {item.source.address} does not answer ({reason}). Fetch elsewhere what is "
            "listed above, put it there, and run the same again."
        )


def _compare(item: Item, target: pathlib.Path) -> None:
    facts, check = item.source.stated, "compared with its checksum"
    if facts == Facts():
        try:
            facts = item.source.facts()
        except Unreachable:
            check = "not compared, as nobody answers"
        else:
            check = check if facts.sha256 or facts.git_sha1 or facts.md5 else "of the right size"
    if problem := facts.problem(target):
        raise UserError(f"{target}: is not the published file: it {problem}. Delete it and run the same again.")
    print(f"{target}: there already, {check}.")


def _bytes(size: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size = size / 1000
    return f"{size:.4g} GB"


def main(argv: Sequence[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m tools.download", description=__doc__)
    parser.add_argument("what", help=", ".join(GROUPS))
    parser.add_argument("names", nargs="*", help="which of them")
    parser.add_argument("--output", type=storage.on_disk, help="folder for the files; default weights/WHAT")
    parser.add_argument("--dry-run", action="store_true", help="only say sizes and destinations")
    args = parser.parse_flags(argv, "nothing here has a config")
    items = select(args.what, args.names)
    folder = args.output or pathlib.Path("weights") / args.what.replace("-", "_")
    if args.dry_run or args.what == "blip2":  # of several large parts
        plan(items, folder)
        for name in args.names:
            weigh(name)
    if args.dry_run:
        return
    fetch(items, folder)
    if args.what == "tokenizer" and not args.names:
        tokenizer.load(f"roberta:{folder}")  # says so if they are not RoBERTa's


if __name__ == "__main__":
    run_main(main)
