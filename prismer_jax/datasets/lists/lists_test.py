import json
import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from prismer_jax import datasets, input, label_files, labels, pp
from prismer_jax.datasets import compact_dicts, lists
from prismer_jax.errors import BadSample, UserError


@pytest.fixture
def photos(tmp_path):
    """a.jpg, b.png and sub/c.JPG, with what else lies in folders."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "sub/c.JPG"):
        Image.new("RGB", (8, 6), "red").save(root / name)
    (root / "notes.md").write_text("no photo")
    (root / ".hidden.jpg").write_text("no photo")
    return root


def write(path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def place(root, *names) -> None:
    """Photos at these paths: empty files, as lists are read without opening photos."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def everything(source) -> list[dict]:
    return [source[i] for i in range(len(source))]


def test_folders_are_searched_recursively_and_in_order(photos):
    source = datasets.load("lists", images=photos)
    assert [source[i]["id"] for i in range(len(source))] == ["a.jpg", "b.png", "sub/c.JPG"]
    assert source[2]["image"] == str(photos / "sub/c.JPG")
    assert source[0]["captions"] == []
    assert len(lists.load(images=photos, limit=2)) == 2


def test_single_files_are_photos_too_and_keep_different_ids(photos):
    Image.new("RGB", (8, 6)).save(photos / "sub/a.jpg")
    source = lists.load(images=[photos / "a.jpg", photos / "sub/a.jpg"])
    assert [source[i]["id"] for i in range(2)] == ["a.jpg", str(photos / "sub/a.jpg")]


