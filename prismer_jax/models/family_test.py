"""What a new family takes: the module that docs/adding.md shows, and nothing else."""

import functools
import importlib.util
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from prismer_jax import assembly, checkpoint, config, labels, losses, models, sharding
from prismer_jax.batch import Batch, prompts
from prismer_jax.captioner import Captioner
from prismer_jax.decode import generate
from prismer_jax.decode.cache import reorder
from prismer_jax.errors import UserError
from prismer_jax.evaluators.caption import CaptionEvaluator
from prismer_jax.report import draw
from prismer_jax.testing import ROOT
from prismer_jax.towers import fused_attention, layers
from prismer_jax.train import train
from prismer_jax.training.step import PRNG, make_update
from prismer_jax.weights import safe
from tools import convert, export


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The family of docs/adding.md, in a file of its own, named in FAMILIES."""
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/adding.md").read_text(), re.DOTALL)
    (tmp_path / "toy.py").write_text(source)
    spec = importlib.util.spec_from_file_location("toy", tmp_path / "toy.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(models.FAMILIES, "toy", "toy")
    return module


def test_a_new_family_trains_decodes_and_converts_both_ways(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "toy_config.py").write_text(
        "from configs import quickstart\n"
        "def get_config(arg=None):\n"
        "    config = quickstart.get_config('z,smoke')\n"
        "    config.model = dict(name='toy', variant='nano')\n"
        "    config.total_steps, config.freeze, config.batch_size = 2, 'freeze_image', 16\n"
        "    return config\n"
    )
    monkeypatch.syspath_prepend(str(ROOT))
    scores = train(config.load(str(tmp_path / "toy_config.py"), []), tmp_path / "run")
    assert {"caption/cider", "vqa/accuracy"} <= scores.keys()  # by beams, and greedily

    flags = ["--checkpoint", str(tmp_path / "run"), "--format", "safetensors"]
    export.main([*flags, "--output", str(tmp_path / "toy.safetensors")])
    state = safe.load(tmp_path / "toy.safetensors")
    assert state["patches.weight"].shape == (32, 16 * 16 * 3)
    flags = ["--input", str(tmp_path / "toy.safetensors"), "--variant", "nano", "--tokenizer", "scenes"]
    convert.main(["toy", *flags, "--output", str(tmp_path / "converted")])
    trained, converted = (checkpoint.load_export(tmp_path / name)[0] for name in ("run", "converted"))
    jax.tree.map(np.testing.assert_array_equal, converted["params"], trained["params"])
    assert Captioner(tmp_path / "converted").model == Captioner(tmp_path / "run").model


def test_beams_of_a_new_family_share_its_prompt_and_equal_full_passes(toy):
    model = models.build("toy", vocab_size=40)
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    variables = jax.tree.map(lambda x: 3 * x, variables)
    rng = np.random.default_rng(0)
    text = rng.integers(3, 40, (2, 6)).astype(np.int32)
    batch = {"image": rng.integers(0, 256, (2, 96, 96, 3), np.uint8), **prompts(text, text > 0)}
    tokens, scores = generate(
        model, variables, batch, eos=2, pad=1, method="beam", num_beams=3, max_new=5, min_new=5, prompt_length=0
    )
    whole = np.concatenate([text, tokens[:, 0]], axis=1)
    logits = model.apply(variables, {**batch, **prompts(whole, whole > -1)})
    log_probs = jax.nn.log_softmax(logits)[:, 5:-1]
    sums = jnp.take_along_axis(log_probs, whole[:, 6:, None], axis=2).sum((1, 2))
    np.testing.assert_allclose(scores[:, 0], sums / 5, rtol=1e-4, atol=1e-6)  # float32: sums near 0
    _, cache = model.apply(variables, model.apply(variables, batch, method="encode"), batch, 4, method="prefill")
    assert jax.tree.leaves(cache["own"])[0].shape[3] == 4  # generated columns only: the prompt's six are shared


MODELS = {
    "prismer": ("prismer", dict(variant="tiny", experts="none")),
    "nanovlm": ("nanovlm", dict(variant="tiny")),
    "gemma2": ("paligemma", dict(variant="tiny", language=dict(window=4, post_norms=True))),
    "t5": ("blip2", dict(variant="tiny_t5")),
    "stage1": ("blip2", dict(variant="tiny_stage1")),
    "toy": ("toy", dict(vocab_size=40)),
}
SLOW = ("t5", "stage1")  # to compile


@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow if x in SLOW else ()) for x in MODELS])
def test_a_tree_of_tokens_is_read_as_its_branches_are(toy, name):
    """5 6 7 and 5 8 share a node, 9 stands alone; each branch as long as it is has the logits of a sequence."""
    family, fields = MODELS[name]
    model = models.build(family, **fields)
    rng, size = np.random.default_rng(0), model.image_size
    text = rng.integers(3, 30, (2, 6)).astype(np.int32)
    batch = {"image": rng.integers(0, 256, (2, size, size, 3), np.uint8), **prompts(text, np.arange(6) < [[6], [4]])}
    branches, places = [[5, 6, 7], [5, 8, 2], [9, 2, 2]], [[0, 1, 2], [0, 3], [4]]
    seen = np.zeros((5, 5), bool)
    for path in places:
        for depth, node in enumerate(path):
            seen[node, path[: depth + 1]] = True

    @jax.jit
    def both_ways(batch):
        variables = jax.tree.map(lambda x: 2 * x, model.init_variables(jax.random.key(0, impl=PRNG)))
        encoded = model.apply(variables, batch, method="encode")
        _, cache = model.apply(variables, encoded, batch, 3, method="prefill")
        tree = jnp.broadcast_to(jnp.array([5, 6, 7, 8, 9]), (2, 1, 5)), jnp.broadcast_to(seen, (2, 1, 5, 5))
        nodes, same = model.apply(variables, cache, *tree, method="extend")
        assert jax.tree.all(jax.tree.map(lambda new, old: new is old, same, cache))
        three = reorder(cache, jnp.zeros((2, 3), jnp.int32))
        rows = jnp.broadcast_to(jnp.array(branches), (2, 3, 3))
        return nodes[:, 0], model.apply(variables, three, rows, method="extend")[0]

    nodes, rows = jax.device_get(both_ways(batch))
    for row, path in enumerate(places):
        expected = rows[:, row, : len(path)]
        np.testing.assert_allclose(nodes[:, path], expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(nodes[:, 3] - nodes[:, 1]).max() > 1e-3  # which branch it is on matters


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x == "nanovlm" else pytest.mark.slow) for x in MODELS if x != "toy"]
)
def test_each_family_gives_the_same_where_attention_is_a_tpus_kernel(name, monkeypatch):
    """On devices that split rows and heads, with weights of attention that nobody drops or looks at."""
    model, mesh = models.build(MODELS[name][0], **MODELS[name][1]), sharding.make_mesh({"data": 4, "tensor": 2})
    rng, size = np.random.default_rng(0), model.image_size
    text, lengths = rng.integers(3, 30, (4, 6)).astype(np.int32), np.array([[6], [4], [5], [3]])
    batch = {"image": rng.integers(0, 256, (4, size, size, 3), np.uint8), **prompts(text, np.arange(6) < lengths)}
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    weights = jnp.asarray(rng.standard_normal((4, 6, 1)) * (np.arange(6) < lengths)[..., None], jnp.float32)

    def logits_and_gradients(params, kernels):
        for least in ("FUSED", "FUSED_MASKED"):
            monkeypatch.setattr(layers, least, 1 if kernels else 1000)
        rest = {key: part for key, part in variables.items() if key != "params"}

        def weighted(params, batch):
            logits = model.apply({**rest, "params": params}, batch)
            return (jax.nn.log_softmax(logits) * weights).sum(), logits

        with jax.set_mesh(mesh):
            traced = jax.jit(jax.grad(weighted, has_aux=True)).trace(params, batch)
            assert ("pallas_call" in str(traced.jaxpr)) == kernels
            gradients, logits = traced.lower().compile()(params, batch)
        return logits * (weights != 0), gradients

    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    interpreted = functools.partial(fused_attention.attend, interpret=True)
    monkeypatch.setattr(fused_attention, "attend", interpreted)
    params, batch = jax.device_put((variables["params"], batch), sharding.replicated(mesh))
    fused, plain = (logits_and_gradients(params, kernels) for kernels in (True, False))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(plain))  # gradients that are 0 are rounding errors of others

    def compare(x, y):
        np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max() + 1e-7 * largest)

    jax.tree.map(compare, fused, plain)


def test_a_family_that_lacks_a_part_of_the_interface_is_told_so(toy, monkeypatch):
    class Half(nn.Module):
        experts = ()

        def encode(self, batch, train=False):
            return batch["image"]

    monkeypatch.setattr(toy, "build", lambda tokenizer=None, **fields: Half())
    monkeypatch.delattr(toy, "RESIZE")
    with pytest.raises(UserError, match=r"lacks toy\.RESIZE, Half\.__call__, Half\.prefill, Half\.extend, Half\.init_"):
        models.build("toy")


def test_a_variant_or_a_field_that_a_family_lacks_is_a_user_error(toy):
    with pytest.raises(UserError, match=r"Unknown variant 'nan'\. Did you mean 'nano'"):
        models.build("toy", variant="nan")
    with pytest.raises(UserError, match=r"config\.model of the family 'toy': unknown key 'widht'"):
        models.build("toy", widht=32)


@pytest.mark.parametrize(
    "costs",
    [
        lambda loss, weight: loss.mean(),
        lambda loss, weight: {"loss": loss.mean()},
        lambda loss, weight: {"mine": (loss, weight)},
        lambda loss, weight: (loss, weight),
        lambda loss, weight: {"loss": (loss, 1.0)},
    ],
)
def test_a_loss_of_another_form_is_a_user_error(costs):
    update = make_update(None, lambda forward, batch: costs(batch["x"], batch["x"]), optax.sgd(1.0))
    state = {"params": {"w": jnp.ones(2)}, "opt": optax.sgd(1.0).init({"w": jnp.ones(2)}), "step": jnp.int32(0)}
    with pytest.raises(UserError, match=r"config\.loss: the function must return a dict of arrays, {'loss'"):
        jax.eval_shape(update, state, {"x": jnp.ones(4)})


def test_the_loss_that_is_shown_is_one(monkeypatch):
    """With gamma 0 it is cross-entropy over the tokens of a batch."""
    page = (ROOT / "docs/adding.md").read_text()
    source = "".join(re.findall(r"(?m)^\+(.*\n)", page[page.index("+def focal") : page.index("## A metric")]))
    module = types.ModuleType("focal")
    module.__dict__.update(jax=jax, jnp=jnp)
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, "focal", module)
    monkeypatch.setitem(losses.LOSSES, "focal", "focal:focal")
    rng = np.random.default_rng(0)
    logits, text = jnp.asarray(rng.normal(size=(2, 5, 7))), jnp.asarray(rng.integers(0, 7, (2, 5)))
    batch = {"text": text, "mask_loss": jnp.asarray(rng.integers(0, 2, (2, 5)), jnp.float32)}

    def mean(**section):
        costs, weights = assembly.make_loss(config.strict(section))(lambda batch: logits, batch)["loss"]
        return costs.sum() / weights.sum()

    plain = mean(name="cross_entropy", label_smoothing=0.0, normalize="batch")
    np.testing.assert_allclose(mean(name="focal", gamma=0.0), plain, rtol=1e-5)
    assert mean(name="focal") < plain


def test_an_evaluator_of_ones_own_metrics_may_choose_the_best_checkpoint():
    class Length(CaptionEvaluator):
        main_score, score_names = "words", ("words",)

        def metrics(self, records):
            yield "words", 3.0

    class Unnamed(CaptionEvaluator):
        metrics = Length.metrics

    def made(kind):
        return kind(model=None, tokenizer=None, source=[], pp=None, mesh=sharding.make_mesh(), batch_size=8)

    assembly.check_metric("length/words", {"length": made(Length)})
    with pytest.raises(UserError, match="No metric 'length/cider'"):
        assembly.check_metric("length/cider", {"length": made(Length)})
    assembly.check_metric("length/words", {"length": made(Unnamed)})  # nobody knows what it yields


def test_an_expert_of_ones_own_is_shown_by_its_name(monkeypatch):
    monkeypatch.setitem(labels.EXPERTS, "wet_floor", labels.LabelKind("wet_floor", 1, "grey", "wet_floor", "scaled", 0))
    sample = {"image": np.zeros((8, 8, 3), np.uint8), "labels": {"wet_floor": np.zeros((8, 8, 1), np.uint8)}}
    assert [name for name, _ in draw.pictures(sample)] == ["Photo", "Wet floor"]


def test_a_batch_without_a_key_that_the_model_reads_is_a_user_error(toy):
    model = models.build("toy", vocab_size=40)
    text = np.ones((1, 3), np.int32)
    batch = Batch({"image": np.zeros((1, 96, 96, 3), np.uint8), **prompts(text, text > 0)})
    del batch["segment"]
    with pytest.raises(UserError, match=r"The batch has no 'segment', .* it has image, mask_ar, mask_input, text"):
        jax.eval_shape(lambda variables: model.apply(variables, batch), model.init_variables(jax.random.key(0)))


def test_a_tokenizer_that_does_not_fit_the_model_is_a_user_error():
    class Gemma:
        pad, vocab_size, spec = 0, 256_000, "sentencepiece:gemma.model"

    with pytest.raises(UserError, match=r"has embeddings for 50265 ids, the tokenizer '.*gemma\.model' has 256000"):
        models.build("prismer", tokenizer=Gemma)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_what_stays_is_a_mode_or_regexes_of_names(family):
    """A string, as a command line gives it, was a mode always."""
    assert models.frozen(family, ".*/bias") == models.frozen(family, [".*/bias"]) == (".*/bias",)
    assert models.frozen(family, "none") == ()
    for unknown in ("freeze_vison", "freeze-vision", "bias"):
        with pytest.raises(UserError, match=f"Unknown freezing mode '{unknown}'"):
            models.frozen(family, unknown)
