import io
import json
import os
import pathlib
import pickle
import shutil
import tarfile

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from prismer_jax import datasets, label_files, labels, pp
from prismer_jax.datasets import lists, tar_index, tars
from prismer_jax.errors import BadSample, UserError


def jpeg(color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (color, 0, 0)).save(buffer, "jpeg")
    return buffer.getvalue()


def write(path: pathlib.Path, members, format=tarfile.PAX_FORMAT) -> str:
    """A tar of (name, bytes); times are fractions of seconds, as webdataset writes them, which pax has headers for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1700000000.25 if format == tarfile.PAX_FORMAT else 1700000000
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def sample(key: str, color: int = 0) -> list[tuple[str, bytes]]:
    meta = json.dumps({"caption": f"json {key}", "key": key})
    return [(f"{key}.jpg", jpeg(color)), (f"{key}.txt", f"caption {key}".encode()), (f"{key}.json", meta.encode())]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of indices."""
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data" / "tars"


@pytest.fixture
def web(tmp_path):
    """cc12m/ as img2dataset --output_format webdataset leaves it."""
    write(tmp_path / "cc12m/00000.tar", sample("000000000", 10) + sample("000000003", 20))
    write(tmp_path / "cc12m/00001.tar", sample("000010000", 30), tarfile.GNU_FORMAT)
    stats = {"failed_to_download": 8, "status_dict": {"success": 2, "HTTP Error 404: Not Found": 8}}
    (tmp_path / "cc12m/00000_stats.json").write_text(json.dumps(stats))
    return tmp_path / "cc12m"


def test_samples_of_tars_are_those_of_the_unpacked_folder(web, tmp_path):
    source = datasets.load("tars", path=web, task="all")
    for tar in web.glob("*.tar"):
        (tmp_path / "unpacked" / tar.stem).mkdir(parents=True)
        with tarfile.open(tar) as opened:
            opened.extractall(tmp_path / "unpacked" / tar.stem, filter="data")
    folder = lists.load(images=tmp_path / "unpacked", task="all", source="cc12m")
    assert len(source) == len(folder) == 3
    for one, other in zip(source, folder, strict=True):
        assert one == {**other, "image": pathlib.Path(other["image"]).read_bytes()}
    assert source[2]["name"] == source.name(2) == "00001/000010000.jpg"
    assert source.dropped.counts == {"not downloaded": 8}
    decoded = [pp.build("decode")(source[i], np.random.default_rng(0))["image"][0, 0, 0] for i in range(3)]
    assert np.abs(np.asarray(decoded, int) - [10, 20, 30]).max() <= 2


def test_tars_are_named_by_folder_pattern_range_or_list(web):
    for path in (
        web,
        f"{web}/*.tar",
        f"{web}/{{00000..00001}}.tar",
        [f"{web}/00000.tar", web / "00001.tar"],
        [web, web / "00000.tar"],
    ):
        assert len(tars.load(path)) == 3
    source = tars.load(f"{web}/{{00000..00003}}.tar")
    assert len(source) == 3
    assert source.dropped.counts["missing tar"] == 2
    for path in (f"{web}/*.tgz", web / "nothing", f"{web}/{{7..8}}.tar"):
        with pytest.raises(UserError, match="tars"):
            tars.load(path)


def test_tars_of_several_folders_keep_their_names_apart(web, tmp_path):
    shutil.copytree(web, tmp_path / "cc3m")
    source = tars.load([web, tmp_path / "cc3m"], source="web", task="all")
    assert [source[i]["id"] for i in (0, 3)] == ["cc12m/00000/000000000.jpg", "cc3m/00000/000000000.jpg"]
    assert len({example["id"] for example in source}) == 6