def test_text_beside_a_photo_is_its_caption(photos):
    (photos / "a.txt").write_text("A red field. \nsecond line")
    source = lists.load(images=photos)
    assert source[0]["captions"] == ["A red field.", "second line"]
    (photos / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(BadSample, match=r"a\.txt"):
        source[0]


def test_coco_captions_are_one_example_a_photo(photos, tmp_path):
    path = write(
        tmp_path / "captions.json",
        {
            "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "sub/c.JPG"}],
            "annotations": [{"image_id": 7, "caption": "one"}, {"image_id": 7, "caption": "two"}],
        },
    )
    source = lists.load(path, images=photos, task="caption")
    assert source[0] == {"id": "7", "image": str(photos / "a.jpg"), "captions": ["one", "two"]}
    assert source[1]["captions"] == []


def test_official_caption_lists_group_the_captions_of_a_photo(photos):
    rows = [{"image": "a.jpg", "caption": "one"}, {"image": "b.png", "caption": ["x", "y"]}]
    rows.append({"image": "a.jpg", "caption": "two"})
    for path in (
        write(photos / "list.json", rows),
        write(photos / "list.jsonl", "\n".join(map(json.dumps, rows)) + "\n"),
    ):
        source = lists.load(path)
        assert [source[i]["captions"] for i in range(len(source))] == [["one", "two"], ["x", "y"]]
        assert source[0]["id"] == "a.jpg"
    test_list = write(photos / "test.json", [{"image": "a.jpg", "img_id": 3}])
    assert lists.load(test_list)[0] == {"id": "3", "image": str(photos / "a.jpg"), "captions": []}


def test_official_question_lists(photos):
    rows = [
        {"image": "a.jpg", "question": "what?", "answer": "red", "weight": 0.3, "dataset": "vqa", "question_id": 5},
        {"image": "a.jpg", "question": "why?", "answer": "so", "dataset": "vg"},
        {"image": "b.png", "question": "who?", "answer": ["he", "she"], "weight": [0.7, 0.3], "dataset": "vqa"},
        {"image": "b.png", "question": "untold?", "question_id": 9, "dataset": "vqa"},
    ]
    for folder in ("vqav2", "vg"):
        (photos / folder).mkdir()
        for name in ("a.jpg", "b.png"):
            Image.new("RGB", (8, 6)).save(photos / folder / name)
    source = lists.load(write(photos / "vqa.json", rows), images=f"{photos}/{{dataset}}")
    assert source[0] == {
        "id": "5",
        "photo": str(photos / "vqav2/a.jpg"),
        "image": str(photos / "vqav2/a.jpg"),
        "question": "what?",
        "question_type": "",
        "question_id": 5,
        "answers": ["red"] * 10,
        "weight": 0.3,
    }
    assert source[1]["weight"] == 0.2
    assert source[1]["image"] == str(photos / "vg/a.jpg")
    assert source[2]["answers"] == ["he", "she"]
    assert source[2]["answer_weights"] == [0.7, 0.3]
    assert source[3]["answers"] == []
    assert len({source[i]["id"] for i in range(4)}) == 4


def test_vqav2_pairs_of_files(photos, tmp_path):
    (photos / "val2014").mkdir()
    Image.new("RGB", (8, 6)).save(photos / "val2014/COCO_val2014_000000000042.jpg")
    question = {"image_id": 42, "question": "how many?", "question_id": 42001}
    questions = write(tmp_path / "q.json", {"data_subtype": "val2014", "questions": [question]})
    answers = [{"answer": "2"}] * 7 + [{"answer": "3"}] * 3
    annotation = {"question_id": 42001, "question_type": "how many", "answers": answers}
    annotations = write(tmp_path / "a.json", {"annotations": [annotation]})
    source = lists.load(questions=questions, annotations=annotations, images=photos)
    assert source[0]["answers"] == ["2"] * 7 + ["3"] * 3
    assert source[0]["question_type"] == "how many"
    assert source[0]["question_id"] == 42001
    assert lists.load(questions, images=photos)[0]["answers"] == []


def test_vqav2s_test_dev_is_of_the_photos_of_test(tmp_path):
    place(tmp_path, "test2015/COCO_test2015_000000000042.jpg")
    for part in ("test2015", "test-dev2015"):
        question = {"image_id": 42, "question": "how many?", "question_id": 42001}
        path = write(tmp_path / "q.json", {"data_subtype": part, "questions": [question]})
        assert lists.load(path)[0]["image"].endswith("test2015/COCO_test2015_000000000042.jpg")


def test_several_pairs_of_questions_and_answers_are_one_data_set(tmp_path):
    paths, answers = [], []
    for part, number in (("train2014", 7), ("val2014", 8)):
        place(tmp_path, f"{part}/COCO_{part}_{number:012d}.jpg")
        question = {"image_id": number, "question": f"of {part}?", "question_id": number}
        paths.append(write(tmp_path / f"q_{part}.json", {"data_subtype": part, "questions": [question]}))
        annotation = {"question_id": number, "question_type": "of", "answers": [{"answer": part}]}
        answers.append(write(tmp_path / f"a_{part}.json", {"annotations": [annotation]}))
    source = lists.load(paths, annotations=answers)
    assert [example["answers"][0] for example in everything(source)] == ["train2014", "val2014"]
    with pytest.raises(UserError, match="2 lists of questions, but 1 files"):
        lists.load(paths, annotations=answers[:1])


def test_karpathys_splits(tmp_path):
    images = []
    for number, split in enumerate(("train", "restval", "val", "test"), 1):
        part = "train2014" if split == "train" else "val2014"
        name = f"COCO_{part}_{number:012d}.jpg"
        place(tmp_path, f"{part}/{name}")
        image = {"filepath": part, "filename": name, "imgid": number - 1, "cocoid": number, "split": split}
        images.append({**image, "sentences": [{"raw": f"{split} one.", "tokens": []}, {"raw": "two."}]})
    path = write(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})
    assert [example["id"] for example in everything(lists.load(path, split="train"))] == ["1", "2"]
    assert [example["id"] for example in everything(lists.load(path, split="restval"))] == ["2"]
    assert lists.load(path, split="test")[0] == {
        "id": "4",
        "image": str(tmp_path / "val2014/COCO_val2014_000000000004.jpg"),
        "captions": ["test one.", "two."],
    }
    assert len(lists.load(path)) == 4
    with pytest.raises(UserError, match="no split 'dev', but restval, test, train, val"):
        lists.load(path, split="dev")
    flat = [{"filename": "1.jpg", "imgid": 0, "split": "train", "sentences": [{"raw": "a dog"}]}]  # as of Flickr30k
    place(tmp_path, "1.jpg")
    assert lists.load(write(tmp_path / "dataset_flickr30k.json", {"images": flat}))[0]["captions"] == ["a dog"]


