"""A folder that has everything `paper` describes in the very formats, but a dozen rendered scenes instead of photos.

The `smoke` variant of each of the paper's configs runs on it: the same code reads it that reads the real data.
"""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tokenizers

from prismer_jax import label_files, label_png, labels
from prismer_jax.datasets import scenes
from prismer_jax.datasets.scenes.world import GROUNDS
from prismer_jax.files import folders
from prismer_jax.files.storage import PathLike
from prismer_jax.objects import codec, shapes
from prismer_jax.pp import chat, fast_tokenizers

VERSION = "3"  # of what is written here; scenes.VERSION tells the rest
SIZE = 64  # pixels
TRAIN, HELD_OUT = range(12), range(12, 18)  # scenes


def folder(data_dir: PathLike | None = None) -> str:
    """Returns the folder, which is written first if it is not there.

    Args:
      data_dir: as of scenes.load.
    """
    final = scenes.data_folder(data_dir) / "miniature" / f"{VERSION}-{scenes.VERSION}"
    if not final.exists():
        with folders.new_folder(final) as new:
            _write(new)
    return str(final)


def own(task: str) -> tuple[str, str]:
    """Returns lists for training and evaluation in one's own folder: of 'captions' or of 'questions'."""
    root = folder()
    if task == "captions":
        return f"{root}/coco_karpathy_train.json", f"{root}/coco_karpathy_val.json"
    return f"{root}/vqav2_train_val.json", f"{root}/vg_qa.json"


def my_photos(folder: PathLike, train: int = 64, held_out: int = 16, size: int = 96) -> None:
    """Writes scenes as the photos of a user, as transfers/forkme.py reads them: an example for one's own.

    In `folder` are images/NUMBER.jpg, labels/EXPERT/NUMBER.png, captions_train.json and captions_val.json, whose
    captions count what is there ("2 box, 1 sign"), and questions_train.json and questions_val.json.

    Args:
      folder: where to write, made if need be.
      train, held_out: how many photos.
      size: pixels of a photo's side.
    """
    root = pathlib.Path(folder)
    for split, scenes_of, count in (("train", "train", train), ("val", "val", held_out)):
        settings, captions, questions = scenes.Settings(scenes_of, size, count, 0), [], []
        for number in range(count):
            example, name = scenes.example(settings, number), f"{split}_{number}.jpg"
            _save(root / "images" / name, root / "labels", example)
            kinds = collections.Counter(scenes.CLASSES[kind] for kind in example["classes"])
            captions.append({"image": name, "caption": ", ".join(f"{n} {kind}" for kind, n in kinds.items())})
            asked = example["questions"][:4]
            questions += [{"image": name, "question": q["question"], "answer": q["answers"][0]} for q in asked]
        _json(root / f"captions_{split}.json", captions)
        _json(root / f"questions_{split}.json", questions)