def test_labels_lie_as_for_the_unpacked_folder(web, tmp_path):
    label_files.write(tmp_path / "labels", "edge", "00000/000000003.jpg", labels.blank("edge", 6, 8))
    source = tars.load(web, labels=tmp_path / "labels")
    assert source[1]["labels/edge"] == str(tmp_path / "labels/edge/00000/000000003.png")
    assert "labels/edge" not in source[0]
    with pytest.raises(UserError, match="no such folder of labels"):
        tars.load(web, labels=tmp_path / "nothing")


def test_the_index_is_kept_as_long_as_it_fits(web, cache, monkeypatch):
    tar = web / "00000.tar"
    assert tar_index.stored(str(tar)) is None
    first, again = tar_index.make(str(tar)), tar_index.stored(str(tar))
    np.testing.assert_array_equal(again.names, first.names)
    np.testing.assert_array_equal(again.places, first.places)
    assert again.dropped == first.dropped
    monkeypatch.chdir(web)
    assert tar_index.stored("00000.tar") is not None  # the same tar by another path
    assert tar_index.stored("../cc12m/00000.tar") is not None
    monkeypatch.chdir(web.parent)
    (file,) = cache.rglob("00000.tar.json")
    index = file.read_text()
    for damage in (
        "",
        index[:-9],
        "[]",
        index.replace("000000003.jpg", "caf\\ud83d.jpg"),
        index.replace('"places":[', '"places":[7,'),
    ):
        file.write_text(damage)
        assert tar_index.stored(str(tar)) is None
    file.write_text(index)
    write(tar, sample("000000009"))
    assert tar_index.stored(str(tar)) is None
    assert len(tars.load(tar)) == 1
    assert tar_index.stored(str(tar)).names.tolist() == [b"000000009.jpg"]


def test_the_folder_of_tars_stays_as_it_was(web, tmp_path):
    """img2dataset takes all .json there for the statistics of a shard, and stops at any other."""
    before = sorted(os.listdir(web))
    shutil.copytree(web, tmp_path / "copy")
    (tmp_path / "copy/00000.tar").unlink()
    assert len(tars.load(web)) == 3
    assert len(tars.load(tmp_path / "copy")) == 1  # whose tars have the same names
    assert len(tars.load(web)) == 3
    assert sorted(os.listdir(web)) == before


def test_processes_read_the_headers_of_many_tars(web, cache):
    assert [example["captions"] for example in tars.load(web, processes=2)] == [
        ["caption 000000000"],
        ["caption 000000003"],
        ["caption 000010000"],
    ]
    next(cache.rglob("00000.tar.json")).unlink()
    assert len(tars.load(web, processes=2)) == 3


def test_a_cache_that_cannot_be_written_to_is_done_without(web, tmp_path):
    (tmp_path / "data").touch()
    assert len(tars.load(web)) == 3
    assert tar_index.stored(str(web / "00000.tar")) is None


def test_odd_members(tmp_path):
    members = [
        *[("A.JPG", jpeg(1)), ("A.TXT", b"upper case")],
        *[("./b.jpeg", jpeg(2)), ("./b.json", b'{"caption": "of json"}')],
        ("c.png", jpeg(3)),  # alone
        ("d.txt", b"no photo"),
        *[("e.jpg", jpeg(4)), ("e.jpg", jpeg(5)), ("e.txt", b"twice")],
        ("f.seg.png", jpeg(6)),  # another sample's label, by webdataset's rule, not a photo
        ("g.jpg", b""),
        ("sub/h.webp", jpeg(7)),
        ("../../i.jpg", jpeg(8)),
        ("/j.jpg", jpeg(9)),
        ("._k.jpg", b"of macOS"),
        (f"{'l' * 120}.jpg", jpeg(10)),  # a name of more than the header's 100 bytes
        *[("m.jpg", jpeg(11)), ("m.txt", b"caf\xe9")],
    ]
    for number, format in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        source = tars.load(write(tmp_path / f"{number}/odd.tar", members, format), task="all")
        assert source.dropped.counts == {
            "tar member outside of its folder": 2,
            "duplicate key in a tar": 1,
            "empty file": 1,
            "sample without photo": 1,
            "tar member of no known kind": 1,
        }
        names = [f"odd/{name}" for name in ("A.JPG", "b.jpeg", "c.png", "e.jpg", "sub/h.webp", f"{'l' * 120}.jpg")]
        assert [source[i]["name"] for i in range(6)] == names
        captions = [["upper case"], ["of json"], [], ["twice"], [], []]
        assert [source[i]["captions"] for i in range(6)] == captions
        assert source[3]["image"] == jpeg(4)
        with pytest.raises(BadSample, match=r"odd\.tar: m\.txt: not UTF-8") as error:
            source[6]
        assert error.value.reason == "caption that is not UTF-8"