def test_visual_genomes_own_files_find_photos_in_either_folder(tmp_path):
    place(tmp_path, "VG_100K/1.jpg", "VG_100K_2/2.jpg")
    regions = [{"id": n, "regions": [{"phrase": f"region {n}"}, {"phrase": "grass"}]} for n in (1, 2)]
    source = lists.load(write(tmp_path / "region_descriptions.json", regions), task="all")
    assert [example["name"] for example in everything(source)] == ["VG_100K/1.jpg", "VG_100K_2/2.jpg"]
    assert source[1]["captions"] == ["region 2", "grass"]
    assert source[1]["source"] == "vg"
    asked = [{"id": 2, "qas": [{"qa_id": 99, "image_id": 2, "question": "What is green?", "answer": "Grass."}]}]
    question = lists.load(write(tmp_path / "question_answers.json", asked))[0]
    assert question["answers"] == ["Grass."] * 10
    assert question["weight"] == 0.2
    assert question["id"] == "99"


def test_nocaps_says_the_domain_of_each_photo(tmp_path):
    images = [{"id": n, "file_name": f"{n}.jpg", "domain": f"{d}-domain"} for n, d in enumerate(("in", "near", "out"))]
    place(tmp_path, *(image["file_name"] for image in images))
    annotations = [{"image_id": 1, "id": 0, "caption": "a thing"}]
    path = write(tmp_path / "nocaps_val.json", {"images": images, "annotations": annotations})
    for task in (None, "all"):
        source = lists.load(path, task=task)
        assert [example["domain"] for example in everything(source)] == ["in-domain", "near-domain", "out-domain"]
        assert source[1]["captions"] == ["a thing"]


def test_lists_of_classes(tmp_path):
    place(tmp_path, "n01440764/1.JPEG")
    path = write(tmp_path / "fewshot.json", [{"image": "n01440764/1.JPEG", "class_name": "Tench"}])
    assert lists.load(path)[0] == {
        "id": "n01440764/1.JPEG",
        "image": str(tmp_path / "n01440764/1.JPEG"),
        "captions": ["tench"],
        "class_name": "Tench",
    }


def test_lists_of_captions_and_of_classes_join_what_they_say_of_a_photo(tmp_path):
    place(tmp_path, "1.jpg")
    captions = write(tmp_path / "captions.json", [{"image": "1.jpg", "caption": "a fish"}])
    classes = write(tmp_path / "classes.json", [{"image": "1.jpg", "class_name": "Tench", "domain": "in-domain"}])
    for paths in ([captions, classes], [classes, captions]):
        example = lists.load(paths)[0]
        assert (example["class_name"], example["domain"]) == ("Tench", "in-domain")
        assert sorted(example["captions"]) == ["a fish", "tench"]


def test_coco_files_of_boxes_alone_are_photos(tmp_path):
    place(tmp_path, "1.jpg")
    instances = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}
    assert lists.load(write(tmp_path / "instances.json", instances))[0]["captions"] == []


def test_the_official_layout_is_read_unchanged(tmp_path):
    """Lists in one folder, photos in DATA/vqav2, DATA/vg and DATA/nocaps, label files by the same names."""
    coco = "val2014/COCO_val2014_000000000005.jpg"
    place(tmp_path, f"vqav2/{coco}", "vg/VG_100K/2.jpg", "vg/image/3.jpg", "nocaps/val/00a.jpg")
    label_files.write(f"{tmp_path}/labels/{{expert}}/vqav2", "edge", coco, labels.blank("edge", 6, 8))
    label_files.write(f"{tmp_path}/labels/{{expert}}/vg", "edge", "VG_100K/2.jpg", labels.blank("edge", 6, 8))
    place_of_labels = f"{tmp_path}/labels/{{expert}}/{{dataset}}"
    # Visual Genome's captions came with the paths of their author's disk.
    captions = [
        {"image": coco, "caption": "a", "image_id": "coco_5"},
        {"image": coco, "caption": "b", "image_id": "coco_5"},
        {"image": "/export/share/visual-genome/VG_100K/2.jpg", "caption": "c"},
        {"image": "visual-genome/image/3.jpg", "caption": "d"},
    ]
    source = lists.load(write(tmp_path / "pretrain.json", captions), labels=place_of_labels, task="all")
    assert [example["id"] for example in everything(source)] == ["5", "VG_100K/2.jpg", "image/3.jpg"]
    assert [example["source"] for example in everything(source)] == ["vqav2", "vg", "vg"]
    assert source[0]["captions"] == ["a", "b"]
    assert source[0]["labels/edge"].endswith("edge/vqav2/val2014/COCO_val2014_000000000005.png")
    assert source[1]["labels/edge"].endswith("edge/vg/VG_100K/2.png")
    questions = [
        {
            "image": coco,
            "question": "q?",
            "answer": ["x", "y"],
            "weight": [0.9, 0.1],
            "dataset": "vqa",
            "question_id": 1,
        },
        {"image": "VG_100K/2.jpg", "question": "q?", "answer": "z", "dataset": "vg", "question_id": 1},
    ]
    source = lists.load(write(tmp_path / "vqa.json", questions), labels=place_of_labels)
    assert [example["image"] for example in everything(source)] == [
        str(tmp_path / "vqav2" / coco),
        str(tmp_path / "vg/VG_100K/2.jpg"),
    ]
    assert all("labels/edge" in example for example in everything(source))
    assert source[0]["answer_weights"] == [0.9, 0.1]
    nocaps = write(tmp_path / "nocaps_val.json", [{"image": "val/00a.jpg", "img_id": 0}])
    assert lists.load(nocaps, images=f"{tmp_path}/{{dataset}}", source="nocaps")[0]["id"] == "0"
    with pytest.raises(UserError, match=r"nocaps_val\.json: does not say what '{dataset}'.*source"):
        lists.load(nocaps, images=f"{tmp_path}/{{dataset}}")


