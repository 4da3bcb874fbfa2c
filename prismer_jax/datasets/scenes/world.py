"""What a scene of the embedded data set holds: solids and signs on a ground, a light and a camera, drawn from a seed.

World axes: x to the right, y up, z towards the viewer; the ground is y = 0; one unit is about one large solid.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import numpy as np

SHAPES = ("sphere", "box", "cylinder", "cone", "torus", "pyramid")
CLASSES = ("sky", "ground", *SHAPES, "sign")  # of the segmentation map and of the detected instances
COLORS = {  # sRGB in 0..1, far apart in hue or lightness
    "red": (0.86, 0.10, 0.10),
    "orange": (1.00, 0.50, 0.04),
    "yellow": (0.98, 0.86, 0.10),
    "green": (0.10, 0.66, 0.22),
    "blue": (0.12, 0.30, 0.90),
    "purple": (0.48, 0.14, 0.66),
    "pink": (1.00, 0.56, 0.76),
    "gray": (0.50, 0.50, 0.52),
}
MATERIALS = ("plain", "shiny", "striped", "checkered")
SIZES = ("small", "large")
GROUNDS = {  # two colours of the pattern, its kind, and how a caption calls it
    "grass": ((0.36, 0.50, 0.22), (0.30, 0.43, 0.18), "noise", "on the grass"),
    "wood": ((0.58, 0.40, 0.24), (0.50, 0.33, 0.19), "planks", "on a wooden floor"),
    "tiles": ((0.84, 0.82, 0.78), (0.66, 0.68, 0.70), "tiles", "on a tiled floor"),
    "sand": ((0.86, 0.76, 0.56), (0.80, 0.69, 0.49), "noise", "on the sand"),
}
SKIES = {  # horizon and zenith
    "day": ((0.86, 0.92, 0.97), (0.38, 0.62, 0.92)),
    "dusk": ((0.98, 0.84, 0.70), (0.52, 0.52, 0.78)),
    "cloud": ((0.88, 0.89, 0.90), (0.64, 0.69, 0.75)),
}
_WORDS = """
    stop exit open shop cafe taxi park zoo farm bank milk tea cake fish book toys gym pool post free
    push hot cold home
"""
WORDS = tuple(_WORDS.split())  # that a sign may say, in capitals


@dataclass(frozen=True)
class Part:
    """A primitive that a ray can hit: `dims` in world units (see solids.py), base centre at `position`."""

    kind: str
    dims: tuple[float, ...]
    position: tuple[float, float, float]
    yaw: float
    instance: int  # index into Scene.instances

    @functools.cached_property
    def turn(self) -> np.ndarray:
        """World to local axes, float32 [3, 3]."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return np.array([(c, 0, -s), (0, 1, 0), (s, 0, c)], np.float32)

    @functools.cached_property
    def base(self) -> np.ndarray:
        """The origin of the local axes, float32 [3, 1]."""
        return np.array(self.position, np.float32)[:, None]


@dataclass(frozen=True)
class Solid:
    shape: str
    color: str
    material: str
    size: str
    dims: tuple[float, ...]
    position: tuple[float, float]  # x, z of its centre on the ground
    yaw: float

    @property
    def radius(self) -> float:
        """The radius of the disc that the solid covers on the ground."""
        match self.shape:
            case "box":
                return math.hypot(self.dims[0], self.dims[2])
            case "pyramid":
                return self.dims[0] * math.sqrt(2)
            case "torus":
                return self.dims[0] + self.dims[1]
            case _:
                return self.dims[0]

    @property
    def reach(self) -> float:
        """How near to its centre another thing may begin."""
        return self.radius

    @property
    def height(self) -> float:
        match self.shape:
            case "sphere":
                return 2 * self.dims[0]
            case "box" | "torus":
                return 2 * self.dims[1]
            case _:
                return self.dims[1]


@dataclass(frozen=True)
class Sign:
    word: str
    position: tuple[float, float]
    yaw: float
    board: tuple[float, float]  # half width, half height
    height: float  # of the board's lower edge above the ground

    @property
    def radius(self) -> float:
        return self.board[0]

    @property
    def reach(self) -> float:
        return 0.6 * self.board[0]  # the board hangs above the ground


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; `rotation` has the rows right, up, back: camera axes are x right, y up, z to the viewer."""

    position: tuple[float, float, float]
    rotation: tuple[tuple[float, ...], ...]
    tangent: float  # of half the field of view

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Projects world points [3, n]: returns image coordinates u (right), v (down) in 0..1 and planar depth."""
        x, y, z = np.asarray(self.rotation) @ (points - np.asarray(self.position)[:, None])
        scale = 0.5 / (self.tangent * -z)
        return 0.5 + x * scale, 0.5 - y * scale, -z


