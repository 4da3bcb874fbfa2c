"""Photos in, captions and answers out, from an export of a small model with random weights."""

import functools
import io
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from prismer_jax import caption, checkpoint, datasets, decode, evaluators, label_files, models, pp
from prismer_jax.datasets.photos import Asked
from prismer_jax.decode.batch import _compiled
from prismer_jax.errors import UserError
from prismer_jax.sentences import SentenceEmbedder, submission
from prismer_jax.sentences import testing as sentences

EXPERTS = ["depth", "obj_detection", "ocr_detection"]
LOOK = f"labels_for({'+'.join(EXPERTS)!r})|decode|resize(32, 48)"
SIZES = dict(image_size=32, width=32, layers=1, heads=2, latents=4, resampler_layers=1, resampler_heads=2)
SIZES["decoder"] = dict(width=32, layers=1, heads=2, mlp_dim=32, vocab_size=640, max_positions=40)
MODEL = dict(name="prismer", variant="tiny", experts=EXPERTS, **SIZES)
TASKS = {
    "caption": dict(pp=f"{LOOK}|caption_prompt('A')|tokenize(3)", decode=dict(method="beam", num_beams=2, max_new=6)),
    "question": dict(
        pp=f"{LOOK}|question_prompt(style='reference')|tokenize(9)",
        style="reference",
        decode=dict(method="beam", num_beams=2, length_penalty=-1, max_new=4, min_new=2, padding="reference"),
    ),
}


def write_model(folder, tasks=TASKS, **changes):
    """Exports a small model whose words depend on all that it sees; returns the folder."""
    model = models.build(**MODEL | changes)
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    rng = np.random.RandomState(0)

    def fill(path, x):
        noise, leaf = rng.standard_normal(x.shape), path[-1].key
        if leaf in ("scale", "var", "count"):
            return 1 + 0.1 * np.abs(noise)
        if leaf.endswith("embedding") or path[0].key == "tables":
            return noise
        return 0.1 * noise if "bias" in leaf or leaf == "mean" else noise * x.shape[-2] ** -0.5

    variables = jax.tree.map_with_path(lambda path, x: fill(path, x).astype(x.dtype), shapes)
    tokenizer = pp.tokenizer.load("scenes")
    files = {path.name: path for path in tokenizer.files()}
    checkpoint.export(folder, variables, {"model": MODEL | changes, "tokenizer": "scenes", "tasks": tasks}, files)
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("export") / "model")


@pytest.fixture(scope="module")
def captioner(export):
    return caption.Captioner(export)


@pytest.fixture
def photos(tmp_path):
    """Five photos and their labels, in the official layout: FOLDER/<expert>/<photo>.png."""
    for i in range(5):
        rng = np.random.RandomState(i)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (30, 40), tuple(rng.randint(0, 256, 3).tolist())).save(tmp_path / f"photos/p{i}.png")
        write = functools.partial(label_files.write, tmp_path / "labels", image=f"p{i}.png")
        write("depth", map=np.outer(np.arange(40) ** (i + 1) % 200, np.ones(30)).astype(np.uint8)[..., None])
        instances = rng.choice([i, i + 1, 255], (40, 30, 1)).astype(np.uint8)  # ids overlap from photo to photo
        write("obj_detection", map=instances, classes=rng.randint(0, 722, i + 2).tolist())
        words = rng.choice([0, 255], (40, 30, 1)).astype(np.uint8)
        write("ocr_detection", map=words, features=rng.standard_normal((1, 64)), words=["exit"])
    return tmp_path


def test_a_photo_says_the_same_alone_and_among_others(captioner, photos):
    """The reference names instances at random, once per id of the whole batch: there it does not."""
    folder, where = photos / "photos", photos / "labels"
    together = captioner.caption(folder, labels=where, batch_size=4)  # the last batch is filled up
    assert [r["image"] for r in together] == [f"p{i}.png" for i in range(5)]
    compiled = _compiled._cache_size()
    assert together == captioner.caption(folder, labels=where, batch_size=4)
    assert _compiled._cache_size() == compiled
    for i in (0, 3):
        (alone,) = captioner.caption(folder / f"p{i}.png", labels=where)
        assert alone["captions"] == together[i]["captions"]
        np.testing.assert_allclose(alone["scores"], together[i]["scores"], rtol=1e-4)
    assert len({tuple(r["captions"]) for r in together}) > 1


