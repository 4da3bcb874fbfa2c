"""Real photos: image folders and lists in the usual formats, with expert labels beside them or none.

`load(path)` tells the format by the content:

- COCO captions: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
- the official Prismer lists: [{"image", "caption"}], caption a text or a list of texts
- the official Prismer question lists: [{"image", "question", "answer", "weight", "dataset", "question_id"}], answer
  and weight single or lists, both absent in a test list
- VQAv2: questions in one file {"questions": [{"question_id", "image_id", "question"}]}, answers in `annotations`
- a list of either kind with one JSON object a line (.jsonl)

Without `path`, `images` is a folder (searched recursively) or files; a text file beside a photo is its caption, as
img2dataset writes it.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from prismer_jax import labels as label_files
from prismer_jax.errors import BadSample, UserError

Example = dict[str, Any]
Path = str | os.PathLike

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FOLDERS = {"vqa": "vqav2"}  # the folder of a question list's `dataset`, where it is not its name
WEIGHTS = {"vg": 0.2}  # of a `dataset` whose entries have no weight: Visual Genome's, as in the reference
ANSWERS = 10  # an answer given once counts as given by all ten annotators of VQAv2, whose accuracy needs three


def load(
    path: Path | None = None,
    *,
    images: Path | Sequence[Path] | None = None,
    labels: Path | None = None,
    questions: Path | None = None,
    annotations: Path | None = None,
    task: Literal["caption", "question", "all"] | None = None,
    source: str | None = None,
    experts: str | Sequence[str] = tuple(label_files.EXPERTS),
    limit: int | None = None,
    max_missing: float = 0.01,
) -> Source:
    """A source of examples from a list or a folder; photos and labels are opened when an example is asked for.

    Args:
      path: a list, see above.
      images: the folder that the list's paths are relative to: by default `images` beside the list, or its own folder.
        '{dataset}' in it stands for an entry's data set. Without a list: a folder, a file, or several.
      labels: the folder of label files, laid out as in the official repository: `labels/<expert>/<image>.png`;
        'DIR/{expert}/{dataset}' where data sets have folders of their own.
      questions: another name for `path`, beside annotations.
      annotations: the answers to the questions of `path`, VQAv2's file.
      task: what the list must be for; None takes what it is; 'all' has one example a photo with everything of it.
      source: what the data set is called; by default its entries say it, or the list or folder does by its own name.
      experts: whose label files are looked for.
      limit: take only so many examples, the first ones.
      max_missing: the fraction of photos that may be missing; they are left out, with a warning.

    An example is a photo with all its captions, or one question: `id`, `image` (path), and `captions`; or `question`,
    `answers` (a single answer is repeated ten times), `answer_weights`, `question_id`, `question_type`, `weight`.
    With the task 'all' it is a photo: `id`, `name` (the path that its label files have below an expert's folder),
    `image`, `source`, `captions` (maybe none) and `questions` (maybe none), dicts of what is said above of a question.

    Raises:
      UserError: a file is missing or malformed, or too many photos are missing; the message names the first.
    """
    if path is not None and questions is not None:
        raise UserError("Give the questions as `path` or as `questions`, not both.")
    _names.cache_clear()  # folders may have changed since the last list
    if (path := questions if path is None else path) is None:
        if images is None:
            raise UserError("Give `path` (a list) or `images` (a folder of photos, or files).")
        if annotations is not None or task == "question":
            raise UserError("Photos without a list have no questions; give `path`.")
        where = "the folder" if task != "all" or not isinstance(images, str | os.PathLike) else os.fspath(images)
        entries = _walk(images)
    else:
        where, entries = os.fspath(path), _read(pathlib.Path(path), images, annotations, task)
    if task == "all":
        entries = _by_photo(entries, source or pathlib.Path(where).stem)
    if labels is not None and "{expert}" not in os.fspath(labels) and not os.path.isdir(labels):
        raise UserError(f"{labels}: no such folder of labels. Leave `labels` out for photos without labels.")
    entries = _present(entries[:limit], where, max_missing)
    return Source(entries, None if labels is None else os.fspath(labels), label_files.select(experts))


class Source:
    """Examples of a list: `len(source)`, `source[i]`."""

    def __init__(self, entries: Sequence[Example], labels: str | None, experts: Sequence[str]) -> None:
        self._entries, self._labels, self._experts = entries, labels, experts

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Example:
        example = dict(self._entries[index])
        relative, dataset = example.pop("relative"), example.pop("dataset", None)
        if "questions" in example:  # the task 'all'
            example["name"] = relative
        if "captions_file" in example:
            example["captions"] = [_first_line(example.pop("captions_file"))]
        if self._labels is not None:
            folder = self._labels.replace("{dataset}", str(dataset))
            example.update(label_files.locate(folder, self._experts, relative))
        return example


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSample(f"{path}: not a caption ({error}).") from None


def _walk(images: Path | Sequence[Path]) -> list[Example]:
    """Entries of all photos in folders, recursively and sorted, and of files given as such."""
    entries = []
    for item in [images] if isinstance(images, str | os.PathLike) else images:
        root = pathlib.Path(item).expanduser()
        if not root.exists():
            raise UserError(f"{root}: no such photo or folder.")
        found = _photos(root) if root.is_dir() else [root]
        if not found:
            raise UserError(f"{root}: has no photos ({', '.join(SUFFIXES)}).")
        for file in found:
            relative = str(file.relative_to(root)) if root.is_dir() else file.name
            entry = {"id": relative, "image": str(file), "relative": relative}
            if (text := file.with_suffix(".txt")).name in _names(str(file.parent)):
                entry["captions_file"] = str(text)
            entries.append(entry)
    if len({entry["id"] for entry in entries}) < len(entries):  # files of one name in several folders
        entries = [dict(entry, id=entry["image"]) for entry in entries]
    return entries


def _photos(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        file
        for file in root.rglob("*")
        if file.suffix.lower() in SUFFIXES and not any(p.startswith(".") for p in file.relative_to(root).parts)
    )


@functools.lru_cache(maxsize=4096)
def _names(folder: str) -> frozenset[str]:
    """Files of a folder: one listing is far faster than asking for each of 500,000 photos on a network disk."""
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def _present(entries: list[Example], where: str, max_missing: float) -> list[Example]:
    there, missing = [], []
    for entry in entries:
        folder, name = os.path.split(entry["image"])
        (there if name in _names(folder or ".") else missing).append(entry)
    if missing:
        text = f"{where}: {len(missing)} of {len(entries)} photos are missing, the first is {missing[0]['image']}."
        if len(missing) > max_missing * len(entries):
            raise UserError(f"{text} Check `images`, or allow more with max_missing (now {max_missing}).")
        logger.warning("%s They are left out.", text)
    if not there:
        raise UserError(f"{where}: lists no photos.")
    return there


def _read(path: pathlib.Path, images: Any, annotations: Path | None, task: str | None) -> list[Example]:
    content = _json(path)
    root = _root(path, images)
    try:
        if isinstance(content, dict) and "questions" in content:
            kind, entries = "question", _vqa(content, None if annotations is None else _json(annotations), root)
        elif isinstance(content, dict) and "images" in content:
            kind, entries = "caption", _coco(content, root)
        elif isinstance(content, list) and content:
            kind = "question" if "question" in content[0] else "caption"
            entries = (_prismer_questions if kind == "question" else _prismer_captions)(content, root)
        else:
            raise ValueError("it is no list of a format that datasets/lists.py describes")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"an entry lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: {what}.") from None
    if annotations is not None and not isinstance(content, dict):
        raise UserError(f"{path}: has its answers inside; leave `annotations` out.")
    if task not in (None, "all", kind):
        raise UserError(f"{path}: is a list for the task {kind!r}, not {task!r}.")
    return entries


def _json(path: Path) -> Any:
    path = pathlib.Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if path.suffix != ".jsonl":
        return _loads(text, path, 0)
    return [_loads(line, path, number) for number, line in enumerate(text.splitlines()) if line.strip()]


def _loads(text: str, path: pathlib.Path, lines_before: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno + lines_before} is not JSON: {error.msg}.") from None


def _root(path: pathlib.Path, images: Any) -> str:
    """The template of the folder that paths are relative to."""
    if images is not None:
        if not isinstance(images, str | os.PathLike):
            raise UserError(f"{path}: `images` is one folder where a list names the photos.")
        return os.path.expanduser(os.fspath(images))
    return str(path.parent / "images" if (path.parent / "images").is_dir() else path.parent)


def _entry(root: str, image: Any, dataset: Any = None) -> Example:
    if not isinstance(image, str) or not image:
        raise ValueError(f"the path of a photo is {image!r}")
    dataset = FOLDERS.get(dataset, dataset)
    folder = root.replace("{dataset}", str(dataset))
    # An absolute path replaces the folder; labels then lie by its name.
    relative = os.path.basename(image) if os.path.isabs(image) else image
    return {"image": os.path.join(folder, image), "relative": relative, "dataset": dataset}


def _coco(content: dict[str, Any], root: str) -> list[Example]:
    entries = {}
    for image in content["images"]:
        entries[image["id"]] = {"id": str(image["id"]), **_entry(root, image["file_name"]), "captions": []}
    for annotation in content.get("annotations", ()):
        if annotation["image_id"] not in entries:
            raise ValueError(f"a caption belongs to photo {annotation['image_id']!r}, which is not among its images")
        entries[annotation["image_id"]]["captions"].append(_text(annotation["caption"], "caption"))
    return list(entries.values())


def _prismer_captions(content: Iterable[dict[str, Any]], root: str) -> list[Example]:
    """One entry a photo. The official training list has one a caption: its epoch is five of these."""
    entries: dict[str, Example] = {}
    for row in content:
        entry = _entry(root, row["image"], row.get("dataset"))
        name = next((row[key] for key in ("image_id", "img_id", "id") if key in row), row["image"])
        entry = entries.setdefault(entry["image"], {"id": str(name), **entry, "captions": []})
        texts = row.get("caption", [])
        entry["captions"] += [_text(text, "caption") for text in ([texts] if isinstance(texts, str) else texts)]
    return list(entries.values())


def _prismer_questions(content: Iterable[dict[str, Any]], root: str) -> list[Example]:
    entries = []
    for number, row in enumerate(content):
        entry = {
            "id": str(row.get("question_id", f"{row['image']}#{number}")),
            **_entry(root, row["image"], row.get("dataset")),
            "question": _text(row["question"], "question"),
            "question_type": str(row.get("question_type", "")),
        }
        if "question_id" in row:
            entry["question_id"] = int(row["question_id"])
        answers, weight = row.get("answer", []), row.get("weight", WEIGHTS.get(row.get("dataset"), 1.0))
        answers = [_text(text, "answer") for text in ([answers] if isinstance(answers, str) else answers)]
        entry["answers"] = answers * ANSWERS if len(answers) == 1 else answers
        if isinstance(weight, list) and len(answers) > 1:
            if len(weight) != len(answers):
                raise ValueError(f"question {entry['id']} has {len(answers)} answers but {len(weight)} weights")
            entry["answer_weights"] = [float(w) for w in weight]
        else:
            entry["weight"] = float(weight[0] if isinstance(weight, list) else weight)
        entries.append(entry)
    return entries


_OF_PHOTO = ("id", "image", "relative", "dataset", "captions_file")


def _by_photo(entries: Sequence[Example], source: str) -> list[Example]:
    """Entries of the task 'all'."""
    photos: dict[str, Example] = {}
    for entry in entries:
        photo = photos.get(entry["image"])
        if photo is None:
            photo = {key: entry[key] for key in _OF_PHOTO if key in entry}
            if "question" in entry:  # its id is the question's
                photo["id"] = entry["relative"]
            photo |= {"source": str(entry.get("dataset") or source), "captions": [], "questions": []}
            photos[entry["image"]] = photo
        photo["captions"] += entry.get("captions", [])
        if "question" in entry:
            photo["questions"].append({key: value for key, value in entry.items() if key not in _OF_PHOTO})
    return list(photos.values())


def _vqa(content: dict[str, Any], annotations: dict[str, Any] | None, root: str) -> list[Example]:
    names = {image["id"]: image["file_name"] for image in content.get("images", ())}
    if not names and not (subset := content.get("data_subtype")):
        raise ValueError("it neither names its images nor, by data_subtype, the part of COCO that they are of")
    answers = {row["question_id"]: row for row in (annotations or {}).get("annotations", ())}
    if annotations is not None and not answers:
        raise ValueError("the file of its annotations has none")
    entries = []
    for row in content["questions"]:
        found = answers.get(row["question_id"], {})
        texts = [_text(answer["answer"], "answer") for answer in found.get("answers", ())]
        # The official files name no photos: COCO's names follow from its ids.
        image = names[row["image_id"]] if names else f"{subset}/COCO_{subset}_{row['image_id']:012d}.jpg"
        entries.append(
            {
                "id": str(row["question_id"]),
                **_entry(root, image),
                "question": _text(row["question"], "question"),
                "question_id": int(row["question_id"]),
                "question_type": str(found.get("question_type", "")),
                "answers": texts * ANSWERS if len(texts) == 1 else texts,
            }
        )
    return entries


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {what} is {value!r} instead of a text")
    return value
