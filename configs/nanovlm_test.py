"""The published trainings of nanoVLM: their numbers, their data on a few made-up talks, and whole runs."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from configs import configs_test
from prismer_jax import assembly, checkpoint, config, input, metrics, optim, sharding, train, tree
from prismer_jax.datasets import miniature
from prismer_jax.errors import UserError
from prismer_jax.models.nanovlm import conversion_test
from prismer_jax.pp import buckets, tokenizer
from prismer_jax.testing import ROOT
from prismer_jax.training.step import make_step
from tools import convert

VARIANTS = ("222m", "450m", "230m_8k", "460m_8k")


def load(arg):
    return config.load(f"{ROOT}/configs/nanovlm.py:{arg}")


@pytest.mark.parametrize(
    ("variant", "rates", "batch", "accumulate", "clip", "length", "total"),
    [
        # models/config.py (and data/collators.py) of huggingface/nanoVLM at v0.1, v0.2 and 4e0c096
        ("222m", (2e-3, 1e-4), 256, 1, None, 79, "total_epochs"),
        ("450m", (3e-3, 5e-5), 128, 4, 1.0, 512, "total_epochs"),
        ("230m_8k", (0.00512, 5e-5), 16, 8, 1.0, 4096, "total_steps"),
        ("460m_8k", (0.00512, 5e-5), 16, 8, 1.0, 4096, "total_steps"),
    ],
)
def test_hyperparameters_are_the_published_ones(variant, rates, batch, accumulate, clip, length, total):
    cfg = load(f"variant={variant}")
    assert (cfg.batch_size, cfg.accumulate, cfg.optim.clip_norm) == (batch, accumulate, clip)
    assert (cfg.data.talks.pack.length, cfg.loss.normalize) == (length, "part")
    assert cfg[total] == {"total_epochs": 5, "total_steps": 40_000}[total]
    names = ("projector/kernel", "vision/norm/scale", "language/norm/scale", "language/embedding")
    params = dict.fromkeys(names, np.ones(2, np.float32))
    options = config.plain(cfg.optim)
    made = optim.make(params, 1010, **options)
    warmup = 0.03 * 1010  # 30.3 steps: the reference does not round
    for rate, schedule in zip(sorted(rates), ("lr/language/.*", "lr"), strict=True):
        at = made.schedules[schedule]
        assert at(0) == pytest.approx(rate / warmup)
        assert at(30) == pytest.approx(rate * 31 / warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * (500 - warmup) / (1010 - warmup)))
        assert at(500) == pytest.approx(rate * (0.1 + 0.9 * cosine))
    state = made.tx.init(params)
    updates, _ = made.tx.update(dict.fromkeys(names, np.zeros(2, np.float32)), state, params)
    decays = {name: float(update[0]) for name, update in updates.items()}
    small = -0.01 * rates[1] / warmup
    assert decays == pytest.approx(dict.fromkeys(names, small) | {names[0]: -0.01 * rates[0] / warmup}, rel=1e-5)


def test_a_part_of_a_published_training_may_be_frozen():
    for freeze in ("freeze_lang_vision", "freeze_vision", "freeze_lang"):
        cfg = config.load(f"{ROOT}/configs/nanovlm.py:variant=450m,smoke", [f"freeze={freeze}"])
        step = make_step(cfg, None, sharding.make_mesh(), dict(batch_size=8, num_examples=8, total_steps=2))
        assert "projector/kernel" in step.trainable


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reference", [False, True])
def test_their_data_can_be_loaded(variant, reference, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path_factory.getbasetemp() / "nanovlm"))
    cfg = load(f"variant={variant},smoke,reference={reference}")
    words = tokenizer.load(cfg.tokenizer)
    mixture = assembly.load_mixture(cfg.data, words)
    batches = input.train_batches(mixture, batch_size=cfg.batch_size, seed=0)
    batch = next(batches)
    batches.close()
    packs = variant.endswith("8k")
    assert mixture[0]["size"] < 12 if packs else mixture[0]["size"] == 12
    tiles = buckets.tiles_for(batch["image_mask"].sum(1).max(), 100) if packs else 1
    assert batch["image"].shape == (cfg.batch_size, tiles, 32, 32, 3)
    assert batch["text"].shape[1] == buckets.columns_for(batch["mask_input"].sum(1).max(), 400)
    assert (batch["segment"].max() > 0) == (packs and not reference)
    image = words.id_of("<|image|>")
    places = 0 if image is None else int((batch["text"] == image).sum())
    assert places == (0 if variant == "222m" else 4 * batch["image_mask"].sum())


def test_mmstar_is_asked_while_it_trains_and_chooses_what_is_kept():
    old, new = load("variant=222m,mmstar=stars.jsonl"), load("variant=460m_8k,val=held_out,mmstar=stars.jsonl")
    assert (old.evaluate_steps, new.evaluate_steps) == (250, 500)
    assert old.checkpoint.best_metric == new.checkpoint.best_metric == "mmstar/accuracy"
    lowest = load("variant=460m_8k,val=held_out").checkpoint
    assert (lowest.best_metric, lowest.best_mode) == ("loss/loss", "min")
    for asked, wording, chat in [
        (old, r"Question: {question} \nAnswer only with the letter! \nAnswer:", "chat(591, 49, style='plain')"),
        (new, r"{question}\nAnswer only with the letter!", "chat(2068, 64, style='chat')"),
    ]:
        assert asked.evals.mmstar.pp.endswith(f"|ask(wording='{wording}')|{chat}")
    assert (new.evals.mmstar.method, list(new.evals)) == ("greedy", ["loss", "mmstar"])
    assert load("variant=450m,mmstar=stars.jsonl,reference=True").evals.mmstar.method == "reference"


def test_an_unknown_variant_is_named():
    with pytest.raises(UserError, match="Did you mean '450m'"):
        load("variant=460m")


@pytest.mark.slow
def test_both_stages_on_photos_read_features_and_change_what_they_say(tmp_path, monkeypatch):
    """On a tiny model, whose files tools.convert put together."""
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    onnx_test = pytest.importorskip("prismer_jax.weights.onnx_test", reason="needs the package onnx")
    onnx_test.written(tmp_path / "vit.onnx")
    conversion_test.smollm(tmp_path / "language", np.random.default_rng(0))
    flags = ["--vision", str(tmp_path / "vit.onnx"), "--language", str(tmp_path / "language"), "--image-size", "16"]
    photos = coco(tmp_path / "photos")
    flags += ["--tokenizer", str(tmp_path / "language"), "--shuffle", "2", "--extra-tokens", "0"]
    flags += ["--match-words", str(photos / "captions_train.json")]
    convert.main(["nanovlm", *flags, "--output", str(tmp_path / "start")])
    init = tmp_path / "start"
    for stage in ("projector", "attention"):
        cfg = load(f"photos,smoke,stage={stage},init={init},data={photos}")
        assert (cfg.model.image_token, cfg.model.vision.image_size) == (None, 16)
        cfg = cfg if stage == "attention" else config.Section({**config.plain(cfg), "evals": {}})  # it takes time
        scores = train.train(cfg, tmp_path / stage)
        before, after = (tree.flatten(checkpoint.load_export(path)[0]) for path in (init, tmp_path / stage))
        changed = {name for name in after if not np.array_equal(before[name], after[name])}
        attention = {name for name in after if re.search(r"language/blocks/(query|key|value|out)/", name)}
        assert changed == {"params/projector/kernel", *(attention if stage == "attention" else ())}
        init = tmp_path / stage / "export"
    assert {"own_photo/gain_low", "own_photo/wins", "caption/cider", "caption/cider_blank"} <= scores.keys()
    assert len(list((tmp_path / "data" / "features").iterdir())) == 1  # both read the same
    with pytest.raises(UserError, match="does not exist"):
        load(f"photos,init={tmp_path / 'none'}")


@pytest.mark.slow
def test_trained_parts_learn_from_photos_by_their_features(weights, shared, tmp_path, monkeypatch):
    """A piece of the training on real photos: 12 steps with 2 of 8 photos each."""
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    parts = ["--vision", weights / "vit_s14.onnx", "--language", weights / "smollm2-135m-instruct.Q4_1.gguf"]
    folder = shared / "data" / "captions" / "flickr8k_1k"
    flags = ["--image-size", 224, "--shuffle", 2, "--extra-tokens", 0, "--match-words", folder / "captions_train.json"]
    convert.main(["nanovlm", *map(str, [*parts, *flags, "--output", tmp_path / "start"])])
    arg = f"photos,smoke,stage=attention,init={tmp_path / 'start'},data={folder}"
    changes = ["batch_size=2", "total_steps=12", "optim.warmup_percent=0.0"]
    _, results = configs_test.run(tmp_path / "run", "configs/nanovlm.py", arg, *changes)
    assert {"own_photo/gain_low", "own_photo/loss_blank", "caption/cider_blank"} <= results.keys()
    losses = [row["train/loss"] for row in metrics.read(tmp_path / "run") if "train/loss" in row]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.5  # nats a token
    assert len(list((tmp_path / "data" / "features").rglob("*.npz"))) == 8


def coco(folder):
    """Writes a few photos with captions as COCO lays them out; returns the folder."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, ids in (("train", range(8)), ("test", range(8, 12))):
        photos = [{"id": i, "file_name": f"{i}.png"} for i in ids]
        said = [{"image_id": i, "id": 2 * i + j, "caption": f"{i % 3} of {j}"} for i in ids for j in range(2)]
        (folder / f"captions_{split}.json").write_text(json.dumps({"images": photos, "annotations": said}))
        for i in ids:
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / "images" / f"{i}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("arg", [*VARIANTS, "460m_8k,reference=True"])
def test_they_run_whole(arg, tmp_path):
    stars = f"{miniature.folder()}/choices.jsonl"
    _, results = configs_test.run(tmp_path, "configs/nanovlm.py", f"variant={arg},smoke,mmstar={stars}")
    assert {"loss/loss", "loss/loss_blank", "mmstar/accuracy", "mmstar/accuracy_blank"} <= results.keys()
    assert all(math.isfinite(value) for value in results.values())