def test_every_label_is_seen_where_it_is_there(captioner, photos):
    def score(where):
        return captioner.caption(photos / "photos/p2.png", labels=where)[0]["scores"][0]

    everything = score(photos / "labels")
    for name in ("depth", "obj_detection", "ocr_detection"):
        (photos / f"labels/{name}/p2.png").unlink()
        assert abs(score(photos / "labels") - everything) > 1e-4, name
        everything = score(photos / "labels")
    np.testing.assert_allclose(everything, score(None), rtol=1e-4)  # none is left


def test_labels_that_are_not_there_are_counted(captioner, photos, caplog):
    """A folder of another level, or of other photos, has none, and the captions would be those without experts."""
    (photos / "labels/depth/p2.png").unlink()
    captioner.caption(photos / "photos", labels=photos / "labels")
    assert "labels has no label by depth for 1 of 5 photos" in caplog.text
    captioner.caption(photos / "photos/p0.png", labels=photos / "photos")
    assert "photos has no label by depth for 1, " in caplog.text


def test_two_photos_that_would_share_labels_do_not(captioner, photos):
    Image.new("RGB", (30, 40), "red").save(photos / "photos/p1.jpg")
    named = [result["image"] for result in captioner.caption(photos / "photos", labels=photos / "labels")]
    assert named == ["p0.png", "p1.jpg", "p2.png", "p3.png", "p4.png"]
    assert len(captioner.caption(photos / "photos")) == 6


def test_a_photo_that_is_given_again_has_a_result_each_time(captioner, photos):
    """So that results are in the order of what was given; in a folder that is given beside it, it is one."""
    files = [photos / f"photos/p{i}.png" for i in (1, 0, 1)]
    for labels in (None, photos / "labels"):
        again = captioner.caption(files, labels=labels)
        assert [result["image"] for result in again] == ["p1.png", "p0.png", "p1.png"]
        assert again[0]["captions"] == again[2]["captions"]
    assert len(captioner.caption([photos / "photos", files[0]])) == 6
    assert len(captioner.caption([files[0], photos / "photos"])) == 5


@pytest.mark.slow
def test_a_method_of_decoding_may_be_another_than_the_checkpoints(captioner, photos):
    """And photos may come from a generator, as those of Path.glob."""
    found = captioner.caption((photos / "photos").glob("p[01].png"), method="greedy")
    assert len(found) == 2
    (beams,) = captioner.caption(photos / "photos/p0.png", num_beams=1)
    assert beams["captions"] == next(row for row in found if row["image"] == "p0.png")["captions"]
    drawn = captioner.caption(photos / "photos/p0.png", method="sample")
    assert drawn == captioner.caption(photos / "photos/p0.png", temperature=1.0)
    assert captioner.answer(photos / "photos/p0.png", "what is it?", num_beams=2)[0]["answers"]
    with pytest.raises(UserError, match="method='sample'"):
        captioner.caption(photos / "photos/p0.png", num_captions=2, method="beam")
    with pytest.raises(UserError, match="3 is no photo"):
        captioner.caption(3)


def test_a_length_takes_the_place_of_the_checkpoints_whichever_way_that_is_counted(export, photos, monkeypatch):
    captioner = caption.Captioner(export)
    (prompt,) = {int(x) for x in re.findall(r"tokenize\((\d)\)", TASKS["caption"]["pp"])}
    few = captioner.caption(str(photos), method="greedy", max_new=2)
    decoding = dict(method="beam", num_beams=2, max_len=prompt + 6, min_len=prompt + 1)
    monkeypatch.setitem(captioner.tasks, "caption", captioner.tasks["caption"] | {"decode": decoding})
    assert captioner.caption(str(photos), method="greedy", max_new=2, min_new=0) == few
    captioner.caption(str(photos), max_new=2, min_new=2)
    captioner.caption(str(photos), max_len=prompt + 2, num_captions=2)
    monkeypatch.setitem(captioner.tasks["caption"], "sample", dict(max_new=1, min_new=0))  # for what is drawn, its own
    (drawn, *_) = captioner.caption(str(photos), num_captions=2)
    assert max(len(text.split()) for text in drawn["captions"]) <= 1


