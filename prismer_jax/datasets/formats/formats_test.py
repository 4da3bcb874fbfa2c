import json
import sys

import pytest
from PIL import Image

from prismer_jax.datasets import lists
from prismer_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.jpg", "train2017/000000000042.jpg", "val2014/COCO_val2014_000000000042.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    return tmp_path


def read(folder, content, name="list.json", **kwargs) -> list[dict]:
    data = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))
    source = lists.load(folder / name, images=folder, **kwargs)
    return [source[i] for i in range(len(source))]


TEN = ["red"] * 7 + ["blue"] * 3


@pytest.mark.parametrize(
    "said",
    [
        {"caption": "one"},
        {"captions": ["one"]},
        {"text": "one"},
        {"caption": None, "captions": ["one"]},
        {"captions": [{"caption": "one"}]},
        {"sentences": [{"raw": "one"}]},
        {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "one"}]},
        {
            "conversations": [
                {"from": "human", "value": "Provide a brief description of the given image.\n<image>"},
                {"from": "gpt", "value": "one"},
            ]
        },
    ],
)
def test_captions_under_the_usual_keys(folder, said):
    assert [e["captions"] for e in read(folder, [{"image": "a.jpg", **said}])] == [["one"]]


@pytest.mark.parametrize(
    ("entry", "answers"),
    [
        ({"image": "a.jpg", "answers": [{"answer": text, "answer_confidence": "yes"} for text in TEN]}, TEN),
        ({"image": "a.jpg", "answers": TEN}, TEN),
        ({"image": "a.jpg", "answer": 2}, ["2"] * 10),
        ({"image": "a.jpg", "answer": True}, ["yes"] * 10),
        ({"image": "a.jpg", "answer": 1, "choices": ["red", "blue"]}, ["blue"] * 10),
        ({"image": "a.jpg", "answer": None}, []),
        ({"split": "train", "image_id": 42, "choices": ["x"], "direct_answers": TEN}, TEN),
        ({"split": "train", "image_id": 42, "choices": ["x", "y"], "correct_choice_idx": 1}, ["y"] * 10),
        ({"set_name": "train", "image_id": "a", "answers": TEN}, TEN),
    ],
)
def test_answers_in_the_forms_of_the_benchmarks(folder, entry, answers):
    (example,) = read(folder, [{"question": "What color?", "question_id": "x1", **entry}])
    assert example["answers"] == answers
    assert example["question_id"] == "x1"


def test_textvqa_and_gqa_are_objects(folder):
    entry = {"set_name": "train", "image_id": "a", "question": "q?", "question_id": 3, "answers": TEN}
    assert read(folder, {"dataset_name": "textvqa", "data": [entry]})[0]["answers"] == TEN
    gqa = {"02": {"imageId": "b", "question": "q?", "answer": "yes", "types": {"structural": "verify"}}}
    (example,) = read(folder, gqa)
    assert (example["question_id"], example["question_type"], example["answers"]) == ("02", "verify", ["yes"] * 10)
    assert example["image"].endswith("b.jpg")


def test_conversations_are_questions_with_answers(folder):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is it?"}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "And what shape?"},
        {"role": "assistant", "content": [{"type": "text", "text": "square"}]},
    ]
    examples = read(folder, [{"images": ["a.jpg"], "messages": messages}])
    assert [(e["question"], e["answers"][0]) for e in examples] == [
        ("What color is it?", "red"),
        ("And what shape?", "square"),
    ]


def test_questions_inside_a_list_of_captions(folder):
    rows = [
        {"image": "a.jpg", "caption": "one"},
        {"image": "a.jpg", "question": "q?", "answer": "x"},
        {"image": "b.jpg", "caption": "two", "questions": [{"question": "r?", "answer": "y"}]},
    ]
    examples = read(folder, rows, task="all")
    assert [e["captions"] for e in examples] == [["one"], ["two"]]
    assert [[q["question"] for q in e["questions"]] for e in examples] == [["q?"], ["r?"]]


