import numpy as np
import pytest

from prismer_jax.objects import codec as codecs
from prismer_jax.objects import spelling
from prismer_jax.scores import objects


def test_overlaps_are_areas():
    boxes = [(0, 0, 2, 2), (0, 0, 0, 2)]
    others = [(0, 0, 2, 2), (1, 1, 3, 3), (5, 5, 6, 6)]
    np.testing.assert_allclose(objects.overlaps(boxes, others), [[1, 1 / 7, 0], [0, 0, 0]])
    np.testing.assert_allclose(objects.overlaps(boxes, others, np.array([False, True, True]))[0], [1, 1 / 4, 0])


def test_average_precision_by_hand():
    """Two objects; the surest box hits, the next does not, the third hits: 51 recalls at 1, 50 at 2/3."""
    there = [{"name": "cat", "box": (0, 0, 10, 10)}, {"name": "cat", "box": (20, 20, 30, 30)}]
    found = [
        {"name": "cat", "box": (0, 0, 10, 10), "score": 0.9},
        {"name": "cat", "box": (50, 50, 60, 60), "score": 0.8},
        {"name": "cat", "box": (20, 20, 30, 26), "score": 0.7},  # overlaps by 0.6: right at 0.5, 0.55 and 0.6
        {"name": "dog", "box": (0, 0, 10, 10), "score": 1.0},  # of no object's name
    ]
    photo = {"objects": there, "found": found}
    result = dict(objects.average_precision([photo]))
    both, one = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert result == pytest.approx({"AP": (3 * both + 7 * one) / 10, "AP50": both, "AP75": one})
    assert objects.harmonic(photo) == pytest.approx(2 * 2 / (4 + 2))
    assert dict(objects.average_precision([])) == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    assert objects.harmonic({"objects": [], "found": []}) == 1.0


def test_average_precision_is_that_of_pycocotools(capsys):
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(0)

    def box():
        y, x, height, width = rng.uniform(0, 60), rng.uniform(0, 60), *rng.uniform(10, 40, 2)
        return (y, x, y + height, x + width)

    photos = []
    for _ in range(30):
        there = [{"name": "abc"[rng.integers(3)], "box": box(), "crowd": rng.random() < 0.2} for _ in range(4)]
        found = []
        for one in there:
            for _ in range(rng.integers(3)):
                moved = tuple(np.array(one["box"]) + rng.normal(0, 1.5, 4))
                name = one["name"] if rng.random() < 0.8 else "abc"[rng.integers(3)]
                found.append({"name": name, "box": moved, "score": float(rng.choice([1.0, 0.5, 0.2]))})
        photos.append({"objects": there, "found": [*found, {"name": "a", "box": box(), "score": 0.5}]})

    def listed(key):
        rows = []
        for number, photo in enumerate(photos):
            for one in photo[key]:
                y1, x1, y2, x2 = one["box"]
                row = {"image_id": number, "category_id": "abc".index(one["name"]), "bbox": [x1, y1, x2 - x1, y2 - y1]}
                row |= {"id": len(rows) + 1, "area": (y2 - y1) * (x2 - x1), "iscrowd": int(one.get("crowd", False))}
                rows.append(row | ({"score": one["score"]} if "score" in one else {}))
        return rows

    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": number} for number in range(len(photos))],
        "annotations": listed("objects"),
        "categories": [{"id": number, "name": name} for number, name in enumerate("abc")],
        "info": {},
    }
    truth.createIndex()
    theirs = cocoeval.COCOeval(truth, truth.loadRes(listed("found")), "bbox")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    ours = dict(objects.average_precision(photos))
    assert 0.2 < ours["AP"] < 0.9
    assert list(ours.values()) == pytest.approx(theirs.stats[:3].tolist(), abs=1e-9)


def test_masks_are_scored_as_their_overlap():
    rng = np.random.default_rng(0)
    weights = {key: 0 * rng.random(shape) for key, shape in codecs.shapes(8, 4).items()}
    weights["decoder.12.bias"] += 1  # whatever the codes, all of the box is inside
    codec = codecs.MaskCodec(weights)
    truth = np.zeros((100, 100), bool)
    truth[:50] = True
    codes = (0,) * 16
    half, whole = (0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 1.0)
    said = [
        spelling.spell(half, codes=codes),
        spelling.spell(whole, "cat", codes) + " ; dog",
        spelling.spell(half),  # no mask
        spelling.spell((0.0, 0.0, 0.002, 1.0), codes=codes),  # less than a pixel high
    ]
    rows = objects.segmented(said, np.array([half] * 4), [truth] * 4, codec)
    np.testing.assert_allclose(rows[:, 0], [0.98, 0.5, 0, 0], atol=0.02)
    np.testing.assert_array_equal(rows[:, 1:], [[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]])