def test_a_photo_is_read_from_an_open_file_and_from_any_bytes(captioner, photos, tmp_path):
    data = (photos / "photos/p0.png").read_bytes()
    written = io.BytesIO()
    written.write(data)  # whose place is its end
    (expected,) = captioner.caption(data)
    with open(photos / "photos/p0.png", "rb") as file:
        for photo in (file, io.BytesIO(data), written, bytearray(data), memoryview(data)):
            assert captioner.caption(photo) == [expected]
        both = captioner.caption([file, bytearray(data)])
    assert [result["captions"] for result in both] == [expected["captions"]] * 2
    for no_photo in (file, io.StringIO("x")):  # which is closed, and of text
        with pytest.raises(UserError, match=r"cannot be read as a photo \(.*\)\. Give a file that is open for reading"):
            captioner.caption([no_photo])


@pytest.mark.parametrize("question", [None, 5, [5], [], b"what", ["what", None]])
def test_no_text_is_no_question(captioner, photos, question):
    with pytest.raises(UserError, match="no question to answer"):
        captioner.answer(photos / "photos/p0.png", question)
    if question is not None:
        with pytest.raises(UserError, match="no question to answer"):
            captioner.choose(photos / "photos/p0.png", ["a", "b"], question)


def test_no_example_is_one_line(captioner):
    for ask in (lambda: captioner.ask([]), lambda: captioner.rank([], ["a"])):
        with pytest.raises(UserError, match="There is no example"):
            ask()


GREY = np.zeros((40, 30, 3), np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "what\ud800"}, r"example 1: 'what\\ud800' is not UTF-8"),
        ({"question": 5}, "example 1: 5 is no text"),
        ({"begun": b"a"}, "example 1: b'a' is no text"),
        ({"image": GREY / 255}, r"example 1: an array of float64 \[40, 30, 3\] is no photo"),
        ({"image": None}, "example 1 has no photo, which resize takes"),
        ({"labels/depth": GREY}, r"labels/depth of example 1: an array of uint8 \[40, 30, 3\]. Give uint8"),
    ],
)
def test_an_example_that_cannot_be_read_costs_no_other(captioner, change, message):
    """They ended the whole list in a traceback, and with it a benchmark."""
    good = {"id": "0", "image": GREY[..., 0], "question": "what is it?"}
    (said,) = captioner.ask([good, good | {"id": "1"} | change])
    assert said["image"] == "0"
    (left,) = captioner.left_out
    assert left["image"] == "1"
    assert re.search(message, left["error"])


@pytest.mark.parametrize("examples", [[{"image": GREY}], [{"id": "0"}], {"id": "0", "image": GREY}, ["photo.jpg"]])
def test_what_is_no_example_is_one_line(captioner, examples):
    for ask in (captioner.ask, lambda examples: captioner.rank(examples, ["a"])):
        with pytest.raises(UserError, match="Example 0 is no dict with an id and an image"):
            ask(examples)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"batch_size": 1.5}, {"num_captions": 0}, {"num_captions": "2"}]
)
def test_so_few_cannot_be_asked_for(captioner, options):
    with pytest.raises(UserError, match="must be a whole number, at least 1"):
        captioner.caption(GREY, **options)


def test_official_folders_may_have_data_sets_in_them(captioner, photos):
    for expert in EXPERTS:
        (photos / f"labels/{expert}/helpers").mkdir()
        for file in list((photos / f"labels/{expert}").glob("p1.*")):
            file.rename(file.parent / "helpers" / file.name)
    found = captioner.caption(photos / "photos/p1.png", labels=photos / "labels/{expert}/helpers")
    assert found != captioner.caption(photos / "photos/p1.png")


def test_questions_are_answered_and_written_as_their_style_says(captioner, photos):
    answers = captioner.answer(photos / "photos", "what is it", labels=photos / "labels", batch_size=4)
    assert [(r["image"], r["question"]) for r in answers] == [(f"p{i}.png", "what is it") for i in range(5)]
    assert all(r["answers"][0] == r["answers"][0].lower().strip() for r in answers)


