import json
import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from prismer_jax import datasets, input, labels, pp
from prismer_jax.datasets import lists
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
    assert source[0]["captions"] == ["A red field."]
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


def test_labels_lie_beside_by_the_photos_path(photos, tmp_path):
    labels.write(tmp_path / "labels", "depth", "sub/c.JPG", labels.blank("depth", 6, 8))
    labels.write(tmp_path / "labels", "obj_detection", "sub/c.JPG", labels.blank("obj_detection", 6, 8), classes=[3])
    source = lists.load(images=photos, labels=tmp_path / "labels")
    assert not [key for key in source[0] if key.startswith("labels/")]
    assert source[2]["labels/depth"] == str(tmp_path / "labels/depth/sub/c.png")
    assert source[2][labels.CLASSES_KEY][0] == 3
    only = lists.load(images=photos, labels=tmp_path / "labels", experts="depth")
    assert labels.CLASSES_KEY not in only[2]
    # The official repository has a folder per data set inside each expert's.
    labels.write(f"{tmp_path}/official/{{expert}}/vqav2", "edge", "a.jpg", labels.blank("edge", 6, 8))
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image": "a.jpg"},\n {"image": }]', "line 2 is not JSON"),
        ("[]", "no list of a format"),
        ("{}", "no list of a format"),
        ('[{"caption": "x"}]', "lacks 'image'"),
        ('[{"image": 5, "caption": "x"}]', "path of a photo is 5"),
        ('[{"image": "a.jpg", "caption": 5}]', "list"),
        ('[{"image": "a.jpg", "caption": [5]}]', "caption is 5"),
        ("[1, 2]", "list"),
        ('[{"image": "a.jpg", "question": "q", "answer": ["a", "b"], "weight": [1]}]', "2 answers but 1 weights"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2, "caption": "x"}]}', "photo 2"),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": 5}]}',
            "caption is 5",
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


def test_sources_can_be_pickled(photos):
    source = lists.load(images=photos)
    assert pickle.loads(pickle.dumps(source))[1] == source[1]