def talks(extra: int = len(chat.EXTRA_TOKENS)) -> tuple[str, str]:
    """Returns (a file of conversations about scenes, a folder of a tokenizer), written first if need be.

    Args:
      extra: how many of nanoVLM's words for images the tokenizer has.
    """
    final = scenes.data_folder() / "miniature" / f"talks-{extra}-{VERSION}-{scenes.VERSION}"
    if not final.exists():
        with folders.new_folder(final) as new:
            settings = scenes.Settings("train", SIZE, len(TRAIN), 0)
            rows = []
            for number in TRAIN:
                example = scenes.example(settings, number)
                (new / f"{number}.jpg").write_bytes(example["image"])
                asked = example["questions"][: 1 + number % 3]
                texts = [{"user": one["question"], "assistant": one["answers"][0]} for one in asked]
                rows.append({"images": [f"{number}.jpg"] if number % 4 else [], "texts": texts})
            (new / "talks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            _letters(new, extra)
    return str(final / "talks.jsonl"), str(final)


def pairs(frames: int | None = None, captions: bool = False) -> str:
    """Returns a folder of train.jsonl and val.jsonl, rows of datasets/pairs.py about scenes, written first if need be.

    Args:
      frames: photos of a row, the same again and again; None for one photo that is no list.
      captions: rows have captions to say, otherwise a question with choices and its answer.
    """
    name = f"pairs-{frames}-{captions}-{VERSION}-{scenes.VERSION}"
    final = scenes.data_folder() / "miniature" / name
    if not final.exists():
        with folders.new_folder(final) as new:
            for part, examples in _photographed(new):
                rows = []
                for number, example in examples.items():
                    photo = {"image": f"{number}.jpg"} if frames is None else {"images": [f"{number}.jpg"] * frames}
                    asked = example["questions"][number % len(example["questions"])]
                    answer = asked["answers"][0]
                    said = {"captions": example["captions"]} if captions else {"answers": [answer]}
                    choices = list(dict.fromkeys(["no", answer, "yes"]))
                    texts = {"question": asked["question"], "choices": choices, "hint": "", "language": "en"}
                    rows.append({**photo, "id": number, **texts, **said, "bbox": [0.2, 0.2, 0.8, 0.8]})
                (new / f"{part}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(final)


def masks() -> tuple[str, str]:
    """Returns (a folder of train.json and val.json, lists of a scene's objects; a codec of masks that has learnt
    nothing), written first if need be.
    """
    final = scenes.data_folder() / "miniature" / f"masks-{VERSION}-{scenes.VERSION}"
    if not final.exists():
        with folders.new_folder(final) as new:
            for part, examples in _photographed(new):
                rows = []
                for number, example in examples.items():
                    ids = label_png.decode("obj_detection", example["labels"]["obj_detection"])[..., 0]
                    objects = [
                        {"name": scenes.CLASSES[kind], "segmentation": shapes.run_lengths(ids == instance)}
                        for instance, kind in enumerate(example["classes"])
                        if (ids == instance).sum() > 12
                    ]
                    rows.append({"image": f"{number}.jpg", "height": SIZE, "width": SIZE, "objects": objects})
                _json(new / f"{part}.json", rows)
            rng = np.random.default_rng(0)
            weights = {key: rng.standard_normal(shape) for key, shape in codec.shapes(8, 4).items()}
            codec.MaskCodec(weights).save(new / codec.FILE)
    return str(final), str(final / codec.FILE)


def _photographed(folder: pathlib.Path) -> Iterator[tuple[str, dict[int, dict[str, Any]]]]:
    """Yields 'train' and 'val', each with its scenes by number, whose photos it writes to the folder as NUMBER.jpg."""
    settings = scenes.Settings("train", SIZE, len(TRAIN) + len(HELD_OUT), 0)
    for part, numbers in (("train", TRAIN), ("val", HELD_OUT)):
        examples = {number: scenes.example(settings, number) for number in numbers}
        for number, example in examples.items():
            (folder / f"{number}.jpg").write_bytes(example["image"])
        yield part, examples


def _letters(folder: pathlib.Path, extra: int) -> None:
    """Writes a tokenizer of single bytes, which knows SmolLM2's marks of a conversation."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [*special, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    model = tokenizers.Tokenizer(tokenizers.models.BPE({word: number for number, word in enumerate(words)}, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(special)
    (folder / "tokenizer.json").write_text(fast_tokenizers.extended(model.to_str(), chat.EXTRA_TOKENS[:extra]))
    _json(folder / "tokenizer_config.json", {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})


def _write(root: pathlib.Path) -> None:
    settings = scenes.Settings("train", SIZE, len(TRAIN) + len(HELD_OUT), 0)
    examples = [scenes.example(settings, i) for i in (*TRAIN, *HELD_OUT)]
    grounds = [scenes.scene(settings, i)[0].ground for i in (*TRAIN, *HELD_OUT)]
    for part, numbers in (("train", TRAIN), ("val", HELD_OUT), ("test", HELD_OUT)):
        rows = []
        for i in numbers:
            # The second half of COCO's training photos lies in val2014, as in the Karpathy split.
            year = "train2014" if i < len(TRAIN) // 2 else "val2014"
            image = _put(root, "vqav2", f"{year}/COCO_{year}_{i:012d}.jpg", examples[i])
            texts = examples[i]["captions"]
            if part == "train":
                rows += [{"image": image, "caption": text, "image_id": f"coco_{i}"} for text in texts]
            else:
                rows.append({"image": image, "caption": texts})
        _json(root / f"coco_karpathy_{part}.json", rows)
    _web(root, examples)
    _nocaps(root, examples)
    _questions(root, examples)
    for name, numbers in (("imagenet_train", TRAIN), ("imagenet", HELD_OUT)):
        for i in numbers:
            _put(root, name, f"n{list(GROUNDS).index(grounds[i]):08d}/{i}.JPEG", examples[i])
    _json(root / "imagenet/imagenet_answer.json", list(GROUNDS))
    _json(root / "imagenet/imagenet_class.json", {f"n{i:08d}": str(i) for i in range(len(GROUNDS))})


def _web(root: pathlib.Path, examples: list[dict[str, Any]]) -> None:
    """Visual Genome's captions, and photos with a text beside each."""
    rows = []
    for i in TRAIN:
        if i % 3 == 0:
            image = _put(root, "vg", f"VG_100K/{i}.jpg", examples[i])
            rows += [{"image": image, "caption": text, "dataset": "vg"} for text in examples[i]["captions"][:3]]
        else:
            name = ("cc12m", "cc3m_sgu")[i % 3 - 1]
            image = _put(root, name, f"00000/{i:09d}.jpg", examples[i])
            (root / name / image).with_suffix(".txt").write_text(examples[i]["captions"][0])
    _json(root / "vg_caption.json", rows)


def _nocaps(root: pathlib.Path, examples: list[dict[str, Any]]) -> None:
    domains = ("in-domain", "near-domain", "out-domain")
    images = []
    for i in HELD_OUT:
        for part in ("val", "test"):
            _put(root, f"nocaps/{part}", f"{i:016x}.jpg", examples[i])
        images.append({"id": i, "file_name": f"{i:016x}.jpg", "domain": domains[i % 3]})
    captions = [{"image_id": i, "caption": text} for i in HELD_OUT for text in examples[i]["captions"]]
    captions = [{"id": number, **row} for number, row in enumerate(captions)]
    _json(root / "nocaps_val_4500_captions.json", {"images": images, "annotations": captions})
    _json(root / "nocaps_test_image_info.json", {"images": images})


def _questions(root: pathlib.Path, examples: list[dict[str, Any]]) -> None:
    """VQAv2 in the official repository's lists and in the benchmark's own files, and Visual Genome's questions."""
    rows, test, vg, answers = [], [], [], set()
    own: dict[str, tuple[list[Any], list[Any]]] = {"train2014": ([], []), "val2014": ([], [])}
    for i in (*TRAIN, *HELD_OUT):
        year = "train2014" if i < len(TRAIN) // 2 else "val2014"
        name = f"{year}/COCO_{year}_{i:012d}.jpg"
        for asked in examples[i]["questions"][:4]:
            head = {"question_id": asked["question_id"], "question": asked["question"]}
            given = asked["answers"]
            counts = {text: given.count(text) / len(given) for text in given}
            answers |= counts.keys()
            own[year][0].append(head | {"image_id": i})
            own[year][1].append(
                {
                    "question_id": asked["question_id"],
                    "question_type": asked["question_type"],
                    "answers": [{"answer": text} for text in given],
                }
            )
            if i in TRAIN:
                rows += [head | {"image": name, "dataset": "vqa", "answer": a, "weight": w} for a, w in counts.items()]
            else:
                test.append(head | {"image": f"test2015/COCO_test2015_{i:012d}.jpg", "dataset": "vqa"})
        if i in HELD_OUT:
            _put(root, "vqav2", f"test2015/COCO_test2015_{i:012d}.jpg", examples[i])
        elif i % 3 == 0:
            asked = examples[i]["questions"][4]
            vg.append(
                {
                    "question_id": asked["question_id"],
                    "question": asked["question"],
                    "answer": asked["answers"][0],
                    "image": f"VG_100K/{i}.jpg",
                    "dataset": "vg",
                }
            )
            answers.add(asked["answers"][0])
    choices = [
        {"question": row["question"], "choices": ["no", "yes"], "answer": n % 2, "image": f"vqav2/{row['image']}"}
        for n, row in enumerate(test)
    ]
    (root / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    _json(root / "vqav2_train_val.json", rows)
    _json(root / "vqav2_test.json", test)
    _json(root / "vg_qa.json", vg)
    _json(root / "answer_list.json", sorted(answers))
    for year, (asked, given) in own.items():
        _json(root / f"v2_OpenEnded_mscoco_{year}_questions.json", {"data_subtype": year, "questions": asked})
        _json(root / f"v2_mscoco_{year}_annotations.json", {"data_subtype": year, "annotations": given})


def _put(root: pathlib.Path, photos: str, name: str, example: dict[str, Any]) -> str:
    """Writes a scene and its labels as the photo root/photos/name; returns the name."""
    _save(root / photos / name, root / "labels" / "{expert}" / photos, example, name)
    return name


def _save(path: pathlib.Path, folder: pathlib.Path, example: dict[str, Any], name: str = "") -> None:
    """Writes a scene as a photo, and its labels, under its own name unless another is given, into `folder`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(example["image"])
    for expert, data in example["labels"].items():
        kind = labels.EXPERTS[expert].embed
        more = {"classes": example["classes"]} if kind == "instances" else {}
        if kind == "words":
            more = {"features": example["word_features"], "words": example["words"]}
        label_files.write(folder, expert, name or path.name, label_png.decode(expert, data), **more)


def _json(path: pathlib.Path, content: Any) -> None:
    path.write_text(json.dumps(content))