def test_several_questions_have_the_answers_of_each_and_encode_a_photo_once(captioner, photos, monkeypatch):
    asked, seen = ["what is it", "what color is the big sphere"], []
    ask = functools.partial(captioner.answer, photos / "photos", labels=photos / "labels", padding="own")
    alone = [ask(question, batch_size=2) for question in asked]
    monkeypatch.setattr(decode, "generate", lambda *a, f=decode.generate, **k: seen.append(a[2]) or f(*a, **k))
    both = ask(asked, batch_size=4)
    assert [{k: v for k, v in r.items() if k != "scores"} for r in both] == [
        {k: v for k, v in r.items() if k != "scores"} for pair in zip(*alone, strict=True) for r in pair
    ]
    for one, other in zip(both, (r for pair in zip(*alone, strict=True) for r in pair), strict=True):
        np.testing.assert_allclose(one["scores"], other["scores"], rtol=1e-4)
    assert {(len(arrays["image"]), len(arrays["labels/depth"]), len(arrays["text"])) for arrays in seen} == {(2, 2, 4)}


def test_a_question_that_is_cut_is_named_once(captioner, photos, caplog):
    captioner.answer(photos / "photos", ["what is it", "is it red " * 30], batch_size=2)
    (line,) = [record.message for record in caplog.records if "cut" in record.message]
    assert line == f"{'is it red ' * 30!r} has more tokens than this checkpoint reads, and was cut."


def test_a_photo_that_cannot_be_used_is_left_out_once_for_all_questions(captioner, photos, capsys):
    (photos / "photos/p1.png").write_bytes(b"no photo")
    found = captioner.answer(photos / "photos", ["what is it", "is it red"], batch_size=4)
    assert [r["image"] for r in found] == [f"p{i}.png" for i in (0, 0, 2, 2, 3, 3, 4, 4)]
    assert [r["image"] for r in captioner.left_out] == ["p1.png"]


@pytest.mark.parametrize("question", ["what is it", None])
def test_given_answers_and_classes_are_ranked(captioner, photos, question):
    texts, where = ["a cone", "red", "two spheres", "Red"], photos / "labels"
    found = captioner.choose(photos / "photos", texts, question, labels=where, k=3, batch_size=4)
    assert [r["image"] for r in found] == [f"p{i}.png" for i in range(5)]
    assert [r.get("question") for r in found] == [question] * 5
    for result in found:
        assert result["scores"] == sorted(result["scores"], reverse=True)
        assert len(set(result["choices"]) & set(texts)) == 3
    assert len({tuple(r["scores"]) for r in found}) == 5
    compiled = _compiled._cache_size()
    assert found == captioner.choose(photos / "photos", iter(texts), question, labels=where, k=3, batch_size=4)
    assert _compiled._cache_size() == compiled  # for two batches, the last one filled up, and all of it again


@pytest.mark.parametrize("k", [0, -1, 1.5, "1"])
def test_so_few_choices_cannot_be_ranked(captioner, photos, k):
    with pytest.raises(UserError, match=f"k={k!r}: must be a whole number, at least 1"):
        captioner.choose(photos / "photos", ["red", "blue"], k=k)


def test_the_command_chooses_as_the_evaluator_does(export, captioner, photos, capsys):
    (photos / "texts.json").write_text(json.dumps(["yes", "no", "a cone"]))
    flags = ["--checkpoint", str(export), "--images", str(photos / "photos"), "--batch-size", "4"]
    caption.main([*flags, "--question", "what is it", "--choices", str(photos / "texts.json")])
    said = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
    source = Asked(datasets.load("lists", images=photos / "photos"), [{"question": "what is it"}])
    evaluator = evaluators.build(
        "vqa",
        model=captioner.model,
        tokenizer=captioner.tokenizer,
        source=source,
        pp=pp.build(TASKS["question"]["pp"], tokenizer=captioner.tokenizer),
        **dict(method="rank", answers=["yes", "no", "a cone"], style="reference", padding="reference"),
        **dict(blank=False, quiet=True, batch_size=4, predict_only=True),
    )
    list(evaluator.run(captioner.variables))
    assert said == [prediction["answer"] for prediction in evaluator.predictions]