def test_coco_images_with_captions_of_their_own(folder):
    images = [{"id": "007", "file_name": "a.jpg", "captions": ["one"]}, {"id": 7, "file_name": "b.jpg"}]
    annotations = [{"image_id": "7", "caption": "two"}]
    examples = read(folder, {"images": images, "annotations": annotations})
    assert [(e["id"], e["captions"]) for e in examples] == [("007", ["one"]), ("7", ["two"])]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", 'image,caption\na.jpg,one\nb.jpg,"two, or more"\n'),
        ("l.tsv", "file_name\ttext\r\na.jpg\tone\r\nb.jpg\ttwo, or more\r\n"),
        ("metadata.csv", '\ufefffile_name,text\na.jpg,one\nb.jpg,"two, or more"\n'),
        ("results.csv", "image_name| comment_number| comment\na.jpg| 0| one\nb.jpg| 0| two, or more\n"),
        ("l.token", "a.jpg#0\tone\nb.jpg#0\ttwo, or more\n"),
        ("l.txt", "a.jpg\tone\nb.jpg\ttwo, or more\n"),
        ("l.json", '{"image": "a.jpg", "text": "one"}\n{"image": "b.jpg", "text": "two, or more"}\n'),
        (
            "metadata.jsonl",
            '\ufeff{"file_name": "a.jpg", "text": "one"}\n{"file_name": "b.jpg", "text": "two, or more"}',
        ),
        ("l.jsonl", '[{"image": "a.jpg", "text": "one"},\n {"image": "b.jpg", "text": "two, or more"}]'),
        ("l.json", '{"a.jpg": "one", "b.jpg": ["two, or more"]}'),
    ],
)
def test_tables_and_lines_under_any_ending(folder, name, text):
    assert [e["captions"] for e in read(folder, text, name)] == [["one"], ["two, or more"]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.json", '{"a.jpg": "one", "b.jpg": "three", "a.jpg": ["two"]}'),
        ("l.csv", "image,caption,caption\na.jpg,one,two\nb.jpg,three,\n"),
        ("l.csv", "image,caption,id,caption\na.jpg,one,1,two\nb.jpg,,2,three\n"),
    ],
)
def test_what_a_list_names_twice_is_not_lost(folder, name, text):
    assert [e["captions"] for e in read(folder, text, name)] == [["one", "two"], ["three"]]


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        (
            "image,caption\na.jpg,\"['one', 'two']\"\nb.jpg,\"[sic] three\"\n",
            "captions",
            [["one", "two"], ["[sic] three"]],
        ),
        ('image,captions\na.jpg,"[""one"", ""two""]"\nb.jpg,[]\n', "captions", [["one", "two"], []]),
        ("image,text,text\na.jpg,\"['one', 'two']\",three\n", "captions", [["one", "two", "three"]]),
        ("a.jpg\t['one', 'two']\n", "captions", [["one", "two"]]),
        ("image,question,answers\na.jpg,q?,\"['one', 'two']\"\n", "answers", [["one", "two"]]),
        ("image,question,answer\na.jpg,[q?],[2]\n", "answers", [["2"] * 10]),
    ],
)
def test_lists_in_cells_of_tables_are_lists(folder, text, key, values):
    assert [e[key] for e in read(folder, text, "l.csv")] == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a.jpg": {"caption": "one"}, "a.jpg": {"caption": "two"}}', "'a.jpg' stands there twice"),
        ('[{"image": "https://x.org/a.jpg", "caption": "one"}]', "first is https://x.org/a.jpg. Fetch it"),
        ('[{"image": {"path": "gs://x/a.jpg"}, "caption": "one"}]', "first is gs://x/a.jpg. Fetch it with"),
    ],
)
def test_what_cannot_be_meant_is_refused(folder, text, message):
    with pytest.raises(UserError, match=message):
        read(folder, text)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('image,caption\na.jpg,a dog\nb.jpg,"a 5 inch screen\na.jpg,a cat\nb.jpg,a bird\n', 3, "unexpected end"),
        ('\n\na.jpg\ta dog\nb.jpg\t"5" screen"\n', 4, "expected after"),
        ('image,caption\na.jpg,"a 5 inch screen\nb.jpg,a cat\na.jpg,one of 6"\n', 2, "goes on over other rows"),
        ("image,caption\na.jpg,a\rb\nb.jpg,c\n", 2, "new-line character seen in unquoted field"),
        ("image,caption\na.jpg,one\n" + "b.jpg," + "x" * 200_000, 3, "larger than field limit"),
    ],
)
def test_rows_that_do_not_end_are_refused_by_their_line(folder, text, line, problem):
    with pytest.raises(UserError, match=rf"l\.csv: line {line} is not a row of a table: .*{problem}.*twice\.$"):
        read(folder, text, "l.csv")


