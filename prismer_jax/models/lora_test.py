"""Adapters and packed kernels in every family: nothing changes at first, adapters alone train, files go both ways."""

import contextlib
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from prismer_jax import assembly, checkpoint, config, decode, metrics, models, optim, pp, sharding, tree
from prismer_jax.batch import prompts
from prismer_jax.checkpoint.initial import load_into
from prismer_jax.decode.ranking import rank_answers
from prismer_jax.errors import UserError
from prismer_jax.models import lora, peft
from prismer_jax.models.split import tensor_rules
from prismer_jax.testing import ROOT
from prismer_jax.towers import layers, quantized
from prismer_jax.train import train
from prismer_jax.training.step import make_step
from prismer_jax.weights import safe
from tools import convert, export

FIELDS = {
    "prismer": dict(variant="tiny", experts="none"),
    "nanovlm": dict(variant="tiny", image_token=None),
    "paligemma": dict(variant="tiny", remat="full"),
}
KEY = jax.random.key(0, impl="rbg")  # compiles in a fraction of the default's time
ALL = dict(match=".*", rank=2, alpha=6)
# Of the announcement of PaliGemma: q, k, v, o, gate, up and down of Gemma, and SigLIP's q, k, v.
NAMES = r"language/blocks/.*|vision/blocks/attention/(query|key|value)/.*"


@pytest.fixture(scope="module", autouse=True)
def compiled_thrice_as_fast():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def batch_of(model, rows=2):
    rng = np.random.default_rng(0)
    text = rng.integers(3, 190, (rows, 6)).astype(np.int32)
    image = rng.integers(0, 256, (rows, model.image_size, model.image_size, 3), np.uint8)
    return jax.tree.map(jnp.asarray, {"image": image, **prompts(text, text > 0)})


@functools.cache
def made(family, quantize=False):
    """Returns a model with adapters everywhere that say something, and its variables, drawn at random."""
    packs = dict(quantize=dict(match=r"(?!.*projector).*")) if quantize else {}
    model, rng = models.build(family, **FIELDS[family], lora=ALL, **packs), np.random.default_rng(1)

    def draw(name, x):
        if x.dtype == jnp.uint8:
            return jnp.asarray(rng.integers(0, 256, x.shape, np.uint8))
        return jnp.asarray(
            np.abs(rng.normal(0, 0.1, x.shape)) if "scale" in name else rng.normal(0, 0.1, x.shape), x.dtype
        )

    shapes = jax.eval_shape(model.init_variables, KEY)
    return model, jax.tree.map(draw, tree.names(shapes), shapes)


def without_adapters(variables):
    return tree.unflatten({name: x for name, x in tree.flatten(variables).items() if "/lora/" not in name})


def silent(variables):
    """Returns variables whose adapters add nothing yet."""
    return jax.tree.map(lambda name, x: 0 * x if name.endswith("lora/b") else x, tree.names(variables), variables)