def test_names_that_are_not_utf8_are_dropped(tmp_path):
    path = write(tmp_path / "a.tar", [("cafX.jpg", jpeg(0)), ("b.jpg", jpeg(0))], tarfile.USTAR_FORMAT)
    data = bytearray(pathlib.Path(path).read_bytes())
    data[3] = 0xE9
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))  # the header's checksum
    pathlib.Path(path).write_bytes(data)
    source = tars.load(path)
    assert len(source) == 1
    assert source.dropped.counts == {"file name that is not UTF-8": 1}


def test_damaged_headers_cost_their_own_member_alone(tmp_path):
    for number, format in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        path = pathlib.Path(
            write(tmp_path / f"{number}/a.tar", sample("1", 1) + sample("2", 2) + sample("3", 3), format)
        )
        with tarfile.open(path) as tar:
            places = {key: tar.getmember(f"{key}.jpg").offset_data for key in "123"}
        whole = path.read_bytes()
        for key, offset in places.items():
            data = bytearray(whole)
            data[offset - 512 + 20] ^= 0xFF  # in the photo's header
            path.write_bytes(data)
            source = tars.load(path, task="all")
            assert [example["captions"] for example in source] == [[f"caption {k}"] for k in "123" if k != key]
            assert source.dropped.counts == {"damaged tar header": 1, "sample without photo": 1}


def test_what_lies_behind_the_end_of_a_truncated_tar_is_dropped(tmp_path):
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = pathlib.Path(write(tmp_path / "a.tar", sample("1", 1) + sample("2", 2), format))
        with tarfile.open(path) as tar:
            photo, text, last = (tar.getmember(f"2.{end}") for end in ("jpg", "txt", "json"))
        whole = path.read_bytes()
        # In the photo, behind it, in the header of the caption, in the mark of the end, not at all.
        cuts = (photo.offset_data + 100, text.offset, text.offset_data - 200, last.offset_data + 700, len(whole))
        captions = ([["caption 1"]], *[[["caption 1"], []]] * 2, *[[["caption 1"], ["caption 2"]]] * 2)
        for cut, expected in zip(cuts, captions, strict=True):
            path.write_bytes(whole[:cut])
            source = tars.load(path)
            assert [example["captions"] for example in source] == expected
            assert source.dropped.counts == ({} if cut == len(whole) else {"truncated tar": 1})


def test_a_tar_that_is_cut_while_it_is_read_is_a_bad_sample(web):
    source = tars.load(web)
    tar = web / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:600])
    with pytest.raises(BadSample, match=r"00001\.tar: ends at byte 600") as error:
        source[2]
    assert error.value.reason == "unreadable tar"
    tar.unlink()
    with pytest.raises(BadSample, match=r"00001\.tar: No such file"):
        source[2]
    assert source[1]["captions"] == ["caption 000000003"]


def test_what_is_no_tar_is_reported_and_the_others_are_read(web, tmp_path):
    (web / "00002.tar").write_bytes(b"<html>404</html>" * 100)
    (web / "00003.tar").write_bytes(b"")
    (web / "00004.tar").write_bytes(bytes(1 << 21))  # no tar without members is as long as that
    (web / "00005.tar").symlink_to(web / "gone.tar")
    source = tars.load(web)
    assert len(source) == 3
    counts = {"not downloaded": 8, "not a tar": 2, "truncated tar": 1, "unreadable tar": 1}
    assert source.dropped.counts == counts
    with pytest.raises(UserError, match=r"no photos in its 1 tars\. Left out: 1 x not a tar"):
        tars.load(web / "00002.tar")


