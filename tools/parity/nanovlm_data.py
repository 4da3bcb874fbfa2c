"""nanoVLM's golden cases of data: tiles, conversations, and samples that are packed into rows."""

from __future__ import annotations

import ast
import pathlib
import random
import tempfile
import types
from typing import Any

import numpy as np
import tokenizers
from einops import rearrange

from prismer_jax import pp
from prismer_jax.batch import prompts
from prismer_jax.datasets import bins, packing
from prismer_jax.errors import BadSample
from prismer_jax.pp import chat, fast_tokenizers, tiles
from prismer_jax.pp.bilinear import squeezed
from prismer_jax.pp.image import resized

from .case import Case, Mismatch, Outputs


def check_knapsack(case: Case) -> None:
    for number, entry in enumerate(case.manifest["knapsack"]):
        cap = entry["max_images_per_knapsack"]
        sizes = np.array([entry["lengths"], entry["image_counts"]]).T
        rows = bins.knapsack(sizes, (entry["L"], np.inf if cap is None else cap), entry["delta"])
        if [row for row in rows if row] != entry["groups_before_shuffle"]:
            raise Mismatch(f"knapsack {number}: {rows}")
        random.Random(42).shuffle(rows)
        if [row for row in rows if row] != entry["groups_after_random_seed42_shuffle"]:
            raise Mismatch(f"knapsack {number}, shuffled: {rows}")


class _Samples:
    """The samples of the case's producer, as source and as chain; photo j of sample i is a pixel of i and j."""

    def __init__(self, case: Case) -> None:
        produced = case.manifest["producer"]
        self.lengths, self.photos = produced["sample_lengths"], produced["sample_images"]
        self.tokenizer, self.ops = types.SimpleNamespace(pad=case.config["pad_token_id"]), ()

    def __len__(self) -> int:
        return len(self.lengths)

    def __call__(self, example: dict[str, Any], rng: Any) -> dict[str, Any]:
        return example

    def __getitem__(self, index: int) -> dict[str, Any]:
        if (length := self.lengths[index]) is None:
            raise BadSample(f"sample {index} is None")
        photos = len(self.photos[index])
        image = np.zeros((5, 1, 1, 3), np.uint8)
        image[:photos, 0, 0, 0], image[:photos, 0, 0, 1] = index, np.arange(photos)
        text = prompts(np.full((1, length), 100 + index, np.int32), np.ones((1, length), bool))
        labels = np.arange(10, 10 + length, dtype=np.float32)
        return {key: value[0] for key, value in text.items()} | {
            "mask_loss": labels,
            "image": image,
            "image_mask": np.arange(5) < photos,
            "grids": [(1, 1)] * photos,
        }


def producer(case: Case) -> Outputs:
    """Packs the case's samples into rows, as training does with how='reference'."""
    expected, samples = case.manifest["producer"], _Samples(case)
    length = expected["seq_length"]
    rows, _ = packing.rows(
        samples,
        samples,
        how="reference",
        length=length,
        most=length,
        photos=expected["max_images_per_example"],
        row_photos=expected["max_images_per_knapsack"],
        buffer=expected["num_of_sequences"],
        seed=42,
    )
    ids, labels, masks, photos, lengths = [], [], [], [], []
    for index in range(len(rows)):
        row, columns = rows[index], np.arange(length)
        end = sum(samples.lengths[member] + 1 for member in rows.members(index))
        ids.append(np.where(columns < end, row["text"], -1))
        labels.append(np.where(columns < end, np.where(row["mask_loss"] > 0, row["mask_loss"], -100), -1))
        masks.append(np.where(columns < end, row["mask_input"], -1))
        pixels = row["image"][row["image_mask"]][:, 0, 0]
        photos.append([samples.photos[sample][photo] for sample, photo, _ in pixels])
        lengths.append(end)
    if photos != expected["rows_images"] or lengths != expected["rows_lengths"]:
        raise Mismatch(f"rows of the producer: lengths {lengths}, photos {photos}")
    yield "out/producer_ids_rightpad-1", np.array(ids, np.int16)
    yield "out/producer_labels_rightpad-1", np.array(labels, np.int16)
    yield "out/producer_mask_rightpad-1", np.array(masks, np.int16)


