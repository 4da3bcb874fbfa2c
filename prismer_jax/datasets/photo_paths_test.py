import json

import pytest
from PIL import Image

from prismer_jax.datasets import lists
from prismer_jax.errors import UserError


@pytest.fixture
def photo(tmp_path):
    def save(path, shade=0):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (shade,) * 3).save(path)
        return str(path)

    return save


def load(tmp_path, *paths, folder=".", **options):
    """Returns the examples of a list of these paths, each with its number as its caption."""
    path = tmp_path / folder / "list.json"
    path.write_text(json.dumps([{"image": one, "caption": str(number)} for number, one in enumerate(paths)]))
    source = lists.load(path, task="all", **options)
    return [source[i] for i in range(len(source))]


def test_an_absolute_path_that_exists_wins_over_any_other_file_of_its_name(photo, tmp_path):
    paths = [photo("train/1.jpg"), photo("val/1.jpg"), photo("x/train2014/COCO_train2014_000000000009.jpg")]
    photo("images/1.jpg")
    photo("images/train2014/COCO_train2014_000000000009.jpg")
    photo("images/vqav2/train2014/COCO_train2014_000000000009.jpg")
    for options in ({}, {"images": tmp_path / "images"}, {"images": f"{tmp_path}/{{dataset}}"}):
        assert [example["image"] for example in load(tmp_path, *paths, **options)] == paths


def test_an_absolute_path_of_elsewhere_is_looked_for_by_its_name_and_two_of_them_are_not_one_photo(photo, tmp_path):
    here = photo("images/1.jpg")
    assert load(tmp_path, "/gone/train/1.jpg")[0]["image"] == here
    (example,) = load(tmp_path, "/gone/train/1.jpg", "/gone/val/1.jpg", "/gone/train/1.jpg", max_missing=0.5)
    assert (example["image"], example["captions"]) == (here, ["0", "2"])
    with pytest.raises(UserError, match=r"1 of 2 photos are missing, the first is /gone/val/1\.jpg"):
        load(tmp_path, "/gone/train/1.jpg", "/gone/val/1.jpg")
    # Lists of two authors may mean the same photo by different paths.
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text('[{"image": "/me/1.jpg", "caption": "a"}]')
    second.write_text('[{"image": "/you/1.jpg", "caption": "b"}]')
    assert lists.load([first, second])[0]["captions"] == ["a", "b"]


def test_all_spellings_of_a_path_are_one_photo(photo, tmp_path, monkeypatch):
    path = photo("images/sub/a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    (tmp_path / "images/other").symlink_to(tmp_path / "images/sub")
    spellings = ["sub/a.jpg", "./sub/a.jpg", "sub//a.jpg", "sub/./a.jpg", path, f"{tmp_path}/link/sub/a.jpg"]
    spellings += ["other/a.jpg", "sub/../sub/a.jpg", f"{tmp_path}/images/./sub/a.jpg"]
    (example,) = load(tmp_path, *spellings)
    assert (example["id"], example["name"], example["image"]) == ("sub/a.jpg", "sub/a.jpg", path)
    assert example["captions"] == [str(number) for number in range(len(spellings))]
    for one in spellings[1:]:  # in either order
        assert [e["captions"] for e in load(tmp_path, one, "sub/a.jpg")] == [["0", "1"]]
    monkeypatch.chdir(tmp_path)
    absolute = tmp_path / "absolute.json"
    absolute.write_text(json.dumps([{"image": path, "caption": "b"}]))
    assert lists.load(["list.json", absolute], images="images")[0]["captions"] == ["0", "1", "b"]
    with pytest.raises(UserError, match="1 of 1 photos are missing"):
        load(tmp_path, "gone.jpg", "./gone.jpg")


def test_two_dots_behind_a_link_lead_where_the_disk_says(photo, tmp_path):
    photo("images/b.jpg")
    elsewhere = photo("far/b.jpg", 255)
    (tmp_path / "far/deep").mkdir()
    (tmp_path / "images/link").symlink_to(tmp_path / "far/deep")
    one, other = load(tmp_path, "b.jpg", "link/../b.jpg")
    assert Image.open(one["image"]).getpixel((0, 0)) != Image.open(other["image"]).getpixel((0, 0))
    assert load(tmp_path, "link/../b.jpg", elsewhere)[0]["captions"] == ["0", "1"]


def test_two_links_to_one_file_are_two_photos_as_two_copies_are(photo, tmp_path):
    photo("blob.jpg")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).symlink_to(tmp_path / "blob.jpg")
    assert [(e["name"], e["captions"]) for e in load(tmp_path, "a.jpg", "b.jpg")] == [
        ("a.jpg", ["0"]),
        ("b.jpg", ["1"]),
    ]


def test_an_absolute_path_is_named_below_the_folder_that_is_given(photo, tmp_path):
    paths = [photo("data/a/1.jpg"), photo("data/b/1.jpg")]
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for folder in ("data", "link"):
        names = [example["name"] for example in load(tmp_path, *paths, images=tmp_path / folder)]
        assert names == ["a/1.jpg", "b/1.jpg"]
    outside = photo("data2/c/2.jpg")
    assert load(tmp_path, outside, images=tmp_path / "data")[0]["name"] == "2.jpg"
    assert load(tmp_path, paths[0])[0]["name"] == "1.jpg"  # as ever: label files were made under this name
    coco = photo("data/train2014/COCO_train2014_000000000009.jpg")
    assert load(tmp_path, coco, images=tmp_path)[0]["name"] == "train2014/COCO_train2014_000000000009.jpg"