@dataclass(frozen=True)
class Scene:
    solids: tuple[Solid, ...]
    signs: tuple[Sign, ...]
    ground: str
    ground_yaw: float
    sky: str
    light: tuple[float, float, float]  # unit vector towards the sun
    camera: Camera

    @property
    def instances(self) -> tuple[Solid | Sign, ...]:
        return self.solids + self.signs

    @functools.cached_property
    def parts(self) -> list[Part]:
        """The primitives that it is made of; a sign is its board and its post, in this order."""
        parts = [
            Part(s.shape, s.dims, (s.position[0], 0.0, s.position[1]), s.yaw, i) for i, s in enumerate(self.solids)
        ]
        for i, s in enumerate(self.signs, len(self.solids)):
            (x, z), (w, h) = s.position, s.board
            parts.append(Part("box", (w, h, 0.05), (x, s.height, z), s.yaw, i))
            # The post stands behind the board, so that it does not cross it.
            back = (x - 0.1 * math.sin(s.yaw), 0.0, z - 0.1 * math.cos(s.yaw))
            parts.append(Part("box", (0.06, 0.5 * (s.height + 1.2 * h), 0.045), back, s.yaw, i))
        return parts


_Box = tuple[float, float, float, float]  # left, top, right, bottom in image coordinates
_Placed = tuple[Solid | Sign, _Box]


def amounts(rng: np.random.RandomState) -> tuple[int, int]:
    """Draws how many solids and signs a scene holds: before the rest, so that what fits less easily is not rarer."""
    solids = 2 + int(np.searchsorted((0.5, 0.84, 0.96), rng.random_sample()))
    return solids, int(np.searchsorted((0.35, 0.88), rng.random_sample()))


def sample(rng: np.random.RandomState, solids: int, signs: int) -> Scene | None:
    """Draws a scene of so many things, or None when they did not fit without touching (the caller draws again)."""
    camera = _camera(rng)
    placed: list[_Placed] = []
    for word in rng.permutation(len(WORDS))[:signs]:
        if not _place(rng, _sign(rng, WORDS[word], signs), (-2.2, 2.2, -2.6, 0.4), placed, camera):
            return None
    # Few shapes and colours in a scene make repetitions, without which nothing could be counted beyond one.
    shapes = rng.permutation(len(SHAPES))[: rng.randint(2, 7)]
    colors = rng.permutation(len(COLORS))[: rng.randint(2, 7)]
    shape_p, color_p = _skewed(rng, len(shapes)), _skewed(rng, len(colors))
    for _ in range(solids):
        shape = SHAPES[rng.choice(shapes, p=shape_p)]
        color = list(COLORS)[rng.choice(colors, p=color_p)]
        material = MATERIALS[int(np.searchsorted((0.4, 0.64, 0.82), rng.random_sample()))]
        size = SIZES[int(rng.random_sample() < 0.45)]
        if not _place(rng, _solid(rng, shape, color, material, size), (-3.0, 3.0, -2.0, 2.6), placed, camera):
            return None
    things = [thing for thing, _ in placed]
    azimuth, elevation = rng.uniform(0.35, 1.15) * rng.choice((-1, 1)), rng.uniform(0.65, 0.95)
    light = (
        math.sin(azimuth) * math.cos(elevation),
        math.sin(elevation),
        math.cos(azimuth) * math.cos(elevation),
    )
    ground, sky = list(GROUNDS)[rng.randint(len(GROUNDS))], list(SKIES)[rng.randint(len(SKIES))]
    solid, sign = (tuple(thing for thing in things if isinstance(thing, kind)) for kind in (Solid, Sign))
    return Scene(solid, sign, ground, float(rng.uniform(-0.6, 0.6)), sky, light, camera)


def _camera(rng: np.random.RandomState) -> Camera:
    position = np.array([rng.uniform(-1.2, 1.2), rng.uniform(3.4, 4.4), rng.uniform(7.6, 8.4)])
    target = np.array([rng.uniform(-0.15, 0.15), rng.uniform(0.55, 0.75), 0.0])
    back = (position - target) / np.linalg.norm(position - target)
    right = np.cross((0.0, 1.0, 0.0), back)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(back, right), back])
    tangent = math.tan(math.radians(rng.uniform(17.6, 19.0)))
    return Camera(tuple(position.tolist()), tuple(map(tuple, rotation.tolist())), tangent)


