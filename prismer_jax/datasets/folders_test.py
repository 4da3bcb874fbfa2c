import errno
import json
import os
import sys

import pyarrow
import pytest
from PIL import Image, features
from pyarrow import parquet

from prismer_jax.datasets import img2dataset, lists, photos
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files.dropped import Dropped
from prismer_jax.pp.image import read_image


@pytest.fixture
def web(tmp_path):
    """cc12m/ as img2dataset --output_format files leaves it: two shards, of which photos failed."""
    root = tmp_path / "cc12m"
    for shard, keys in (("00000", ("000000000", "000000002")), ("00001", ("000010001",))):
        (root / shard).mkdir(parents=True)
        for key in keys:
            (root / shard / f"{key}.jpg").touch()
            (root / shard / f"{key}.txt").write_text(f"caption {key}\n")
            meta = {"caption": f"json {key}", "url": "http://example.com", "key": key, "status": "success"}
            (root / shard / f"{key}.json").write_text(json.dumps(meta))
    stats = {"count": 10, "successes": 2, "failed_to_download": 7, "failed_to_resize": 1}
    stats["status_dict"] = {"success": 2, "HTTP Error 404: Not Found": 6, "timed out": 1, "image decoding error": 1}
    (root / "00000_stats.json").write_text(json.dumps(stats))
    return root


def test_photos_of_the_web_have_their_captions_and_the_names_of_the_official_labels(web):
    source = lists.load(images=web, task="all")
    assert [source[i]["name"] for i in range(3)] == [
        "00000/000000000.jpg",
        "00000/000000002.jpg",
        "00001/000010001.jpg",
    ]
    assert [source[i]["captions"] for i in (0, 2)] == [["caption 000000000"], ["caption 000010001"]]
    assert source[0]["source"] == "cc12m"


def test_what_could_not_be_fetched_is_counted(web):
    dropped = lists.load(images=web).dropped
    assert dropped.counts == {"not downloaded": 7, "downloaded but no image": 1}
    assert "mostly 'HTTP Error 404: Not Found', 6 times" in dropped.lines()[0]
    assert "mostly 'image decoding error', 1 times" in dropped.lines()[1]
    (web / "00000_stats.json").write_text("{")
    (web / "00001_stats.json").write_text('{"failed_to_download": "many"}')
    assert lists.load(images=web).dropped.counts == {"unreadable side file": 2}


