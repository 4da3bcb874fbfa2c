"""A model of stage 1 from Python and as a command: features, matching, and photos found by texts."""

import contextlib
import json
import tracemalloc

import jax
import numpy as np
import pytest
from PIL import Image

from prismer_jax import checkpoint, datasets, label_files, models
from prismer_jax.captioner import Captioner
from prismer_jax.captioner.comparing import Read
from prismer_jax.decode import matching
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import storage
from prismer_jax.retrieve import __main__ as retrieve
from prismer_jax.retrieve.index import Index
from prismer_jax.sentences.testing import WORDS, write_model

MODEL = dict(name="blip2", variant="tiny_stage1", qformer=dict(vocab_size=len(WORDS) + 1))
TEXTS = ["a cat on the sofa", "red dogs", "the cafe"]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieve")
    words = write_model(folder / "words")
    model = models.build(**MODEL)
    shapes, rng = jax.eval_shape(model.init_variables, jax.random.key(0)), np.random.RandomState(0)

    def fill(path, x):
        fan = x.shape[-2] if x.ndim > 1 else 100
        return (rng.standard_normal(x.shape) * fan**-0.5 + path[-1].key.endswith("scale")).astype(np.float32)

    files = {name: words / name for name in ("tokenizer.json", "tokenizer_config.json")}
    tasks = {"match": dict(pp="decode|resize(42)", style="blip", max_tokens=8)}
    what = {"model": MODEL, "tokenizer": "tokenizers:.", "tasks": tasks}
    checkpoint.export(folder / "model", jax.tree.map_with_path(fill, shapes), what, files)
    return Captioner(folder / "model")


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(5):
        pixels = np.random.RandomState(i).randint(0, 256, (3, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((60, 45)).save(tmp_path / f"photos/p{i}.png")
    return tmp_path / "photos"


def test_features_and_matches_say_what_the_model_does(captioner, photos):
    (photos / "p1.png").write_bytes(b"no photo")
    with pytest.raises(UserError, match="5 photos and 3 texts"):
        captioner.features(photos, TEXTS)
    for compare in (lambda: captioner.match(photos, []), lambda: captioner.features(texts=[])):
        with pytest.raises(UserError, match="There is no text to compare photos with"):
            compare()
    found = captioner.features(photos, [*TEXTS, "a", "a cat"], batch_size=3)
    kept = [0, 2, 3, 4]
    assert found["images"] == [f"p{i}.png" for i in kept]
    assert [found[name].shape for name in ("image", "text", "multimodal")] == [(4, 8, 16), (5, 16), (4, 8, 32)]
    np.testing.assert_allclose(np.linalg.norm(found["image"], axis=-1), 1, rtol=1e-5)
    rows = captioner.match(photos, TEXTS, batch_size=3)
    assert [row["image"] for row in rows] == found["images"]
    assert len(captioner.left_out) == 1
    assert [row["texts"] for row in captioner.match(photos / "p0.png", TEXTS[0])] == [[TEXTS[0]]]  # of one, no letters
    likeness = np.einsum("nqe,me->nqm", found["image"], found["text"][:3]).max(1)
    np.testing.assert_allclose([row["itc"] for row in rows], likeness, atol=1e-5)
    head = captioner.variables["params"]["match_head"]
    # The first photo was read with the first text, the third with the third.
    for row, text in ((0, 0), (1, 2)):
        no, yes = (found["multimodal"][row] @ np.asarray(head["kernel"]) + np.asarray(head["bias"])).mean(0)
        assert rows[row]["itm"][text] == pytest.approx(1 / (1 + np.exp(no - yes)), rel=1e-4)
        assert rows[row]["score"][text] == pytest.approx(likeness[row, text] + yes, rel=1e-4)


def test_photos_are_read_with_no_more_texts_than_asked(captioner, photos, monkeypatch):
    widths, match = [], matching.match

    def noting(model, variables, keys, ids, real):
        widths.append(ids.shape[1])
        return match(model, variables, keys, ids, real)

    monkeypatch.setattr(matching, "match", noting)
    captioner.features(photos, [TEXTS[0]] * 5, batch_size=5)
    many = [f"a cat {'on ' * n}sofa" for n in range(65)]
    rows = captioner.match(photos, many, batch_size=5), captioner.match(photos, TEXTS, batch_size=5)
    assert widths == [1, 64, 64, 4]  # powers of 2, 64 at most
    assert [[len(row["score"]) for row in part] for part in rows] == [[65] * 5, [3] * 5]


def test_the_command_finds_photos_and_encodes_only_what_is_new(captioner, photos, monkeypatch, capsys):
    seen, read = [], matching.read_images

    def counting(model, variables, batch):
        seen.append(len(batch["image"]))
        return read(model, variables, batch)

    monkeypatch.setattr(matching, "read_images", counting)
    monkeypatch.setattr(retrieve, "PART", 3)
    flags = ["--checkpoint", str(captioner.folder), "--images", str(photos), "--batch-size", "3", "--top", "4"]
    (photos.parent / "texts.txt").write_text("red dogs\nred dogs\nthe cafe\n")
    texts = ["--query", TEXTS[0], "--texts", str(photos.parent / "texts.txt")]
    retrieve.main([*flags, *texts, "--rerank", "2", "--output", str(photos.parent / "found.json")])
    assert "1 texts are there more than once" in capsys.readouterr().err
    found = json.loads((photos.parent / "found.json").read_text())
    assert [one["text"] for one in found] == TEXTS
    by_photo = {row["image"]: row for row in captioner.match(photos, TEXTS, batch_size=3)}
    for number, one in enumerate(found):
        order = sorted(by_photo, key=lambda image: -by_photo[image]["itc"][number])
        again = sorted(order[:2], key=lambda image: -by_photo[image]["score"][number])
        assert [photo["image"] for photo in one["photos"]] == (again + order[2:])[:4]
        assert one["photos"][0]["itm"] == pytest.approx(by_photo[again[0]]["itm"][number], rel=1e-3)
    assert len(list(photos.with_name("photos.index").iterdir())) == 2
    seen.clear()
    retrieve.main([*flags, "--query", "a cat", "--rerank", "0"])
    assert seen == []
    Image.new("RGB", (50, 50), "red").save(photos / "p3.png")
    (photos / "p0.png").unlink()
    retrieve.main([*flags, "--query", "a cat", "--rerank", "0"])
    assert seen == [3]  # a batch of one photo
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert sorted(line.split()[2] for line in lines) == ["p1.png", "p2.png", "p3.png", "p4.png"]


class Counting:
    """In the place of a Comparer: notes the photos that are read."""

    def read(self, source, batch_size):
        self.seen = list(map(source.name, range(len(source))))
        for place in range(len(source)):
            with contextlib.suppress(BadSample):
                yield Read(place, source[place]["id"], np.ones((1, 2)), np.ones(2), np.ones(2))


def test_a_photo_is_encoded_again_when_its_label_has_changed(photos):
    comparer, index, labels = Counting(), Index(photos.with_name("index"), {}), photos.with_name("labels")
    for number, (value, first) in enumerate(((1, "p0.png"), (2, "p2.png"))):
        label_files.write(labels, "depth", "p2.png", np.full((45, 60, 1), value, np.uint8))
        source = datasets.load("photos", images=photos, labels=labels, experts=("depth",))
        comparer.seen = [""]
        retrieve.encode(comparer, source, index, 2)
        assert comparer.seen[0] == first, number
        assert sum(len(images) for images, *_ in index.parts()) == 5 + number
    (labels / "depth/p2.png").write_bytes(b"")
    assert "p2.png" not in retrieve.encode(comparer, source, index, 2)
    assert comparer.seen[0] == "p2.png"  # so that it is named


def test_a_photo_that_changes_while_it_is_read_is_encoded_again(photos, capsys):
    class Slow(Counting):
        def read(self, source, batch_size):
            rows = list(super().read(source, batch_size))
            Image.new("RGB", (50, 50), "red").save(photos / "p3.png")
            (photos / "p4.png").unlink(missing_ok=True)
            return iter(rows)

    index, source = Index(photos.with_name("index"), {}), datasets.load("photos", images=photos, experts=())
    retrieve.encode(Slow(), source, index, 2)
    assert [images for images, *_ in index.parts()] == [["p0.png", "p1.png", "p2.png"]]
    assert "p3.png: changed while it was read; left out. Run it again." in capsys.readouterr().err
    comparer = Counting()
    retrieve.encode(comparer, datasets.load("photos", images=photos, experts=()), index, 2)
    assert comparer.seen[0] == "p3.png"


def test_two_commands_may_fill_one_index_at_the_same_time(captioner, photos, monkeypatch):
    comparer, source = captioner.comparer(), datasets.load("photos", images=photos, experts=())
    first, second = (Index(photos.with_name("index"), {}) for _ in range(2))
    write = storage.write

    def late(path, data):  # the other command begins, and ends, while this one writes its part
        monkeypatch.setattr(storage, "write", write)
        retrieve.encode(comparer, datasets.load("photos", images=photos / "p0.png", experts=()), second, 1)
        write(path, data)

    monkeypatch.setattr(storage, "write", late)
    places = retrieve.encode(comparer, source, first, 2)
    stored = sorted(image for images, *_ in first.parts() for image in images)
    assert stored == ["p0.png", *(f"p{i}.png" for i in range(5))]
    (found,) = retrieve.find(comparer, source, first, places, ["a cat"], 9, 3, 2)
    assert sorted(photo["image"] for photo in found) == [f"p{i}.png" for i in range(5)]


def test_photos_whose_vectors_another_checkpoint_deletes_are_not_silently_missing(captioner, photos):
    comparer, source = captioner.comparer(), datasets.load("photos", images=photos, experts=())
    first, second = (Index(photos.with_name("index"), {"weights": name}) for name in "ab")
    places = retrieve.encode(comparer, source, first, 2)
    assert len(retrieve.find(comparer, source, first, places, ["a cat"], 9, 0, 2)[0]) == 5
    retrieve.encode(comparer, source, second, 2)
    with pytest.raises(UserError, match=r"index: a command with another checkpoint has deleted vectors .* --index"):
        retrieve.find(comparer, source, first, places, ["a cat"], 9, 0, 2)
    retrieve.encode(comparer, source, Index(photos.with_name("index"), {"weights": "a"}), 2)  # as the next start does


def test_a_part_that_is_deleted_while_the_folder_is_read_is_passed_over(photos, monkeypatch):
    index = Index(photos.with_name("index"), {})
    monkeypatch.setattr(index, "_paths", lambda: [photos / "part-gone.npz"])
    assert list(index.parts()) == []


@pytest.mark.parametrize("cut", [0, 100, -50])
def test_a_damaged_part_is_one_line(photos, cut):
    index = Index(photos.with_name("index"), {})
    index.add(["p0.png"], [[1, 2]], np.ones((1, 2, 3)))
    (path,) = photos.with_name("index").iterdir()
    path.write_bytes(path.read_bytes()[:cut])
    for use in (lambda: list(index.parts()), lambda: index.add(["p1.png"], [[1, 2]], np.ones((1, 2, 3)))):
        with pytest.raises(UserError, match=r"part-\w+\.npz: is damaged \(.*\)\. Delete it"):
            use()


def test_many_texts_take_little_memory(photos):
    rng, index, comparer = np.random.default_rng(0), Index(photos.with_name("index"), {}), Counting()
    source = datasets.load("photos", images=photos, experts=())
    texts, of_texts = list(map(str, range(2000))), rng.standard_normal((2000, 8), np.float32)
    comparer.texts = lambda texts: of_texts
    vectors = rng.standard_normal((5, 1000, 8), np.float32)
    ids = [source[place]["id"] for place in range(5)]
    index.add(ids, [retrieve._file(source[place]) for place in range(5)], vectors)
    places = {id: place for place, id in enumerate(ids)}
    tracemalloc.start()
    found = retrieve.find(comparer, source, index, places, texts, 2, 0, 1)
    assert tracemalloc.get_traced_memory()[1] < 10e6  # of 40 MB for all texts at once
    tracemalloc.stop()
    likeness = np.einsum("nqe,te->tnq", vectors.astype(np.float16).astype(np.float32), of_texts).max(2)
    assert [rows[0]["image"] for rows in found] == [ids[best] for best in likeness.argmax(1)]


def test_a_damaged_photo_is_left_out_again_when_all_others_are_in_the_index(captioner, photos, capsys):
    (photos / "p1.png").write_bytes(b"no photo")
    for _ in range(2):
        with pytest.raises(SystemExit):
            retrieve.main(["--checkpoint", str(captioner.folder), "--images", str(photos), "--query", "a cat"])
        said = capsys.readouterr()
        assert len(said.out.splitlines()) == 4
        assert "1 of 5 photos were left out" in said.err


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "caption": text} for text in (*TEXTS, " ", TEXTS[0])],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.json", json.dumps(TEXTS)),
        ("t.json", "\ufeff" + json.dumps(COCO)),
        ("t.json", json.dumps([{"image": "a.jpg", "caption": TEXTS}])),
        ("t.jsonl", "".join(json.dumps({"image": "a.jpg", "text": text}) + "\n" for text in TEXTS)),
        ("t.csv", "image,caption\n" + "".join(f"a.jpg,{text}\n" for text in TEXTS)),
        ("t.txt", "\ufeff" + "\n".join(TEXTS)),
    ],
)
def test_texts_of_a_file_or_a_list(tmp_path, name, text, capsys):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert retrieve._texts([], tmp_path / name) == TEXTS
    assert ("t.json: left out: 1 x empty caption" in capsys.readouterr().err) == ("annotations" in text)


