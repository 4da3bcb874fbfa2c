"""Features on disk: the same training as with photos, computed once, never stale, refused where they cannot be kept."""

import functools
import shutil
import types

import jax
import numpy as np
import pytest
from PIL import Image

from prismer_jax import checkpoint, config, input, metrics, models, optim, pp, train, tree
from prismer_jax.batch import inputs, prompts
from prismer_jax.errors import BadSample, Stopped, UserError
from prismer_jax.models import nanovlm
from prismer_jax.training import features

FROZEN = ("vision/.*",)
TILES = "decode|tiles(32, 64, 5)"


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    """A checkpoint of a tiny model."""
    folder = tmp_path_factory.mktemp("init") / "model"
    variables = jax.jit(model().init_variables)(jax.random.key(0))
    checkpoint.export(folder, variables, {"model": {"name": "nanovlm", "variant": "tiny"}})
    return folder


@functools.cache
def model():
    return nanovlm.build("tiny", image_token=None)


def source(folder, sizes=((40, 40), (40, 70), (64, 64))):
    examples = []
    for number, size in enumerate(sizes):
        path = folder / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)).save(path)
        examples.append({"id": str(number), "image": str(path), "captions": [f"photo {number}"]})
    return examples


def cached(examples, init, chain=TILES, frozen=FROZEN, family="nanovlm", run=None, fresh=(), experts=(), **more):
    mixture = [{"name": "photos", "source": examples}, {"name": "texts", "source": [1]}]
    params = jax.eval_shape(model().init_variables, jax.random.key(0))["params"]
    made = model().clone(experts=experts)
    step = types.SimpleNamespace(model=made, state={"params": params}, trainable=optim.split(params, frozen)[0])
    cfg = {"data": {"photos": {"features": chain, **more}, "texts": {}}, "model": {"name": family}}
    cfg |= {"init": init, "init_fresh": fresh}
    first, second = features.cached(mixture, config.Section(cfg), step, run)
    assert second == mixture[1]
    return first["source"]


@pytest.mark.parametrize("chain", [TILES, pytest.param("decode|resize(32)", marks=pytest.mark.slow)])
def test_a_model_reads_features_as_it_reads_photos(tmp_path, init, chain):
    examples = source(tmp_path)
    read = cached(examples, init, chain)
    variables, _ = checkpoint.load_export(init)
    for index, example in enumerate(examples):
        seen = pp.build(chain)(example, np.random.default_rng(0))
        stored = read[index]
        assert "image" not in stored
        assert stored["captions"] == example["captions"]
        assert stored.get("grids") == [list(grid) for grid in seen["grids"]] if "grids" in seen else True
        text = prompts(np.arange(5, 9, dtype=np.int32)[None], np.ones((1, 4), bool))
        logits = [
            model().apply(variables, {**{key: value[None] for key, value in inputs(one).items()}, **text})
            for one in (seen, stored)
        ]
        np.testing.assert_allclose(*logits, rtol=5e-3, atol=5e-3)  # features are kept in 16 bits


def test_features_are_computed_once(tmp_path, init, monkeypatch):
    examples = source(tmp_path)
    before = cached(examples, init)[1]["features"]
    with monkeypatch.context() as patch:
        patch.setattr(features.Cached, "_compute", lambda self, indices, encode: None if not indices else 1 / 0)
        np.testing.assert_array_equal(cached(examples, init)[1]["features"], before)
        with pytest.raises(ZeroDivisionError):
            cached(examples, init, TILES.replace("decode", "decode()"))
    Image.fromarray(np.zeros((40, 70, 3), np.uint8)).save(examples[1]["image"])
    after = cached(examples, init)[1]["features"]
    assert not np.array_equal(before, after)


def test_other_weights_have_other_features(tmp_path, init):
    examples = source(tmp_path)
    variables = jax.jit(model().init_variables)(jax.random.key(1))
    checkpoint.export(tmp_path / "other", variables, {})
    one, two = (cached(examples, path)[0]["features"] for path in (init, tmp_path / "other"))
    assert not np.allclose(one, two, rtol=0.1)


def test_a_checkpoint_of_a_run_with_targets_has_an_encoder(tmp_path, init):
    variables, _ = checkpoint.load_export(init)
    state = {"params": {**variables["params"], "targets": {"depth": np.ones(2)}}, "opt": {"params/x": np.ones(2)}}
    with checkpoint.Checkpointer(tmp_path / "run") as checkpoints:
        checkpoints.save(1, state)
    read = cached(source(tmp_path), tmp_path / "run")
    np.testing.assert_array_equal(read[0]["features"], cached(source(tmp_path), init)[0]["features"])


