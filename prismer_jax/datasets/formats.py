"""The layouts of JSON lists, each read as rows that say something of a photo.

`rows` tells a layout by its content:

- COCO's: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}; annotations without a caption
  (boxes, polygons) say nothing here. NoCaps' has a `domain` with each image.
- Karpathy's splits: {"images": [{"filepath", "filename", "cocoid", "split", "sentences": [{"raw"}]}]}
- Visual Genome's regions: [{"id", "regions": [{"phrase"}]}], and questions: [{"id", "qas": [{"qa_id", "question",
  "answer"}]}]
- VQAv2's: questions in one file {"questions": [{"question_id", "image_id", "question"}]}, answers in `annotations`
- the official Prismer lists: [{"image", "caption"}], caption a text or a list of texts, or none in a test list; or
  [{"image", "class_name"}], where the caption is the class
- the official Prismer question lists: [{"image", "question", "answer", "weight", "dataset", "question_id"}], answer
  and weight single or lists, both absent in a test list
- lists of the last two kinds with one JSON object a line (.jsonl)
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prismer_jax.errors import UserError

Path = str | os.PathLike

WEIGHTS = {"vg": 0.2}  # of a `dataset` whose entries have no weight: Visual Genome's, as in the reference
ANSWERS = 10  # an answer given once counts as given by all ten annotators of VQAv2, whose accuracy needs three
TEXTS = ("domain", "class_name")  # of a photo: the entries that are passed on as they are
KARPATHY = {"train": ("train", "restval")}  # 113,287 photos of COCO, as everybody trains
# The official files of the test-dev split name photos of the test set by another name than these have.
PARTS = {"test-dev2015": "test2015"}
_COCO_NAME = re.compile(r"COCO_[a-z]+\d{4}_(\d{12})\.\w+$")


@dataclasses.dataclass(slots=True)
class Row:
    """What one entry of a list says of a photo.

    Attributes:
      image: the photo's path as the list has it.
      dataset: the data set that the entry says it is of.
      id: of the photo.
      captions: of the photo.
      question: one question about it: `question`, `question_type`, `answers`, and if known `question_id`, `weight`,
        `answer_weights`.
      texts: of TEXTS.
    """

    image: str
    dataset: str | None = None
    id: str | None = None
    captions: list[str] = dataclasses.field(default_factory=list)
    question: dict[str, Any] | None = None
    texts: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.image, str) or not self.image:
            raise ValueError(f"the path of a photo is {self.image!r}")
        if self.id is None and (match := _COCO_NAME.search(self.image)):
            self.id = str(int(match[1]))  # so that results are in official terms


def rows(path: Path, annotations: Path | None = None, split: str | None = None) -> Iterator[Row]:
    """Yields the rows of a list.

    Args:
      path: the list.
      annotations: the answers to its questions, VQAv2's file.
      split: which part of a list that has `split` with each photo: 'train' is train and restval.

    Raises:
      UserError: a file cannot be read, is not of these layouts, or has no such split; names the file and the entry.
    """
    content = read_json(path)
    try:
        yield from _choose(content, annotations, split)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"an entry lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: {what}.") from None


def _choose(content: Any, annotations: Path | None, split: str | None) -> Iterable[Row]:
    if isinstance(content, dict) and "questions" in content:
        _no_split(split)
        return _vqa(content, None if annotations is None else read_json(annotations))
    if annotations is not None:
        raise ValueError("it has its answers inside; leave `annotations` out")
    if isinstance(content, dict) and "images" in content:
        if any("sentences" in image for image in content["images"]):
            return _karpathy(content, split)
        _no_split(split)
        return _coco(content)
    _no_split(split)
    if not isinstance(content, list) or not content:
        raise ValueError("it is no list of a format that datasets/formats.py describes")
    first = content[0]
    if "regions" in first:
        return _regions(content)
    if "qas" in first:
        return _genome_questions(content)
    if "question" in first:
        return _prismer_questions(content)
    if "url" in first and "image" not in first:
        raise ValueError("it lists urls: fetch the photos with img2dataset, then give its output as images or tars")
    return _prismer_captions(content)


def _no_split(split: str | None) -> None:
    if split is not None:
        raise ValueError(f"it does not say which photos belong to the split {split!r}; leave `split` out")


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or the list of a .jsonl file's lines.

    Bytes that are not UTF-8 become surrogates, so that one such caption can be told from the others and left out.

    Raises:
      UserError: it cannot be read; names the line.
    """
    path = pathlib.Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if path.suffix != ".jsonl":
        return _loads(text, path, 0)
    return [_loads(line, path, number) for number, line in enumerate(text.split("\n")) if line.strip()]


def _loads(text: str, path: pathlib.Path, lines_before: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno + lines_before} is not JSON: {error.msg}.") from None


