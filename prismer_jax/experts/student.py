"""The student of the experts (models.student) as an expert: one run of its network makes all the labels of a photo."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from prismer_jax import checkpoint, labels, models
from prismer_jax.errors import UserError
from prismer_jax.experts.expert import Arrays, Expert, Label
from prismer_jax.files.storage import PathLike
from prismer_jax.models.student import StudentNetwork
from prismer_jax.pp.image import resized
from prismer_jax.towers.label_costs import SHORTEST
from prismer_jax.weights import rules

SMALLEST = 4  # cells of an object or a word; what is smaller is taken for a mistake
MANY = 2  # middles in one cell; a single one may be anywhere
IDS = labels.BACKGROUND  # so many objects or words have ids, the largest


class Student(Expert):
    """All label kinds that a network trained by configs/student.py knows, or those that are asked for."""

    name, file, made_with = "student", "", "a student of the experts"
    network = StudentNetwork
    table: ClassVar[rules.Table] = rules.Table(rules=())

    def __init__(self, dtype: Any = jnp.float32, only: Sequence[str] = (), **sizes: Any) -> None:
        """Builds the network that `sizes` say; `open` builds that of a checkpoint in its place.

        Args:
          only: label kinds that are asked for; by default all that the network makes.
        """
        self.dtype, self._only = jnp.dtype(dtype), labels.select(only)
        self.module = models.build("student", dtype=self.dtype.name, **sizes)

    @property
    def kinds(self) -> tuple[str, ...]:
        return self._only or self.module.kinds

    def places(self, folder: pathlib.Path) -> Iterator[pathlib.Path]:
        """Yields the folder `student` of a folder of weights, and the folder itself, where a student lies there."""
        for path in (folder / self.name, folder):
            if _description(path).get("name") == self.name:
                yield checkpoint.find(path)

    def open(self, path: PathLike) -> None:
        """Builds the network of a trained student: a workdir, an export or a checkpoint.

        Raises:
          UserError: there is none, or it was not trained on a kind that is asked for.
        """
        what = _description(path)
        if what.get("name") != self.name:
            raise UserError(f"{path}: is no student of the experts. Train one: configs/student.py.")
        self.module = models.build(**{**what, "dtype": self.dtype.name})
        self.__dict__.pop("shapes", None)  # of the network before
        if strange := [kind for kind in self._only if kind not in self.module.kinds]:
            there = ", ".join(self.module.kinds)
            raise UserError(f"{path}: this student was not trained on {', '.join(strange)}; it makes {there}.")

    def shape(self, height: int, width: int) -> tuple[int, int]:
        return (self.module.image_size,) * 2

    def prepare(self, photo: np.ndarray) -> Arrays:
        return {"image": resized(photo, self.shape(*photo.shape[:2]))}

    def apply(self, variables: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        read = self.module.apply(variables, batch, method="read")
        return {kind: read[kind] for kind in self.kinds}

    def finish(
        self, output: Mapping[str, np.ndarray], size: tuple[int, int], needed: Mapping[str, Label]
    ) -> dict[str, Label]:
        return labels_of(output, size)

    def init(self, rng: jax.Array) -> Any:
        return self.module.init_variables(rng)


def _description(path: PathLike) -> Mapping[str, Any]:
    """Returns what a checkpoint says of its model; nothing where there is no checkpoint."""
    try:
        return checkpoint.description(path).get("model", {})
    except UserError:
        return {}


def labels_of(read: Mapping[str, np.ndarray], size: tuple[int, int]) -> dict[str, Label]:
    """Returns the labels of a photo.

    Args:
      read: what `models.student.StudentNetwork.read` says of it, without the batch axis.
      size: (height, width) of the photo, and of the labels.
    """
    label_of = {}
    for kind, values in read.items():
        match labels.EXPERTS[kind].embed:
            case "classes":
                label_of[kind] = Label(_nearest(values.astype(np.uint8), size))  # -1 is 255, the background
            case "instances":
                ids, places = instances(values[..., 0], values[..., 1:])
                label_of[kind] = Label(_nearest(ids, size), classes=[int(values[place][0]) for place in places])
            case "words":
                ids, words = instances(np.where((values != 0).any(-1), 0, -1))
                means = [values[ids == i].mean(0, dtype=np.float32) for i in range(len(words))]
                vectors = np.array([_unit_variance(mean) for mean in means], np.float32).reshape(-1, labels.FEATURES)
                label_of[kind] = Label(_nearest(ids, size), features=vectors, words=[""] * len(vectors))
            case _ if kind == "normal":
                label_of[kind] = Label(_normal(_smooth(values, size)))
            case _:
                label_of[kind] = Label(np.rint((_smooth(values, size).clip(-1, 1) + 1) * 127.5).astype(np.uint8))
    return label_of


def instances(classes: np.ndarray, middles: np.ndarray | None = None) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Returns the ids uint8 [h, w] of the instances of classes, the largest first, and a cell of each.

    Args:
      classes: integer [h, w], -1 where there is nothing.
      middles: integer [h, w, 2], row and column of the middle of the instance that each cell is of: an instance is the
        cells of a class whose middles lie together. Without them it is connected cells of a class.
    """
    parts = []
    for value in np.unique(classes[classes >= 0]):
        there = classes == value
        numbers = _connected(there) if middles is None else _together(there, middles)
        parts += [there & (numbers == number) for number in np.unique(numbers[there])]
    parts = sorted((part for part in parts if part.sum() >= SMALLEST), key=lambda part: -int(part.sum()))[:IDS]
    ids = np.full(classes.shape, labels.BACKGROUND, np.uint8)
    for number, part in enumerate(parts):
        ids[part] = number
    return ids, [tuple(int(i) for i in np.argwhere(part)[0]) for part in parts]


def _connected(there: np.ndarray) -> np.ndarray:
    return cv2.connectedComponents(there.astype(np.uint8), connectivity=4)[1]


def _together(there: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """Numbers the cells bool [h, w] by the heap of middles that theirs is in, or nearest to.

    A single middle that lies between two heaps does not join them.
    """
    votes = np.zeros(there.shape, np.int32)
    np.add.at(votes, tuple(middles[there].T), 1)
    heaps = cv2.dilate((votes >= min(MANY, votes.max())).astype(np.uint8), np.ones((3, 3), np.uint8))
    _, nearest = cv2.distanceTransformWithLabels(1 - heaps, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP)
    return nearest[middles[..., 0], middles[..., 1]]


def _unit_variance(vector: np.ndarray) -> np.ndarray:
    """Returns a vector with the length that those of words have; a student learns their direction alone."""
    return vector / max(float(np.sqrt(np.square(vector).mean())), 1e-6)


def _nearest(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(ids).resize((size[1], size[0]), Image.Resampling.NEAREST))[..., None]


def _smooth(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes float32 [h, w, c] bilinearly to [height, width, c]."""
    channels = (Image.fromarray(np.ascontiguousarray(values[..., i], np.float32)) for i in range(values.shape[-1]))
    resized = [np.asarray(channel.resize((size[1], size[0]), Image.Resampling.BILINEAR)) for channel in channels]
    return np.stack(resized, -1)


def _normal(normal: np.ndarray) -> np.ndarray:
    """Returns the label uint8 [h, w, 3] of normals; grey where there is none."""
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    unit = np.where(length > SHORTEST, normal / np.maximum(length, SHORTEST), 0)
    return np.rint((unit + 1) * 127.5).astype(np.uint8)