def test_a_line_ends_with_its_line_break_alone(tmp_path):
    texts = ["a cat\u2028on a sofa", "red\x0bdogs", "the\x85cafe\x1c", "a form\x0cfeed"]
    for end in ("\n", "\r\n"):
        (tmp_path / "t.txt").write_bytes(end.join([*texts, ""]).encode())
        assert retrieve._texts([], tmp_path / "t.txt") == [text.strip() for text in texts]


def test_the_index_of_the_folder_one_is_in_lies_beside_it(captioner, photos, monkeypatch):
    monkeypatch.chdir(photos)
    retrieve.main(["--checkpoint", str(captioner.folder), "--images", ".", "--query", "a cat", "--rerank", "0"])
    assert photos.with_name("photos.index").is_dir()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--query", " "], "' ' is no text to find photos by"),
        (["--texts", "nowhere.txt"], r"nowhere\.txt: not a file of texts"),
        (["--texts", "empty.json"], r"empty\.json: has no captions to find photos by"),
        (["--texts", "object.json"], r"object\.json: it is an object with a in it"),
        (["--texts", "text.json"], r"text\.json: is neither JSON nor a table"),
        (["--texts", "numbers.json"], r"numbers\.json: 1 is no text to find photos by"),
        (["--top", "0"], "--top and --batch-size must be at least 1"),
    ],
)
def test_bad_input_is_one_line(captioner, photos, flags, message, monkeypatch):
    monkeypatch.chdir(photos.parent)
    files = {"empty": [{"image": "a.jpg", "caption": None}], "object": {"a": 1}, "text": "a cat", "numbers": [1, "a"]}
    for name, content in files.items():
        (photos.parent / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        retrieve.main(["--checkpoint", str(captioner.folder), "--images", str(photos), *flags])
