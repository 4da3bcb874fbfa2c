"""A BERT of Hugging Face's becomes the Q-Former that stage 1 begins with; what it lacks is the model's own start."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import checkpoint, models, tree
from prismer_jax.errors import UserError
from prismer_jax.models import conversion
from prismer_jax.models.blip2 import bert
from prismer_jax.models.blip2.conversion_test import flags, state_of
from prismer_jax.models.blip2.table import table
from prismer_jax.weights import rules, write
from tools import convert

WIDTH, LAYERS, HEADS, MLP, PLACES, WORDS = 32, 2, 4, 64, 40, 60
EMBEDDINGS, HEAD = "bert.embeddings", "cls.predictions"


def shapes_of(width=WIDTH, layers=LAYERS, mlp=MLP, places=PLACES, words=WORDS):
    """Returns the keys and shapes of a BertForPreTraining."""
    dense, norms = {"bert.pooler.dense": (width, width), "cls.seq_relationship": (2, width)}, [EMBEDDINGS]
    for layer in (f"bert.encoder.layer.{i}" for i in range(layers)):
        dense |= {f"{layer}.attention.self.{part}": (width, width) for part in ("query", "key", "value")}
        dense |= {f"{layer}.attention.output.dense": (width, width), f"{layer}.intermediate.dense": (mlp, width)}
        dense[f"{layer}.output.dense"] = (width, mlp)
        norms += [f"{layer}.attention.output", f"{layer}.output"]
    dense[f"{HEAD}.transform.dense"] = (width, width)
    norms.append(f"{HEAD}.transform")
    tables = dict(word=words, position=places, token_type=2)
    shapes = {f"{EMBEDDINGS}.{name}_embeddings.weight": (size, width) for name, size in tables.items()}
    for key, shape in dense.items():
        shapes |= {f"{key}.weight": shape, f"{key}.bias": shape[:1]}
    shapes |= {f"{key}.LayerNorm.{part}": (width,) for key in norms for part in ("weight", "bias")}
    return shapes | {f"{HEAD}.bias": (words,), f"{HEAD}.decoder.weight": (words, width)}


def a_bert(**sizes):
    """Returns the state dict of a tiny BERT with values of its own; the head's matrix is the words' table."""
    rng = np.random.default_rng(3)
    state = {key: rng.normal(0, 0.3, shape).astype(np.float32) for key, shape in shapes_of(**sizes).items()}
    return state | {f"{HEAD}.decoder.weight": state[f"{EMBEDDINGS}.word_embeddings.weight"]}


def old_norms(state):
    """Returns a state dict under the names of files of before 2019, as bert-base-uncased has them to this day."""
    names = {"weight": "gamma", "bias": "beta"}
    return {re.sub(r"(?<=LayerNorm\.)\w+$", lambda match: names[match[0]], key): x for key, x in state.items()}


def without_prefix(state):
    return {key.removeprefix("bert."): x for key, x in state.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    whole = state_of("tiny_stage1", 0)
    vision = {k.removeprefix("visual_encoder."): x for k, x in whole.items() if k.startswith("visual_encoder.")}
    write.torch_file(folder / "eva_vit_g.pth", vision)
    return folder


def converted(folder, state, *options, write_file=write.safetensors_file, name="model.safetensors"):
    """Returns the flat variables, and the description, of what the command makes of a BERT's state dict."""
    (folder / "bert").mkdir(exist_ok=True)
    for old in (folder / "bert").iterdir():
        old.unlink()
    write_file(folder / "bert" / name, state)
    given = flags(folder, qformer="bert", vision="eva_vit_g.pth")
    convert.main(["blip2", "--variant", "tiny_stage1", *given, "--force", "--output", str(folder / "out"), *options])
    variables, description = checkpoint.load_export(folder / "out")
    return tree.flatten(variables), description


@pytest.fixture(scope="module")
def start(folder):
    return converted(folder, old_norms(a_bert()), "--seed", "5")[0]


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param(a_bert, marks=pytest.mark.slow),
        pytest.param(lambda: without_prefix(a_bert()), marks=pytest.mark.slow),
        lambda: old_norms(without_prefix(a_bert())),
    ],
)
def test_every_spelling_of_a_bert_is_the_same_start(folder, start, spelling):
    kind = dict(write_file=write.torch_file, name="pytorch_model.bin")
    again, description = converted(folder, spelling(), "--seed", "5", **kind)
    assert again.keys() == start.keys()
    for name, x in again.items():
        np.testing.assert_array_equal(x, start[name], err_msg=name)
    assert description["model"]["variant"] == "tiny_stage1"