@pytest.mark.parametrize("text", ["\x00\x01\r\ufffd,\rimage", "x" * 200_000, '"\r', "a\rb\nc"])
def test_bytes_that_are_no_table_are_named(folder, text):
    with pytest.raises(UserError, match="neither JSON nor a table of photos: its first line is"):
        read(folder, text, "l.csv")


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("image,caption\ra.jpg,one\rb.jpg,two\r", ["one", "two"]),
        ('image,caption\r\na.jpg,"one\r\nline, ""more"""\r\n', ['one\r\nline, "more"']),
        ('image_name| comment_number| comment\na.jpg| 0| "Hi" says the sign\nb.jpg| 0| 5" wide', None),
        ("a.jpg#0\ta\x85b\u2028c\r\nb.jpg#0\ttwo\n", ["a\x85b\u2028c", "two"]),
        ("\timage\tcaption\n0\ta.jpg\tone\n", ["one"]),
    ],
)
def test_line_ends_and_quotation_marks_of_tables(folder, text, captions):
    assert [e["captions"][0] for e in read(folder, text, "l.csv")] == (captions or ['"Hi" says the sign', '5" wide'])


DEEP, NESTED, LONG = "[" * 100_000, "[" * 600 + "]" * 600, "1" * 5_000


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.json", DEEP, "cannot be read as JSON"),
        ("l.json", f"[{LONG}]", "cannot be read as JSON"),
        ("l.jsonl", '{"image": "a.jpg", "caption": "one"}\n{"image": ' + DEEP, "line 2 is not JSON"),
        ("l.jsonl", '{"image": "a.jpg", "caption": "one"}\n{"image": ' + LONG + "}", "line 2 is not JSON"),
        ("l.json", '[{"image": "a.jpg", "caption": ' + NESTED + "}]", "texts cannot be used"),
        pytest.param(
            "l.json",
            '[{"image": "a.jpg", "question": "q?", "answer": ' + NESTED + "}]",
            "unreadable entry",
            marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python 3.12 reads it: as no answer"),
        ),
    ],
)
def test_json_that_python_refuses_to_read_is_named(folder, name, text, message):
    with pytest.raises(UserError, match=message):
        read(folder, text, name)


@pytest.mark.parametrize("name", ["question_id", "qa_id"])
def test_two_columns_of_question_ids_are_named(folder, name):
    with pytest.raises(UserError, match=rf"l\.csv: has several columns '{name}'\. Rename"):
        read(folder, f"image,question,{name},{name}\na.jpg,q?,1,2\n", "l.csv")


def test_a_question_id_of_thousands_of_digits_stays_a_text(folder):
    assert read(folder, f"image,question,question_id\na.jpg,q?,{LONG}\n", "l.csv")[0]["question_id"] == LONG


def test_parquet(folder):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"file_name": ["a.jpg"], "captions": [["one", "two"]]}), folder / "l.parquet")
    assert lists.load(folder / "l.parquet", images=folder)[0]["captions"] == ["one", "two"]
    parquet.write_table(pyarrow.table({"image": [{"bytes": b"x", "path": "a.jpg"}]}), folder / "p.parquet")
    with pytest.raises(UserError, match="photos themselves in its column 'image'"):
        lists.load(folder / "p.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\na.jpg,one, or two\n", "more cells than the table has columns"),
        ("a line\n", "neither JSON nor a table"),
        ("<html>", "web page"),
        ({"annotations": [{"question_id": 1, "answers": []}]}, "file of answers without questions"),
        ({"annotations": [{"image_id": 1, "caption": "x"}]}, "no `images`"),
        ([{"image_id": 1, "caption": "x"}], "lacks 'image', its keys are image_id, caption"),
        ([{"image": ["a.jpg", "b.jpg"], "caption": "x"}], "has 2 photos"),
        ([["a.jpg", "x"]], "its entries are like"),
        ([{"image": "a.jpg", "question": "q?", "answer": "x", "weight": -1}], "a weight is -1"),
    ],
)
def test_what_is_no_list_is_named(folder, content, message):
    with pytest.raises(UserError, match=message):
        read(folder, content)


