"""Renders a scene: one ray through the centre of every pixel, more of them only where the picture has an edge.

The rays through the centres also give the exact geometry (depth, normal, part, face) that labels.py draws.
Rays are not normalised: their camera z is -1, so that the ray parameter is the planar depth.
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prismer_jax.datasets.scenes import solids
from prismer_jax.datasets.scenes.world import COLORS, GROUNDS, SKIES, Scene, Sign, Solid

GROUND, SKY = -1, -2  # in Hits.part
BOARD_FACE = 5  # the face of the board that looks along its own z axis
_SUBSAMPLES = np.array([(-0.375, -0.125), (0.125, -0.375), (0.375, 0.125), (-0.125, 0.375)], np.float32)  # in pixels
_CONTRAST = np.float32(0.09)  # of the final picture (0..1): a pixel that differs more from one beside it is an edge


@dataclass
class Hits:
    """What n rays meet first. Arrays are float32 unless said otherwise."""

    directions: np.ndarray  # [3, n], world axes
    depth: np.ndarray  # [n], planar; inf for the sky
    part: np.ndarray  # int8 [n], index into Scene.parts, GROUND or SKY
    normal: np.ndarray  # [3, n], world axes; zero for the sky
    face: np.ndarray  # uint8 [n], number of the face within the part
    uv: np.ndarray  # [2, n], texture coordinates on the part


def pixel_centres(size: int) -> np.ndarray:
    """Returns image coordinates (u right, v down, 0..1) of all pixels in row order, [2, size * size]."""
    grid = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return np.stack([np.tile(grid, size), np.repeat(grid, size)])


def render(scene: Scene, size: int) -> tuple[np.ndarray, Hits]:
    """Returns the picture, uint8 [size, size, 3] RGB, and what the rays through its pixels' centres meet."""
    centres = pixel_centres(size)
    hits = trace(scene, centres)
    color = _shade(scene, hits, size)
    edges = np.flatnonzero(_edges(color.reshape(3, size, size)))
    if edges.size:
        fine = (centres[:, edges, None] + _SUBSAMPLES.T[:, None, :] / np.float32(size)).reshape(2, -1)
        more = _shade(scene, trace(scene, fine), size).reshape(3, edges.size, len(_SUBSAMPLES))
        color[:, edges] = (color[:, edges] + more.sum(2)) / np.float32(len(_SUBSAMPLES) + 1)
    image = np.sqrt(np.clip(color, 0, 1)) * np.float32(255)  # gamma 2
    return np.ascontiguousarray(np.rint(image).astype(np.uint8).reshape(3, size, size).transpose(1, 2, 0)), hits


def directions(scene: Scene, uv: np.ndarray) -> np.ndarray:
    """Returns world directions [3, n] of the rays through image coordinates uv [2, n]; their camera z is -1."""
    camera = scene.camera
    x, y = (uv[0] * 2 - 1) * np.float32(camera.tangent), (1 - uv[1] * 2) * np.float32(camera.tangent)
    return np.asarray(camera.rotation, np.float32).T @ np.stack([x, y, np.full_like(x, -1)])