@pytest.mark.parametrize("family", ["prismer", pytest.param("nanovlm", marks=pytest.mark.slow), "paligemma"])
def test_adapters_say_nothing_at_first_and_then_what_merged_kernels_say(family):
    model, variables = made(family)
    batch, plain = batch_of(model), without_adapters(variables)
    base, adapted = jax.jit(model.model.apply), jax.jit(model.apply)
    np.testing.assert_array_equal(adapted(silent(variables), batch), base(plain, batch))
    expected = base({**plain, "params": lora.merged(model, variables["params"])}, batch)
    assert np.abs(expected - base(plain, batch)).max() > 1e-2
    np.testing.assert_allclose(adapted(variables, batch), expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize("family", [pytest.param("prismer", marks=pytest.mark.slow), "nanovlm"])
def test_packed_models_decode_as_their_merged_ones(family):
    model, variables = made(family, quantize=True)
    batch = batch_of(model)

    def decoded(model, variables):
        encoded = model.apply(variables, batch, method="encode")
        _, cache = model.apply(variables, encoded, batch, 2, method="prefill")
        return model.apply(variables, cache, jnp.full((2, 1, 1), 7, jnp.int32), method="extend")[0]

    merged = {**without_adapters(variables), "params": lora.merged(model, variables["params"])}
    expected = jax.jit(functools.partial(decoded, model.model))(merged)
    found = jax.jit(functools.partial(decoded, model))(variables)
    np.testing.assert_allclose(found, expected, atol=3e-5 * np.abs(expected).max())


class Layer(nn.Module):
    """The two kinds of dense layers that towers have."""

    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(6, use_bias=False, name="down")(layers.Dense(8, name="up")(x)), None


class Stack(nn.Module):
    """Three of them, scanned and computed again in the backward pass."""

    @nn.compact
    def __call__(self, x):
        return layers.stack(Layer, 3, "full", broadcast=0)(name="blocks")(x)[0]

    def init_variables(self, rng):
        return self.init(rng, jnp.ones((2, 6)))


def test_a_scanned_layer_adds_products_of_its_own_and_gradients_reach_adapters_alone():
    """Against W + BA in float64; d/dB of f(W + s·AB) is s·Aᵀ·df/dW, and d/dA is s·df/dW·Bᵀ."""
    model = lora.adapt(Stack(), dict(ALL, match=".*/up/.*"), None)
    params = jax.jit(model.init_variables)(KEY)["params"]
    plain = jax.jit(Stack().init_variables)(KEY)["params"]
    jax.tree.map(np.testing.assert_array_equal, without_adapters(params), plain)  # the same random numbers
    assert not params["blocks"]["up"]["lora"]["b"].any()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), params)
    x = jnp.asarray(rng.normal(size=(2, 6)), jnp.float32)
    exact, y = jax.tree.map(np.float64, params["blocks"]), np.float64(x)
    for layer in range(3):
        up = exact["up"]["kernel"][layer] + 3 * exact["up"]["lora"]["a"][layer] @ exact["up"]["lora"]["b"][layer]
        y = y + (y @ up + exact["up"]["bias"][layer]) @ exact["down"]["kernel"][layer]
    np.testing.assert_allclose(model.apply({"params": params}, x), y, rtol=1e-5, atol=1e-4)

    trainable, fixed = optim.split(params, model.frozen(()))
    assert list(trainable) == ["blocks/up/lora/a", "blocks/up/lora/b"]

    def loss(model, params):
        return jnp.sin(model.apply({"params": params}, x)).sum()

    own = jax.jit(jax.grad(lambda part: loss(model, optim.merge(part, fixed))))(trainable)
    whole = jax.jit(jax.grad(functools.partial(loss, Stack())))(lora.merged(model, params))
    kernel, (a, b) = whole["blocks"]["up"]["kernel"], trainable.values()
    np.testing.assert_allclose(own["blocks/up/lora/a"], 3 * kernel @ np.swapaxes(b, 1, 2), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(own["blocks/up/lora/b"], 3 * np.swapaxes(a, 1, 2) @ kernel, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_packed_model_begins_as_the_model_itself_packed(kind):
    model = lora.adapt(Stack(), None, dict(match="blocks/down/.*", kind=kind))
    params, plain = (jax.jit(one.init_variables)(KEY)["params"]["blocks"] for one in (model, Stack()))
    jax.tree.map(np.testing.assert_array_equal, params["up"], plain["up"])
    jax.tree.map(np.testing.assert_array_equal, params["down"]["kernel"], quantized.pack(plain["down"]["kernel"], kind))
    x = jnp.ones((2, 6))
    found, exact = model.apply({"params": {"blocks": params}}, x), Stack().apply({"params": {"blocks": plain}}, x)
    assert 0 < np.abs(found - exact).max() < 0.3 * np.abs(exact).max()


def test_a_layer_that_is_called_twice_while_it_initialises_is_packed_once():
    """As the image encoder of BLIP-2's first stage is."""

    class Twice(nn.Module):
        image_size = 4

        def setup(self):
            self.layer = layers.Dense(8)

        def __call__(self, x):
            return self.layer(x) + self.layer(x)

        def init_variables(self, rng):
            return self.init(rng, jnp.ones((1, 4)))

    model = lora.adapt(Twice(), None, dict(match=".*", kind="int8"))
    variables = model.init_variables(KEY)
    assert variables["params"]["layer"]["kernel"]["codes"].dtype == jnp.int8
    assert model.apply(variables, jnp.ones((1, 4))).shape == (1, 8)


def test_dropout_is_of_training_and_of_the_adapters_input():
    model = lora.adapt(Stack(), dict(ALL, dropout=0.5), None)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init_variables, KEY)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), shapes)
    x = jnp.ones((2, 6))
    first, second = (model.apply(variables, x, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1))
    assert (first != second).any()
    assert (model.apply(variables, x) == model.apply(variables, x)).all()
    still = model.apply(silent(variables), x, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(still, model.apply(silent(variables), x))


def test_adapters_with_dropout_draw_in_a_model_that_draws_nothing_itself():
    build = functools.partial(models.build, "student", variant="tiny", kinds="depth")
    assert [build(lora=dict(ALL, dropout=p)).rngs for p in (0.0, 0.5)] == [(), ("dropout",)]


def test_a_freezing_mode_that_leaves_adapters_as_they_begin_is_said(caplog):
    """They add nothing then, and the run trains all else, without an error."""
    model = models.build("nanovlm", **FIELDS["nanovlm"], lora=dict(match="language/blocks/.*"))
    for mode, said in (("none", 0), ("freeze_vision", 0), ("freeze_lang", 1), ("freeze_lang_vision", 1)):
        caplog.clear()
        models.frozen("nanovlm", mode, model)
        assert len(caplog.messages) == said
        assert all("config.freeze also freezes language/blocks/" in message for message in caplog.messages)


def test_the_announcements_adapters_are_as_many_as_peft_prints():
    model = models.build("paligemma", variant="pt_224", lora=dict(match=NAMES))
    params = jax.eval_shape(model.init_variables, KEY)["params"]
    number = lambda leaves: sum(math.prod(x.shape) for x in leaves)  # noqa: E731
    trainable, fixed = optim.split(params, models.frozen("paligemma", "none", model))
    assert number(trainable.values()) == 11_298_816
    assert number([*trainable.values(), *fixed.values()]) == 2_934_634_224
    assert number(x for name, x in trainable.items() if name.startswith("language")) == 9_805_824
    opt = jax.eval_shape(optim.make(trainable, 10, lr=1e-4).tx.init, trainable)
    state = sum(
        x.size * x.dtype.itemsize for x in [*jax.tree.leaves(opt), *trainable.values()]
    )  # as large as gradients
    assert state <= 13 * 11_298_816


@pytest.mark.parametrize("family", ["prismer", pytest.param("nanovlm", marks=pytest.mark.slow), "paligemma"])
def test_rules_of_sharding_hold_for_what_is_packed_and_adapted(family):
    model, variables = made(family, True)
    mesh = sharding.make_mesh({"data": 4, "tensor": 2})
    rules = tensor_rules(family, model)
    shapes = {"params": variables["params"]}
    placed = tree.flatten(sharding.placed(shapes, "tensor", mesh, rules))
    split = [name for name, x in placed.items() if x.sharding.spec and "tensor" in x.sharding.spec]
    assert any(name.endswith("/kernel/codes") for name in split)
    assert not any("/lora/" in name for name in split)
    if family == "nanovlm":
        batch = batch_of(model, 4)
        with jax.set_mesh(mesh):
            there = jax.device_put(
                shapes["params"], jax.tree.map(lambda x: x.sharding, tree.unflatten(placed)["params"])
            )
            logits = jax.jit(model.apply)({"params": there}, batch)
        expected = jax.jit(model.apply)(variables, batch)
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("family", "leaves"), [("nanovlm", 2), ("paligemma", 0)])
def test_adapters_go_to_peft_and_back_and_into_kernels(family, leaves, tmp_path):
    """nanoVLM's original packs SigLIP's query, key and value: those are three times the rank there."""
    model, variables = made(family)
    description = dict(model=dict(name=family, **FIELDS[family], lora=ALL), tokenizer="scenes", tasks={})
    checkpoint.export(tmp_path / "in", variables, description)
    base = {"model": dict(name=family, **FIELDS[family]), "tokenizer": "scenes", "tasks": {}}
    checkpoint.export(tmp_path / "base", without_adapters(variables), base)

    def run(folder, kind, output, *flags):
        export.main(
            ["--checkpoint", str(tmp_path / folder), "--format", kind, "--output", str(tmp_path / output), *flags]
        )

    run("in", "adapter", "peft")
    settings = json.loads((tmp_path / "peft" / peft.CONFIG).read_text())
    assert (settings["r"], settings["lora_alpha"]) == (2, 6)
    state = safe.load(tmp_path / "peft" / peft.WEIGHTS)
    assert len([key for key, x in state.items() if "lora_A" in key and x.shape[0] == 6]) == leaves
    flags = ["--input", str(tmp_path / "peft"), "--output", str(tmp_path / "back")]
    convert.main(["adapter", "--checkpoint", str(tmp_path / "base"), *flags])
    back, described = checkpoint.load_export(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, back["params"], variables["params"])
    assert models.build(**described["model"]).adapters == model.adapters

    with pytest.raises(UserError, match=r"has adapters or packed kernels, which safetensors lacks: add --merge"):
        run("in", "safetensors", "whole.safetensors")
    with pytest.raises(UserError, match="adapter is of adapters alone: leave out --merge"):
        run("in", "adapter", "none", "--merge")
    with pytest.raises(UserError, match="has neither adapters nor packed kernels"):
        run("base", "orbax", "whole", "--merge")
    run("back", "orbax", "merged", "--merge")
    merged, described = checkpoint.load_export(tmp_path / "merged")
    assert described["model"].keys() == base["model"].keys()
    expected = jax.jit(model.apply)(variables, batch_of(model))
    plain = jax.jit(model.model.apply)({"params": merged["params"]}, batch_of(model))
    np.testing.assert_allclose(plain, expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("freeze", "lost"),
    [
        ("none", ""),
        ([r"(?!.*/lora/|.*(bias|scale)$).*"], "language/blocks"),
        (["vision/.*"], "word_embedding"),
    ],
)
def test_what_else_was_trained_is_not_left_out_of_a_folder_of_adapters(freeze, lost, tmp_path):
    """Biases and norms, as in the recipe of docs/lora.md, were."""
    _, variables = made("paligemma")
    cfg = dict(model=dict(name="paligemma", **FIELDS["paligemma"], lora=ALL), tasks={}, freeze=freeze)
    description = assembly.description(config.strict(cfg), pp.tokenizer.load("scenes"))["config"]
    checkpoint.export(tmp_path / "in", variables, description)
    flags = ["--checkpoint", str(tmp_path / "in"), "--output"]
    with pytest.raises(UserError, match=f"{lost}.* trained, too, .*--merge") if lost else contextlib.nullcontext():
        export.main([*flags, str(tmp_path / "peft"), "--format", "adapter"])
    assert (tmp_path / "peft").exists() == (not lost)
    export.main([*flags, str(tmp_path / "whole"), "--format", "orbax", "--merge"])
    assert "freeze" not in checkpoint.description(tmp_path / "whole")