def test_texts_and_queries_have_berts_layers_and_the_head_is_berts(start):
    state = a_bert()
    for i in range(LAYERS):
        key, block = f"bert.encoder.layer.{i}", f"params/qformer/blocks/layer_{i}"
        theirs = {f"self_attention/{part}": f"attention.self.{part}" for part in ("query", "key", "value")}
        theirs |= {"self_attention/out": "attention.output.dense"}
        for ending in ("", "_query"):
            theirs |= {f"mlp{ending}/up": "intermediate.dense", f"mlp{ending}/down": "output.dense"}
        for ours, name in theirs.items():
            np.testing.assert_array_equal(start[f"{block}/{ours}/kernel"][0], state[f"{key}.{name}.weight"].T)
            np.testing.assert_array_equal(start[f"{block}/{ours}/bias"][0], state[f"{key}.{name}.bias"])
        norms = dict(norm_self="attention.output", norm_mlp="output", norm_mlp_query="output")
        for ours, name in norms.items():
            np.testing.assert_array_equal(start[f"{block}/{ours}/scale"][0], state[f"{key}.{name}.LayerNorm.weight"])
            np.testing.assert_array_equal(start[f"{block}/{ours}/bias"][0], state[f"{key}.{name}.LayerNorm.bias"])
    qformer = "params/qformer"
    np.testing.assert_array_equal(start[f"{qformer}/head/kernel"], state[f"{HEAD}.transform.dense.weight"].T)
    np.testing.assert_array_equal(start[f"{qformer}/norm_head/scale"], state[f"{HEAD}.transform.LayerNorm.weight"])
    np.testing.assert_array_equal(start[f"{qformer}/head_bias"], [*state[f"{HEAD}.bias"], 0])
    words = start[f"{qformer}/word_embedding"]
    np.testing.assert_array_equal(words[:-1], state[f"{EMBEDDINGS}.word_embeddings.weight"])


def test_what_a_bert_lacks_is_as_the_model_begins_with_this_seed(start):
    model = models.build("blip2", variant="tiny_stage1")
    fresh = tree.flatten(jax.jit(model.init_variables)(jax.random.key(5)))
    new = ("temperature", "norm_vision", "project_", "match_head", "query_tokens", "norm_cross", "cross_attention")
    names = [name for name in start if any(part in name for part in new)]
    assert len(names) == 1 + 4 * 2 + 1 + 4 * 2 + 2
    for name in names:
        np.testing.assert_array_equal(start[name], fresh[name], err_msg=name)
    words = "params/qformer/word_embedding"
    np.testing.assert_array_equal(start[words][-1], fresh[words][-1])
    assert start["params/temperature"] == np.float32(0.07)
    taken = [name for name in start if name not in names and not name.startswith("params/vision/")]
    assert not any(np.array_equal(start[name], fresh[name]) for name in taken)