def first_hits(scene: Scene, uv: np.ndarray) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Directions [3, n] of the rays through uv [2, n], and for every part the rays that meet it, index and depth."""
    rays = directions(scene, uv)
    origin = np.array(scene.camera.position, np.float32)[:, None]
    hits = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for part in scene.parts:
            corners = part.turn.T @ (_CORNERS * solids.bounds(part.kind, part.dims)[:, None]) + part.base
            u, v, _ = scene.camera.project(corners)
            near = (uv[0] >= u.min()) & (uv[0] <= u.max()) & (uv[1] >= v.min()) & (uv[1] <= v.max())
            index = np.flatnonzero(near)
            depth = solids.intersect(part.kind, part.dims, part.turn @ (origin - part.base), part.turn @ rays[:, index])
            met = np.flatnonzero(depth < solids.MISS)
            hits.append((index[met], depth[met]))
    return rays, hits


def trace(scene: Scene, uv: np.ndarray) -> Hits:
    """Returns what the rays through image coordinates uv [2, n] meet first."""
    rays, hits = first_hits(scene, uv)
    n = rays.shape[1]
    below = rays[1] < -1e-4
    depth = np.full(n, np.inf, np.float32)
    depth[below] = np.float32(-scene.camera.position[1]) / rays[1, below]
    part = np.where(below, np.int8(GROUND), np.int8(SKY))
    for i, (index, t) in enumerate(hits):
        nearer = t < depth[index]
        depth[index[nearer]], part[index[nearer]] = t[nearer], i
    normal, face, uvs = np.zeros((3, n), np.float32), np.zeros(n, np.uint8), np.zeros((2, n), np.float32)
    normal[1, part == GROUND] = 1
    origin = np.array(scene.camera.position, np.float32)[:, None]
    for i, p in enumerate(scene.parts):
        index = np.flatnonzero(part == i)
        if index.size:
            points = depth[index] * rays[:, index] + (origin - p.base)
            local, face[index], uvs[:, index] = solids.surface(p.kind, p.dims, p.turn @ points)
            normal[:, index] = p.turn.T @ local
    return Hits(rays, depth, part, normal, face, uvs)


_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (0, 1) for z in (-1, 1)], np.float32).T


def _edges(color: np.ndarray) -> np.ndarray:
    """Pixels of the linear picture [3, h, w] that differ from a neighbour, bool [h, w]."""
    final = np.sqrt(color)
    marked = np.zeros(color.shape[1:], bool)
    for axis in (0, 1):
        differ = (np.abs(np.diff(final, axis=axis + 1)) > _CONTRAST).any(0)
        for side in (slice(1, None), slice(-1)):
            marked[(slice(None),) * axis + (side,)] |= differ
    return marked


def _shade(scene: Scene, hits: Hits, size: int) -> np.ndarray:
    """Linear RGB light [3, n] that comes along the rays."""
    part, normal = hits.part, hits.normal
    sky, ground = np.flatnonzero(part == SKY), np.flatnonzero(part == GROUND)
    things = np.flatnonzero(part >= 0)
    depth = np.minimum(hits.depth, _FAR)  # the sky is shaded as far ground first
    points = np.array(scene.camera.position, np.float32)[:, None] + depth * hits.directions
    base, gloss = _albedo(scene, hits, points, ground, size)
    sun = np.array(scene.light, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        lit, occlusion = _shadows(scene, points, hits, ground)
    facing = np.maximum(sun @ normal, 0) * lit
    light = base * ((np.float32(0.40) + np.float32(0.16) * normal[1]) * occlusion + np.float32(0.72) * facing)
    horizon, zenith = (_linear(c) for c in SKIES[scene.sky])
    unit = _unit(hits.directions[:, things])
    light[:, things] += _highlights(unit, normal[:, things], sun, gloss) * np.minimum(3 * facing[things], 1)
    shiny = np.flatnonzero(gloss == 1)
    if shiny.size:  # it also mirrors the sky and the ground
        unit, index = unit[:, shiny], things[shiny]
        cosine = _dot(unit, normal[:, index])
        up = unit[1] - 2 * cosine * normal[1, index]
        mirrored = np.where(up > 0, horizon + (zenith - horizon) * np.clip(up, 0, 1), _linear(GROUNDS[scene.ground][0]))
        mirrored *= np.float32(0.2) + np.float32(0.9) * base[:, index]  # tinted as by a metal: the colour stays clear
        fresnel = np.float32(0.3) + np.float32(0.4) * (1 - np.abs(cosine)) ** 3
        light[:, index] += (mirrored - light[:, index]) * fresnel
    haze = np.clip((depth - 11) * np.float32(0.022), 0, np.float32(0.85))
    haze[things] = 0
    light += (horizon - light) * haze
    if sky.size:
        up = _unit(hits.directions[:, sky])[1]
        light[:, sky] = horizon + (zenith - horizon) * np.clip(up * np.float32(2.2), 0, 1)
    return light


_FAR = np.float32(100)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt(_dot(vectors, vectors))


def _highlights(unit: np.ndarray, normal: np.ndarray, sun: np.ndarray, gloss: np.ndarray) -> np.ndarray:
    """Blinn-Phong: broad and weak on paint, small and bright on what is shiny. Returns [m]."""
    half = sun[:, None] - unit
    power = np.maximum(_dot(half, normal), 0) / np.sqrt(_dot(half, half))
    for _ in range(4):
        power = power * power
    broad, power = power, power * power
    return np.where(gloss == 1, np.float32(0.9) * power * power, np.float32(0.12) * gloss * broad)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]  # five times as fast as (a * b).sum(0)


def _albedo(scene: Scene, hits: Hits, points: np.ndarray, ground: np.ndarray, size: int):
    """Base colours [3, n] of all points, and how glossy those on things are [m] (0 matte, 0.3 painted, 1 shiny)."""
    base, gloss = np.zeros((3, points.shape[1]), np.float32), np.zeros(points.shape[1], np.float32)
    pixel = hits.depth[ground] * np.float32(2 * scene.camera.tangent / size)
    base[:, ground] = _ground(scene, points[:, ground], pixel)
    for i, p in enumerate(scene.parts):
        on = np.flatnonzero(hits.part == i)
        if not on.size:
            continue
        thing = scene.instances[p.instance]
        if isinstance(thing, Solid):
            base[:, on] = _pattern(thing, hits.uv[:, on])
            gloss[on] = 1.0 if thing.material == "shiny" else 0.3
        elif p.dims[0] == thing.board[0]:
            ink = np.where(hits.face[on] == BOARD_FACE, _ink(scene, thing, hits.uv[:, on], size), np.float32(0.35))
            base[:, on] = _BOARD + (_INK - _BOARD) * ink
        else:
            base[:, on] = _POST
    return base, gloss[hits.part >= 0]


def _pattern(solid: Solid, uv: np.ndarray) -> np.ndarray:
    first = _linear(COLORS[solid.color])
    if solid.material not in ("striped", "checkered"):
        return np.broadcast_to(first, (3, uv.shape[1]))
    # White beside dark colours, a dark shade beside light ones.
    dark = float(first.mean()) < 0.3
    second = np.float32(0.25) * first + np.float32(0.62) if dark else first * np.float32(0.16)
    cells = np.floor(uv[1])
    if solid.material == "checkered":
        cells = cells + np.floor(uv[0])
    return np.where(cells % 2 == 0, first, second)


def _ground(scene: Scene, points: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """Base colours [3, m] of points on the ground where a pixel is so wide, in world units [m]."""
    first, second, kind, _ = GROUNDS[scene.ground]
    first, second = _linear(first), _linear(second)
    c, s = np.float32(np.cos(scene.ground_yaw)), np.float32(np.sin(scene.ground_yaw))
    x, z = c * points[0] - s * points[2], s * points[0] + c * points[2]
    noise = _NOISE[np.floor(x * 9).astype(np.int32) & 63, np.floor(z * 9).astype(np.int32) & 63]
    match kind:
        case "tiles":
            # Signed distance to the nearest joint, in pixels: soft there, it needs no finer rays.
            across, along = (np.abs((c * np.float32(0.4)) % 1 - np.float32(0.5)) - np.float32(0.25) for c in (x, z))
            sharp = np.float32(1.6) / pixel
            checker = np.clip(across * sharp, -1, 1) * np.clip(along * sharp, -1, 1)
            mix = np.float32(0.45) + np.float32(0.45) * checker + noise * np.float32(0.1)
        case "planks":
            row = np.floor(x * np.float32(1.6))
            grain = _NOISE[row.astype(np.int32) & 63, np.floor(z * np.float32(0.45) + row * 0.37).astype(np.int32) & 63]
            mix = grain * np.float32(0.8) + noise * np.float32(0.2)
        case _:
            mix = noise
    # A pattern finer than the pixels of the distance would only flicker: it fades to its mean.
    far = np.clip((-points[2] - 4) * np.float32(0.08), 0, 1)
    mix = mix + (np.float32(0.5) - mix) * far
    return first + (second - first) * mix


_NOISE = np.random.RandomState(7).random_sample((64, 64)).astype(np.float32)


def _shadows(scene: Scene, points: np.ndarray, hits: Hits, ground: np.ndarray):
    """How much of the sun (0.15 or 1) and of the sky (ambient occlusion) reaches the points, both [n]."""
    lit, occlusion = np.ones(points.shape[1], np.float32), np.ones(points.shape[1], np.float32)
    sun = np.array(scene.light, np.float32)
    # No shadow is thrown farther than this; what looks away from the sun is dark anyway.
    near = np.abs(points[0]) + np.abs(points[2]) < 8
    close = np.flatnonzero(near & (hits.part != SKY) & (sun @ hits.normal > 0))
    instance = np.array([p.instance for p in scene.parts] + [SKY, GROUND])[hits.part[close]]  # negative: from the end
    ground = ground[near[ground]]
    points, on_ground = points[:, close], points[::2, ground]
    bases = np.array([p.position for p in scene.parts], np.float32)
    halves = np.array([solids.bounds(p.kind, p.dims) for p in scene.parts])
    centres = bases + halves * np.array((0, 0.5, 0), np.float32)
    reach = np.sqrt(halves[:, 0] ** 2 + halves[:, 2] ** 2 + halves[:, 1] ** 2 / 4)
    along = (centres @ sun)[:, None] - sun @ points
    beside = ((centres**2).sum(1) - reach * reach)[:, None] - 2 * (centres @ points) + _dot(points, points)
    possible = (beside < along * along) & (along > -reach[:, None])
    for i, p in enumerate(scene.parts):
        index = np.flatnonzero(possible[i] & (instance != p.instance))
        if index.size:
            local = p.turn @ (points[:, index] - p.base)
            t = solids.intersect(p.kind, p.dims, local, p.turn @ sun[:, None])
            lit[close[index[t < solids.MISS]]] = np.float32(0.15)
        if p.position[1] == 0:  # things on the ground darken it where they touch it
            gap = (on_ground[0] - bases[i, 0]) ** 2 + (on_ground[1] - bases[i, 2]) ** 2
            gap /= np.float32(max(halves[i, 0], halves[i, 2]) ** 2)
            touched = np.flatnonzero(gap < 3)
            occlusion[ground[touched]] *= 1 - np.float32(0.45) * np.exp(np.minimum(1.2 - 2 * gap[touched], 0))
    return lit, occlusion


def _linear(color: tuple[float, float, float]) -> np.ndarray:
    return np.array(color, np.float32)[:, None] ** 2


_BOARD, _INK, _POST = _linear((0.96, 0.95, 0.90)), _linear((0.08, 0.09, 0.13)), _linear((0.40, 0.33, 0.28))


def _ink(scene: Scene, sign: Sign, uv: np.ndarray, size: int) -> np.ndarray:
    """How dark the board's front is at texture coordinates uv [2, m] (0..4 across the face), from 0 to 1."""
    (x, z), camera = sign.position, scene.camera
    _, v, _ = camera.project(np.array([[x, x], [sign.height, sign.height + 2 * sign.board[1]], [z, z]]))
    rows = int(np.clip(2 * size * (v[0] - v[1]), 12, 160))
    text = _board(sign.word, rows, sign.board[0] / sign.board[1])
    h, w = text.shape
    column = np.clip((uv[0] * np.float32(w / 4)).astype(np.int32), 0, w - 1)
    row = np.clip(((4 - uv[1]) * np.float32(h / 4)).astype(np.int32), 0, h - 1)
    return text[row, column]


