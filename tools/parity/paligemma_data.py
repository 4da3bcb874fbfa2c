"""PaliGemma's golden cases of texts and images."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np

from prismer_jax import pp
from prismer_jax.models.paligemma import RESIZE
from prismer_jax.objects import codec as codecs
from prismer_jax.objects import shapes, spelling
from prismer_jax.pp import location_tokens
from prismer_jax.pp.bilinear import stretch
from prismer_jax.pp.prefix_lm import cut
from prismer_jax.scores.objects import segmented

from .case import Case, Check, Mismatch, Outputs, levels

RNG = np.random.default_rng(0)  # these ops draw nothing


def texts(case: Case) -> Outputs:
    """Tokenises prefixes and suffixes with the case's SentencePiece model and the pieces of places and masks."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "toy.model"
        path.write_bytes(location_tokens.extended((case.folder / "toy.model").read_bytes()))
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


def images(case: Case) -> Outputs:
    """Stretches images with and without averaging, and resamples positions."""
    for number in range(3):
        image = case[f"image_{number}"]
        for antialias in (False, True):
            out = stretch(56, antialias)({"image": image}, RNG)["image"]
            # A last bit of a sum of many pixels decides what is cut off to the level below.
            yield f"out/resize56_antialias{antialias}_{number}", out, Check(levels, 0.01 if antialias else 0.0)
        small = case.arrays[f"out/resize56_antialiasFalse_{number}"]
        yield f"out/value_range_{number}", small.astype(np.float32) / 255 * 2 - 1
    for old, new in ((4, 6), (4, 8), (6, 4)):
        table = case[f"posemb_{old}_{new}"][0]
        resized = RESIZE["params/vision/position_embedding"](table, (new * new, table.shape[1]))
        yield f"out/posemb_{old}_{new}", np.asarray(resized)[None]


def masks(case: Case) -> Outputs:
    """Encodes and decodes masks, spells boxes and masks, and scores what a model might have said of some."""
    codec, config = codecs.MaskCodec(case.state()), case.config
    small = case["masks64"].astype(np.float32) / 255
    inside = {key: codec.weights[f"encoder.0.{key}"] for key in ("weight", "bias")}
    yield "tap/encoder_down0", codecs.convolution(2 * (small[..., None] - 0.5), *inside.values(), 2, 1).clip(0)
    yield "tap/encoder_out", codecs.features(codec.weights, small[:2])
    yield "out/codes", codec.encode(small)
    yield "out/decoded_masks64", codec.decode(case["decode_codes"])[..., None]
    yield "out/loc_bins", spelling.bins(case["boxes"])
    crops = []
    for number, said in enumerate(case.manifest["mask2str_strings"]):
        mask, box = case[f"mask2str_mask_{number}"] > 0, case["mask2str_bbox"][number]
        crops.append(shapes.crop(mask, box))
        if (own := spelling.spell(box, codes=codec.encode(crops[-1][None])[0])) != said:
            raise Mismatch(f"mask {number} is {own} instead of {said}")
    yield "out/mask2str_resized64", np.stack(crops)
    sizes = np.array([case[f"mask2str_mask_{number}"].shape * 2 for number in range(len(crops))])
    yield "out/mask2str_crop_y1x1y2x2", shapes.rounded(case["mask2str_bbox"], sizes)

    def spelt(token: int) -> str:
        place, code = token - config["loc0"], token - config["seg0"]
        return f"<loc{place:04d}>" if 0 <= place <= spelling.LAST else f"<seg{code:03d}>" if code >= 0 else f" {token}"

    said = ["".join(map(spelt, row.tolist())) for row in case["eval_decoded_tokens"]]
    truth = np.unpackbits(case["eval_gt_masks"], axis=-1).astype(bool)
    rows = segmented(said, case["eval_gt_bbox"], truth, codec)
    yield "out/eval_per_example_miou_acc50_acc75_invalid", rows.astype(np.float32)
    real, result = rows[case["eval_mask"] > 0], case.manifest["evaluator_result"]
    own = dict(zip(("miou", "boxacc/0.5", "boxacc/0.75"), real[:, :3].mean(0), strict=True))
    own |= {"invalid": real[:, 3].sum(), "total": len(real)}
    if wrong := [key for key, value in result.items() if abs(own[key] - value) > 1e-12]:
        raise Mismatch(f"{wrong[0]} is {own[wrong[0]]} instead of {result[wrong[0]]}")
