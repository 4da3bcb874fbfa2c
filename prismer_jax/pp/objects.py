"""Ops that turn the objects of a photo into what PaliGemma is asked and says: `detect A ; B`, `segment A`.

`outline` draws the box of what is spoken of on the photo itself.

An example's `objects` is a list of {"name", "box", "segmentation", "size"}: the box y1, x1, y2, x2 as fractions of the
photo's height and width; the segmentation, where there is one, in a form of `objects.shapes.mask_of`, of height and
width `size`. They are where the photo was before any op moved it: those that cut or mirror it do not go with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prismer_jax import labels
from prismer_jax.errors import BadSample, UserError
from prismer_jax.objects import codec as codecs
from prismer_jax.objects import description, shapes, spelling
from prismer_jax.pp.image import one_photo
from prismer_jax.pp.labels import maps
from prismer_jax.pp.location_tokens import PIECES
from prismer_jax.pp.ops import Example, Op, register

RED = (255, 0, 0)


@register
def label_objects(names: Sequence[str], least: int = 1) -> Op:
    """Makes `objects` of an example's map of instances, `labels/obj_detection`, where it has one; after `decode`.

    Args:
      names: of the classes, by their ids.
      least: pixels of an object; smaller ones are left out.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        if (key := labels.EXPERTS["obj_detection"].key) not in example:
            return {**example, "objects": []}
        one_photo({**example, "image": example[key]}, "label_objects")
        ids, classes, objects = example[key][..., 0], example[labels.CLASSES_KEY], []
        for instance in np.unique(ids[ids != labels.BACKGROUND]).tolist():
            mask, kind = ids == instance, int(classes[instance])
            if mask.sum() >= least and 0 <= kind < len(names):
                box = shapes.box_of(mask)
                objects.append({"name": names[kind], "box": box, "segmentation": mask, "size": mask.shape})
        return {**example, "objects": objects}

    op.reads_labels = True
    return op


@register
def detect(names: Sequence[str] = (), answer: bool = True, *, tokenizer: Any) -> Op:
    """Makes `turns` of an example's objects: 'detect A ; B', and their boxes and names in random order.

    Args:
      names: what is asked for, whatever is there; by default the names of the objects that are there, shuffled.
      answer: False leaves the answer out, for what a model is to say itself.

    Raises:
      UserError: the tokenizer has no words of places.

    Raises (the op):
      BadSample: there is no such object.
    """
    _check_words(tokenizer)

    def op(example: Example, rng: np.random.Generator) -> Example:
        asked_names = list(names) or _shuffled(rng, sorted({one["name"] for one in _objects(example)}))
        chosen = _shuffled(rng, [one for one in _objects(example) if one["name"] in set(asked_names)])
        asked = {"user": f"detect {spelling.JOINED.join(asked_names)}"}
        if answer:
            _check(example, chosen)
            asked["assistant"] = spelling.JOINED.join(spelling.spell(one["box"], one["name"]) for one in chosen)
        return {**example, "turns": [asked]}

    return op


@register
def segment(
    codec: str, prompt: str = "segment {name}", named: bool = True, answer: bool = True, *, tokenizer: Any
) -> Op:
    """Makes `turns` of an example's objects of one name, which is drawn: 'segment A', and their boxes and masks.

    Args:
      codec: a file of the codec of masks, such as PaliGemma's vae-oid.npz.
      prompt: what is asked; '{name}' alone is how big_vision asks for RefCOCO's objects.
      named: whether the name follows a mask; big_vision's RefCOCO has none.
      answer: as of `detect`.

    Raises:
      UserError: there is no such codec, or the tokenizer has no words of masks.

    Raises (the op):
      BadSample: there is no object, one has no mask, or a box without pixels.
    """
    _check_words(tokenizer)
    masks = codecs.load(codec)

    def op(example: Example, rng: np.random.Generator) -> Example:
        names = sorted({one["name"] for one in _objects(example)})
        _check(example, names)
        name = names[int(rng.integers(len(names)))]
        asked = {"user": prompt.replace("{name}", name)}
        if answer:
            chosen = _shuffled(rng, [one for one in _objects(example) if one["name"] == name])
            inside = [_inside(example, one) for one in chosen]
            spelt = zip(chosen, masks.encode(np.stack(inside)).tolist(), strict=True)
            said = (spelling.spell(one["box"], name if named else "", codes) for one, codes in spelt)
            asked["assistant"] = spelling.JOINED.join(said)
        return {**example, "turns": [asked], "asked": name}

    return op