def _skewed(rng: np.random.RandomState, n: int) -> np.ndarray:
    weights = rng.random_sample(n) ** 2 + 0.1
    return weights / weights.sum()


def _solid(rng: np.random.RandomState, shape: str, color: str, material: str, size: str) -> Solid:
    r = (1.08 if size == "large" else 0.7) * rng.uniform(0.95, 1.05)
    match shape:
        case "sphere":
            dims: tuple[float, ...] = (r,)
        case "box":
            dims = (0.8 * r, r * rng.uniform(0.7, 0.9), 0.8 * r)
        case "cylinder":
            dims = (0.78 * r, r * rng.uniform(1.6, 2.0))
        case "cone":
            dims = (0.95 * r, r * rng.uniform(2.0, 2.3))
        case "torus":
            dims = (0.82 * r, r * 0.34)
        case _:
            dims = (0.85 * r, r * rng.uniform(1.6, 1.9))
    # Corners and edges, not faces, towards the viewer tell boxes and pyramids from cylinders and cones.
    yaw = rng.uniform(0.25, 1.2)
    return Solid(shape, color, material, size, tuple(map(float, dims)), (0.0, 0.0), float(yaw))


def _sign(rng: np.random.RandomState, word: str, count: int) -> Sign:
    half_height = 0.50 if count == 1 else 0.44
    half_width = half_height * (0.50 + 0.58 * len(word))
    yaw, height = float(rng.uniform(-0.3, 0.3)), float(rng.uniform(0.75, 1.25))
    return Sign(word, (0.0, 0.0), yaw, (half_width, half_height), height)


def _place(
    rng: np.random.RandomState,
    thing: Solid | Sign,
    area: tuple[float, float, float, float],
    placed: list[_Placed],
    camera: Camera,
) -> bool:
    """Puts the thing where it stands free, inside the picture, and neither hides nor is hidden; False if it fails."""
    left, right, back, front = area
    for x, z in zip(rng.uniform(left, right, _ATTEMPTS), rng.uniform(back, front, _ATTEMPTS), strict=True):
        if any(math.hypot(x - p.position[0], z - p.position[1]) < thing.radius + p.reach + 0.1 for p, _ in placed):
            continue
        moved = dataclasses.replace(thing, position=(float(x), float(z)))
        box = _screen_box(moved, camera)
        if min(box[0], box[1], 1 - box[2], 1 - box[3]) < 0.015:
            continue
        pairs = (((moved, box), other) for other in placed)
        if all(_visible(*sorted(pair, key=lambda one: one[0].position[1])) for pair in pairs):
            placed.append((moved, box))
            return True
    return False


_ATTEMPTS = 30


def _visible(back: _Placed, front: _Placed) -> bool:
    """Whether enough of what is behind can be seen: about half of a solid, nearly all of a word."""
    (thing, box), (_, cover) = back, front
    w, h = min(box[2], cover[2]) - max(box[0], cover[0]), min(box[3], cover[3]) - max(box[1], cover[1])
    limit = 0.1 if isinstance(thing, Sign) else 0.5
    return max(w, 0.0) * max(h, 0.0) <= limit * (box[2] - box[0]) * (box[3] - box[1])


def _screen_box(thing: Solid | Sign, camera: Camera) -> _Box:
    x, z = thing.position
    if isinstance(thing, Sign):
        w, low, high, depth = thing.board[0], thing.height, thing.height + 2 * thing.board[1], 0.0
    else:
        w, low, high, depth = thing.radius, 0.0, thing.height, thing.radius
    # By hand: NumPy takes three times as long for eight points.
    px, py, pz = camera.position
    (rx, ry, rz), (ux, uy, uz), (bx, by, bz) = camera.rotation
    us, vs = [], []
    for cx in (x - w - px, x + w - px):
        for cy in (low - py, high - py):
            for cz in (z - depth - pz, z + depth - pz):
                scale = -0.5 / (camera.tangent * (bx * cx + by * cy + bz * cz))
                us.append(0.5 + (rx * cx + ry * cy + rz * cz) * scale)
                vs.append(0.5 - (ux * cx + uy * cy + uz * cz) * scale)
    return min(us), min(vs), max(us), max(vs)