def test_the_command_prints_and_writes_what_it_found(export, photos, capsys):
    output = photos / "out/captions.json"
    flags = ["--checkpoint", str(export), "--images", str(photos / "photos"), "--batch-size", "4"]
    caption.main([*flags, "--labels", str(photos / "labels"), "--output", str(output)])
    found = json.loads(output.read_text())
    assert capsys.readouterr().out.splitlines() == [f"{r['image']}: {r['captions'][0]}" for r in found]
    assert len(found) == 5


def test_the_references_photos(captioner, shared):
    found = captioner.caption(shared / "data/photos", batch_size=4)
    assert [r["image"].rpartition("0")[2] for r in found] == ["14.jpg", "16.jpg", "19.jpg", "128.jpg", "155.jpg"]


def spoil(folder, what):
    match what:
        case "no photo":
            for path in (folder / "photos").iterdir():
                path.write_bytes(b"no image")
        case "broken photo":
            (folder / "photos/p0.png").write_bytes(b"no image")
        case "large label":
            Image.fromarray(np.zeros((80, 90), np.uint8)).save(folder / "labels/depth/p0.png")
        case "no classes":
            (folder / "labels/obj_detection/p0.json").unlink()
        case "official words":
            (folder / "labels/ocr_detection/p0.npz").rename(folder / "labels/ocr_detection/p0.pt")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("broken photo", r"p0\.png: not a readable image"),
        ("large label", r"labels/depth/p0\.png \(90x80\) does not fit"),
        ("no classes", r"p0\.json: missing"),
        ("official words", r"p0\.npz: only the official .*tools\.convert ocr-labels"),
    ],
)
def test_one_bad_photo_costs_one_photo(export, captioner, photos, what, message, capsys, caplog):
    expected = captioner.caption(photos / "photos", labels=photos / "labels", batch_size=4)[1:]
    spoil(photos, what)
    output = photos / "captions.json"
    flags = ["--checkpoint", str(export), "--images", str(photos / "photos"), "--labels", str(photos / "labels")]
    with pytest.raises(SystemExit) as stop:
        caption.main([*flags, "--batch-size", "4", "--output", str(output)])
    assert stop.value.code == 1
    assert json.loads(output.read_text()) == expected
    assert re.search(f"Left out: .*{message}", caplog.text)
    assert "1 of 5 photos were left out" in capsys.readouterr().err
    assert not (photos / "captions.json.partial").exists()
    with pytest.raises(SystemExit):
        caption.main([*flags, "--picture", str(photos / "sheet.png")])
    assert "sheet.png: 4 of 4 results" in capsys.readouterr().err
    assert captioner.caption(photos / "photos", labels=photos / "labels", batch_size=4) == expected
    ((left_out),) = captioner.left_out
    assert left_out["image"] == "p0.png"
    assert re.search(message, left_out["error"])
    chosen = captioner.choose(photos / "photos", ["a", "b"], labels=photos / "labels", batch_size=4)
    assert [r["image"] for r in chosen] == [r["image"] for r in expected]


def test_damaged_texts_beside_photos_are_not_read(captioner, photos):
    expected = captioner.caption(photos / "photos", batch_size=4)
    (photos / "photos/p0.txt").write_bytes(b"\xff\xfe\xff")
    (photos / "photos/p1.json").write_text("{")
    assert captioner.caption(photos / "photos", batch_size=4) == expected
    assert captioner.left_out == []


class Stop(Exception):
    pass


def stop_after(monkeypatch, captioner, calls):
    """Lets the model be asked so often, then stops the program, as it were; returns where calls are counted."""
    counted, generate = [], decode.generate

    def counting(*args, **options):
        if len(counted) == calls:
            raise Stop
        counted.append(1)
        return generate(*args, **options)

    monkeypatch.setattr(decode, "generate", counting)
    monkeypatch.setattr(caption, "Captioner", lambda path, experts=None: captioner)
    return counted