def test_everything_of_a_photo_is_one_item_of_the_task_all(tmp_path):
    place(
        tmp_path, "vqav2/train2014/COCO_train2014_000000000005.jpg", "vqav2/train2014/COCO_train2014_000000000006.jpg"
    )
    images = [{"id": n, "file_name": f"train2014/COCO_train2014_{n:012d}.jpg"} for n in (5, 6)]
    captions = write(
        tmp_path / "captions.json", {"images": images, "annotations": [{"image_id": 5, "caption": "a cat"}]}
    )
    rows = [
        {"image": images[1]["file_name"], "question": f"{n}?", "answer": "yes", "question_id": n, "dataset": "vqa"}
        for n in (1, 2)
    ]
    questions = write(tmp_path / "questions.json", rows)
    source = lists.load([captions, questions], task="all")
    assert source[0] == {
        "id": "5",
        "image": str(tmp_path / "vqav2/train2014/COCO_train2014_000000000005.jpg"),
        "name": "train2014/COCO_train2014_000000000005.jpg",
        "source": "vqav2",
        "captions": ["a cat"],
        "questions": [],
    }
    assert [question["question"] for question in source[1]["questions"]] == ["1?", "2?"]
    assert source[1]["questions"][0] == {
        "question": "1?",
        "question_type": "",
        "question_id": 1,
        "answers": ["yes"] * 10,
        "weight": 1.0,
    }
    assert len(source) == 2
    assert len(lists.load([captions, questions], task="all", limit=1)) == 1
    assert len(lists.load([captions, questions], task="question")) == 2
    assert len(lists.load([captions, questions], task="question", limit=1)) == 1
    assert lists.load([captions, questions], task="caption")[0]["captions"] == ["a cat"]
    assert lists.load(captions, task="all", source="mine")[0]["source"] == "mine"
    assert lists.load(questions, task="all")[0]["id"] == "6"  # COCO's number
    photos = lists.load(images=tmp_path / "vqav2", task="all")
    assert photos[0]["name"] == "train2014/COCO_train2014_000000000005.jpg"
    assert photos[0]["source"] == "vqav2"
    assert photos[0]["questions"] == []


def test_two_photos_with_one_id_of_a_coco_file_are_an_error_that_names_both(tmp_path):
    place(tmp_path, "1.jpg", "2.jpg")
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": "1", "file_name": "2.jpg"}]
    path = write(tmp_path / "c.json", {"images": images, "annotations": [{"image_id": 1, "caption": "x"}]})
    with pytest.raises(UserError, match=r"c\.json: the photos 1\.jpg and 2\.jpg have one id"):
        lists.load(path)
    own = write(tmp_path / "own.json", [{"image": f"{n}.jpg", "id": 7, "caption": f"of {n}"} for n in (1, 2)])
    assert [example["captions"] for example in everything(lists.load(own))] == [["of 1"], ["of 2"]]
    assert len({example["id"] for example in everything(lists.load(own))}) == 2