def test_adapters_of_other_models_are_refused_in_one_line(tmp_path):
    model, variables = made("paligemma")
    peft.write(tmp_path, variables["params"], model, "paligemma")
    read = functools.partial(peft.read, tmp_path)
    wider = models.build("paligemma", variant="tiny", language=dict(mlp_dim=64))
    deeper = models.build("paligemma", variant="tiny", language=dict(layers=3))
    nano = models.build("nanovlm", variant="tiny")
    for other, family, message in [
        (wider, "paligemma", "another size: the adapter is of another model"),
        (deeper, "paligemma", "of 2 of 3 layers"),
        (nano, "nanovlm", r"not in the model: the adapter is of another one"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            read(other, family)
        assert "\n" not in str(error.value)
    settings = json.loads((tmp_path / peft.CONFIG).read_text())
    for other in (dict(use_dora=True), dict(init_lora_weights="pissa_niter_4")):
        (tmp_path / peft.CONFIG).write_text(json.dumps(settings | other))
        with pytest.raises(UserError, match=rf"is an adapter of {min(other)}.*; only plain LoRA is read"):
            read(model.model, "paligemma")
    (tmp_path / peft.CONFIG).write_text("{}")
    with pytest.raises(UserError, match="is no adapter of PEFT"):
        read(model.model, "paligemma")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(lora=dict(match="llm/.*")), r"config\.model\.lora\.match: 'llm/\.\*' matches no parameter"),
        (dict(lora=dict(match="language/norm/.*")), "matches no parameter"),
        (dict(lora=dict(match=".*", rank=0)), "rank=0"),
        (dict(lora=dict(match=".*", alpha=math.nan)), "alpha=nan"),
        (dict(lora=dict(match=[])), r"config\.model\.lora\.match is empty"),
        (dict(lora=dict(match=".*", ranks=4)), "unknown key 'ranks'.*rank"),
        (dict(lora=dict(rank=4)), "key 'match' is missing"),
        (dict(quantize=dict(match="visoin/.*")), r"config\.model\.quantize\.match"),
        (dict(quantize=dict(match=".*", kind="nf5")), "nf4"),
    ],
)
def test_sections_that_do_not_fit_are_refused_in_one_line(fields, message):
    with pytest.raises(UserError, match=message) as error:
        models.build("paligemma", variant="tiny", **fields)
    assert "\n" not in str(error.value)


