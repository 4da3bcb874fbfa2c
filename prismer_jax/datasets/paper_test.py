"""The paper's data sets in every form, on the miniature; and few-shot draws."""

import json
import pathlib

import pytest

from prismer_jax.datasets import fewshot, load, miniature, paper
from prismer_jax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return miniature.folder(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", paper.SETS)
def test_every_set_is_read_with_its_labels(folder, name):
    source = load(**paper.find(folder, name))
    example = source[0]
    assert sum(key.startswith("labels/") for key in example) == 8  # six maps, two tables
    has_texts = not name.endswith("_test") or name == "coco_test"
    kind = "answers" if paper.SETS[name].task == "question" else "captions"
    assert bool(example[kind]) == has_texts
    assert not any(key.startswith("labels/") for key in load(**paper.find(folder, name, "none"))[0])


def test_labels_lie_as_our_tool_or_as_the_official_code_writes_them(tmp_path):
    (tmp_path / "coco_karpathy_val.json").write_text("[]")
    with pytest.raises(UserError, match=r"no labels of depth for the photos in vqav2.*--output .*/labels/vqav2"):
        paper.find(str(tmp_path), "coco_val", "depth")
    (tmp_path / "labels/depth/vqav2").mkdir(parents=True)
    assert paper.find(str(tmp_path), "coco_val", "depth")["labels"] == f"{tmp_path}/labels/{{expert}}/vqav2"
    (tmp_path / "labels/vqav2/depth").mkdir(parents=True)
    assert paper.find(str(tmp_path), "coco_val", "depth")["labels"] == f"{tmp_path}/labels/vqav2/{{expert}}"
    assert paper.find(str(tmp_path), "vg_qa", "depth")["labels"] == f"{tmp_path}/labels/{{dataset}}/{{expert}}"


def test_ids_and_counts_are_those_of_the_official_lists(folder):
    train = load(**paper.find(folder, "coco"))
    assert (len(train), train.texts) == (12, 5 * 12)
    assert load(**paper.find(folder, "vg")).texts == 3 * 4
    assert load(**paper.find(folder, "coco_test"))[0]["id"] == "12"  # COCO's number, from the file's name
    assert load(**paper.find(folder, "nocaps_val"))[0]["domain"] == "in-domain"


def test_rows_of_a_question_are_its_answers_with_their_weights(folder):
    rows = json.loads(pathlib.Path(folder, "vqav2_train_val.json").read_text())
    source = load(**paper.find(folder, "vqav2"))
    assert len(source) == len({row["question_id"] for row in rows}) < len(rows)
    seen = 0
    for example in (source[i] for i in range(len(source))):
        mine = [row for row in rows if row["question_id"] == example["question_id"]]
        seen += len(mine)
        if len(mine) > 1:
            assert example["answers"] == [row["answer"] for row in mine]
            assert example["answer_weights"] == [row["weight"] for row in mine]
    assert seen == len(rows)
    assert load(**paper.find(folder, "vg_qa"))[0]["weight"] == 0.2


def test_shards_and_tars_are_preferred_to_lists(tmp_path):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco/manifest.json").write_text("{}")
    (tmp_path / "cc12m").mkdir()
    (tmp_path / "cc12m/00000.tar").write_bytes(b"")
    data = str(tmp_path)
    assert paper.find(data, "coco") == {"name": "records", "path": f"{data}/coco", "task": "caption"}
    assert paper.find(data, "cc12m", "none") == {"name": "tars", "path": f"{data}/cc12m"}
    assert paper.find("gs://bucket/data", "vqav2")["path"] == "gs://bucket/data/vqav2"
    with pytest.raises(UserError, match="Unknown data set of the paper 'cocoa'"):
        paper.find(data, "cocoa")


@pytest.fixture
def classes(tmp_path):
    for name in ("n1", "n2"):
        (tmp_path / name).mkdir()
        for i in range(6):
            (tmp_path / name / f"{i}.JPEG").write_bytes(b"")
    (tmp_path / "names.json").write_text(json.dumps(["Tench", "T-shirt"]))
    (tmp_path / "indices.json").write_text(json.dumps({"n1": "1", "n2": "0"}))
    return tmp_path


def test_fewer_shots_are_among_more_and_a_seed_draws_the_same(classes):
    def photos(**options):
        source = fewshot.load(classes, **options)
        return [source[i]["id"] for i in range(len(source))]

    assert photos() == [f"{name}/{i}.JPEG" for name in ("n1", "n2") for i in range(6)]
    draws = [photos(shots=k) for k in (1, 2, 4)]
    assert [len(draw) for draw in draws] == [2, 4, 8]
    assert set(draws[0]) < set(draws[1]) < set(draws[2])
    assert photos(shots=2) == draws[1]
    assert len({tuple(photos(shots=2, seed=seed)) for seed in range(5)}) > 1
    assert photos(shots=1) == ["n1/2.JPEG", "n2/0.JPEG"]  # for ever
    assert photos(limit=4) == ["n1/0.JPEG", "n1/3.JPEG", "n2/0.JPEG", "n2/3.JPEG"]
    assert [len(photos(limit=limit)) for limit in (5, 11, 12, 13)] == [5, 11, 12, 12]


def test_classes_have_their_official_names(classes):
    named = fewshot.load(classes, names=classes / "names.json", indices=classes / "indices.json")
    assert (named[0]["class_name"], named[0]["captions"]) == ("T-shirt", ["t-shirt"])
    assert fewshot.load(classes, names=classes / "names.json")[0]["class_name"] == "Tench"
    assert fewshot.load(classes)[0]["class_name"] == "n1"


def test_what_is_no_folder_of_classes_is_refused(classes):
    for options, message in [
        (dict(path=classes / "x"), "x: no such folder with a folder of photos for each class"),
        (dict(path=classes, shots=7), "n1: has 6 photos, fewer than the 7 wanted"),
        (dict(path=classes, shots=0), "shots=0: at least 1"),
        (dict(path=classes, names=classes / "indices.json"), "indices.json: holds no JSON list"),
        (dict(path=classes, names=classes / "no.json"), "no.json: cannot be read"),
    ]:
        with pytest.raises(UserError, match=message):
            fewshot.load(**options)
    (classes / "names.json").write_text(json.dumps(["Tench", "Goldfish", "T-shirt"]))  # the second has no folder
    with pytest.raises(UserError, match=r"names\.json: has 3 names for 2 folders.*give `indices`"):
        fewshot.load(classes, names=classes / "names.json")
    (classes / "indices.json").write_text('{"n1": "7"}')
    with pytest.raises(UserError, match=r"indices\.json: says no class for the folder 'n1'"):
        fewshot.load(classes, names=classes / "names.json", indices=classes / "indices.json")