def _check_words(tokenizer: Any) -> None:
    for word in (PIECES[0], PIECES[-1]):
        if tokenizer.id_of(word) is None:
            raise UserError(
                f"The tokenizer {tokenizer.spec!r} has no {word}: take that of a PaliGemma from tools.convert, or with "
                "scenes that of pp.location_tokens.of_scenes()."
            )


def _objects(example: Example) -> list[dict[str, Any]]:
    if "objects" not in example:
        raise BadSample(
            f"example {example.get('id', '?')} says nothing of objects: take the data set 'objects', or put "
            "label_objects(names) before this op.",
            "no objects",
        )
    return example["objects"]


def _check(example: Example, chosen: Sequence[Any]) -> None:
    if not chosen:
        raise BadSample(f"example {example.get('id', '?')} has no object that is asked for.", "no objects")


def _inside(example: Example, one: dict[str, Any]) -> np.ndarray:
    if one.get("segmentation") is None:
        raise BadSample(f"example {example.get('id', '?')}: its {one['name']} has a box but no mask.", "no mask")
    try:
        return shapes.crop(shapes.mask_of(one["segmentation"], one["size"]), one["box"])
    except BadSample as error:
        raise BadSample(f"example {example.get('id', '?')}: {one['name']}: {error}", error.reason) from None


def _shuffled(rng: np.random.Generator, items: Sequence[Any]) -> list[Any]:
    return [items[place] for place in rng.permutation(len(items))]


@register
def outline() -> Op:
    """Draws an example's `bbox`, y1, x1, y2, x2 as fractions of height and width, in red, one pixel wide.

    Sources: google-research/big_vision, pp/proj/paligemma/widgetcap.py; pixels are those of TensorFlow's
    draw_bounding_box_op.cc.

    Raises (the op):
      BadSample: there is no such box.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        box, image = example.get("bbox"), one_photo(example, "outline").copy()
        if not isinstance(box, list | tuple | np.ndarray) or len(box) != 4:
            raise BadSample(
                f"example {example.get('id', '?')} has no bbox of y1, x1, y2, x2 to outline: ops that cut or mirror a "
                "photo stand behind outline.",
                "no box",
            )
        last = np.array(image.shape[:2]) - 1
        ends = (np.array(box, np.float64).reshape(2, 2) * last).astype(int)  # cut off, not rounded
        (top, left), (bottom, right) = ends
        if bottom < top or right < left:
            raise BadSample(f"example {example.get('id', '?')}: its bbox {list(box)} has no pixels.", "no box")
        rows, columns = (slice(max(low, 0), max(high + 1, 0)) for low, high in ((top, bottom), (left, right)))
        for row in {top, bottom} & set(range(image.shape[0])):
            image[row, columns] = RED
        for column in {left, right} & set(range(image.shape[1])):
            image[rows, column] = RED
        return {**example, "image": image}

    return op


@register
def describe(names: Any = None, most: int = 8, length: int = 150, *, tokenizer: Any) -> Op:
    """Says what the label maps show in front of what a model is asked, for a model that reads no maps.

    Behind `decode` and the ops that ask (`prompt` or `turns`). `described` is what is said: whole sentences, of at most
    so many tokens, always the same for the same labels; see `objects.description`.

    Args:
      names: {expert: names of its classes} where a data set has its own.
      most: kinds of things, and words, that are named.
      length: tokens of all sentences.

    Raises (the op):
      BadSample: nothing is asked.
    """

    def op(example: Example, rng: np.random.Generator) -> Example:
        said = ""
        for label in maps(example).values():
            one_photo({**example, "image": label}, "describe")
        for sentence in description.sentences(example, names, most):
            longer = f"{said} {sentence}".strip()
            if len(tokenizer.encode(longer)) > length:
                break
            said = longer
        if example.get("turns"):
            first, *rest = example["turns"]
            turns = [{**first, "user": f"{said} {first['user']}".strip()}, *rest]
            return {**example, "described": said, "turns": turns}
        if "prompt" not in example:
            raise BadSample("describe stands behind an op that asks: question_prompt, caption_prompt, ask, turns ...")
        return {**example, "described": said, "prompt": f"{said} {example['prompt'] or ''}".strip()}

    op.reads_labels = True
    return op
