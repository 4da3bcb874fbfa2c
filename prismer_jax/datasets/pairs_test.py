"""Rows of {image, prefix, suffix}: what is read of them, what is drawn, and which lines are wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from prismer_jax import pp
from prismer_jax.datasets import load
from prismer_jax.errors import BadSample, UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    return tmp_path


def write(folder, *rows, name="rows.jsonl"):
    (folder / name).write_text("".join(row if isinstance(row, str) else f"{json.dumps(row)}\n" for row in rows))
    return load("pairs", path=folder / name)


def turns(example, op):
    return pp.build(op)(example, RNG)["turns"]


def test_a_prefix_is_asked_as_it_is_and_a_suffix_is_drawn(folder):
    source = write(
        folder,
        {"image": "a.jpg", "prefix": "caption en", "suffix": "a cat"},
        {"image": "b.jpg", "prefix": "detect cat", "suffix": ["<loc0001>", "<loc0002>"]},
        {"image": "a.jpg", "suffix": "A Dog"},
    )
    assert [source[i]["image"] for i in range(3)] == [str(folder / name) for name in ("a.jpg", "b.jpg", "a.jpg")]
    assert turns(source[0], "affix('never')") == [{"user": "caption en", "assistant": "a cat"}]
    assert turns(source[2], "affix('caption en', lower=True)") == [{"user": "caption en", "assistant": "a dog"}]
    assert {turns(source[1], "affix('')")[0]["assistant"] for _ in range(30)} == {"<loc0001>", "<loc0002>"}
    assert turns(source[1], "affix('', learn=False)") == [{"user": "detect cat"}]


def test_fields_make_a_prefix(folder):
    row = {"image": "a.jpg", "question": "Which {x}?", "choices": ["iron", "wood"], "answer": 1, "hint": "Look."}
    example = write(folder, row)[0]
    assert turns(example, "affix('answer en  {question} choose from: {choices}')") == [
        {"user": "answer en  Which {x}? choose from: iron \t wood", "assistant": "wood"}
    ]
    op = "affix('{question} {hint} {choices}', lettered=True)"
    both = {(turn["user"], turn["assistant"]) for turn in (turns(example, op)[0] for _ in range(30))}
    assert both == {
        ("Which {x}? Look. (A) iron, (B) wood", "The answer is B."),
        ("Which {x}? Look. (A) wood, (B) iron", "The answer is A."),
    }
    asked = turns(example, "affix('{question} {choices}', lettered=True, learn=False)")
    assert asked == [{"user": "Which {x}? (A) iron, (B) wood"}]
    with pytest.raises(BadSample, match="has no text 'language'"):
        turns(example, "affix('caption {language}')")


def test_choices_that_are_numbers_are_said_as_texts(folder):
    example = write(folder, {"image": "a.jpg", "question": "How many?", "choices": [3, 4.0], "answer": 4})[0]
    assert turns(example, "affix('{choices}')") == [{"user": "3 \t 4", "assistant": "4"}]
    both = {turns(example, "affix('{choices}', lettered=True)")[0]["assistant"] for _ in range(30)}
    assert both == {"The answer is A.", "The answer is B."}


@pytest.mark.parametrize(
    ("said", "text"),
    [({"answer": 2.0}, "2"), ({"suffix": [2.0]}, "2"), ({"answer": 1.0, "choices": ["x", "y"]}, "y")],
)
def test_numbers_of_a_column_with_gaps_are_whole(folder, said, text):
    assert write(folder, {"image": "a.jpg", **said})[0]["answers"] == [text]


def test_columns_that_say_nothing_of_a_row_count_as_absent(folder):
    source = write(
        folder,
        {"image": "a.jpg", "images": None, "suffix": "x", "question_id": None, "id": 5},
        {"image": None, "images": ["a.jpg", "b.jpg"], "suffix": "x", "question_id": float("nan"), "id": ""},
    )
    assert [source[i]["image"] for i in range(2)] == [
        str(folder / "a.jpg"),
        [str(folder / n) for n in ("a.jpg", "b.jpg")],
    ]
    assert [source[i]["id"] for i in range(2)] == ["5", "rows/1"]
    assert not any("question_id" in source[i] for i in range(2))


def test_what_pandas_writes_of_an_empty_cell_is_absent(folder):
    nan = float("nan")
    rows = [{"prefix": "caption en", "suffix": nan, "captions": ["a cat"]}, {"question": nan, "suffix": "a cat"}]
    rows += [{"question": "Which?", "choices": nan, "hint": nan, "answer": nan}]
    source = write(folder, *({"image": "a.jpg", **row} for row in rows))
    assert [source[i]["answers"] for i in range(3)] == [["a cat"], ["a cat"], []]
    assert not {"question", "choices", "hint"} & source[1].keys()
    with pytest.raises(BadSample, match="has no text 'hint'"):
        turns(source[2], "affix('{question} {hint}', learn=False)")


def test_a_weight_is_a_number_or_absent(folder):
    given = (None, float("nan"), "", 2, "0.5", 0, "12 kg", -1, [1])
    source = write(folder, *({"image": "a.jpg", "prefix": "x", "suffix": "y", "weight": one} for one in given))
    assert [source[i].get("weight") for i in range(6)] == [None, None, None, 2.0, 0.5, 0.0]
    for place in range(6, 9):
        with pytest.raises(BadSample) as error:
            source[place]
        assert str(error.value) == f"{folder}/rows.jsonl: sample {place}: a weight is {given[place]!r}"


def test_suffixes_are_drawn_by_the_weights_of_answers():
    asked = {"question": "Who?", "answers": ["me", "you"], "answer_weights": [0.0, 0.5]}
    assert {turns(asked, "affix('{question}')")[0]["assistant"] for _ in range(30)} == {"you"}


def test_frames_are_spread_evenly_and_repeated(folder):
    for number in range(5):
        Image.new("RGB", (4, 4), (number * 50,) * 3).save(folder / f"{number}.png")
    source = write(folder, {"images": [f"{number}.png" for number in range(5)], "suffix": "x"})

    def levels(frames):
        return pp.build(f"decode|stretch(4, frames={frames})")(source[0], RNG)["image"][:, 0, 0, 0].tolist()

    assert levels(3) == [0, 100, 200]
    assert levels(8) == [0, 50, 50, 100, 100, 150, 150, 200]
    with pytest.raises(BadSample, match="has 5 photos"):
        pp.build("decode|stretch(4)")(source[0], RNG)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json\n", "sample 0: Expecting"),
        ("[1]\n", "sample 0: is list, not an object"),
        ({"suffix": "x"}, "sample 0: has no image"),
        ({"image": "a.jpg", "suffix": {"text": "x"}}, "its suffix is {'text': 'x'} instead of a text"),
        ({"image": "a.jpg", "answers": ["x", float("nan")]}, "its suffix is nan instead of a text"),
        ({"image": "a.jpg", "prefix": 3, "suffix": "x"}, "its prefix is 3 instead of a text"),
        ({"image": "a.jpg", "question": ["a"], "suffix": "x"}, "its question is ['a'] instead of a text"),
        ({"image": "a.jpg", "choices": ["x", None], "suffix": "x"}, "its choice is None instead of a text"),
        ({"image": "a.jpg", "choices": 3, "suffix": "x"}, "its choices are 3 instead of a list"),
        ({"image": "a.jpg", "choices": ["x"], "answer": 1}, "its answer is choice 1 of 1"),
        ({"image": "a.jpg", "choices": [1, 2, 3], "answer": 2}, "its answer 2 may be one of the choices"),
    ],
)
def test_wrong_lines_are_bad_samples_that_name_file_and_line(folder, row, message):
    source = write(folder, row)
    with pytest.raises(BadSample) as error:
        source[0]
    assert message in str(error.value)
    assert "rows.jsonl" in str(error.value)


def test_of_a_list_each_photo_counts_once_whatever_its_captions(folder):
    (folder / "list.json").write_text(
        json.dumps([{"image": "a.jpg", "caption": ["x", "y"]}, {"image": "b.jpg", "caption": "z"}])
    )
    source = load("pairs", path=folder / "list.json", images=folder, task="caption")
    assert (len(source), getattr(source, "texts", None)) == (2, None)
    assert turns(source[1], "affix('caption en')") == [{"user": "caption en", "assistant": "z"}]
    with pytest.raises(UserError, match="no such file"):
        load("pairs", path=folder / "absent.jsonl")


def test_labels_lie_in_a_folder_under_the_names_of_photos(folder):
    (folder / "labels/depth").mkdir(parents=True)
    Image.new("L", (8, 6), 7).save(folder / "labels/depth/a.png")
    write(folder, {"image": "a.jpg", "suffix": "x"}, {"image": "b.jpg", "suffix": "x"})
    source = load("pairs", path=folder / "rows.jsonl", labels=folder / "labels")
    maps = [pp.build("labels_for('depth')|decode")(source[i], RNG)["labels/depth"] for i in range(2)]
    assert (maps[0] == 7).all()
    assert (maps[1] != 7).all()  # the background
    with pytest.raises(UserError, match="no such folder of labels"):
        load("pairs", path=folder / "rows.jsonl", labels=folder / "nowhere")


@pytest.mark.parametrize("given", [True, False], ids=["images", "beside the table"])
def test_labels_are_found_however_a_photos_path_is_spelled(folder, given):
    (folder / "labels/depth/sub").mkdir(parents=True)
    (folder / "sub").mkdir()
    Image.new("RGB", (8, 6)).save(folder / "sub/a.png")
    Image.new("L", (8, 6), 7).save(folder / "labels/depth/sub/a.png")
    (link := folder.with_name(f"{folder.name}_link")).symlink_to(folder)
    spelled = ["sub/a.png", "./sub/a.png", f"{folder}/sub/a.png", f"{link}/sub/a.png", "/elsewhere/sub/a.png"]
    write(folder, *({"image": image, "suffix": "x"} for image in spelled))
    source = load("pairs", path=folder / "rows.jsonl", labels=folder / "labels", images=folder if given else None)
    assert {source[i]["labels/depth"] for i in range(4)} == {str(folder / "labels/depth/sub/a.png")}
    with pytest.raises(BadSample, match=r"sample 4: its photo lies outside of .*Give as `images` a folder that holds"):
        source[4]