def test_question_ids_that_restart_in_each_photo_drop_and_join_nothing(tmp_path, caplog):
    place(tmp_path, "1.jpg", "2.jpg")
    rows = [
        {"image": f"{n}.jpg", "question": f"{q} of {n}?", "question_id": q, "answer": answer}
        for n in (1, 2)
        for q in (0, 1)
        for answer in ("a", "b")
    ]
    rows.append({"image": "1.jpg", "question": "alone?", "question_id": 2, "answer": "c"})
    source = lists.load(write(tmp_path / "q.json", rows))
    assert [example["id"] for example in everything(source)] == ["1.jpg#0", "1.jpg#1", "2", "2.jpg#0", "2.jpg#1"]
    assert [example["answers"] for example in everything(source)] == [*[["a", "b"]] * 2, ["c"] * 10, *[["a", "b"]] * 2]
    assert "question_id" not in source[0]
    assert not source.dropped
    assert "2 questions have the id of another, such as 0" in caplog.text


def test_a_row_joins_a_question_without_an_answer_and_takes_none_from_one_with_several(tmp_path):
    place(tmp_path, "1.jpg")
    rows = [
        {"image": "1.jpg", "question": f"{id}?", "question_id": id, "answer": answer}
        for id, answer in ((1, None), (1, "a"), (1, "b"), (2, ["a", "b"]), (2, "c"))
    ]
    source = lists.load(write(tmp_path / "q.json", rows), max_missing=1)
    assert [example["answers"] for example in everything(source)] == [["a", "b"], ["a", "b"]]
    assert source[0]["answer_weights"] == [1.0, 1.0]
    assert source.dropped.counts == {"duplicate question": 1}


def test_question_ids_keep_their_form(tmp_path):
    place(tmp_path, "1.jpg", "2.jpg")
    ids = ["01827492", "1827492", 7, "22MexNkBPpdZGX6sxbxVBH"]
    rows = [{"image": "1.jpg", "question": f"{n}?", "answer": "x", "question_id": id} for n, id in enumerate(ids)]
    assert [example["question_id"] for example in everything(lists.load(write(tmp_path / "q.json", rows)))] == ids


def test_cells_with_nothing_in_them_are_no_ids(tmp_path):
    place(tmp_path, "1.jpg", "2.jpg")
    rows = [{"image": "1.jpg", "image_id": float("nan")}, {"image": "2.jpg", "image_id": " ", "id": 7}]
    assert [example["id"] for example in everything(lists.load(write(tmp_path / "l.json", rows)))] == ["1.jpg", "7"]


def test_ids_of_several_lists_stay_different(tmp_path):
    place(tmp_path, "a/1.jpg", "b/1.jpg", "c/1.jpg")
    paths = [write(tmp_path / folder / "list.json", [{"image": "1.jpg", "id": 1}]) for folder in "abc"]
    ids = ["1", "list/1", str(tmp_path / "c/1.jpg")]
    assert [example["id"] for example in everything(lists.load(paths))] == ids


def test_texts_that_are_not_utf8_or_empty_are_dropped_and_counted(tmp_path, caplog):
    place(tmp_path, "1.jpg")
    path = tmp_path / "list.jsonl"
    lines = [
        b'{"image": "1.jpg", "caption": "%s"}' % text
        for text in (b"good", b"b\xe9d", b"\\ud83d", b" ", b"gut \xc3\xb6")
    ]
    path.write_bytes(b"\n".join(lines))
    caplog.set_level(logging.WARNING)
    with pytest.raises(UserError, match=r"3 of 5 texts cannot be used: 2 x caption that is not UTF-8.*max_missing"):
        lists.load(path)
    source = lists.load(path, max_missing=1)
    assert source[0]["captions"] == ["good", "gut \u00f6"]
    assert source.dropped.counts == {"caption that is not UTF-8": 2, "empty caption": 1}
    assert "left out: 2 x caption that is not UTF-8, the first: " in caplog.text
    rows = [b'{"image": "1.jpg", "question": "%s?", "answer": "x"}' % text for text in (b"b\xe9d", b"ok")]
    (tmp_path / "q.json").write_bytes(b"[%s]" % b",".join(rows))
    source = lists.load(tmp_path / "q.json", max_missing=1)
    assert [example["question"] for example in everything(source)] == ["ok?"]
    assert source.dropped.counts == {"question that is not UTF-8": 1}


