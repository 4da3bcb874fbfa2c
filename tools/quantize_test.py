"""Kernels packed by what they read: from a checkpoint to one that says nearly the same, and its bad inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import assembly, checkpoint, config, input, losses, models, pp, tree
from prismer_jax.batch import Batch
from prismer_jax.checkpoint.initial import load_into
from prismer_jax.errors import UserError
from prismer_jax.testing import ROOT
from tools import export, quantize

CONFIG = f"{ROOT}/configs/paligemma.py:scenes,experts=none,bits=nf4,smoke"
SMALL = ["model.vision.layers=1", "model.language.layers=2", "batch_size=8", "data.captions.count=32"]
FLAGS = [f"--config.{one}" for one in SMALL]


@pytest.fixture(scope="module", autouse=True)
def compiled_thrice_as_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def base(tmp_path, monkeypatch):
    """Exports a model of random values; returns its folder and the config without `quantize`."""
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    cfg = config.load(CONFIG.replace(",bits=nf4", ""), SMALL)
    fields, rng = config.plain(cfg.model), np.random.default_rng(0)
    shapes = tree.flatten(jax.eval_shape(models.build(**fields).init_variables, jax.random.key(0)))
    values = {name: rng.normal(0, 0.1, x.shape).astype(np.float32) for name, x in shapes.items()}
    what = {"model": fields, "tokenizer": "scenes", "tasks": config.plain(cfg.tasks)}
    checkpoint.export(tmp_path / "base", tree.unflatten(values), what)
    return tmp_path / "base", cfg


@pytest.mark.slow
def test_a_packed_model_says_nearly_what_it_said_and_is_whole_again_by_merging(base, tmp_path, capsys):
    folder, cfg = base
    packed = tmp_path / "packed"
    match = "language/blocks/(query|key|down)/.*"
    chosen = [*FLAGS, f"--config.model.quantize.match={match}", "--batches", "3"]
    quantize.main(["--checkpoint", str(folder), "--config", CONFIG, "--output", str(packed), *chosen])
    assert "3 kernels packed by what they read of 3 batches of 8" in capsys.readouterr().out
    variables, described = checkpoint.load_export(packed)
    assert described["model"]["quantize"] == dict(match=match, kind="nf4")
    assert described["tasks"].keys() == {"caption", "question"}
    export.main(["--checkpoint", str(packed), "--format", "orbax", "--merge", "--output", str(tmp_path / "whole")])

    fields = described["model"]
    model, plain = models.build(**fields), models.build(**{k: v for k, v in fields.items() if k != "quantize"})
    nearest = load_into(jax.eval_shape(model.init_variables, jax.random.key(0)), folder, **model.loading)
    mixture = assembly.load_mixture(cfg.data, pp.tokenizer.load("scenes"))
    batch = next(input.train_batches(mixture, batch_size=8, seed=7))
    run = jax.jit(lambda model, variables: losses.apply(model, variables, Batch(batch)), static_argnums=0)
    said = run(plain, checkpoint.load_export(folder)[0])
    off = [np.square(run(model, one) - said).mean() for one in (variables, nearest)]
    assert 0 < off[0] < 0.5 * off[1]
    whole = run(plain, checkpoint.load_export(tmp_path / "whole")[0])
    np.testing.assert_allclose(whole, run(model, jax.tree.map(jnp.asarray, variables)), atol=2e-4)

    with pytest.raises(UserError, match=r"packed has adapters or packed kernels: make it whole by .* --merge"):
        quantize.main(["--checkpoint", str(packed), "--config", CONFIG, "--output", str(tmp_path / "again")])
    with pytest.raises(UserError, match=r"packed exists"):
        quantize.main(["--checkpoint", str(folder), "--config", CONFIG, "--output", str(packed)])


def test_kernels_read_photos_also_where_a_training_reads_features(tmp_path, monkeypatch):
    """A nanoVLM would go without, and be packed by what it reads of texts alone."""
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    fields = dict(name="nanovlm", variant="tiny", image_token=None, language=dict(vocab_size=640))
    shapes = jax.eval_shape(models.build(**fields).init_variables, jax.random.key(0))
    checkpoint.export(tmp_path / "base", jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), {"model": fields})
    scenes = dict(name="scenes", split="train", size=32, count=8, features="decode|resize(32)")
    cfg = dict(seed=0, batch_size=8, tokenizer="scenes", loss=dict(name="cross_entropy"))
    cfg |= dict(model=fields | dict(quantize=dict(match="language/.*")))
    cfg |= dict(data=dict(photos=scenes | dict(pp="caption()|tokenize(16)")))
    seen = []

    def read_by(model, variables, loss, batches, total):
        seen.extend(batches)
        raise UserError("seen")

    monkeypatch.setattr(quantize, "read_by", read_by)
    with pytest.raises(UserError, match="seen"):
        quantize.quantize(config.strict(cfg), tmp_path / "base", 1, tmp_path / "packed")
    assert seen[0]["image"].shape == (8, 32, 32, 3)


@pytest.mark.parametrize(
    ("arg", "flags", "message"),
    [
        ("", [], r"set config\.model\.quantize = dict\(match=\.\.\., kind='nf4'\)"),
        (",bits=int8", [], r"Other kinds lose too little to make up for"),
        (",bits=nf4", ["--batches", "0"], r"--batches 0: kernels are packed by one batch at least"),
        (",bits=nf4", ["--config.model.quantize.match=vision/poler/.*"], r"'vision/poler/\.\*' matches no parameter"),
        (",bits=nf4", ["--config.model.vision.width=32"], r"is of another model than the config's"),
    ],
)
def test_what_cannot_be_packed_is_refused_in_one_line_and_leaves_nothing(base, tmp_path, arg, flags, message):
    folder, _ = base
    spec, output = CONFIG.replace(",bits=nf4", arg), tmp_path / "packed"
    with pytest.raises(UserError, match=message):
        quantize.main(["--checkpoint", str(folder), "--config", spec, "--output", str(output), *FLAGS, *flags])
    assert not output.exists()


def test_a_model_whose_loss_is_not_finite_is_not_packed(base, tmp_path):
    folder, _ = base
    variables, described = checkpoint.load_export(folder)
    variables["params"]["language"]["word_embedding"][:] = np.inf
    checkpoint.export(tmp_path / "broken", variables, described)
    chosen = [*FLAGS, "--config.model.quantize.match=language/blocks/query/.*", "--batches", "1"]
    with pytest.raises(UserError, match=r"^language/blocks/query/kernel reads, .* not finite"):
        quantize.main(
            [
                "--checkpoint",
                str(tmp_path / "broken"),
                "--config",
                CONFIG,
                "--output",
                str(tmp_path / "packed"),
                *chosen,
            ]
        )
    assert not (tmp_path / "packed").exists()
