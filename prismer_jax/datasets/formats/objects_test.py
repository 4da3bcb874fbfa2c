import json

import numpy as np
import pytest
from PIL import Image

from prismer_jax import datasets
from prismer_jax.errors import BadSample, UserError

SQUARE = [[10.0, 5.0, 20.0, 5.0, 20.0, 10.0, 10.0, 10.0]]


@pytest.fixture
def photos(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def coco():
    """Returns COCO's instances of two photos, one without objects."""
    images = [{"id": 7, "file_name": "a.png", "height": 10, "width": 20}]
    images.append({"id": 8, "file_name": "b.png", "height": 10, "width": 20})
    rows = [
        {"image_id": 7, "category_id": 3, "bbox": [10, 5, 10, 5], "segmentation": SQUARE, "iscrowd": 0},
        {"image_id": 7, "category_id": 4, "bbox": [0, 0, 25, 5]},
        {"image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5], "segmentation": None, "iscrowd": 1},
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}]
    return {"images": images, "annotations": rows, "categories": categories}


def load(folder, content, **options):
    (folder / "list.json").write_text(json.dumps(content))
    return datasets.load("objects", path=folder / "list.json", **options)


def test_instances_of_coco(photos):
    source = load(photos, coco())
    assert len(source) == 2
    first, second = source[0], source[1]
    assert (first["id"], first["image"]) == ("7", str(photos / "a.png"))
    assert [(one["name"], one["box"]) for one in first["objects"]] == [
        ("cat", [0.5, 0.5, 1.0, 1.0]),
        ("dog", [0.0, 0.0, 0.5, 1.0]),  # cut off at the photo's border
    ]
    assert first["objects"][0]["segmentation"] == SQUARE
    assert second["objects"] == []
    crowds = load(photos, coco(), crowds=True)[0]["objects"]
    assert [one.get("crowd", False) for one in crowds] == [False, False, True]


def test_an_example_for_each_name(photos):
    source = load(photos, coco(), task="name")
    assert [(source[i]["id"], len(source[i]["objects"])) for i in range(len(source))] == [("7#cat", 1), ("7#dog", 1)]
    assert len(load(photos, coco(), task="name", limit=1)) == 1


def test_the_captions_of_photos_name_objects_of_refcoco(photos):
    content = coco()
    content["images"][0]["caption"] = "the one on the right"
    assert load(photos, content)[0]["objects"][0]["name"] == "the one on the right"


def test_json_lines_of_ones_own(photos):
    entry = {"image": "a.png", "height": 10, "width": 20, "objects": [{"name": "cat", "segmentation": SQUARE}]}
    (photos / "list.jsonl").write_text(json.dumps(entry) + "\n")
    source = datasets.load("objects", path=photos / "list.jsonl")
    assert source[0]["objects"][0]["box"] == [0.5, 0.5, 1.0, 1.0]  # of its mask


@pytest.mark.parametrize(("orientation", "size"), [(6, (10, 20)), (1, (20, 10)), (1, (10, 30))])
def test_boxes_of_a_photo_of_other_proportions_are_refused(photos, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(photos / "a.png", exif=exif)
    box = {"name": "cat", "bbox": [1, 1, 2, 2]}
    source = load(photos, [{"image": "a.png", "height": size[0], "width": size[1], "objects": [box]}])
    with pytest.raises(
        BadSample, match=r"a\.png: has \d+x\d+ pixels as its EXIF orientation shows it, and its boxes are of"
    ):
        source[0]


def test_a_photo_may_be_smaller_than_when_its_boxes_were_drawn(photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(photos / "a.png", exif=exif)
    box = {"name": "cat", "bbox": [10, 20, 10, 40]}
    example = load(photos, [{"image": "a.png", "height": 80, "width": 40, "objects": [box]}])[0]
    assert example["objects"][0]["box"] == [0.25, 0.25, 0.75, 0.5]


def broken(change):
    content = coco()
    change(content)
    return content


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"a": 1}, "an entry lacks 'images'"),
        (3, "is no list of objects"),
        ([3], "is no list of objects"),
        ([], "lists no photos"),
        ([{"image": "a.png", "height": 10, "width": 20, "objects": 3}], "needs image, height, width and objects"),
        (broken(lambda c: c["annotations"][0].update(image_id=9)), "photo 9 of an annotation is not among its images"),
        (
            broken(lambda c: c["annotations"][0].update(category_id=9)),
            "category 9 of an annotation is not among its cat",
        ),
        (broken(lambda c: c["images"][1].update(id=7)), "the photos a.png and b.png have one id, 7"),
        (broken(lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 5])), "the box of cat has no pixels"),
        (broken(lambda c: c["annotations"][0].update(bbox=[1, 1])), "needs name and bbox"),
        (broken(lambda c: c["images"][0].update(file_name="none.png")), "missing photo"),
        (broken(lambda c: c["images"][0].pop("height")), "needs image, height, width"),
    ],
)
def test_bad_lists_are_named_in_one_line(photos, content, problem):
    with pytest.raises(UserError, match=problem) as error:
        load(photos, content)
    assert str(photos / "list.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_few_bad_objects_are_left_out(photos):
    content = broken(lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 5]))
    assert len(load(photos, content, max_bad=0.5)[0]["objects"]) == 1


def test_annotations_of_what_the_lists_lack_are_left_out(photos):
    content = broken(lambda c: c["annotations"].append({"image_id": 9, "category_id": 3, "bbox": [1, 1, 2, 2]}))
    content["annotations"].append({"image_id": 8, "category_id": 9, "bbox": [1, 1, 2, 2]})
    content["annotations"].append({"image_id": "8", "category_id": 4.0, "bbox": [1, 1, 2, 2]})  # as tables write ids
    source = load(photos, content, max_bad=0.5)
    assert [[one["name"] for one in source[i]["objects"]] for i in range(2)] == [["cat", "dog"], ["dog"]]


def test_lines_may_hold_separators_of_lines_and_what_is_no_json_is_named(photos):
    box = {"name": "a\u2028b", "bbox": [1, 1, 2, 2]}
    line = {"image": "a.png", "height": 10, "width": 20, "objects": [box]}
    (photos / "list.jsonl").write_text(json.dumps(line, ensure_ascii=False), encoding="utf-8")
    assert datasets.load("objects", path=photos / "list.jsonl")[0]["objects"][0]["name"] == "a\u2028b"
    (photos / "list.jsonl").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"list\.jsonl: is no list of objects .maximum recursion depth"):
        datasets.load("objects", path=photos / "list.jsonl")


def test_no_such_list(photos):
    with pytest.raises(UserError, match="no such list"):
        datasets.load("objects", path=photos / "none.json")
