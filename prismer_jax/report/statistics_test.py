import re

import numpy as np
import pytest
from PIL import Image

from prismer_jax import label_png, labels
from prismer_jax.report import overview
from prismer_jax.report.statistics import Statistics, warnings

ROW = np.arange(24, dtype=np.uint8)[:, None, None]
CLASSES = labels.no_classes()
CLASSES[:3] = [7, 7, 2]


def label(expert, seed):
    """What a working expert gives for a photo of 24 x 32 pixels."""
    rng = np.random.default_rng(seed)
    if expert == "depth":
        return (np.linspace(0, 200, 768).reshape(24, 32, 1) + 50 * rng.random((24, 32, 1))).astype(np.uint8)
    if expert == "normal":
        n = rng.standard_normal((24, 32, 3)) * [0.2, 0.2, 0.1] + [0, 0, 1]
        return np.rint((n / np.linalg.norm(n, axis=-1, keepdims=True) + 1) * 127.5).astype(np.uint8)
    if expert == "edge":
        return np.where(rng.random((24, 32, 1)) < 0.1, rng.integers(0, 200, (24, 32, 1)), 255).astype(np.uint8)
    map = labels.blank(expert, 24, 32)
    if expert.startswith("seg"):
        map[:] = rng.integers(0, 5, (24, 32, 1))
    else:
        for i in range(seed % 4):
            map[4 * i : 4 * i + 3, seed % 20 : seed % 20 + 9] = i
    return map


def statistics(expert, maps):
    found = Statistics(expert)
    for map in maps:
        found.add(map, {labels.CLASSES_KEY: CLASSES})
    return found


def good(expert, count=40):
    return [label(expert, seed) for seed in range(count)]


@pytest.mark.parametrize("expert", labels.EXPERTS)
def test_a_good_run_is_not_warned_of(expert):
    assert warnings(statistics(expert, good(expert))) == []


BROKEN = [
    ("depth", lambda maps: [None, *maps[1:]], "1 of 40 photos have no label"),
    ("depth", lambda maps: [None] * 40, "no photo has a label"),
    ("depth", lambda maps: [m * 0 for m in maps], "every map is empty"),
    ("depth", lambda maps: [m * 0 + 9 for m in maps], "100% of the maps are of one value"),
    ("depth", lambda maps: [m // 16 + 100 for m in maps], "a few grey levels"),
    ("normal", lambda maps: [m // 2 + 64 for m in maps], "100% of the normals do not have length 1"),
    ("edge", lambda maps: [255 - m for m in maps], "inverted"),
    ("edge", lambda maps: [maps[0]] * 40, "40 photos have the same map"),
    ("seg_coco", lambda maps: [m * 0 + 255 for m in maps], "every map is empty"),
    ("seg_coco", lambda maps: [np.where(ROW < 23, 255, m).astype(np.uint8) for m in maps], "are background"),
    (
        "seg_ade",
        lambda maps: [np.where(ROW < 23, 3, m) for m in maps],
        "labelled is 'class 3'",
    ),
    ("obj_detection", lambda maps: [m * 0 + 255 for m in maps], "every map is empty"),
    ("obj_detection", lambda maps: [m * 0 + 255 for m in maps[:36]] + maps[36:], "9[0-9]% of the maps are empty"),
    (
        "obj_detection",
        lambda maps: [np.where(m < 3, m + 10, m).astype(np.uint8) for m in maps],
        "instances have no class",
    ),
    ("ocr_detection", lambda maps: [m * 0 + 255 for m in maps], "not one photo has a word"),
]


def test_normals_of_small_photos_are_counted_by_their_pixels():
    maps = [np.full((5, 5, 3), 30 + i % 2, np.uint8) for i in range(8)]
    for map in maps:
        map[0, 0] = 255
    assert any("100% of the normals" in line for line in warnings(statistics("normal", maps)))


@pytest.mark.parametrize(("expert", "breaks", "message"), BROKEN)
def test_a_broken_run_is_warned_of(expert, breaks, message):
    found = warnings(statistics(expert, breaks(good(expert))))
    assert any(re.search(message, line) for line in found), found
    assert all(line.startswith(f"{expert}: ") for line in found)


def test_numbers_are_those_of_the_maps():
    empty = labels.blank("obj_detection", 24, 32)
    one, two = empty.copy(), empty.copy()
    one[:12], two[:6], two[6:12, :16] = 0, 0, 2
    found = statistics("obj_detection", [one, two, empty, None])
    assert (found.photos, found.present, found.empty, found.missing, found.constant) == (4, 3, 1, 1, 0)
    assert found.share("background") == pytest.approx((0.5 + 0.625 + 1) / 3)
    assert found.counts == {0: 1, 1: 1, 2: 1}
    assert found.per_photo() == 1
    assert found.classes == {7: 2, 2: 1}  # instances 0 and 2 are of classes 7 and 2
    depth = statistics("depth", [np.full((2, 2, 1), v, np.uint8) for v in (10, 30)])
    assert (depth.constant, depth.distribution()[0].tolist(), depth.distribution()[1].tolist()) == (2, [20], [10])
    segmented = statistics("seg_coco", [np.array([[[1], [1], [2], [255]]], np.uint8)])
    assert segmented.classes == {1: 2, 2: 1}


@pytest.mark.parametrize("expert", ["normal", "seg_coco", "obj_detection"])
def test_parts_add_up_to_the_whole(expert):
    maps = [*good(expert), None]
    whole, parts = statistics(expert, maps), statistics(expert, maps[:13])
    parts.update(statistics(expert, maps[13:]))
    for name in Statistics.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_the_table_and_the_picture_show_every_expert(tmp_path):
    found = {expert: statistics(expert, good(expert)) for expert in labels.PAPER}
    names = {"seg_coco": ["sky", "sea, ocean"], "obj_detection": ["-", "-", "box"] + ["-"] * 4 + ["ball"]}
    head, *rows = overview.table(found, names)
    assert [row[0] for row in rows] == list(labels.PAPER)
    assert all(len(row) == len(head) for row in rows)
    cells = {row[0]: row[-1] for row in rows}
    assert "sea 2" in cells["seg_coco"]
    assert "ball 83%, box 17%" in cells["obj_detection"]
    assert "class 3" in cells["seg_coco"]  # has no name
    assert "2 classes" in cells["obj_detection"]
    pictures = []
    for lines in ([], ["depth: bad"] * 20):
        (tmp_path / "out.png").write_bytes(overview.picture(found, names, lines, "photos"))
        with Image.open(tmp_path / "out.png") as image:
            pictures.append(image.convert("RGB"))
    assert pictures[0].width > 1000
    assert pictures[1].height > pictures[0].height + 200  # the warnings


def test_a_data_set_without_anything_has_a_picture_too():
    assert overview.picture({"depth": statistics("depth", [None])}, {}, [], "x").startswith(label_png.PNG_START)
    empty = {e: statistics(e, [labels.blank(e, 1, 1)]) for e in labels.EXPERTS}
    assert overview.picture(empty, {}, [], "x").startswith(label_png.PNG_START)
