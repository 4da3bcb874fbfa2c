"""Exact labels of a rendered scene, in the ranges and file formats of the expert models' labels.

depth          uint8 grey: inverse planar depth, min-max of the picture, near = bright; the sky is 0
normal         uint8 RGB: rint((n + 1) * 127.5) in camera axes: red x to the right, green y up, blue z to the viewer;
               mirroring the picture turns red into 255 - red. The sky, which has none, is n = 0
edge           uint8 grey, dark on white: outlines, creases and depth steps, two pixels wide with soft borders
seg_coco       uint8, index into world.CLASSES
obj_detection  uint8, instance numbers from 0, 255 background; `classes` holds the class of each
ocr_detection  uint8, word numbers from 0, 255 background; `words` and `features` hold what they say
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from prismer_jax.datasets.scenes.render import BOARD_FACE, GROUND, SKY, Hits, first_hits, pixel_centres, word_box
from prismer_jax.datasets.scenes.world import CLASSES, Scene, Sign
from prismer_jax.labels import BACKGROUND, EXPERTS, FEATURES


@dataclass
class Labels:
    maps: dict[str, np.ndarray]  # expert -> uint8 [size, size, channels]
    classes: np.ndarray  # int32 [instances]
    words: list[str]
    features: np.ndarray  # float16 [words, FEATURES]


def label(scene: Scene, hits: Hits, size: int) -> Labels:
    """Returns all labels of the scene; `hits` are those of render.render at this size."""
    instances = np.array([p.instance for p in scene.parts] + [BACKGROUND] * 2, np.uint8)  # SKY, GROUND: from the end
    names = [CLASSES.index("sign" if isinstance(thing, Sign) else thing.shape) for thing in scene.instances]
    classes = np.array(names, np.int32)
    of_part = [names[p.instance] for p in scene.parts] + [CLASSES.index("sky"), CLASSES.index("ground")]
    words = np.full(hits.part.shape, BACKGROUND, np.uint8)
    for i, sign in enumerate(scene.signs):
        words[on_word(scene, hits, sign)] = i
    maps = {
        "depth": _depth(hits),
        "normal": _normal(scene, hits),
        "edge": _edge(scene, hits, size),
        "seg_coco": np.array(of_part, np.uint8)[hits.part],
        "obj_detection": instances[hits.part],
        "ocr_detection": words,
    }
    said = [sign.word for sign in scene.signs]
    features = np.array([word_features(word) for word in said], np.float16).reshape(-1, FEATURES)
    shaped = {name: values.reshape(size, size, EXPERTS[name].channels) for name, values in maps.items()}
    return Labels(shaped, classes, said, features)


def word_features(word: str) -> np.ndarray:
    """Returns a fixed vector, float32 [64] of mean 0 and variance 1, a function of the characters and their places.

    Every (place, character) has a standard normal vector, seeded by the CRC-32 of its name; they are summed and
    standardised. Words that share letters in the same places are thus near each other, and each letter can be told.
    """
    # RandomState: its stream is frozen for all versions of NumPy.
    vectors = [
        np.random.RandomState(zlib.crc32(f"{place}:{character}".encode())).standard_normal(FEATURES)
        for place, character in enumerate(word.lower() or " ")
    ]
    total = np.sum(vectors, axis=0)
    return ((total - total.mean()) / total.std()).astype(np.float32)


def on_word(scene: Scene, hits: Hits, sign: Sign) -> np.ndarray:
    """Returns which of the rays meet the word of this sign, bool [n]."""
    number = scene.instances.index(sign)
    board = next(i for i, p in enumerate(scene.parts) if p.instance == number)  # the first of its parts
    (left, top), (right, bottom) = word_box(sign.board[0] / sign.board[1])
    u, v = hits.uv[0] / 4, 1 - hits.uv[1] / 4
    inside = (u >= left) & (u <= right) & (v >= top) & (v <= bottom)
    return (hits.part == board) & (hits.face == BOARD_FACE) & inside


def _depth(hits: Hits) -> np.ndarray:
    inverse = 1 / hits.depth
    low, high = inverse.min(), inverse.max()
    return ((inverse - low) / (high - low) * np.float32(255)).astype(np.uint8)


def _normal(scene: Scene, hits: Hits) -> np.ndarray:
    camera = np.asarray(scene.camera.rotation, np.float32) @ hits.normal
    return np.rint((camera.T + 1) * np.float32(127.5)).astype(np.uint8)


def _edge(scene: Scene, hits: Hits, size: int) -> np.ndarray:
    # The horizon is hazy: sky and ground count as one surface.
    part = np.where(hits.part == SKY, GROUND, hits.part).astype(np.int32)
    surface = (part * 8 + hits.face).reshape(size, size)
    depth = np.where(part == GROUND, 0, hits.depth).reshape(size, size)  # finite; steps matter within a solid only
    marked = np.zeros((size, size), np.uint8)
    for first, second in (((slice(1, None),), (slice(-1),)), ((slice(None), slice(1, None)), (slice(None), slice(-1)))):
        differ = (surface[first] != surface[second]) | (np.abs(depth[first] - depth[second]) > 0.35)
        marked[first] |= differ
        marked[second] |= differ
    return 255 - cv2.GaussianBlur(marked * np.uint8(255), (3, 3), 0.5)


@dataclass
class View:
    """What a describer may say about a scene: where its instances appear and how much of them can be seen."""

    x: np.ndarray  # [n] image coordinate of the centre, 0 left to 1 right
    depth: np.ndarray  # [n] planar, of the centre on the ground
    visible: np.ndarray  # [n] share of the instance that nothing hides
    area: np.ndarray  # [n] share of the picture that it covers visibly
    hidden_by: np.ndarray  # [n, n] share of instance i that j hides as the first thing in front
    legible: np.ndarray  # [signs] bool: the whole word can be seen

    def clear(self, solids: int) -> bool:
        """Returns whether every one of so many solids and every sign can be recognised."""
        return bool((self.visible > 0.4).all() and (self.area[:solids] > 0.006).all() and self.legible.all())


VIEW_SIZE = 64  # rays a side; independent of the picture's size, so that its texts are too


def view(scene: Scene) -> View:
    """Looks at the scene with a fixed, small number of rays."""
    n, uv = len(scene.instances), pixel_centres(VIEW_SIZE)
    _, hits = first_hits(scene, uv)
    depth = np.full((n, uv.shape[1]), np.inf, np.float32)  # of every instance along every ray
    for part, (index, t) in zip(scene.parts, hits, strict=True):
        depth[part.instance, index] = np.minimum(depth[part.instance, index], t)
    met, winner = depth < np.inf, depth.argmin(0)
    hidden_by = np.zeros((n, n), np.float32)
    for i in range(n):
        hidden_by[i] = np.bincount(winner[met[i]], minlength=n) / max(met[i].sum(), 1)
    visible = hidden_by.diagonal().copy()
    np.fill_diagonal(hidden_by, 0)
    heights = [s.height / 2 for s in scene.solids] + [s.height + s.board[1] for s in scene.signs]
    centres = np.array([(t.position[0], h, t.position[1]) for t, h in zip(scene.instances, heights, strict=True)]).T
    x, _, z = scene.camera.project(centres)
    legible = visible[len(scene.solids) :] > 0.88
    return View(x, z, visible, visible * met.sum(1) / uv.shape[1], hidden_by, legible)