@pytest.mark.parametrize("more", [[], ["--num-captions", "2"]], ids=["beam", "sample"])
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_captions(captioner, photos, monkeypatch, more):
    output = photos / "out/captions.jsonl"
    flags = [
        "--checkpoint",
        ".",
        "--images",
        str(photos / "photos"),
        "--batch-size",
        "2",
        "--output",
        str(output),
        *more,
    ]
    expected = captioner.caption(photos / "photos", batch_size=2, num_captions=len(more) or 1)
    with monkeypatch.context() as patch:
        stop_after(patch, captioner, 2)
        with pytest.raises(Stop):
            caption.main(flags)
    assert not output.exists()
    with monkeypatch.context() as patch:
        counted = stop_after(patch, captioner, -1)
        caption.main(flags)
    assert len(counted) == 1  # of three batches
    assert [json.loads(line) for line in output.read_text().splitlines()] == expected
    assert [path.name for path in output.parent.iterdir()] == ["captions.jsonl"]


def test_a_run_whose_checkpoint_writes_in_another_style_since_begins_anew(captioner, photos, monkeypatch):
    output = photos / "out/captions.json"
    flags = ["--checkpoint", ".", "--images", str(photos / "photos"), "--batch-size", "2", "--output", str(output)]
    with monkeypatch.context() as patch:
        stop_after(patch, captioner, 2)
        with pytest.raises(Stop):
            caption.main(flags)
    monkeypatch.setitem(captioner.tasks["caption"], "style", "reference")
    expected = captioner.caption(photos / "photos", batch_size=2)
    caption_again = stop_after(monkeypatch, captioner, -1)
    caption.main(flags)
    assert len(caption_again) == 3
    assert json.loads(output.read_text()) == expected


def test_a_stop_before_the_submission_costs_no_caption(export, photos, monkeypatch):
    model, output = sentences.write_model(photos / "tiny"), photos / "out/captions.json"
    flags = ["--checkpoint", str(export), "--images", str(photos / "photos"), "--num-beams", "2"]
    flags += ["--labels", str(photos / "labels"), "--batch-size", "4", "--output", str(output), "--embed", str(model)]
    captioners = []

    class Noted(caption.Captioner):
        def __init__(self, *args):
            super().__init__(*args)
            captioners.append(self)

    def stop(*_):
        raise Stop

    monkeypatch.setattr(caption, "Captioner", Noted)
    with monkeypatch.context() as patch:
        patch.setattr(submission, "write", stop)
        with pytest.raises(Stop):
            caption.main(flags)
    assert captioners[0].variables == {}  # the captioner has left the memory before the other model comes
    with monkeypatch.context() as patch:
        patch.setattr(decode, "generate", stop)
        caption.main(flags)
    assert sorted(path.name for path in output.parent.iterdir()) == ["captions.json", "submission.csv"]
    _, *lines = (output.parent / "submission.csv").read_text().splitlines()
    texts = [result["captions"][0] for result in json.loads(output.read_text())]
    vectors = np.array([line.split(",")[1] for line in lines], np.float32).reshape(5, -1)
    np.testing.assert_array_equal(vectors, SentenceEmbedder(model).embed(texts))
    assert lines[0].startswith("p0_0,")


def test_a_photo_that_changed_meanwhile_is_captioned_again(captioner, photos, monkeypatch):
    flags = ["--checkpoint", ".", "--images", str(photos / "photos"), "--batch-size", "2"]
    flags += ["--output", str(photos / "captions.json")]
    (photos / "photos/p4.png").write_bytes(b"no image")
    with monkeypatch.context() as patch:
        stop_after(patch, captioner, 2)
        with pytest.raises(SystemExit):  # the third batch has no photo to ask the model about
            caption.main(flags)
    with monkeypatch.context() as patch:
        stop_after(patch, captioner, 1)
        with pytest.raises(Stop):
            caption.main(flags)
    Image.new("RGB", (30, 40), "red").save(photos / "photos/p1.png")
    Image.new("RGB", (30, 40), "blue").save(photos / "photos/p4.png")
    with monkeypatch.context() as patch:
        counted = stop_after(patch, captioner, -1)
        caption.main(flags)
    assert len(counted) == 3
    said = json.loads((photos / "captions.json").read_text())
    for result, alone in zip(said, captioner.caption(photos / "photos", batch_size=2), strict=True):
        assert result == alone