def test_paths_never_lead_out_of_the_folder_of_labels(tmp_path):
    place(tmp_path, "photos/1.jpg", "lists/x")
    path = write(tmp_path / "lists/list.json", [{"image": "../photos/1.jpg", "caption": "x"}])
    example = lists.load(path, task="all")[0]
    assert (tmp_path / "lists" / example["image"]).resolve() == tmp_path / "photos/1.jpg"
    assert example["name"] == "photos/1.jpg"


def test_labels_lie_beside_by_the_photos_path(photos, tmp_path):
    label_files.write(tmp_path / "labels", "depth", "sub/c.JPG", labels.blank("depth", 6, 8))
    label_files.write(
        tmp_path / "labels", "obj_detection", "sub/c.JPG", labels.blank("obj_detection", 6, 8), classes=[3]
    )
    source = lists.load(images=photos, labels=tmp_path / "labels")
    assert not [key for key in source[0] if key.startswith("labels/")]
    assert source[2]["labels/depth"] == str(tmp_path / "labels/depth/sub/c.png")
    assert source[2][labels.CLASSES_KEY][0] == 3
    only = lists.load(images=photos, labels=tmp_path / "labels", experts="depth")
    assert labels.CLASSES_KEY not in only[2]
    # The official repository has a folder per data set inside each expert's.
    label_files.write(f"{tmp_path}/official/{{expert}}/vqav2", "edge", "a.jpg", labels.blank("edge", 6, 8))
    rows = [{"image": "a.jpg", "question": "what?", "dataset": "vqa"}]
    source = lists.load(write(photos / "q.json", rows), labels=f"{tmp_path}/official/{{expert}}/{{dataset}}")
    assert source[0]["labels/edge"].endswith("official/edge/vqav2/a.png")


def test_missing_photos_are_left_out_up_to_a_fraction(photos, caplog):
    rows = [{"image": name, "caption": "x"} for name in ("a.jpg", "gone.jpg", "b.png", "nowhere/d.jpg")]
    path = write(photos / "list.json", rows)
    with pytest.raises(
        UserError, match=r"list\.json: 2 of 4 photos are missing, the first is .*gone\.jpg.*max_missing"
    ):
        lists.load(path)
    caplog.set_level(logging.WARNING)
    assert len(lists.load(path, max_missing=0.5)) == 2
    assert "left out: 2 x missing photo, the first: " in caplog.text
    assert lists.load(path, max_missing=1).dropped.counts == {"missing photo": 2}
    (photos / "a.jpg").unlink()
    (photos / "b.png").unlink()
    with pytest.raises(UserError, match="4 of 4 photos are missing"):
        lists.load(path, max_missing=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image": "a.jpg"},\n {"image": }]', "line 2 is not JSON"),
        ("[]", "no list of entries"),
        ("{}", "an object with nothing in it"),
        ('[{"caption": "x"}]', "lacks 'image'"),
        ('[{"image": 5, "caption": "x"}]', "path of a photo is 5"),
        ('[{"image": "a.jpg", "caption": 5}]', "list"),
        ('[{"image": "a.jpg", "caption": [5]}]', r"caption that is not a text, the first: .*a\.jpg: 5"),
        ("[1, 2]", "list"),
        ('[{"image": "a.jpg", "question": "q", "answer": ["a", "b"], "weight": [1]}]', "2 answers but 1 weights"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2, "caption": "x"}]}', "photo 2"),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": 5}]}',
            r"caption that is not a text, the first: .*a\.jpg: 5",
        ),
        ('[{"url": "http://example.com/a.jpg", "caption": "x"}]', "img2dataset"),
        ('{"questions": [{"question_id": 1, "image_id": 1, "question": "q"}]}', "data_subtype"),
    ],
)
def test_malformed_lists_are_one_line_with_the_file(photos, content, message):
    path = write(photos / "list.json", content)
    with pytest.raises(UserError, match=message) as error:
        lists.load(path)
    assert str(error.value).startswith(path)
    assert "\n" not in str(error.value)


def test_malformed_lines_of_jsonl_are_named(photos):
    path = write(photos / "list.jsonl", '{"image": "a.jpg", "caption": "x"}\n\n{"image"\n')
    with pytest.raises(UserError, match=r"list\.jsonl: line 3"):
        lists.load(path)