def test_a_run_goes_on_with_the_encoder_that_it_began_with(tmp_path):
    """Also where config.init was trained on or deleted since; nothing is computed again."""
    sizes = dict(variant="tiny", image_token=None, language=dict(vocab_size=640))
    made = models.build("nanovlm", **sizes)
    start = tmp_path / "start"
    checkpoint.export(start, jax.jit(made.init_variables)(jax.random.key(0)), {})
    scenes = dict(name="scenes", split="train", size=32, count=8)
    cfg = dict(seed=0, batch_size=8, total_steps=2, log_steps=1, init=str(start), freeze=FROZEN, tokenizer="scenes")
    cfg |= dict(model=dict(name="nanovlm", **sizes), loss=dict(name="cross_entropy"))
    cfg |= dict(data=dict(photos=dict(scenes, features="decode|resize(32)", pp="caption()|tokenize(16)")))
    cfg |= dict(optim=dict(lr=1e-3), evals={}, tasks={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Interrupts, "after", lambda self, step: step == 1)
        with pytest.raises(Stopped, match="step 1 is saved"):
            train.train(cfg, tmp_path / "run")
    files = sorted((tmp_path / "data/features").rglob("*"))
    assert files
    shutil.rmtree(start)
    train.train(cfg, tmp_path / "run")
    assert [line["step"] for line in metrics.read(tmp_path / "run")][:2] == [1, 2]
    assert sorted((tmp_path / "data/features").rglob("*")) == files


def test_an_encoder_in_few_bits_is_packed_as_it_is_read(init):
    packed = models.build("nanovlm", variant="tiny", quantize=dict(match="vision/blocks/.*", kind="int8"))
    shapes = tree.flatten(jax.eval_shape(packed.init_variables, jax.random.key(0))["params"])
    shapes = {name: x for name, x in shapes.items() if name.startswith("vision/")}
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    read = tree.flatten(features.encoder_weights(init, shapes, {}, mesh, packed.loading["pack"]))
    assert {name: (x.shape, x.dtype) for name, x in read.items()} == {n: (x.shape, x.dtype) for n, x in shapes.items()}


def test_a_bad_photo_is_a_bad_sample(tmp_path, init):
    examples = source(tmp_path)
    (tmp_path / "1.png").write_bytes(b"no photo")
    read = cached(examples, init)
    assert read[2]["features"].dtype == np.float16
    with pytest.raises(BadSample, match=r"1\.png"):
        read[1]
    batches = input.train_batches(
        [{"source": read, "pp": pp.build("caption()")}], batch_size=2, seed=0, max_bad_fraction=0.5
    )
    assert next(batches)["features"].shape[0] == 2
    batches.close()


def test_a_bad_row_of_a_source_is_a_bad_sample(tmp_path, init):
    class Rows(list):
        def __getitem__(self, index):
            if index == 1:
                raise BadSample("table.parquet: row 1: has no photo.", "row without photo")
            return super().__getitem__(index)

    read = cached(Rows(source(tmp_path)), init)
    assert read[2]["features"].dtype == np.float16
    with pytest.raises(BadSample, match="row 1: has no photo"):
        read[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(frozen=("language/.*",)), "vision/.* is trained"),
        (dict(init=None), "name them by config.init"),
        (dict(fresh="params/vision/.*"), "vision/.* would start from scratch, but features are config.init's"),
        (dict(fresh=(r"params/projector/.*", r".*/vision/norm/scale")), "init_fresh: vision/norm/scale would start"),
        (dict(pack={"length": 8}), "use one of both"),
        (dict(experts=("depth",)), "beside which config.model.experts read maps"),
        (dict(family="prismer"), "of prismer keeps no features"),
        (dict(family="student"), "of student keeps no features"),
    ],
)
def test_features_that_cannot_be_kept_are_refused(tmp_path, init, options, message):
    with pytest.raises(UserError, match=message):
        cached(source(tmp_path), **{"init": init, **options})


def test_features_are_of_one_photo_an_example(tmp_path, init):
    examples = source(tmp_path)
    examples[1]["image"] = [examples[1]["image"]] * 2
    with pytest.raises(UserError, match="one photo an example, which is list here"):
        cached(examples, init)


def test_a_stand_in_has_the_shapes_of_features(tmp_path, init):
    examples = source(tmp_path)
    read, made = cached(examples, init)[1], features.stand_in(model(), TILES, examples[1])
    assert "image" not in made
    assert (made["features"].shape, made["features"].dtype) == (read["features"].shape, read["features"].dtype)
    np.testing.assert_array_equal(made["image_mask"], read["image_mask"])


def test_the_family_that_keeps_features_says_what_they_are_made_of():
    assert models.family("nanovlm").FEATURES == FROZEN