def test_a_tar_without_members_is_a_shard_in_which_every_download_failed(web):
    write(web / "00002.tar", [])
    stats = {"failed_to_download": 5, "status_dict": {"timed out": 5}}
    (web / "00002_stats.json").write_text(json.dumps(stats))
    source = tars.load(web)
    assert len(source) == 3
    assert source.dropped.counts == {"not downloaded": 13, "tar without members": 1}
    with pytest.raises(UserError, match=r"no photos in its 1 tars\. Left out: 5 x not downloaded.* mostly 'timed out'"):
        tars.load(web / "00002.tar")


def test_compressed_tars_are_named_with_what_unpacks_them(web):
    for name, mode in (("00002.tar.gz", "gz"), ("00003.tgz", "gz"), ("00004.tar.bz2", "bz2"), ("00005.txz", "xz")):
        with tarfile.open(web / name, f"w:{mode}") as tar:
            tar.addfile(tarfile.TarInfo("a.jpg"))
    shutil.copy(web / "00003.tgz", web / "00006.tar")  # as webdataset's ShardWriter(compress=True) calls it
    shutil.copy(web / "00004.tar.bz2", web / "00007.tar")
    shutil.copy(web / "00002.tar.gz", web / "00000.tar.gz")  # beside what was unpacked of it
    source = tars.load(web)
    assert len(source) == 3
    assert source.dropped.counts == {"not downloaded": 8, "compressed tar": 6}
    for name, remedy in (
        ("00002.tar.gz", "gunzip {}"),
        ("00003.tgz", "gunzip {}"),
        ("*.tar.bz2", "bunzip2 {}"),
        ("00005.txz", "unxz {}"),
        ("00006.tar", "gunzip < {}"),
        ("00007.tar", "bunzip2 < {}"),
    ):
        with pytest.raises(UserError, match="1 x compressed tar") as error:
            tars.load(f"{web}/{name}")
        assert f"`{remedy.format(next(web.glob(name)))}" in str(error.value)
    with pytest.raises(UserError, match=r"s3://bucket/\{0\.\.9\}\.tar: tars are read from local disks only"):
        tars.load("s3://bucket/{0..9}.tar")


def test_side_files_without_a_caption_are_counted_when_tars_are_opened(tmp_path):
    members = [
        *[("a.jpg", jpeg(1)), ("a.json", b'{"description": "a dog"}')],
        *[("b.jpg", jpeg(2)), ("b.txt", b"\n"), ("b.json", b'{"captions": ["json b", 5]}')],
        *[("c.jpg", jpeg(3)), ("c.json", b'{"caption": 5}')],
        *[("d.jpg", jpeg(4)), ("d.txt", b"")],
        *[("e.jpg", jpeg(5)), ("e.txt", b" \n \n")],
        *[("f.jpg", jpeg(6)), ("f.json", b'{"caption": null}')],
        *[("g.jpg", jpeg(7)), ("g.txt", b"1\n2"), ("g.json", b"{}")],
        *[("h.heic", jpeg(8)), ("h.txt", b"of a kind that is not read")],
        *[("i.jpg", jpeg(9)), ("i.json", b"{")],
    ]
    source = tars.load(write(tmp_path / "a.tar", members), task="all")
    assert source.dropped.counts == {
        "caption that is not a text": 2,
        "empty side file": 1,
        "image of a kind that is not read (save it as JPEG)": 1,
        "side file without a caption": 1,
    }
    examples = [source[i] for i in range(7)]
    assert [example["captions"] for example in examples] == [[], ["json b"], [], [], [], [], ["1", "2"]]
    left_out = [example["left_out"] for example in examples if "left_out" in example]
    assert left_out == [[("empty side file", f"{tmp_path}/a.tar: e.jpg")]]  # what only reading can tell
    with pytest.raises(BadSample, match=r"i\.json: not JSON"):
        source[7]


