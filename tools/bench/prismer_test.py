import functools
import hashlib
import json
import sys

import jax
import numpy as np
import pytest

from prismer_jax import labels
from prismer_jax.errors import UserError
from tools.bench import __main__ as bench
from tools.bench import prismer, worker
from tools.bench.experts_test import fake


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/prismer_caption.py").touch()
    monkeypatch.setattr(prismer, "MODELS_SHA256", hashlib.sha256().hexdigest())
    return tmp_path


@pytest.fixture
def tiny(monkeypatch):
    sizes = dict(VARIANT="tiny", SIZE=96, LABEL_SIZE=32, WORDS=199, BATCH=2)
    sizes |= dict(LENGTHS=(30, 20, 8, 1, 1), ANSWERS=60, BEGINNINGS=40)
    for name, value in sizes.items():
        monkeypatch.setattr(prismer, name, value)


def test_each_row_has_speed_and_memory_also_as_json(monkeypatch, capsys, checkout, tmp_path):
    monkeypatch.setattr(worker, "our_command", lambda *_: fake([0.1, 4, 2, 3], 2_000_000_000))
    monkeypatch.setattr(worker, "their_command", lambda *_: fake([0.1, 9, 8, 16], 4_000_000_000))
    monkeypatch.setattr(bench, "_python", lambda _: "python")
    words = ["prismer", "--rows", "encoder", "--seconds", "0", "--json", str(tmp_path / "table.json")]
    bench.main([*words, "--reference", str(checkout)])
    _, _, speed, memory, _ = (line.split()[-5:] for line in capsys.readouterr().out.splitlines())
    assert speed == ["2.00", "0.50", "4.00", ">", "1.3"]
    assert memory == ["2.00", "4.00", "0.50", "<", "1.0"]
    found = json.loads((tmp_path / "table.json").read_text())["prismer"]
    (row,) = found["rows"]
    assert (row["row"], row["original"]["seconds"]) == ("encoder", 2 * [9.0, 8.0, 16.0])
    assert (found["ratio"], row["ratio_of_medians"], row["ratio_of_memory"]) == (4.0, 3.0, 0.5)


def test_a_folder_without_the_official_code_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no checkout of NVlabs/prismer: it has no model/prismer_caption.py"):
        prismer.measure(tmp_path, "python")


def test_a_checkout_of_another_commit_is_refused(checkout):
    (checkout / "model/prismer_caption.py").write_text("another")
    with pytest.raises(UserError, match=f"not those of NVlabs/prismer at 4f27ab3; git -C {checkout} checkout 4f27ab3"):
        prismer.measure(checkout, "python")


def test_a_python_without_pytorch_is_one_line(monkeypatch, capfd, checkout):
    theirs = worker.their_command
    monkeypatch.setattr(worker, "our_command", lambda *_: fake([1, 1, 1, 1]))
    monkeypatch.setattr(
        worker, "their_command", lambda python, *rest: [python, "-S", *theirs(python, *rest)[1:]]
    )  # no packages
    with pytest.raises(UserError, match="ended before its first round"):
        prismer.measure(checkout, sys.executable, rows=["encoder"], seconds=0)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("Give --reference-python one with torch, transformers==4.26.1 and einops.")


def test_both_sides_do_the_same():
    told = prismer.settings()
    assert told["experts"] == ("depth", "normal", "edge", "seg_coco", "obj_detection", "ocr_detection")
    assert (told["variant"], told["image_size"], told["label_size"]) == ("prismer_base", 480, 224)
    assert told["ranked"] == {"vqa_rank16": (16, 4), "vqa_rank128": (128, 1)}
    answers = prismer.answer_list()
    assert answers.shape == (3128, 6)
    assert told["answers"] == [row[row != 1].tolist() for row in answers]
    counts = np.bincount([len(answer) for answer in told["answers"]])
    assert counts.tolist() == [0, 0, *prismer.LENGTHS]
    draw, likely = np.random.default_rng(0), []
    for _ in range(20):
        first = draw.permutation(prismer.WORDS)[answers[:, 0]]
        rows = answers[np.argsort(first, kind="stable")[:128]]
        ends = np.argmax(rows == 2, axis=1)
        likely.append(len({tuple(row[: n + 1]) for row, end in zip(rows, ends, strict=True) for n in range(end)}))
    assert np.median(likely) == pytest.approx(160, abs=6)  # nodes of VQAv2's trees, 151 to 170 of them
    assert all(answer[-1] == 2 and min(answer[:-1]) > 3 for answer in told["answers"])


def test_label_maps_are_as_a_loader_gives_them(tiny):
    batch = prismer.photos(3)
    assert batch["image"].shape == (3, 96, 96, 3)
    for name in labels.PAPER:
        expert = labels.EXPERTS[name]
        assert batch[expert.key].shape == (3, 32, 32, expert.channels)
        assert batch[expert.key].dtype == np.uint8
        if expert.storage == "ids":
            assert set(np.unique(batch[expert.key])) == {*range(prismer.INSTANCES), labels.BACKGROUND}
    assert batch[labels.CLASSES_KEY].shape == (3, 256)
    assert batch[labels.WORDS_KEY].shape == (3, 256, 64)


@pytest.mark.slow
def test_our_side_encodes_and_ranks(tiny):
    assert prismer.encoding()().shape == (2, 36 + 64, 64)
    assert prismer.ranking("vqa_rank128", 8)().shape == (1,)


def test_a_step_trains_all_but_the_vision_transformer(tiny, monkeypatch):
    seen = []

    def steps_of(made, batch):
        seen.append((made, batch))

    monkeypatch.setattr(prismer, "steps_of", steps_of)
    prismer.training()
    ((made, batch),) = seen
    assert "encoder/resampler/latents" in made.trainable
    assert not [name for name in made.trainable if name.startswith("encoder/blocks/") and "adaptor" not in name]
    assert batch["mask_loss"].sum() == 2 * (prismer.LENGTH - prismer.PREFIX)
    with jax.set_mesh(made.mesh):
        state = jax.eval_shape(functools.partial(made.update), made.state, batch)[0]
    assert state["step"].shape == ()