def preprocessing(case: Case) -> Outputs:
    """Cuts photos into tiles, and writes the tokens, the text and the loss of conversations."""
    _check_sizes(case)
    tile, most = case.config["vit_img_size"], case.config["max_img_size"]
    for name in case.inputs(r"(image\d+)_u8"):
        for enlarge in (False, True):
            key, photo = f"out/{name}_max{int(enlarge)}", case[f"{name}_u8"]
            size = tiles.tiled_size(*photo.shape[:2], tile, most, enlarge, reference=True)
            stretched = resized(photo, size)
            cut, grid = tiles.split(stretched, tile)
            if list(grid) != case.manifest["grids"][f"{name}_max{int(enlarge)}"]["grid"]:
                raise Mismatch(f"{key}: a grid of {grid}")
            parts = [squeezed(stretched, tile)[None], cut] if len(cut) > 1 else [cut]
            subimages = rearrange(np.concatenate(parts) / np.float32(255), "n h w c -> n c h w")
            yield f"{key}_resized_u8", stretched
            yield f"{key}_subimages", subimages
            yield f"{key}_global", subimages[0]
    for name, text in case.manifest["image_strings"].items():
        grids, tokens = ast.literal_eval(name[name.index("[") : name.index("]") + 1]), int(name[-1])
        if chat.image_text(grids, tokens, name.startswith("with_")) != text:
            raise Mismatch(f"another text for the photos {name}")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = toy_tokenizer(pathlib.Path(folder))
        for name in ("one_turn", "two_turns"):
            messages = [message["content"] for message in case.manifest["chat"][name]["messages"]]
            said = [{"user": u, "assistant": a} for u, a in zip(messages[::2], messages[1::2], strict=True)]
            ids, scored = chat.conversation(said, tokenizer)
            yield f"out/{name}_ids", np.array(ids, np.int16)
            yield f"out/{name}_loss_mask", np.array(scored)
            labels = np.where(scored, ids, -100).astype(np.int16)
            yield f"out/{name}_labels", np.append(labels[1:], np.int16(-100))


def _check_sizes(case: Case) -> None:
    for name, rows in case.manifest["get_new_hw_512_2048"].items():
        for (height, width), size in rows:
            if list(tiles.tiled_size(height, width, 512, 2048, name.endswith("True"), reference=True)) != size:
                raise Mismatch(f"{height}x{width} is not stretched to {size} ({name})")
    for height, width, enlarge, theirs, exact in case.manifest["float_edge_512_2048"]["rows"]:
        ours = [list(tiles.tiled_size(height, width, 512, 2048, enlarge, reference)) for reference in (True, False)]
        if ours != [theirs, exact]:
            raise Mismatch(f"{height}x{width} is stretched to {ours} instead of {[theirs, exact]}")


def toy_tokenizer(folder: pathlib.Path) -> pp.tokenizer.Tokenizer:
    """Returns the cases' tokenizer: three special tokens, a token a byte, and the tokens of images."""
    letters = {byte: letter for letter, byte in zip(*_byte_letters(), strict=True)}
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    vocabulary = {token: i for i, token in enumerate(special)} | {letters[byte]: 3 + byte for byte in range(256)}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(list(special))
    (folder / "tokenizer.json").write_text(fast_tokenizers.extended(model.to_str(), chat.EXTRA_TOKENS))
    return pp.tokenizer.load(f"tokenizers:{folder}")


def _byte_letters() -> tuple[list[str], list[int]]:
    """Returns the letters in which byte-level BPE writes bytes, and these (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(rest))], plain + rest