def test_captions_are_taken_from_json_and_from_the_table_where_there_is_no_text(web, monkeypatch):
    shard = web / "00000"
    (shard / "000000000.txt").unlink()
    assert lists.load(images=web)[0]["captions"] == ["json 000000000"]
    (shard / "000000000.json").unlink()
    assert lists.load(images=web)[0]["captions"] == []
    table = {"key": ["000000000", "000000001"], "caption": ["table 0", None], "status": ["success", "failed"]}
    parquet.write_table(pyarrow.table(table), web / "00000.parquet")
    assert lists.load(images=web)[0]["captions"] == ["table 0"]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UserError, match=r"00000\.parquet: pip install 'prismer_jax\[data\]'"):
            lists.load(images=web)
    (web / "00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"00000\.parquet: cannot be read"):
        lists.load(images=web)
    parquet.write_table(pyarrow.table({"key": ["000000000"]}), web / "00000.parquet")
    assert lists.load(images=web)[0]["captions"] == []


def test_bad_side_files_are_bad_samples_with_their_reason(web):
    shard = web / "00000"
    cases = [
        (b"caf\xe9", "", "caption that is not UTF-8"),
        (None, '{"caption": "half", ', "unreadable side file"),
        (None, '{"caption": "\\ud83d"}', "caption that is not UTF-8"),
    ]
    source = lists.load(images=web)
    for text, meta, reason in cases:
        if text is None:
            (shard / "000000000.txt").unlink(missing_ok=True)
        else:
            (shard / "000000000.txt").write_bytes(text)
        (shard / "000000000.json").write_text(meta)
        with pytest.raises(BadSample, match="000000000") as error:
            lists.load(images=web)[0]
        assert error.value.reason == reason
    with pytest.raises(BadSample, match=r"000000000\.txt: No such file"):
        source[0]  # it was there when the source was opened


def test_captions_that_are_not_read_are_told_with_the_photo(web):
    (web / "00000/000000000.txt").write_text("\n \n")
    (web / "00000/000000000.json").unlink()
    (web / "00000/000000002.txt").unlink()
    (web / "00000/000000002.json").write_text('{"description": "a dog"}')
    (web / "00001/000010001.txt").rename(web / "00001/000010001.TXT")
    source = lists.load(images=web, task="all")
    assert [example["captions"] for example in source] == [[], [], ["caption 000010001"]]
    assert [example.get("left_out") for example in source] == [
        [("empty side file", str(web / "00000/000000000.txt"))],
        [("side file without a caption", str(web / "00000/000000002.json"))],
        None,
    ]
    assert "left_out" not in lists.load(images=web)[0]


def test_the_most_frequent_message_of_a_reason_is_its_own(tmp_path):
    reasons = ["not downloaded", "downloaded but no image"]
    fetching, resizing = (
        {"HTTP Error 404: Not Found": 5, "timed out": 2},
        {"image too small": 3, "OpenCV(4.1) error": 1},
    )
    for messages, downloads, resizes, expected in (
        (fetching | resizing, 7, 4, ["HTTP Error 404: Not Found', 5 times", "image too small', 3 times"]),
        (fetching | resizing | {"odd": 1}, 7, 5, ["HTTP Error 404: Not Found', 5 times", "image too small', 3 times"]),
        (fetching | resizing | {"odd": 9}, 7, 13, [None, None]),  # odd, of which of the two?
        (resizing | {"odd": 9}, 0, 13, [None, "odd', 9 times"]),
        ({"image too small": 4, "timed out": 1}, 5, 0, ["image too small', 4 times", None]),  # said by a server
    ):
        stats = {"failed_to_download": downloads, "failed_to_resize": resizes}
        stats["status_dict"] = {"success": 90} | messages
        (tmp_path / "00000_stats.json").write_text(json.dumps(stats))
        dropped = Dropped()
        img2dataset.count_failures(str(tmp_path / "00000"), dropped)
        assert dropped.counts == {r: n for r, n in zip(reasons, (downloads, resizes), strict=True) if n}
        first = {reason: entry["first"][0] for reason, entry in dropped.to_json().items()}
        for reason, message in zip(reasons, expected, strict=True):
            assert message is None or first[reason].endswith(f"00000: mostly '{message}")
            assert message is not None or "mostly" not in first.get(reason, "")


def test_captions_of_tables_in_every_form(web):
    (web / "00000" / "000000000.txt").unlink()
    (web / "00000" / "000000000.json").unlink()
    keys = ["000000000", "other"]
    for column, values, expected, counts in (
        ("caption", [float("nan")] * 2, [], {}),  # an empty column of pandas
        ("caption", [None, "x"], [], {}),
        ("caption", [["one ", "two"], None], ["one", "two"], {}),
        ("captions", [["one"], []], ["one"], {}),
        ("text", ["one", "two"], ["one"], {}),
        ("caption", [5, 6], [], {"caption that is not a text": 2}),
    ):
        parquet.write_table(pyarrow.table({"key": keys, column: values}), web / "00000.parquet")
        source = lists.load(images=web)
        assert source[0]["captions"] == expected
        assert {reason: n for reason, n in source.dropped.counts.items() if "caption" in reason} == counts


def test_an_empty_folder_says_what_there_is_instead(web, tmp_path):
    for path in web.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(UserError, match=r"Left out: 7 x not downloaded.* mostly 'HTTP Error 404: Not Found', 6 times"):
        lists.load(images=web)
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/00000.parquet").touch()
    with pytest.raises(UserError, match=r"inside Parquet or TFRecord .* --output_format webdataset"):
        lists.load(images=tmp_path / "inside")


def test_a_folder_of_tars_is_told_from_an_empty_one(tmp_path):
    (tmp_path / "00000.tar").touch()
    with pytest.raises(UserError, match=r"has no photos .* Its tars are a source of their own"):
        lists.load(images=tmp_path)


def test_links_to_folders_are_followed_once(web):
    (web / "00000" / "loop").symlink_to(web)
    (web / "more").symlink_to(web / "00001")
    assert len(lists.load(images=web)) == 3


def test_pipes_beside_photos_are_bad_samples_and_not_waited_for(web):
    os.mkfifo(web / "00000/000000009.jpg")
    os.mkfifo(web / "00000/000000009.txt")
    os.mkfifo(web / "00002_stats.json")
    (web / "00002").mkdir()
    (web / "00002/000020000.jpg").touch()
    source = lists.load(images=web)
    (number,) = (i for i in range(len(source)) if source.name(i).endswith("09.jpg"))
    with pytest.raises(BadSample, match=r"000000009\.txt: Not a regular file") as error:
        source[number]
    assert error.value.reason == "unreadable file"
    assert source.dropped.counts["unreadable side file"] == 1


def test_file_names_that_are_not_utf8_are_dropped(web):
    try:
        open(os.fsencode(web / "00001") + b"/caf\xe9.jpg", "wb").close()
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    source = lists.load(images=web)
    assert len(source) == 3
    assert source.dropped.counts["file name that is not UTF-8"] == 1
    (name,) = (os.path.join(web, "00001", name) for name in os.listdir(web / "00001") if name.startswith("caf"))
    given = lists.load(images=[name, web / "00001/000010001.jpg"])
    assert (len(given), given.dropped.counts) == (1, {"file name that is not UTF-8": 1})
    for given in ([name], [name, name]):
        with pytest.raises(UserError, match=r"Left out: \d x file name that is not UTF-8"):
            photos.load(given)


def test_a_folder_that_cannot_be_read_is_counted(web, monkeypatch):
    def scandir(path, scan=os.scandir):
        if path == str(web / "00001"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    source = lists.load(images=web)
    assert len(source) == 2
    assert f"1 x unreadable folder, the first: {web}/00001: Permission denied." in source.dropped.lines()[-1]


def test_a_root_that_cannot_be_read_is_named(web, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(UserError, match=r"has no photos .* Left out: 1 x unreadable folder, the first: .*denied"):
        lists.load(images=web)


def test_a_limit_ends_the_search(web, monkeypatch):
    asked = []
    monkeypatch.setattr(img2dataset, "count_failures", lambda shard, dropped: asked.append(os.path.basename(shard)))
    assert len(lists.load(images=web, limit=1)) == 1
    assert asked == ["00000"]


def test_statistics_without_failures_count_nothing(tmp_path):
    (tmp_path / "00000_stats.json").write_text('{"count": 3, "successes": 3}')
    dropped = Dropped()
    img2dataset.count_failures(str(tmp_path / "00000"), dropped)
    img2dataset.count_failures(str(tmp_path / "00001"), dropped)
    assert not dropped


def test_photos_of_every_kind_that_pillow_reads_are_read_and_the_others_counted(tmp_path):
    named = {"a.jpg": "jpeg", "b.JFIF": "jpeg", "c.jp2": "jpeg2000", "d.ppm": "ppm", "e.jpe": "jpeg", "f.tif": "tiff"}
    if features.check("avif"):
        named["g.avif"] = "avif"
    for name, kind in named.items():
        Image.new("RGB", (8, 6), "red").save(tmp_path / name, kind)
    for name in ("h.heic", "I.HEIC", "j.cr2", "k.svg", ".hidden.heic", "notes.txt", "l.jxl"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    source = lists.load(images=tmp_path, task="all")
    assert [source[i]["name"] for i in range(len(source))] == list(named)
    assert source.dropped.counts == {"image of a kind that is not read (save it as JPEG)": 5}
    assert all(read_image(source[i]["image"], 100, "").shape == (6, 8, 3) for i in range(len(source)))
    # A list may name such a file, and any name may hold such bytes: the reason is the same.
    for head in (b"\0\0\0\x18ftypheic", b"\xff\n\0\0", b"\0\0\0\x0cJXL \r\n"):
        with pytest.raises(BadSample, match="HEIC, AVIF or JPEG XL") as error:
            read_image(head, 100, "x.jpg")
        assert error.value.reason == "image of a kind that is not read (save it as JPEG)"


def test_what_is_left_out_of_folders_is_said(tmp_path, caplog):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.heic").touch()
    lists.load(images=tmp_path)
    assert "left out: 1 x image of a kind that is not read (save it as JPEG), the first: " in caplog.text
    caplog.clear()
    photos.load([tmp_path])  # as the command gives them
    (line,) = [record.message for record in caplog.records]
    kind = "image of a kind that is not read (save it as JPEG)"
    assert line == f"{tmp_path}: left out: 1 x {kind}, the first: {tmp_path}/b.heic."


def test_a_photo_of_two_folders_that_are_given_is_one(web):
    (web.parent / "link").symlink_to(web / "00000")
    source = lists.load(images=[web, web / "00000", web.parent / "link", web / "00001/000010001.jpg"])
    assert len(source) == 3
    assert source.dropped.counts["photo given twice"] == 5