@pytest.mark.parametrize("text", ["null", "NaN", "5", "{}"])
def test_unusable_captions_are_counted_and_beyond_a_fraction_an_error(folder, text):
    content = f'[{{"image": "a.jpg", "caption": "one"}}, {{"image": "b.jpg", "caption": {text}}}]'
    with pytest.raises(UserError, match=r"1 of 2 texts cannot be used: .*of photo b\.jpg"):
        read(folder, content)
    assert [e["captions"] for e in read(folder, content, max_missing=0.5)] == [["one"], []]


def test_unusable_entries_are_counted_and_beyond_a_fraction_an_error(folder):
    content = [{"image": "a.jpg", "caption": "one"}, None]
    with pytest.raises(UserError, match=r"1 of 2 entries cannot be used: .*entry 2: is None"):
        read(folder, content)
    assert len(read(folder, content, max_missing=0.5)) == 1


def test_texts_under_keys_that_nobody_reads_are_named(folder, caplog):
    read(folder, [{"image": "a.jpg", "alt": "a red square"}], task="all")
    assert "1 x text under `alt`, which is not read" in caplog.text
    read(folder, [{"image": "a.jpg", "question": "q?", "gt_answer": "red"}])
    assert "1 x text under `gt_answer`, which is not read" in caplog.text
    assert "1 of 1 questions have no answer" in caplog.text


def test_annotations_that_answer_none_or_some_of_the_questions(folder):
    questions = {
        "data_subtype": "val2014",
        "questions": [{"image_id": 42, "question_id": n, "question": f"{n}?"} for n in (1, 2)],
    }
    answers = folder / "answers.json"
    answers.write_text(json.dumps({"data_subtype": "train2014", "annotations": [{"image_id": 7, "question_id": 1}]}))
    with pytest.raises(UserError, match=r"none of its questions, the first is 1.*val2014.*train2014"):
        read(folder, questions, annotations=answers, max_missing=1)
    annotation = {"image_id": 42, "question_id": 2, "answers": [{"answer": "red"}]}
    answers.write_text(json.dumps({"annotations": [annotation]}))
    with pytest.raises(UserError, match="1 of 2 entries cannot be used: 1 x question without annotation"):
        read(folder, questions, annotations=answers)
    assert [e["question"] for e in read(folder, questions, annotations=answers, max_missing=0.5)] == ["2?"]


@pytest.mark.parametrize("images", [lambda folder: [folder / "val2014", folder], lambda folder: folder])
def test_captions_and_questions_joined_with_annotations_of_one_list(folder, images):
    name = "COCO_val2014_000000000042.jpg"
    (folder / "c.json").write_text(
        json.dumps({"images": [{"id": 42, "file_name": name}], "annotations": [{"image_id": 42, "caption": "one"}]})
    )
    questions = {"data_subtype": "val2014", "questions": [{"image_id": 42, "question_id": 1, "question": "q?"}]}
    (folder / "q.json").write_text(json.dumps(questions))
    annotation = {"image_id": 42, "question_id": 1, "answers": [{"answer": "red"}]}
    (folder / "a.json").write_text(json.dumps({"annotations": [annotation]}))
    source = lists.load(
        [folder / "c.json", folder / "q.json"],
        images=images(folder),
        annotations=folder / "a.json",
        task="all",
    )
    assert len(source) == 1
    assert (source[0]["captions"], source[0]["questions"][0]["answers"]) == (["one"], ["red"] * 10)


def test_karpathy_without_numbers(folder):
    images = [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "one"}]}]
    assert [(e["id"], e["captions"]) for e in read(folder, {"images": images})] == [("a.jpg", ["one"])]