def test_wrong_arguments_are_explained(photos, tmp_path):
    captions = write(photos / "list.json", [{"image": "a.jpg", "caption": "x"}])
    for kwargs, message in [
        ({}, "Give `path`"),
        ({"images": tmp_path / "nothing"}, "no such photo or folder"),
        ({"images": tmp_path / "nothing", "task": "question"}, "no questions"),
        ({"path": tmp_path / "nothing.json"}, "nothing.json: cannot be read"),
        ({"path": captions, "task": "question"}, "for the task 'caption'"),
        ({"path": captions, "annotations": captions}, "leave `annotations` out"),
        ({"path": captions, "questions": captions}, "not both"),
        ({"path": captions, "labels": tmp_path / "none"}, "no such folder of labels"),
        ({"path": captions, "experts": "depht"}, "'depth'"),
    ]:
        with pytest.raises(UserError, match=message):
            lists.load(**kwargs)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no photos"):
        lists.load(images=tmp_path / "empty")


def test_real_lists_load_and_preprocess(shared):
    data = shared / "data"
    flickr = lists.load(data / "captions/flickr8k_1k/captions_train.json")
    coco = lists.load(
        data / "captions/coco_mini/captions_val.json", images=data / "captions/coco_mini/images/val2017", limit=10
    )
    daquar = lists.load(
        questions=data / "vqa/daquar/questions_test.json", annotations=data / "vqa/daquar/annotations_test.json"
    )
    assert (len(flickr), len(coco)) == (800, 10)
    assert len(flickr[0]["captions"]) == 5
    assert len(daquar[0]["answers"]) == 10
    assert daquar[0]["question_type"] == "how many"
    tokenizer = pp.tokenizer.load(f"sentencepiece:{data}/sentencepiece/test_model.model")
    chain = pp.build("labels_for|decode|resize(64, label_size=32)|question_prompt|tokenize(80)", tokenizer)
    (batch,) = [b for _, b in zip(range(1), input.eval_batches(daquar, chain, batch_size=4), strict=False)]
    assert batch["image"].shape == (4, 64, 64, 3)
    assert batch["labels/normal"].shape == (4, 32, 32, 3)
    assert batch["meta"][3]["question_id"] == daquar[3]["question_id"]
    chain = pp.build("labels_for|decode|random_resized_crop(64)|flip|randaugment|caption|tokenize(40)", tokenizer)
    mixture = [{"source": flickr, "pp": chain}, {"source": coco, "pp": chain}]
    loader = input.train_batches(mixture, batch_size=8, seed=0)
    batch = next(loader)
    loader.close()
    assert batch["text"].shape == (8, 40)
    assert batch["image"].std() > 10


def test_photos_of_the_demo_decode(shared):
    source = lists.load(images=shared / "data/photos")
    chain = pp.build("decode|labels_for|resize(480, label_size=224)")
    assert len(source) == 5
    for i in range(5):
        out = chain(source[i], np.random.default_rng(0))
        assert out["image"].shape == (480, 480, 3)
        assert (out["labels/seg_coco"] == 255).all()


def test_sources_can_be_pickled_and_hold_little(photos):
    source = lists.load(images=photos)
    assert pickle.loads(pickle.dumps(source))[1] == source[1]
    assert source[-1] == source[2]
    assert source.name(2) == "sub/c.JPG"
    with pytest.raises(IndexError):
        source[3]
    items = compact_dicts.CompactDicts({"id": str(n), "name": "x" * 50} for n in range(1000))
    assert len(pickle.dumps(items)) < 100_000


def test_vqav2_tells_the_type_of_the_question_and_of_the_answer(tmp_path):
    (tmp_path / "train2014").mkdir()
    (tmp_path / "train2014/COCO_train2014_000000000007.jpg").write_bytes(b"photo")
    question = {"question_id": 1, "image_id": 7, "question": "How many?"}
    answer = {"question_id": 1, "question_type": "how many", "answer_type": "number", "answers": [{"answer": "2"}]}
    asked, given = tmp_path / "q.json", tmp_path / "a.json"
    asked.write_text(json.dumps({"data_subtype": "train2014", "questions": [question]}))
    given.write_text(json.dumps({"annotations": [answer]}))
    (example,) = lists.load(asked, annotations=given)
    assert (example["question_type"], example["answer_type"]) == ("how many", "number")
