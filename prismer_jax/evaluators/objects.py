"""Boxes and masks that a model writes: detection on COCO's lists, and RefCOCO's segmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax import decode, registry
from prismer_jax.errors import UserError
from prismer_jax.evaluators.common import Record
from prismer_jax.evaluators.text import TextEvaluator
from prismer_jax.objects import codec as codecs
from prismer_jax.objects import shapes, spelling
from prismer_jax.scores import objects as scores


class _ObjectsEvaluator(TextEvaluator):
    """Base: what is asked of an example with `objects`, and said.

    Args:
      method: of `decode.METHODS`.
      options: of `text.TextEvaluator`, and settings of `decode.generate` and of the method.
    """

    id_key, text_key = "image_id", "objects"

    def __init__(self, *, method: str = "greedy", **options: Any) -> None:
        super().__init__(**options)
        self.method, function = method, registry.imported("method", method, decode.METHODS)
        self.check_settings(function, decode.generate, max_new=256)

    def check_source(self) -> None:
        """Looks at the ops alone: they may make objects, and an example without any has a right answer, too."""
        self.check_ops("text", "makes no prompt: end it with detect or segment, answer=False, and prefix_lm")

    def say(self, variables: Any, batch: Mapping[str, Any]) -> list[str]:
        return self.generate(variables, batch, self.method, self.texts.answer_said)

    def texts_of(self, example: Mapping[str, Any]) -> Sequence[str]:
        chosen = _asked_of(example)
        return [spelling.JOINED.join(spelling.spell(one["box"], one["name"]) for one in chosen)] if chosen else []

    def about(self, example: Mapping[str, Any], index: int) -> Record:
        return {**super().about(example, index), "question": example["turns"][0]["user"]}


class DetectionEvaluator(_ObjectsEvaluator):
    """COCO's average precision of boxes (`scores.objects.average_precision`); the ops end with `detect(answer=False)`.

    Yields `F1` at an overlap of 0.5, the mean of all photos, `AP`, `AP50`, `AP75`, each with what a blank image gets,
    `..._blank`; and `broken`, the number of objects whose words make no box. All but the last lie between 0 and 1.
    Names count as equal in capitals and small letters. A model that writes gives no confidences: all boxes have one.

    Args:
      scale: what the numbers of boxes are divided by.
      options: of the base.
    """

    main_score = "F1"

    def __init__(self, *, scale: int = spelling.LAST, **options: Any) -> None:
        super().__init__(**options)
        self.scale = scale

    def can_score(self, record: Record) -> bool:
        return True

    def about(self, example: Mapping[str, Any], index: int) -> Record:
        keys = ("box", "crowd")
        there = [
            {"name": one["name"].lower(), **{key: one[key] for key in keys if key in one}} for one in example["objects"]
        ]
        return {**super().about(example, index), "objects": there}

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        broken = {}
        for suffix, key in (("", "prediction"), ("_blank", "blank")):
            if any(record.get(key) is None for record in records):
                continue
            photos, broken[suffix] = [], 0
            for record in records:
                boxes, bad = spelling.parse(record[key], self.scale)
                broken[suffix] += bad
                said = [{"name": one.name.lower(), "box": one.box} for one in boxes]
                photos.append({"objects": record["objects"], "found": said})
                record.setdefault("scores", {})[f"F1{suffix}"] = scores.harmonic(photos[-1])
            yield f"F1{suffix}", float(np.mean([record["scores"][f"F1{suffix}"] for record in records]))
            yield from ((f"{name}{suffix}", value) for name, value in scores.average_precision(photos))
        yield "broken", broken[""]


class RefCOCOEvaluator(_ObjectsEvaluator):
    """The segmentation of an object that is named, as google-research/big_vision scores it; see `scores.objects`.

    Yields `miou`, the mean overlap of the masks, `boxacc/0.5` and `boxacc/0.75`, the share of boxes that overlap so
    much, between 0 and 1; `invalid` and `total`, how many; and of a blank image `miou_blank` ... The ops end with
    `segment(codec, answer=False)`; where several objects have the name, their masks together are one.

    Args:
      codec: the file of the codec of masks.
      options: of the base.
    """

    main_score = "miou"

    def __init__(self, *, codec: str, **options: Any) -> None:
        super().__init__(**options)
        self.codec = codecs.load(codec)

    def about(self, example: Mapping[str, Any], index: int) -> Record:
        chosen = _asked_of(example)
        if not chosen or any(one.get("segmentation") is None for one in chosen):
            raise UserError(f"Example {example.get('id', index)} has no mask of what it asks for: leave it out.")
        masks = [shapes.mask_of(one["segmentation"], one["size"]) for one in chosen]
        boxes = np.array([one["box"] for one in chosen])
        whole = [*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist()]
        runs = shapes.run_lengths(np.logical_or.reduce(masks))
        return {**super().about(example, index), "box": whole, "mask": runs}

    def metrics(self, records: list[Record]) -> Iterator[tuple[str, float]]:
        names = ("miou", *(f"boxacc/{threshold}" for threshold in scores.BOX_THRESHOLDS))
        masks = [shapes.mask_of(record["mask"], record["mask"]["size"]) for record in records]
        boxes = np.array([record["box"] for record in records])
        for suffix, key in (("", "prediction"), ("_blank", "blank")):
            if any(record.get(key) is None for record in records):
                continue
            rows = scores.segmented([record[key] for record in records], boxes, masks, self.codec)
            for name, column in zip(names, rows.T, strict=False):
                name = name.replace("/", f"{suffix}/") if "/" in name else f"{name}{suffix}"
                for record, value in zip(records, column.tolist(), strict=True):
                    record.setdefault("scores", {})[name] = value
                yield name, float(column.mean())
            yield f"invalid{suffix}", float(rows[:, -1].sum())
        yield "total", len(records)


def _asked_of(example: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the objects that an example asks for: all, or those of one name."""
    return [one for one in example["objects"] if example.get("asked", one["name"]) == one["name"]]