def smoke(init=None, **sections):
    """Two steps of the smoke config of nanoVLM on scenes, made smaller, without evaluators."""
    cfg = config.plain(config.load(f"{ROOT / 'configs/nanovlm.py'}:scenes,experts=none,smoke", []))
    cfg |= dict(total_steps=2, save_steps=2, log_steps=1, batch_size=8, evals={}, checkpoint={}, init=init)
    cfg |= dict(frozen_dtype="bfloat16", data={"captions": cfg["data"]["captions"] | {"count": 8}})
    vision, language = ({**cfg["model"][tower], "layers": 1} for tower in ("vision", "language"))
    return cfg | {"model": cfg["model"] | dict(vision=vision, language=language) | sections}


PACKED = dict(lora=dict(match="language/.*", rank=4), quantize=dict(match="(language|vision)/.*"))


@pytest.fixture
def base(tmp_path, monkeypatch):
    """Exports a model of random values to `base`; returns them and its fields."""
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    fields, rng = smoke()["model"], np.random.default_rng(0)
    shapes = tree.flatten(jax.eval_shape(models.build(**fields).init_variables, KEY))
    values = {name: rng.normal(0, 0.1, x.shape).astype(np.float32) for name, x in shapes.items()}
    checkpoint.export(tmp_path / "base", tree.unflatten(values), {"model": fields, "tokenizer": "scenes", "tasks": {}})
    return values, fields


