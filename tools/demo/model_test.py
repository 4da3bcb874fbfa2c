"""What the page asks of a model, and the parts of the page as HTML; no Gradio is needed for it."""

import pathlib
import re
import socket

import numpy as np
import pytest
from PIL import Image

from prismer_jax import datasets
from prismer_jax.caption_test import write_model
from prismer_jax.captioner import Captioner
from prismer_jax.datasets import scenes
from prismer_jax.errors import UserError
from prismer_jax.experts import testing, weights
from prismer_jax.labelling import cached
from tools.demo import __main__ as demo
from tools.demo import panels
from tools.demo.model import Model, Said

EXPERTS = ["depth", "obj_detection"]
PHOTO = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


def write(folder, experts=EXPERTS, tasks=("caption", "question"), **changes):
    look = f"labels_for({'+'.join(experts) or 'none'!r})|decode|resize(32, 48)"
    prompts = {"caption": "caption_prompt('A')|tokenize(3)", "question": "question_prompt|tokenize(9)"}
    decode = dict(method="greedy", max_new=3)
    return write_model(
        folder, {name: dict(pp=f"{look}|{prompts[name]}", decode=decode) for name in tasks}, experts=experts, **changes
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return write(tmp_path_factory.mktemp("demo") / "model")


@pytest.fixture
def labelling(exported, tmp_path, monkeypatch):
    """A model, and experts of a few parameters that label for it."""
    for module in (cached, weights):
        monkeypatch.setattr(module, "EXPERTS", testing.TOYS)
    monkeypatch.setenv("PRISMER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for kind in testing.TOYS.values():
        weights.export(tmp_path / "experts" / kind.name, kind(), kind().random_variables(0))
    return Model(Captioner(exported, tmp_path / "experts"))


def test_labels_come_one_by_one_and_leave_no_file(labelling, tmp_path):
    model = labelling
    assert (model.labelling(), model.note()) == (EXPERTS, "")
    steps = list(model.label(PHOTO))
    assert [name for name, _ in steps] == ["", *EXPERTS]
    assert [model.labelled(photo) for _, photo in steps] == [[], EXPERTS[:1], EXPERTS]
    assert steps[-1][1]["labels/depth"].shape == (30, 40, 1)
    assert not list((tmp_path / "cache").rglob("*.png"))
    photo = steps[-1][1]
    assert model.labelled(model.seen(photo, ["depth"])) == ["depth"]
    assert not any("obj" in key for key in model.seen(photo, ["depth"]))


@pytest.mark.slow
def test_each_answer_is_what_the_model_says_of_a_photo_with_those_labels(labelling):
    model = labelling
    *_, (_, photo) = model.label(PHOTO)
    answers = model.without_each(photo, "what is it")
    assert list(answers) == ["", *EXPERTS]
    assert answers[""] == model.answer(photo, "what is it", EXPERTS).texts[0]
    assert answers["depth"] == model.answer(photo, "what is it", ["obj_detection"]).texts[0]
    whole, blind = model.caption(photo, EXPERTS), model.caption(photo, ())
    assert whole.scores != blind.scores
    assert " ".join(word for word, _ in whole.attention) in whole.texts[0]


def test_missing_experts_are_a_line(exported, tmp_path):
    model = Model(Captioner(exported))
    assert "started without their weights (--experts)" in model.note()
    ((_, photo),) = model.label(PHOTO)
    assert (model.labelling(), model.labelled(photo)) == ([], [])
    (tmp_path / "empty").mkdir()
    without = Model(Captioner(exported, tmp_path / "empty"))
    assert without.note().startswith("The model does without the experts depth (no weights in")
    assert without.labelling() == []


def test_a_checkpoint_says_what_it_can_do(tmp_path):
    blind = Model(Captioner(write(tmp_path / "a", [], ["question"])))
    assert (blind.captions, blind.answers, blind.experts, blind.note()) == (False, True, (), "")
    with pytest.raises(UserError, match="this checkpoint was exported for nothing"):
        Model(Captioner(write(tmp_path / "b", [], [])))


def test_scenes_bring_the_labels_that_the_model_can_read(tmp_path, monkeypatch):
    drawn = [dict(id="s", image=PHOTO, questions=[], **{f"labels/{name}": PHOTO[..., :1] for name in EXPERTS})]
    monkeypatch.setattr(datasets, "load", lambda name, **options: drawn)
    model = Model(Captioner(write(tmp_path / "a")))
    assert model.labelled(model.examples("scenes")[0]) == ["depth"]  # of another data set's classes
    classes = {"obj_detection": list(scenes.CLASSES)}
    model = Model(Captioner(write(tmp_path / "b", classes=classes)))
    (example,) = model.examples("scenes")
    assert model.labelled(example) == EXPERTS


def test_a_damaged_photo_is_no_example_and_ends_no_page(exported, tmp_path, capsys):
    model = Model(Captioner(exported))
    (tmp_path / "a.png").write_bytes(b"no photo")
    with pytest.raises(UserError, match="none of its photos can be read"):
        model.examples(tmp_path)
    for number in range(9):
        Image.fromarray(PHOTO).save(tmp_path / f"b{number}.png")
    assert [example["id"] for example in model.examples(tmp_path)] == [f"b{number}.png" for number in range(8)]
    assert "a.png: not a readable image" in capsys.readouterr().err


def test_what_is_said_is_no_markup():
    said = Said(["<b>bold</b> & co", ""], [-0.5, -1.5], [("<i>", np.array([[0.1, 0.3]]))])
    page = panels.texts(said, 'a "title"') + panels.attention(said, PHOTO) + panels.notice("<script>")
    assert not re.search("<b>|<i>[^<]|<script>", page.replace("<i style", ""))
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; co" in page
    assert "<em>(nothing)</em>" in page
    assert "width: 37%" in page  # exp(-1)
    assert "40 % of its attention is on the photo" in page
    assert panels.attention(Said(["a"], [0.0]), PHOTO) == panels.notice("") == ""


def test_maps_that_are_awaited_have_their_place():
    page = panels.maps({"image": PHOTO, "labels": {"depth": PHOTO[..., :1]}}, ["edge"])
    assert re.findall("<figcaption>(.*?)</figcaption>", page) == ["Photo", "Depth", "Edges …"]
    assert page.count("data:image/") == 2


def test_a_photo_is_lit_where_the_model_looked():
    white = np.full((64, 128, 3), 200, np.uint8)
    light = panels.lit(white, np.array([[0.0, 0.0], [0.0, 0.4]]), 100)
    assert light.shape == (50, 100, 3)
    assert light[45, 95].mean() > 2.5 * light[5, 5].mean()
    assert light[5, 5].mean() < 60


def test_answers_that_change_are_marked():
    table = panels.comparison({"": "red", "depth": "red", "seg_coco": "blue"})
    assert table.count("changes") == 1
    assert re.search('class="changed">.*?without segmentation.*?blue', table)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "required: --checkpoint"),
        ("--checkpoint a --port 70000", "below 65536"),
        ("--checkpoint a --megabytes 0", "at least 1"),
        ("--checkpoint a --host 203.0.113.7", "--host 203.0.113.7 --port 7860: Cannot assign"),
    ],
)
def test_wrong_flags_are_one_line(flags, message):
    with pytest.raises(UserError, match=re.escape(message)):
        demo.main(flags.split())


def test_a_port_in_use_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} of 127.0.0.1 is in use. Give another"):
            demo.main(["--checkpoint", "a", "--port", str(port)])
    assert demo.free_port("127.0.0.1", port) == port
    assert demo.free_port("127.0.0.1", 0) > 0


def test_without_gradio_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(demo.os, "environ", {})
    with pytest.raises(UserError, match=re.escape('pip install "prismer_jax[demo]"')):
        demo.server(str(tmp_path))
    assert pathlib.Path(demo.__file__).with_name("page.css").is_file()
