"""PaliGemma's golden cases of texts and images."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np

from prismer_jax import pp
from prismer_jax.models.paligemma import RESIZE
from prismer_jax.pp import places
from prismer_jax.pp.bilinear import stretch
from prismer_jax.pp.prefix_lm import cut
from tools.parity.case import Case, Check, Mismatch, Outputs

RNG = np.random.default_rng(0)  # these ops draw nothing


def texts(case: Case) -> Outputs:
    """Tokenises prefixes and suffixes with the case's SentencePiece model and the pieces of places and masks."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "toy.model"
        path.write_bytes(places.extended((case.folder / "toy.model").read_bytes()))
        tokenizer = pp.tokenizer.load(f"sentencepiece:{path}")
    special = case.manifest["special"]
    ids = {"vocab": tokenizer.vocab_size, "pad": tokenizer.pad, "bos": tokenizer.bos, "eos": tokenizer.eos}
    ids |= {f"{kind}{at}": tokenizer.encode(f"<{kind}{at}>") for kind, at in (("loc", "0000"), ("loc", "1023"))}
    ids |= {f"seg{at}": tokenizer.encode(f"<seg{at}>") for at in ("000", "127")}
    if wrong := [key for key, own in ids.items() if own != special[key]]:
        raise Mismatch(f"ids of {', '.join(wrong)} differ")
    for example in case.manifest["examples"]:
        for part in ("prefix", "suffix"):
            if tokenizer.encode(example[part]) != example[f"{part}_ids"]:
                raise Mismatch(f"ids of {example[part]!r} differ")
    length = case.config["text_len"]

    def packed(size: int, suffix: bool, **options: object) -> dict[str, np.ndarray]:
        op = pp.build(pp_of(size, **options), tokenizer)
        rows = []
        for example in case.manifest["examples"]:
            turn = {"user": example["prefix"]} | ({"assistant": example["suffix"]} if suffix else {})
            rows.append(op({"turns": [turn]}, RNG))
        return {key: np.stack([row[key] for row in rows]) for key in ("text", "mask_ar", "mask_input", "mask_loss")}

    for name, sep in (("train", "\n"), ("train_sep_semicolon", " ; ")):
        rows = packed(length + 1, True, sep=sep)
        for key in ("text", "mask_ar", "mask_loss"):
            yield f"out/{name}_{key}", rows[key].astype(np.int32)
    for name, suffix in (("eval", False), ("eval_with_suffix", True)):
        rows = packed(length, suffix, learn=False)
        order = np.argsort(~rows["mask_input"], axis=1, kind="stable")  # pads are on the right there
        moved = {key: np.take_along_axis(rows[key], order, 1).astype(np.int32) for key in rows}
        yield f"out/{name}_text", moved["text"]
        yield f"out/{name}_mask_ar", np.where(moved["mask_input"], moved["mask_ar"], 1).astype(np.int32)
        yield f"out/{name}_mask_input", moved["mask_input"]
    x = case.manifest["int_inputs"]["tolen_x"]
    yield "out/tolen_pad", np.pad(np.asarray(cut(x, 10, False), np.int32), (0, 3))
    yield "out/tolen_trunc", np.asarray(cut(x, 4, False), np.int32)
    yield "out/tolen_sticky_trunc", np.asarray(cut(x, 4, True), np.int32)
    yield "out/tolen_sticky_equal", np.asarray(cut(x, 7, True), np.int32)


def pp_of(length: int, **options: object) -> str:
    return f"prefix_lm({length}, {', '.join(f'{key}={value!r}' for key, value in options.items())})"


def _pixels(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the share of pixels that differ, infinity if any differs by more than a level: floats are cut off."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return np.inf
    difference = np.abs(ours.astype(int) - theirs)
    return float((difference > 0).mean()) if difference.max(initial=0) <= 1 else np.inf


def images(case: Case) -> Outputs:
    """Stretches images with and without averaging, and resamples positions."""
    for number in range(3):
        image = case[f"image_{number}"]
        for antialias in (False, True):
            out = stretch(56, antialias)({"image": image}, RNG)["image"]
            # A last bit of a sum of many pixels decides what is cut off to the level below.
            yield f"out/resize56_antialias{antialias}_{number}", out, Check(_pixels, 0.01 if antialias else 0.0)
        small = case.arrays[f"out/resize56_antialiasFalse_{number}"]
        yield f"out/value_range_{number}", small.astype(np.float32) / 255 * 2 - 1
    for old, new in ((4, 6), (4, 8), (6, 4)):
        table = case[f"posemb_{old}_{new}"][0]
        resized = RESIZE["params/vision/position_embedding"](table, (new * new, table.shape[1]))
        yield f"out/posemb_{old}_{new}", np.asarray(resized)[None]
