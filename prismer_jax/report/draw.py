"""Pictures: label maps in colour, and a panel a sample: photo, label maps, prediction and references.

A sample is a dict: `image` uint8 [H,W,3], `labels` {expert: uint8 [h,w,1 or 3]}, `prediction`, `references` (texts),
and where they apply `question`, `blank` (said of a blank image), `correct` (accuracy in [0, 1]), `classes`
{expert: class names}, `instances` (class id of each detected instance, -1 for none) and `words` (of the OCR map).
"""

from __future__ import annotations

import functools
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

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
LINE_HEIGHT, DPI = 20, 100
INK, SOFT, LINE = "#1c2028", "#646c78", "#d8dce2"
RIGHT, WRONG, PARTLY = "#168a49", "#c8322f", "#b07000"
LEGEND_ENTRIES, LEGEND_COLUMNS = 10, 5


def title(expert: str) -> str:
    """Returns what the maps of an expert are called in pictures."""
    return TITLES.get(expert, expert.replace("_", " ").capitalize())


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
    """Hues a golden angle apart in seven perceived lightnesses (CIELAB): ids of near hue differ in lightness."""
    ids = np.arange(256)
    hue = np.deg2rad(ids * 137.508 + 20)
    lightness = np.array([72, 48, 86, 60, 79, 42, 90])[ids % 7]
    lab = np.stack([lightness, 50 * np.cos(hue), 50 * np.sin(hue)], axis=-1).astype(np.float32)
    table = (cv2.cvtColor(lab[None], cv2.COLOR_LAB2RGB)[0] * 255).round().astype(np.uint8)
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
    return named + [(tuple(map(int, _class_colors()[i])), f"“{word}”") for i, word in enumerate(words) if word]


def pictures(sample: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
    """Returns (title, uint8 [h,w,3]) of the photo and of every label map of a sample, in the table's order."""
    photo = [("Photo", sample["image"])] if "image" in sample else []  # predictions of others have none
    maps, classes = sample.get("labels", {}), {"obj_detection": sample.get("instances")}
    shown = [expert for expert in EXPERTS if expert in maps]
    return photo + [(title(expert), colorize(expert, maps[expert], classes.get(expert))) for expert in shown]


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


def verdict(sample: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the mark (✓, ✗, ~ or none) and colour of a prediction, from its accuracy."""
    correct = sample.get("correct")
    if correct is None:
        return "", INK
    return ("✓", RIGHT) if correct >= 0.99 else ("✗", WRONG) if correct <= 0.01 else ("~", PARTLY)


def panel(sample: Mapping[str, Any], size: int = PHOTO) -> Image.Image:
    """Draws one sample: the photo, its label maps in two rows, a legend, and the texts below.

    Args:
      sample: see above.
      size: of the photo in pixels; its maps have half of it, with the names of what they show where there is room.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    (title, photo), *maps = pictures(sample)
    columns, tile = max(2, -(-len(maps) // 2)) if maps else 0, size // 2  # a photo without maps is alone
    height = min(size, size * photo.shape[0] // photo.shape[1])  # no empty space around wide photos
    width = 2 * MARGIN + size + columns * (tile + GAP)
    keys, lines = legend(sample), _lines(sample, width - 2 * MARGIN)
    rows = -(-len(keys) // LEGEND_COLUMNS)
    total = 2 * MARGIN + TITLE_HEIGHT + height + LINE_HEIGHT * (rows + len(lines) + 1)
    figure = Figure(figsize=(width / DPI, total / DPI), dpi=DPI, facecolor="white", edgecolor=LINE, linewidth=1)

    def show(title: str, picture: np.ndarray, left: float, top: float, side: float, high: float) -> Any:
        axes = figure.add_axes((left / width, 1 - (top + high) / total, side / width, high / total), anchor="NW")
        axes.set_title(title, loc="left", fontsize=9, color=SOFT, pad=4)
        # Label maps keep their hard edges; a photo is smoothed.
        axes.imshow(picture, interpolation="antialiased" if title == "Photo" else "nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color(LINE)
        return axes

    show(title, photo, MARGIN, MARGIN + TITLE_HEIGHT, size, height)
    naming = dict(fontsize=8, color="white", ha="center", va="center", parse_math=False)
    naming["path_effects"] = [withStroke(linewidth=2, foreground="black")]
    shown = [expert for expert in EXPERTS if expert in sample.get("labels", {})]
    room = max(1, (height - TITLE_HEIGHT) / 2)
    for number, ((title, picture), expert) in enumerate(zip(maps, shown, strict=True)):
        left = MARGIN + size + GAP + (number % columns) * (tile + GAP)
        axes = show(title, picture, left, MARGIN + TITLE_HEIGHT + number // columns * (room + TITLE_HEIGHT), tile, room)
        for x, y, radius, name in regions(sample, expert):
            if radius * min(tile, room) > 3 * len(name):
                axes.annotate(name, (x * picture.shape[1], y * picture.shape[1]), **naming)
    top = MARGIN + TITLE_HEIGHT + height + GAP
    for number, (color, name) in enumerate(keys):
        left = MARGIN + (width - 2 * MARGIN) * (number % LEGEND_COLUMNS) / LEGEND_COLUMNS
        y = 1 - (top + LINE_HEIGHT * (number // LEGEND_COLUMNS)) / total
        figure.text(left / width, y, "■", color=np.array(color) / 255, fontsize=9, va="top")
        name = textwrap.shorten(name, 22, placeholder="…")
        figure.text((left + 14) / width, y, name, color=SOFT, fontsize=9, va="top", parse_math=False)
    for number, (text, style) in enumerate(lines):
        y = 1 - (top + LINE_HEIGHT * (rows + 0.5 + number)) / total
        figure.text(MARGIN / width, y, text, va="top", parse_math=False, **style)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings(action="ignore"):  # of letters that the font lacks
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _lines(sample: Mapping[str, Any], width: int) -> list[tuple[str, dict[str, Any]]]:
    """Returns the lines below the pictures, cut to a width in pixels, each with its style."""
    mark, color = verdict(sample)
    texts = [(f"{mark} {sample['prediction']}".strip() or "(nothing)", color, 11, "bold")]
    if sample.get("question"):
        texts.insert(0, (sample["question"], INK, 10.5, "bold"))
    if sample.get("blank") is not None:
        texts.append((f"blank image: {sample['blank'] or '(nothing)'}", SOFT, 9, "normal"))
    texts += [(f"· {reference}", SOFT, 9.5, "normal") for reference in distinct(sample.get("references", ()))]
    lines = []
    for text, color, size, weight in texts:
        style = {"color": color, "fontsize": size, "fontweight": weight}
        letters = int(width / (0.62 * size * DPI / 72))  # of a mean width
        lines += [(line, style) for line in textwrap.wrap(text, letters)]
    return lines


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


def distinct(references: Sequence[str], limit: int = 5) -> list[str]:
    """Returns the references without repetitions, which are counted (ten annotators often agree)."""
    counts = {text: references.count(text) for text in dict.fromkeys(references)}
    ordered = sorted(counts, key=lambda text: -counts[text])[:limit]
    return [f"{text}  ×{counts[text]}" if counts[text] > 1 else text for text in ordered]