def read_by_bert(state, ids, real):
    """Returns the states, and scores of words, of a BERT (arXiv 1810.04805) without segments, in float64."""
    state = {key: np.asarray(x, np.float64) for key, x in state.items()}
    erf = np.vectorize(math.erf)

    def linear(x, key):
        return x @ state[f"{key}.weight"].T + state[f"{key}.bias"]

    def norm(x, key):
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return centred / deviation * state[f"{key}.LayerNorm.weight"] + state[f"{key}.LayerNorm.bias"]

    def gelu(x):
        return x * 0.5 * (1 + erf(x / math.sqrt(2)))

    words = state[f"{EMBEDDINGS}.word_embeddings.weight"]
    x = norm(words[ids] + state[f"{EMBEDDINGS}.position_embeddings.weight"][: ids.shape[1]], EMBEDDINGS)
    for layer in (f"bert.encoder.layer.{i}" for i in range(LAYERS)):
        q, k, v = (
            linear(x, f"{layer}.attention.self.{part}").reshape(*ids.shape, HEADS, -1)
            for part in ("query", "key", "value")
        )
        scores = np.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True)) * real[:, None, None]
        mixed = np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v).reshape(x.shape)
        x = norm(linear(mixed, f"{layer}.attention.output.dense") + x, f"{layer}.attention.output")
        x = norm(linear(gelu(linear(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense") + x, f"{layer}.output")
    hidden = norm(gelu(linear(x, f"{HEAD}.transform.dense")), f"{HEAD}.transform")
    return x, hidden @ words.T + state[f"{HEAD}.bias"]


def test_a_text_alone_is_read_as_a_bert_reads_it(start):
    model, rng = models.build("blip2", variant="tiny_stage1"), np.random.default_rng(0)
    ids, lengths = rng.integers(1, WORDS, (3, 7)), np.array([7, 4, 2])
    real = np.arange(7) < lengths[:, None]
    ids = np.where(real, ids, 0)
    batch = {"text": jnp.asarray(ids, jnp.int32), "mask_input": jnp.asarray(real)}
    batch["segment"] = batch["text"] * 0
    variables = tree.unflatten({name: jnp.asarray(x) for name, x in start.items()})
    hidden, _ = model.apply(variables, batch, method="read_text")
    logits = model.apply(variables, hidden, method=lambda module, x: module.queries.logits(x))
    states, scores = read_by_bert(a_bert(), ids, real)
    np.testing.assert_allclose(hidden[real], states[real], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[real][:, :WORDS], scores[real], rtol=1e-4, atol=1e-4)


def lacking(pattern):
    return {key: x for key, x in a_bert().items() if not re.search(pattern, key)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: {f"roberta.{k.removeprefix('bert.')}": x for k, x in a_bert().items()}, "no queries, nor a BERT"),
        (lambda: lacking("^cls"), "without cls.predictions, the head that writes: give a folder of bert-base-uncased"),
        (lambda: a_bert(words=50), r"bert: is a BERT of another size than the Q-Former \(words 50 instead of 60\)"),
        (lambda: a_bert(width=40), r"\(width 40 instead of 32\): give a folder of bert-base-uncased"),
        (lambda: lacking(r"layer\.1\."), r"\(layers 1 instead of 2\)"),
        (lambda: lacking("value.bias"), r"Of its keys 2 missing: Qformer\.bert\.encoder\.layer\.\*\.attention\.self"),
    ],
)
def test_what_is_no_bert_of_this_size_is_one_line_with_a_remedy(folder, state, message):
    with pytest.raises(UserError, match=message) as error:
        converted(folder, state())
    assert "\n" not in str(error.value)
    assert str(folder / "bert") in str(error.value)


def test_what_may_be_missing_keeps_its_initial_values(folder):
    """`--allow` ended in a traceback, as nothing gave the initial values."""
    flat, _ = converted(
        folder, lacking(r"layer\.0\..*value\.bias"), "--allow", r".*\.layer\.0\.attention\.self\.value\.bias"
    )
    assert not flat["params/qformer/blocks/layer_0/self_attention/value/bias"].any()


def test_stage_2_may_begin_with_a_bert_at_once(folder, start):
    fields = {"name": "blip2", "variant": "tiny"}
    model = models.build(**fields)
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    checkpoint.export(folder / "language", variables, {"model": fields})
    flat, _ = converted(folder, a_bert(), "--variant", "tiny", "--language", str(folder / "language"))
    name = "params/qformer/blocks/layer_0/mlp_query/up/kernel"
    np.testing.assert_array_equal(flat[name], start[name])
    assert "params/qformer/word_embedding" not in flat
    assert flat["params/projector/kernel"].any()


def test_bert_base_uncased_fits_the_published_model():
    sizes = dict(width=768, layers=12, mlp=3072, places=512, words=30522)
    theirs = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes_of(**sizes).items()}
    model = models.build("blip2", variant="pretrained")
    expected = rules.key_shapes(table(model), conversion.shapes_of(model))
    for key, x in bert.read(old_norms(theirs), "bert-base-uncased").items():
        longer = key in (bert.WORDS, "Qformer.cls.predictions.bias")
        assert (len(x) + longer, *x.shape[1:]) == expected[key], key