def _coco(content: Mapping[str, Any]) -> Iterator[Row]:
    captions: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
    for annotation in content.get("annotations", ()):
        if annotation["image_id"] not in captions:
            raise ValueError(f"a caption belongs to photo {annotation['image_id']!r}, which is not among its images")
        if "caption" in annotation:
            captions[annotation["image_id"]].append(_text(annotation["caption"], "caption"))
    for image in content["images"]:
        # Of two photos with one id, the first has the captions.
        yield Row(
            image["file_name"],
            id=str(image["id"]),
            captions=captions.pop(image["id"], []),
            texts=_texts(image),
        )


def _karpathy(content: Mapping[str, Any], split: str | None) -> Iterator[Row]:
    splits = {image["split"] for image in content["images"]}
    if split is not None and split not in splits:
        raise ValueError(f"it has no split {split!r}, but {', '.join(sorted(splits))}")
    selected = splits if split is None else KARPATHY.get(split, (split,))
    for image in content["images"]:
        if image["split"] in selected:
            yield Row(
                os.path.join(image.get("filepath", ""), image["filename"]),
                id=str(image.get("cocoid", image["imgid"])),
                captions=[_text(sentence["raw"], "caption") for sentence in image["sentences"]],
            )


def _regions(content: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    for image in content:
        phrases = [_text(region["phrase"], "caption") for region in image["regions"]]
        yield Row(f"VG_100K/{image['id']}.jpg", "vg", str(image["id"]), phrases)


def _genome_questions(content: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    for image in content:
        for row in image["qas"]:
            question = {
                "question": _text(row["question"], "question"),
                "question_type": "",
                "question_id": int(row["qa_id"]),
                "answers": [_text(row["answer"], "answer")] * ANSWERS,
                "weight": WEIGHTS["vg"],
            }
            yield Row(f"VG_100K/{image['id']}.jpg", "vg", str(image["id"]), question=question)


def _prismer_captions(content: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    for row in content:
        default = row["class_name"].lower() if "class_name" in row else []  # as the reference trains on classes
        captions = [_text(text, "caption") for text in _several(row.get("caption", default))]
        out = Row(row["image"], row.get("dataset"), captions=captions, texts=_texts(row))
        if out.id is None:
            out.id = next((str(row[key]) for key in ("image_id", "img_id", "id") if key in row), None)
        yield out


def _prismer_questions(content: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    for row in content:
        answers = [_text(text, "answer") for text in _several(row.get("answer", []))]
        weight = row.get("weight", WEIGHTS.get(row.get("dataset"), 1.0))
        question: dict[str, Any] = {
            "question": _text(row["question"], "question"),
            "question_type": str(row.get("question_type", "")),
            "answers": answers * ANSWERS if len(answers) == 1 else answers,
        }
        if "question_id" in row:
            question["question_id"] = int(row["question_id"])
        if isinstance(weight, list) and len(answers) > 1:
            if len(weight) != len(answers):
                raise ValueError(f"{row['question']!r} has {len(answers)} answers but {len(weight)} weights")
            question["answer_weights"] = [float(w) for w in weight]
        else:
            question["weight"] = float(weight[0] if isinstance(weight, list) else weight)
        yield Row(row["image"], row.get("dataset"), question=question, texts=_texts(row))


def _vqa(content: Mapping[str, Any], annotations: Mapping[str, Any] | None) -> Iterator[Row]:
    names = {image["id"]: image["file_name"] for image in content.get("images", ())}
    if not names and not (part := content.get("data_subtype")):
        raise ValueError("it neither names its images nor, by data_subtype, the part of COCO that they are of")
    answers = {row["question_id"]: row for row in (annotations or {}).get("annotations", ())}
    if annotations is not None and not answers:
        raise ValueError("the file of its annotations has none")
    for row in content["questions"]:
        if names:
            image = names[row["image_id"]]
        else:  # the official files name no photos: COCO's names follow from its ids
            folder = PARTS.get(part, part)
            image = f"{folder}/COCO_{folder}_{row['image_id']:012d}.jpg"
        annotation = answers.get(row["question_id"], {})
        texts = [_text(answer["answer"], "answer") for answer in annotation.get("answers", ())]
        question = {
            "question": _text(row["question"], "question"),
            "question_type": str(annotation.get("question_type", "")),
            "answer_type": str(annotation.get("answer_type", "")),
            "question_id": int(row["question_id"]),
            "answers": texts * ANSWERS if len(texts) == 1 else texts,
        }
        yield Row(image, None, str(row["image_id"]), question=question)


def _several(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else value


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {key: _text(row[key], key) for key in TEXTS if key in row}


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {what} is {value!r} instead of a text")
    return value
