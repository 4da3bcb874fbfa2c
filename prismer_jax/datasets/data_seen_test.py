"""A run that goes on with other data than it began with says so."""

import io
import json
import tarfile

import pytest

from prismer_jax import config
from prismer_jax.datasets import data_seen, lists, tars
from prismer_jax.errors import BadSample, UserError


def examples(count, **changes):
    return [{"id": str(i), "captions": [f"caption {i}"], "image": object(), **changes} for i in range(count)]


def began(workdir, **sources):
    (workdir / "checkpoints" / "2").mkdir(parents=True)
    data_seen.check(config.Workdir(workdir, workdir), sources)


def test_the_same_data_go_on(tmp_path):
    began(tmp_path, web=examples(5), own=examples(2))
    data_seen.check(config.Workdir(tmp_path, tmp_path), {"web": examples(5), "own": examples(2)})


@pytest.mark.parametrize("other", [examples(4), examples(5, captions=["another"]), examples(5, id="x")])
def test_other_data_are_refused_unless_they_are_allowed(tmp_path, other):
    began(tmp_path, web=examples(5))
    with pytest.raises(UserError, match=r"config.data.web changed .*5 examples then.*--allow-changed-data"):
        data_seen.check(config.Workdir(tmp_path, tmp_path), {"web": other})
    data_seen.check(config.Workdir(tmp_path, tmp_path), {"web": other}, allow=True)
    data_seen.check(config.Workdir(tmp_path, tmp_path), {"web": other})


def test_labels_that_were_made_again_are_other_data(tmp_path):
    label = tmp_path / "depth.png"
    label.write_bytes(b"1234")
    web = examples(5, **{"labels/depth": str(label)})
    began(tmp_path / "run", web=web)
    workdir = config.Workdir(tmp_path / "run", tmp_path / "run")
    data_seen.check(workdir, {"web": web})
    label.write_bytes(b"12345")
    with pytest.raises(UserError, match=r"config\.data\.web changed"):
        data_seen.check(workdir, {"web": web})
    noted = json.loads((tmp_path / "run" / data_seen.FILE).read_text())
    del noted["web"]["files"]  # as an earlier version left it
    (tmp_path / "run" / data_seen.FILE).write_text(json.dumps(noted))
    data_seen.check(workdir, {"web": web})


def test_what_evaluators_see_is_noted_and_may_change(tmp_path):
    began(tmp_path, web=examples(5), **{"evals.vqa": examples(2)})
    first = json.loads((tmp_path / data_seen.FILE).read_text())
    data_seen.check(config.Workdir(tmp_path, tmp_path), {"web": examples(5), "evals.vqa": examples(3)})
    second = json.loads((tmp_path / data_seen.FILE).read_text())
    assert [seen["evals.vqa"]["examples"] for seen in (first, second)] == [2, 3]


def test_other_boxes_of_the_same_photos_are_other_data():
    first, second = ([{"id": "1", "objects": [{"name": "cat", "box": [0.0, 0.0, 1.0, end]}]}] for end in (0.5, 0.6))
    assert data_seen.fingerprint(first) != data_seen.fingerprint(second)


def test_a_run_without_a_checkpoint_takes_any_data(tmp_path):
    data_seen.check(config.Workdir(tmp_path, tmp_path), {"web": examples(5)})
    data_seen.check(config.Workdir(tmp_path, tmp_path), {"web": examples(4)})


def test_only_some_examples_of_many_are_looked_at(tmp_path):
    class Source:
        looked = 0

        def __len__(self):
            return 10**8

        def __getitem__(self, index):
            Source.looked += 1
            return {"id": str(index)}

    assert data_seen.fingerprint(Source()) == data_seen.fingerprint(Source())
    assert Source.looked <= 400


def test_a_sources_own_fingerprint_counts(tmp_path):
    source = type("Source", (list,), {"fingerprint": "abc"})(examples(3))
    assert data_seen.fingerprint(source) == "abc"


def test_a_bad_sample_is_left_to_the_loader():
    class Source(list):
        def __getitem__(self, index):
            if index == 1:
                raise BadSample("1.json: not JSON")
            return super().__getitem__(index)

    assert data_seen.fingerprint(Source(examples(3))) != data_seen.fingerprint(examples(3))


def test_a_damaged_file_says_so(tmp_path):
    began(tmp_path, web=examples(5))
    (tmp_path / data_seen.FILE).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        data_seen.check(config.Workdir(tmp_path, tmp_path), {"web": examples(5)})


def test_one_changed_caption_of_a_list_is_seen_and_another_place_of_it_is_not(tmp_path):
    rows = [{"image": f"{i}.jpg", "caption": f"caption {i}"} for i in range(1000)]
    for folder in ("a", "b", "c"):
        (tmp_path / folder / "images").mkdir(parents=True)
        for row in rows:
            (tmp_path / folder / "images" / row["image"]).touch()
        if folder == "c":
            rows[501]["caption"] = "another"
        (tmp_path / folder / "list.json").write_text(json.dumps(rows))
    first, moved, changed = (data_seen.fingerprint(lists.load(tmp_path / name / "list.json")) for name in "abc")
    assert first == moved
    assert first != changed


def test_another_split_of_a_list_is_other_data(tmp_path):
    images = [{"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": split}]} for split in ("val", "test")]
    for image in images:
        (tmp_path / image["filename"]).touch()
    (tmp_path / "list.json").write_text(json.dumps({"images": images}))
    sources = [lists.load(tmp_path / "list.json", split=split) for split in ("val", "test")]
    assert data_seen.fingerprint(sources[0]) != data_seen.fingerprint(sources[1])


def test_tars_and_records_are_told_by_what_they_hold(tmp_path):
    def tar(name, texts):
        with tarfile.open(tmp_path / name, "w") as file:
            for key, text in texts.items():
                for end, data in ((".jpg", b"x"), (".txt", text.encode())):
                    member = tarfile.TarInfo(f"{key}{end}")
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))
        return data_seen.fingerprint(tars.load(str(tmp_path / name)))

    first = tar("0.tar", {"a": "one", "b": "two"})
    assert tar("1.tar", {"a": "one", "b": "two"}) == first
    assert tar("2.tar", {"a": "one", "c": "two"}) != first
    assert tar("3.tar", {"a": "one", "b": "longer"}) != first