@pytest.mark.slow
def test_a_run_trains_the_adapters_of_a_packed_checkpoint(base, tmp_path):
    old, base = base
    train(smoke(tmp_path / "base", **PACKED), tmp_path / "run")
    tuned, described = checkpoint.load_export(tmp_path / "run")
    flat, model = tree.flatten(tuned), models.build(**described["model"])
    words, kernel = "params/language/word_embedding", "params/language/blocks/up/kernel"
    np.testing.assert_array_equal(flat[words], old[words].astype(jnp.bfloat16))
    codes = model.loading["pack"][kernel](jnp.asarray(old[kernel]))["codes"]
    np.testing.assert_array_equal(flat[f"{kernel}/codes"], codes)
    assert all(flat[name].any() for name in flat if name.endswith("lora/b"))
    saved = checkpoint.saved_shapes(checkpoint.find(tmp_path / "run" / "checkpoints"))
    moments = [name for name in saved if "/mu/" in name]
    assert moments
    assert all("/lora/" in name for name in moments)
    like = {
        "params": jax.eval_shape(models.build(**base, lora=dict(match="language/.*")).init_variables, KEY)["params"]
    }
    with pytest.raises(UserError, match=r"of another model.*params/language/blocks/down/lora/a"):
        load_into(like, tmp_path / "run")


@pytest.mark.slow
def test_a_run_of_adapters_that_was_stopped_goes_on_to_the_bit(base, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def interrupt(self, step, values, write=metrics.Writer.write):
        write(self, step, values)
        if step == 3:  # one after the checkpoint
            raise Stop

    cfg = smoke(tmp_path / "base", **PACKED | {"lora": PACKED["lora"] | {"dropout": 0.1}}) | dict(total_steps=5)
    train(cfg, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(metrics.Writer, "write", interrupt)
        with pytest.raises(Stop):
            train(cfg, tmp_path / "parts")
    train(cfg, tmp_path / "parts")
    whole, parts = (tree.flatten(checkpoint.load_export(tmp_path / name)[0]) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)
    losses = [[line.get("train/loss") for line in metrics.read(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0][:5] == losses[1][:5]
    different = {round(loss, 4) for loss in losses[0][:5]}
    assert len(different) == 4  # the first step changes nothing, but the order in which its rows are summed


def test_what_is_packed_cannot_train():
    cfg, mesh = config.strict(smoke(quantize=dict(match="language/.*"))), sharding.make_mesh()
    with pytest.raises(UserError, match=r"is quantized \(config\.model\.quantize\) but not frozen"):
        make_step(cfg, pp.tokenizer.load("scenes"), mesh, dict(total_steps=2, batch_size=8))


@pytest.mark.parametrize("section", [{"lora": {"rank": 2, "alpha": 4}}, {"quantize": {"kind": "int8"}}])
def test_a_model_with_adapters_or_packed_kernels_is_asked_as_any_other(section):
    """`decode` took linen modules alone, and refused these."""
    ((kind, fields),) = section.items()
    model = models.build("paligemma", variant="tiny", **{kind: dict(match=r"language/blocks/.*", **fields)})
    variables = jax.eval_shape(model.init_variables, jax.random.key(0))
    ids, size = np.ones((2, 4), np.int32), model.image_size
    batch = {"image": np.zeros((2, size, size, 3), np.uint8), **prompts(ids, ids > 0)}
    ask = functools.partial(decode.generate, model, batch=batch, method="greedy", pad=0, eos=-1, max_new=3)
    assert jax.eval_shape(ask, variables)[0].shape == (2, 1, 3)
    answers = np.ones((3, 2), np.int32)
    rank = functools.partial(rank_answers, model, batch=batch, answers=answers, answer_mask=answers > 0, k=2)
    assert jax.eval_shape(rank, variables)[1].shape == (2, 2)