@pytest.mark.parametrize(
    ("what", "flags", "message"),
    [
        ("no photo", [], r"None of the 5 samples can be used. The first: .*p0\.png: not a readable image"),
        ("", ["--labels", "nowhere"], "nowhere: no such folder of labels"),
        ("", ["--images", "nowhere.jpg"], r"nowhere\.jpg: no such photo"),
        ("", ["--checkpoint", "nowhere"], "nowhere does not exist"),
        ("", ["--num-captions", "0"], "--num-captions"),
        ("", ["--num-captions", "100000"], "--num-captions and --num-beams must be from 1 to 1000"),
        ("", ["--num-beams", "100000"], "--num-captions and --num-beams must be from 1 to 1000"),
        ("", ["--num-beams", "0"], "--num-captions and --num-beams must be from 1 to 1000"),
        ("", ["--num-captions", "2", "--seed", "99999999999999999999"], "seed=99999999999999999999: must be a whole"),
        ("", ["--num-captions", "2", "--seed", "-1"], "seed=-1: must be a whole number from 0 to 4294967295"),
        ("", ["--question", "is \udcff it?"], r"'is \\udcff it\?' is not UTF-8"),
        ("", ["--choices", "a", "\udcff"], r"'\\udcff' is not UTF-8"),
        ("", ["--choices", "nowhere.json"], r"nowhere\.json: not a JSON file with a list of texts"),
        ("", ["--choices", "a", ""], r"the choices: '' is no text to choose"),
        ("", ["--choices", "a", "b", "--top-p", "0.9"], "--choices are ranked, not sampled"),
        ("", ["--num-beams", "3", "--top-p", "0.9"], "--num-beams searches"),
        ("", ["--num-beams", "3", "--temperature", "0.5"], "--num-beams searches"),
        ("", ["--output", "."], r"--output \.: is no file. Name the one"),
        ("", ["--embed", "all-MiniLM-L6-v2"], "--embed is for captions: give --images and --output"),
        ("", ["--output", "x.json", "--embed", "all-MiniLM-L6-v2"], "Fetch it with python -m tools"),
        ("", ["--qestion", "who"], "Did you mean '--question'"),
        ("", ["--question", "..."], "empty question"),
    ],
)
def test_bad_input_is_one_line(export, photos, what, flags, message):
    spoil(photos, what)
    good = ["--checkpoint", str(export), "--images", str(photos / "photos"), "--labels", str(photos / "labels")]
    with pytest.raises(UserError, match=message) as raised:
        caption.main([*good, *flags])
    assert "\n" not in str(raised.value)


def test_a_checkpoint_says_what_it_is_not_asked_for(photos, tmp_path):
    captioner = caption.Captioner(write_model(tmp_path / "mine", tasks={"caption": TASKS["caption"]}))
    for ask in (captioner.answer, lambda photo, question: captioner.choose(photo, ["a", "b"], question)):
        with pytest.raises(UserError, match=r"mine: its tasks are caption, not question\. Give a checkpoint"):
            ask(photos / "photos/p0.png", "What is it?")


def test_an_export_without_its_tokenizer_says_what_it_needs(export, tmp_path):
    what = {"model": MODEL, "tokenizer": "roberta:.", "tasks": TASKS}
    checkpoint.export(tmp_path / "bare", {"params": {"any": np.ones(1)}}, what)
    with pytest.raises(UserError, match=r"bare/vocab\.json: no such file"):
        caption.Captioner(tmp_path / "bare")
    del what["tokenizer"]
    checkpoint.export(tmp_path / "converted", {"params": {"any": np.ones(1)}}, what)
    with pytest.raises(UserError, match=r"config\.json lacks tokenizer\. Convert it again with --tokenizer\."):
        caption.Captioner(tmp_path / "converted")
    checkpoint.export(tmp_path / "old", {"params": {"any": np.ones(1)}}, {"model": MODEL})
    with pytest.raises(UserError, match=r"config\.json lacks tokenizer and tasks\. Export it with this version\."):
        caption.Captioner(tmp_path / "old")
