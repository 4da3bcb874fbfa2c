"""Lists of entries that name their photo: the official Prismer lists, one's own, tables, and benchmarks in this form.

- [{"image", "caption"}], caption a text or a list of texts, or none in a test list; [{"image", "class_name"}], where
  the caption is the class; {"file_name", "text"}, as Hugging Face's imagefolder has it
- [{"image", "question", "answer", "weight", "dataset", "question_id"}], answer and weight single or lists, both absent
  in a test list. `answers` as VizWiz has them ([{"answer"}]), TextVQA ({"data": [...]}, photo <image_id>.jpg) and
  A-OKVQA (`direct_answers`, or `choices` and which of them; photo <split>2017/<image_id>.jpg); `questions` inside
- conversations (conversations.py)
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prismer_jax.datasets.formats import conversations
from prismer_jax.datasets.formats import row as rows
from prismer_jax.datasets.formats.genome import WEIGHTS
from prismer_jax.datasets.formats.reading import PHOTO_KEYS
from prismer_jax.datasets.formats.row import ANSWER_KEYS, CAPTION_KEYS, Entry, LeftOut, Row
from prismer_jax.datasets.formats.suffixes import PHOTOS
from prismer_jax.errors import BadSample
from prismer_jax.files.dropped import Dropped

ID_KEYS = ("image_id", "img_id", "id")  # of a photo
QUESTION_ID_KEYS = ("question_id", "questionId", "qa_id")
LIST_KEYS = ("questions", "qas", "qa_pairs")  # of several questions about one photo
_ABOUT_A_QUESTION = ("question", "question_type", "answer_type", "choices", "correct_choice_idx", "weight")
_OF_A_QUESTION = frozenset((*QUESTION_ID_KEYS, *ANSWER_KEYS, *_ABOUT_A_QUESTION))
READ = _OF_A_QUESTION | {*PHOTO_KEYS, *ID_KEYS, *LIST_KEYS, *CAPTION_KEYS, *conversations.KEYS, "dataset", "split"}
_TALK = frozenset(conversations.KEYS)
_LISTS = _TALK | frozenset(LIST_KEYS)
_ASKING = _TALK | {*LIST_KEYS, "question", "question_id"}
_BESIDE = _TALK | {*LIST_KEYS, "captions", "caption"}  # what a question is not alone with
_TEXTS = frozenset(rows.TEXTS)
_NAME_KEYS = frozenset({"file_name", "filename", "image_name"})  # of a photo's name, whose folder may be under another
_FOLDER_KEYS = frozenset({"filepath", "file_path", "path"})  # as in Karpathy's files
# What else entries have that is no text for a model: where a photo comes from.
ORIGIN = frozenset({"url", "license", "date_captured", "coco_url", "flickr_url", "source", "author", "class_name"})
_ANSWERING = ("answer", "response", "reply", "label", "target", "output", "solution")  # in keys of unread answers


def entries(content: Iterable[Any], left_out: LeftOut) -> Iterator[Row]:
    """Yields the rows of a list of entries."""

    def read(entry: Entry) -> Iterable[Row]:
        rows = rows_of(entry)
        first = rows[0]
        says = first.captions or (first.question and first.question["answers"])
        if not says and (unread := entry.keys() - READ - ORIGIN):
            count_unread(entry, unread, f"photo {rows[0].image}", left_out.texts, bool(rows[0].question))
        return rows

    yield from rows.each(content, read, left_out.entries)


def count_unread(entry: Entry, keys: Iterable[str], where: str, dropped: Dropped, asked: bool = False) -> None:
    """Counts the texts that an entry has under keys that nobody reads.

    Args:
      entry: the entry.
      keys: those of its keys.
      where: the photo that it is of.
      dropped: the report.
      asked: whether the entry is a question, whose answer may be a single word.
    """
    for key in sorted(map(str, keys)):
        value = entry.get(key)
        value = value[0] if isinstance(value, list) and value else value
        answer = asked and any(word in key.lower() for word in _ANSWERING)
        if isinstance(value, str) and (answer or " " in value.strip()):
            dropped.add(unread_reason(key), where)


def unread_reason(key: str) -> str:
    """Returns why texts under a key that nobody reads are left out."""
    return f"text under `{key}`, which is not read (`caption` and `answers` are)"


def rows_of(entry: Entry) -> list[Row]:
    """Returns what an entry says of its photo: a row of its captions, or one a question.

    Raises:
      BadSample: it names no photo, or what it says is no text.
    """
    image, dataset = _photo(entry), _dataset(entry)
    texts = {} if _TEXTS.isdisjoint(entry) else rows.texts(entry)
    id = None
    if "COCO_" not in image:  # whose number is in its name
        for key in ID_KEYS:
            if not rows.is_empty(number := entry.get(key)):
                id = rows.id_text(number)
                break
    if not _LISTS.isdisjoint(entry) and any(key in entry and rows.is_nothing(entry[key]) for key in _LISTS):
        # A table has a cell for each of them also where there is nothing in it.
        entry = {key: value for key, value in entry.items() if key not in _LISTS or not rows.is_nothing(value)}
    if _ASKING.isdisjoint(entry):
        captions = rows.captions_of(entry)
        if captions is None and "class_name" in texts:
            captions = [texts["class_name"].lower()]  # as the reference trains on classes
        return [Row(image, dataset, id, captions or [], None, texts)]
    if _BESIDE.isdisjoint(entry) and "question" in entry:
        return [Row(image, dataset, id, [], _question(entry), texts)]
    captions, questions = _all_said(entry)
    out = [Row(image, dataset, id, [], question, texts) for question in questions or [None]]
    out[0].captions = captions
    return out


def _all_said(entry: Entry) -> tuple[list[Any], list[dict[str, Any]]]:
    """Returns the captions and the questions of an entry that may have both, and a conversation."""
    asked, talk = _asked(entry), conversations.exchanges(entry)
    # Where a question is asked, `text` or a comment may be anything.
    captions = rows.captions_of(entry, ("captions", "caption") if asked or talk else CAPTION_KEYS) or []
    if (captions or talk) and all(rows.is_empty(one.get("question")) for one in asked):
        asked = []  # a table has a cell for the question also where there is none
    if (asked or talk) and all(map(rows.is_empty, captions)):
        captions = []
    captions = captions + [reply for prompt, reply in talk if not prompt and reply not in captions]
    turns = [exchange for exchange in talk if exchange[0]]
    questions = [_question(one) for one in asked]
    if questions and turns:
        questions, turns = _once(questions, turns)
    for prompt, reply in turns:
        answers = rows.repeated([reply])
        questions.append({"question": prompt, "question_type": "", "answers": answers, "weight": 1.0})
    return captions, questions


def _once(questions: list[dict[str, Any]], turns: list[tuple[str, str]]) -> tuple[list[Any], list[Any]]:
    """Leaves out what stands there twice: turns that questions have, and questions without answers that turns have."""
    prompts, texts = {prompt for prompt, _ in turns}, [conversations.prompt(one["question"]) for one in questions]
    pairs = list(zip(texts, questions, strict=True))
    said = {(text, answer) for text, one in pairs for answer in one["answers"]}
    asked = [one for text, one in pairs if one["answers"] or text not in prompts]
    return asked, [turn for turn in turns if turn not in said]


def _asked(entry: Entry) -> list[Entry]:
    """Returns what an entry asks, each as an entry of its own."""
    shared = {key: value for key, value in entry.items() if key not in _OF_A_QUESTION} if "question" in entry else entry
    asked = [{**shared, **inner} for key in LIST_KEYS if key in entry for inner in entry[key]]
    if "question" in entry:
        asked.append(entry)
    elif not asked and "text" in entry and "question_id" in entry:  # as in LLaVA's files of questions
        asked.append({**entry, "question": entry["text"]})
    return asked


def _photo(entry: Entry) -> str:
    """Returns the path of an entry's photo.

    Raises:
      BadSample: it names none, or several.
    """
    if "image" in entry and type(image := entry["image"]) is str and image and None not in entry:
        return image
    if None in entry:
        raise BadSample(
            f"has more cells than the table has columns, {rows.shown(entry[None])}: a text with the delimiter in it "
            "is quoted",
            "row with too many cells",
        )
    key = next((key for key in PHOTO_KEYS if not rows.is_empty(entry.get(key))), None)
    if key is None:
        if (id := entry.get("image_id")) is not None:
            if entry.get("split") in ("train", "val", "test") and "choices" in entry:  # A-OKVQA is of COCO 2017
                return f"{entry['split']}2017/{int(id):012d}.jpg"
            if "set_name" in entry:  # TextVQA
                return f"{id}.jpg"
        raise BadSample(f"lacks 'image', its keys are {', '.join(map(str, entry))}", "entry without photo")
    value = entry[key]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping) and isinstance(value.get("path"), str):
        value = value["path"]
    if isinstance(value, list):
        raise BadSample(f"has {len(value)} photos", "entry of several photos")
    if not isinstance(value, str):
        raise BadSample(f"the path of a photo is {rows.shown(value)}", "entry without photo")
    if key in _NAME_KEYS and not _FOLDER_KEYS.isdisjoint(entry):
        folders = (entry[key] for key in PHOTO_KEYS if key in _FOLDER_KEYS and isinstance(entry.get(key), str))
        return _in_folder(next(filter(None, folders), ""), value)
    return value


def _in_folder(folder: str, name: str) -> str:
    """Returns the path of a photo that is named under one key, and its folder, or its whole path, under another."""
    if "://" in folder or name.startswith(os.path.join(folder, "")):
        return name
    if os.path.basename(folder) == os.path.basename(name):
        return folder
    of_another_file = os.path.splitext(folder)[1].lower() in PHOTOS
    return name if of_another_file else os.path.join(folder, name)


def _dataset(entry: Entry) -> str | None:
    """Returns the data set that an entry says it is of, a number as a text.

    Raises:
      BadSample: it is neither.
    """
    value = entry.get("dataset")
    if value is None or rows.is_empty(value):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return rows.id_text(value)
    raise BadSample(f"its dataset is {rows.shown(value)} instead of a text", "dataset that is not a text")


def _question(entry: Entry) -> dict[str, Any]:
    texts = answers_of(entry)
    dataset, weight = _dataset(entry), entry.get("weight")
    question: dict[str, Any] = {
        "question": rows.question(entry.get("question")),
        "question_type": str(entry.get("question_type") or ""),
        "answers": rows.repeated(texts),
    }
    if isinstance(entry.get("answer_type"), str):
        question["answer_type"] = entry["answer_type"]
    for key in QUESTION_ID_KEYS:
        if key in entry and (id := rows.number_or_text(entry[key])) is not None:
            question["question_id"] = id
            break
    if isinstance(weight, list) and len(texts) > 1:
        if len(weight) != len(texts):
            raise BadSample(
                f"{entry['question']!r} has {len(texts)} answers but {len(weight)} weights", "weights without answers"
            )
        question["answer_weights"] = [weight_of(one) for one in weight]
    else:
        weight = weight[0] if isinstance(weight, list) and weight else weight
        question["weight"] = WEIGHTS.get(dataset, 1.0) if rows.is_empty(weight) else weight_of(weight)
    return question


def answers_of(entry: Entry) -> list[str]:
    """Returns the answers of a question; where there are choices, a number is the number of one."""
    choices = entry.get("choices")
    for key in ANSWER_KEYS if not isinstance(entry.get("weight"), list) else ("answer", *ANSWER_KEYS):
        if key in entry and (texts := rows.answers(rows.answer_among(choices, entry[key]))):
            return texts
    if choices and (number := rows.whole(entry.get("correct_choice_idx"))) is not None:
        return rows.answers(rows.chosen(choices, number))
    return []


def weight_of(value: Any) -> float:
    """Returns a weight in the loss; raises BadSample for what is no number from 0 on."""
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise BadSample(f"a weight is {value!r}", "weight that is no number")
    return weight