@functools.lru_cache(64)
def _board(word: str, rows: int, aspect: float) -> np.ndarray:
    """The painted front of a sign, float32 [rows, columns] in 0..1: a frame and the word in capitals."""
    full, width = 160, round(160 * aspect)
    canvas = Image.new("L", (width, full), 0)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, width - 1, full - 1), outline=255, width=9)
    (left, top), (right, bottom) = word_box(aspect)
    box = draw.textbbox((0, 0), word.upper(), font=_font(), anchor="lt")
    glyphs = Image.new("L", (box[2], box[3]), 0)
    ImageDraw.Draw(glyphs).text((0, 0), word.upper(), font=_font(), fill=255, anchor="lt")
    target = (round((right - left) * width), round((bottom - top) * full))
    canvas.paste(255, (round(left * width), round(top * full)), glyphs.resize(target, Image.Resampling.BILINEAR))
    image = cv2.resize(np.asarray(canvas), (max(1, round(rows * aspect)), rows), interpolation=cv2.INTER_AREA)
    return image.astype(np.float32) / 255


def word_box(aspect: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns where the word lies on a board of this width over height: two corners in 0..1, rightwards and down."""
    return (0.14 / aspect, 0.17), (1 - 0.14 / aspect, 0.83)


@functools.lru_cache(1)
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold, which comes with matplotlib, so that every machine draws the same letters."""
    package = pathlib.Path(importlib.util.find_spec("matplotlib").origin).parent
    return ImageFont.truetype(str(package / "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf"), 120)