def test_tars_without_captions_are_not_for_captions(tmp_path):
    path = write(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("1.json", b'{"url": "http://example.com"}')])
    assert len(tars.load(path)) == len(tars.load(path, task="all")) == 1
    message = "no captions of the 1 photos in its 1 tars. Left out: 1 x side file without a caption"
    with pytest.raises(UserError, match=message):
        tars.load(path, task="caption")
    parquet.write_table(pyarrow.table({"key": ["1"], "caption": ["of the table"]}), tmp_path / "a.parquet")
    assert tars.load(path, task="caption")[0]["captions"] == ["of the table"]


def test_captions_of_bare_samples_are_taken_from_the_table(tmp_path):
    write(tmp_path / "00000.tar", [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2)), *sample("3")])
    for captions, expected in (
        (["table 1", None, "table 3"], [["table 1"], [], ["caption 3"]]),
        ([["1", "one"], ["2"], None], [["1", "one"], ["2"], ["caption 3"]]),
        ([float("nan")] * 3, [[], [], ["caption 3"]]),
    ):
        table = {"key": ["1", "2", "3"], "caption": captions}
        parquet.write_table(pyarrow.table(table), tmp_path / "00000.parquet")
        assert [example["captions"] for example in tars.load(tmp_path)] == expected


def test_limits_tasks_and_pickles(web, cache):
    assert len(tars.load(web, limit=1)) == 1
    assert [file.name for file in cache.rglob("*.json")] == ["00000.tar.json"]  # the first tar was enough
    source = tars.load(web)
    assert pickle.loads(pickle.dumps(source))[2] == source[2]
    assert source[-1] == source[2]
    with pytest.raises(IndexError):
        source[3]
    with pytest.raises(UserError, match=r"captions only, not what task='question' needs"):
        tars.load(web, task="question")


def test_a_tar_is_read_once_however_its_path_is_spelled(tmp_path, monkeypatch):
    path = write(tmp_path / "tars/a.tar", [("a.jpg", jpeg(1))])
    (tmp_path / "link").symlink_to(tmp_path / "tars")
    monkeypatch.chdir(tmp_path)
    assert len(tars.load([path, "tars/a.tar", "./tars/a.tar", "link/a.tar", "tars", "link"])) == 1


def test_photos_in_tars_are_of_the_same_suffixes_as_in_folders(tmp_path, monkeypatch):
    members = [("a.jfif", jpeg(1)), ("b.JPE", jpeg(2)), ("c.cr3", b"raw"), ("d.heif", b"heif")]
    source = tars.load(write(tmp_path / "a.tar", members), task="all")
    assert [source[i]["name"] for i in range(len(source))] == ["a/a.jfif", "a/b.JPE"]
    assert source.dropped.counts == {"image of a kind that is not read (save it as JPEG)": 2}
    monkeypatch.setattr(tar_index, "SUFFIXES", (*tar_index.SUFFIXES, ".heif"))  # as a newer Pillow has it
    monkeypatch.setattr(tar_index, "UNREAD", (".cr3",))
    assert len(tars.load(tmp_path / "a.tar")) == 3


def test_photos_of_two_tars_never_share_a_name(tmp_path):
    write(tmp_path / "cc/a.tar", sample("b/c", 10) + sample("b/d", 20))
    write(tmp_path / "cc/a/b.tar", sample("c", 30) + sample("e", 40))
    source = datasets.load("tars", path=[tmp_path / "cc/a.tar", tmp_path / "cc/a/b.tar"])
    assert [source[i]["id"] for i in range(len(source))] == ["a/b/c.jpg", "a/b/d.jpg", "a/b/e.jpg"]
    assert source[2]["captions"] == ["caption e"]
    assert source.dropped.counts == {"name used twice": 1}
