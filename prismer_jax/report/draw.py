"""Pictures: label maps in colour, and a panel a sample: photo, label maps, prediction and references.

A sample is a dict: `image` uint8 [H,W,3], `labels` {expert: uint8 [h,w,1 or 3]}, `prediction`, `references` (texts),
and where they apply `question`, `blank` (said of a blank image), `correct` (accuracy in [0, 1]), `classes`
{expert: class names}, `instances` (class id of each detected instance, -1 for none) and `words` (of the OCR map).
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prismer_jax.labels import BACKGROUND, EXPERTS

TITLES = {
    "depth": "Depth",
    "normal": "Normals",
    "edge": "Edges",
    "seg_coco": "Segmentation",
    "seg_ade": "Segmentation (ADE)",
    "obj_detection": "Objects",
    "ocr_detection": "Words",
}
NOTHING = (26, 28, 34)  # colour of the background id

PHOTO, GAP, MARGIN, TITLE_HEIGHT = 280, 8, 16, 20  # pixels
INK, SOFT, PAPER, LINE = (28, 32, 40), (100, 108, 120), (255, 255, 255), (216, 220, 226)
RIGHT, WRONG, PARTLY = (22, 138, 73), (200, 50, 47), (176, 112, 0)
LEGEND_ENTRIES = 10


def colorize(expert: str, label: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
    """Returns a label map in colours for people.

    Depth is stretched to its range and shown in a perceptually even scale (bright = large value), normals and edges as
    stored. Ids have fixed, well-separated colours on a dark background: a class looks the same in all images.

    Args:
      expert: a name of labels.EXPERTS.
      label: uint8 [h, w] or [h, w, channels].
      classes: detection: class id of each instance. Instances then take the hue of their class, in differing shades.

    Returns:
      uint8 [h, w, 3].
    """
    row = EXPERTS[expert]
    if row.storage == "rgb":
        return label
    plane = label.reshape(label.shape[:2])
    if row.storage == "ids":
        return id_colors(classes)[plane]
    if expert == "depth":
        low, high = float(plane.min()), float(plane.max())
        return _depth_colors()[((plane - low) * (255 / max(1.0, high - low))).astype(np.uint8)]
    return np.repeat(plane[..., None], 3, axis=-1)


def id_colors(classes: Sequence[int] | None = None) -> np.ndarray:
    """Returns the colours uint8 [256, 3] of ids 0..254 and of the background, 255; `classes` as in `colorize`."""
    base = _class_colors()
    if classes is None:
        return base
    table, seen = base.copy(), {}
    for instance, kind in enumerate(classes[:BACKGROUND]):
        if kind >= 0:
            shade = (1.0, 0.72, 1.22, 0.52)[seen.get(int(kind), 0) % 4]
            table[instance] = np.clip(base[int(kind) % BACKGROUND] * shade, 0, 255)
            seen[int(kind)] = seen.get(int(kind), 0) + 1
    return table


@functools.cache
def _class_colors() -> np.ndarray:
    """Hues a golden angle apart in seven perceived lightnesses (OKLCH): ids of near hue differ in lightness."""
    ids = np.arange(256)
    hue = np.deg2rad(ids * 137.508 + 20)
    lightness = np.array([0.74, 0.54, 0.86, 0.64, 0.80, 0.50, 0.90])[ids % 7]
    a, b = 0.135 * np.cos(hue), 0.135 * np.sin(hue)
    # OKLab to linear sRGB (Ottosson 2020)
    l_, m_, s_ = (
        (lightness + x * a + y * b) ** 3
        for x, y in ((0.3963377774, 0.2158037573), (-0.1055613458, -0.0638541728), (-0.0894841775, -1.2914855480))
    )
    rows = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(rows @ np.stack([l_, m_, s_]), 0, 1).T
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    table = (srgb * 255).round().astype(np.uint8)
    table[BACKGROUND] = NOTHING
    return table


@functools.cache
def _depth_colors() -> np.ndarray:
    import matplotlib  # slow to import, and a program that draws nothing needs none

    return (matplotlib.colormaps["viridis"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def legend(sample: Mapping[str, Any]) -> list[tuple[tuple[int, int, int], str]]:
    """Returns (colour, name) of what segmentation and detection maps show, most frequent first, then of the words."""
    entries: dict[str, tuple[int, int, int]] = {}
    labels, names = sample.get("labels", {}), sample.get("classes", {})
    for expert in ("seg_coco", "seg_ade", "obj_detection"):
        class_names, instances = names.get(expert, ()), sample.get("instances")
        if expert not in labels or not class_names or (expert == "obj_detection" and instances is None):
            continue
        ids, counts = np.unique(labels[expert], return_counts=True)
        for i in ids[np.argsort(-counts)]:
            kind = int(instances[i]) if expert == "obj_detection" and i < len(instances) else int(i)
            if i != BACKGROUND and 0 <= kind < len(class_names):
                entries.setdefault(str(class_names[kind]), tuple(int(c) for c in _class_colors()[kind % BACKGROUND]))
    named = [(color, name) for name, color in entries.items()][:LEGEND_ENTRIES]
    words = sample.get("words", ()) if "ocr_detection" in labels else ()
    return named + [(tuple(map(int, _class_colors()[i])), f"“{word}”") for i, word in enumerate(words)]


def pictures(sample: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
    """Returns (title, uint8 [h,w,3]) of the photo and of every label map of a sample, in the table's order."""
    maps = [
        (
            TITLES[expert],
            colorize(expert, sample["labels"][expert], sample.get("instances") if expert == "obj_detection" else None),
        )
        for expert in EXPERTS
        if expert in sample.get("labels", {})
    ]
    return [*([("Photo", sample["image"])] if "image" in sample else []), *maps]  # predictions of others have none


def regions(sample: Mapping[str, Any], expert: str) -> list[tuple[float, float, float, str]]:
    """Returns (x, y, radius, name) of the largest things in a map of classes, instances or words, largest first.

    In fractions of the map's width: the circle is the largest that fits into the thing.
    """
    if EXPERTS[expert].storage != "ids":
        return []
    label = sample["labels"][expert]
    label = label.reshape(label.shape[:2])
    ids, counts = np.unique(label, return_counts=True)
    circles = []
    for i in ids[np.argsort(-counts)][: 2 * LEGEND_ENTRIES]:
        if i == BACKGROUND or not (name := _name(sample, expert, int(i))):
            continue
        inside = cv2.copyMakeBorder((label == i).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
        _, radius, _, (x, y) = cv2.minMaxLoc(cv2.distanceTransform(inside, cv2.DIST_L2, 3))
        circles.append(((x - 0.5) / label.shape[1], (y - 0.5) / label.shape[1], radius / label.shape[1], name))
    return circles


def _name(sample: Mapping[str, Any], expert: str, i: int) -> str:
    """Returns what the id stands for; '' where nobody knows."""
    if EXPERTS[expert].embed == "words":
        words = sample.get("words", ())
        return words[i] if i < len(words) else ""
    if EXPERTS[expert].embed == "instances":
        instances = sample.get("instances")
        i = -1 if instances is None or i >= len(instances) else int(instances[i])
    class_names = sample.get("classes", {}).get(expert, ())
    return str(class_names[i]).split(",")[0] if 0 <= i < len(class_names) else ""


def verdict(sample: Mapping[str, Any]) -> tuple[str, tuple[int, int, int]]:
    """Returns the mark (✓, ✗, ~ or none) and colour of a prediction, from its accuracy."""
    correct = sample.get("correct")
    if correct is None:
        return "", INK
    return ("✓", RIGHT) if correct >= 0.99 else ("✗", WRONG) if correct <= 0.01 else ("~", PARTLY)


def panel(sample: Mapping[str, Any], size: int = PHOTO) -> Image.Image:
    """Draws one sample: the photo, its label maps in two rows, a legend, and the texts below.

    Args:
      sample: see above.
      size: of the photo; its maps have half of it, with the names of what they show where there is room for them.
    """
    (title, photo), *maps = pictures(sample)
    columns = (len(maps) + 1) // 2
    height = min(size, size * photo.shape[0] // photo.shape[1])  # no empty space around wide photos
    tile = (size - GAP - TITLE_HEIGHT) // 2, max(1, (height - GAP - TITLE_HEIGHT) // 2)
    width = 2 * MARGIN + size + max(columns, 2) * (tile[0] + GAP)
    texts = _texts(sample, width - 2 * MARGIN)
    keys = _flow(legend(sample), width - 2 * MARGIN)
    top = MARGIN + TITLE_HEIGHT + height
    canvas = Image.new("RGB", (width, top + GAP + _height(keys) + _height(texts) + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    _picture(canvas, draw, title, photo, MARGIN, MARGIN, (size, height))
    shown = [expert for expert in EXPERTS if expert in sample.get("labels", {})]
    for i, ((title, picture), expert) in enumerate(zip(maps, shown, strict=True)):
        x = MARGIN + size + GAP + (i % columns) * (tile[0] + GAP)
        y = MARGIN + (i // columns) * (tile[1] + GAP + TITLE_HEIGHT)
        box = _picture(canvas, draw, title, picture, x, y, tile)
        _write_names(draw, regions(sample, expert), box)
    y = top + GAP
    for line in keys:
        x = MARGIN
        for color, text, font in line:
            draw.rounded_rectangle((x, y + 4, x + 10, y + 14), 3, fill=color)
            draw.text((x + 15, y + 1), text, SOFT, font=font)
            x += 15 + int(font.getlength(text)) + 14
        y += LINE_HEIGHT
    y += GAP if keys else 0
    for line in texts:
        x = MARGIN
        for color, text, font in line:
            draw.text((x, y + 2), text, color, font=font)
            x += int(font.getlength(text))
        y += LINE_HEIGHT
    draw.rounded_rectangle((0, 0, canvas.width - 1, canvas.height - 1), 10, outline=LINE, width=1)
    return canvas


def contact(panels: Sequence[Image.Image], columns: int = 2, margin: int = 14) -> Image.Image:
    """Arranges panels in columns, each panel below the shortest column, on a light ground."""
    columns = max(1, min(columns, len(panels)))
    width = max((p.width for p in panels), default=1)
    heights, places = [margin] * columns, []
    for picture in panels:
        column = int(np.argmin(heights))
        places.append((margin + column * (width + margin), heights[column]))
        heights[column] += picture.height + margin
    canvas = Image.new("RGB", (margin + columns * (width + margin), max(heights)), (240, 242, 245))
    for picture, place in zip(panels, places, strict=True):
        canvas.paste(picture, place)
    return canvas


# ---------------------------------------------------------------- text

LINE_HEIGHT = 20
Line = list[tuple[tuple[int, int, int], str, ImageFont.FreeTypeFont]]


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size)


def _height(lines: Sequence[Line]) -> int:
    return len(lines) * LINE_HEIGHT + (GAP if lines else 0)


def _texts(sample: Mapping[str, Any], width: int) -> list[Line]:
    mark, color = verdict(sample)
    lines = []
    if sample.get("question"):
        lines += _wrap(sample["question"], width, INK, _font(14, bold=True))
    said = f"{mark} {sample['prediction']}".strip() or "(nothing)"
    lines += _wrap(said, width, color, _font(15, bold=True))
    if sample.get("blank") is not None:
        lines += _wrap(f"blank image: {sample['blank'] or '(nothing)'}", width, SOFT, _font(12))
    for reference in distinct(sample.get("references", ())):
        lines += _wrap(f"· {reference}", width, SOFT, _font(13))
    return lines


def distinct(references: Sequence[str], limit: int = 5) -> list[str]:
    """Returns the references without repetitions, which are counted (ten annotators often agree)."""
    counts = {text: references.count(text) for text in dict.fromkeys(references)}
    ordered = sorted(counts, key=lambda text: -counts[text])[:limit]
    return [f"{text}  ×{counts[text]}" if counts[text] > 1 else text for text in ordered]


def _wrap(text: str, width: int, color: tuple[int, int, int], font: ImageFont.FreeTypeFont) -> list[Line]:
    lines, line = [], ""
    for word in text.split():
        while font.getlength(word) > width:  # a word wider than the panel is cut
            cut = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines, line, word = [*lines, *([line] if line else []), word[:cut]], "", word[cut:]
        longer = f"{line} {word}".strip()
        if font.getlength(longer) > width:
            lines, line = [*lines, line], word
        else:
            line = longer
    return [[(color, text, font)] for text in [*lines, line] if text]


def _flow(entries: Sequence[tuple[tuple[int, int, int], str]], width: int) -> list[Line]:
    lines: list[Line] = []
    used, font = width, _font(12)
    for color, name in entries:
        needed = 15 + int(font.getlength(name)) + 14
        if used + needed > width:
            lines, used = [*lines, []], 0
        lines[-1].append((color, name, font))
        used += needed
    return lines


def _picture(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    title: str,
    picture: np.ndarray,
    x: int,
    y: int,
    room: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Places a picture with its title in a box of (width, height); returns where: left, top, width, height."""
    draw.text((x, y), title, SOFT, font=_font(12))
    image = Image.fromarray(np.ascontiguousarray(picture))
    scale = min(room[0] / image.size[0], room[1] / image.size[1])
    small = image.size[0] * scale, image.size[1] * scale
    # Label maps keep their hard edges; a photo is smoothed.
    method = Image.Resampling.LANCZOS if title == "Photo" else Image.Resampling.NEAREST
    image = image.resize((max(1, round(small[0])), max(1, round(small[1]))), method)
    left, upper = x + (room[0] - image.width) // 2, y + TITLE_HEIGHT + (room[1] - image.height) // 2
    canvas.paste(image, (left, upper))
    draw.rectangle((left, upper, left + image.width - 1, upper + image.height - 1), outline=LINE)
    return left, upper, image.width, image.height


def _write_names(
    draw: ImageDraw.ImageDraw, named: Sequence[tuple[float, float, float, str]], box: tuple[int, int, int, int]
) -> None:
    """Writes names into what they name, where they are not much wider than it and do not overlap."""
    left, upper, width, height = box
    taken: list[tuple[float, float, float, float]] = []
    for x, y, radius, name in named:
        wide, radius = _font(11).getlength(name), radius * width
        if radius < 6 or wide > 3.2 * radius:
            continue
        half = wide / 2 + 3
        middle = min(max(left + x * width, left + half), left + width - half)
        centre = min(max(upper + y * width, upper + 9), upper + height - 9)
        spot = (middle - half, centre - 8, middle + half, centre + 8)
        if any(spot[0] < b[2] and b[0] < spot[2] and spot[1] < b[3] and b[1] < spot[3] for b in taken):
            continue
        taken.append(spot)
        draw.text((middle, centre), name, PAPER, _font(11), anchor="mm", stroke_width=2, stroke_fill=NOTHING)
