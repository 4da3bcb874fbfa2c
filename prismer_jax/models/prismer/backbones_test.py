import json
import re

import jax
import numpy as np
import pytest

from prismer_jax import tree
from prismer_jax.errors import UserError
from prismer_jax.models import conversion
from prismer_jax.models.prismer import backbones, build, table
from prismer_jax.towers.layers import resize_positions
from prismer_jax.weights import rules, write

DECODER = dict(width=32, layers=2, heads=2, mlp_dim=64, vocab_size=50, max_positions=20)
SIZES = dict(image_size=32, width=32, layers=2, heads=2, resampler_layers=1, decoder=DECODER)


def a_state(table, shapes) -> dict[str, np.ndarray]:
    """A state dict of a table's keys, as public files have it."""
    wanted = {name: shapes[name] for rule in table.rules for name in rule.names}
    rng = np.random.RandomState(0)
    state = {k: rng.standard_normal(s).astype(np.float32) for k, s in rules.key_shapes(table, wanted).items()}
    state |= {key: np.arange(array.size)[None] for key, array in state.items() if key.endswith("position_ids")}
    if "lm_head.bias" in state:
        state["lm_head.decoder.weight"] = state["roberta.embeddings.word_embeddings.weight"]
        state["lm_head.decoder.bias"] = state["lm_head.bias"]
    return state


@pytest.fixture(scope="module")
def model():
    return build("tiny", "edge", **SIZES)


@pytest.fixture(scope="module")
def shapes(model):
    return conversion.shapes_of(model)


@pytest.fixture(scope="module")
def init(model):
    return jax.jit(model.init_variables)  # compiled once


@pytest.fixture
def clip(shapes, tmp_path):
    """A file of CLIP's, trained at 48 pixels: nine patches and the class token; weights of half the size."""
    state = a_state(backbones.VISION, shapes)
    state["visual.positional_embedding"] = np.random.RandomState(1).standard_normal((10, 32)).astype(np.float32)
    state |= {key: array.astype(np.float16) for key, array in state.items() if "attn" in key}
    others = ("visual.class_embedding", "visual.proj", "token_embedding.weight", "transformer.resblocks.0.ln_1.bias")
    write.torch_file(tmp_path / "clip.pt", state | {key: np.zeros(7, np.float32) for key in others})
    return tmp_path / "clip.pt", state


@pytest.fixture
def roberta(shapes, tmp_path):
    """A file of RoBERTa's with the names of 2019 for norms, and a pooler."""
    state = a_state(backbones.TEXT, shapes)
    old = {k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for k, v in state.items()}
    write.safetensors_file(tmp_path / "roberta.safetensors", {**old, "roberta.pooler.dense.bias": np.zeros(3, "f4")})
    return tmp_path / "roberta.safetensors", state


def test_a_file_without_repeated_arrays_may_have_either_key(model, shapes, tmp_path):
    state = a_state(backbones.TEXT, shapes)
    for absent in ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"):
        write.safetensors_file(tmp_path / "text", {key: array for key, array in state.items() if key != absent})
        variables = backbones.initialize(model, None, tmp_path / "text")
        np.testing.assert_array_equal(
            variables["params"]["decoder"]["word_embedding"], state["roberta.embeddings.word_embeddings.weight"]
        )


def test_backbones_are_taken_over_and_the_rest_is_fresh(model, init, clip, roberta):
    found = backbones.initialize(model, clip[0], roberta[0], seed=3)
    variables = init(jax.random.key(3))
    fresh = tree.flatten(variables)
    taken = {name for table in (backbones.VISION, backbones.TEXT) for rule in table.rules for name in rule.names}
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    for name, array in tree.flatten(found).items():
        if name in taken:
            assert not np.array_equal(array, fresh[name]), name
        else:
            np.testing.assert_array_equal(array, fresh[name], err_msg=name)
    parts = {part for name in fresh if name not in taken for part in name.split("/")}
    assert {"adaptor", "resampler", "cross_attention", "output_layer", "stem_edge"} <= parts

    encoder, decoder, (_, visual), (_, text) = found["params"]["encoder"], found["params"]["decoder"], clip, roberta
    positions = resize_positions(visual["visual.positional_embedding"][1:], (2, 2))
    np.testing.assert_array_equal(encoder["position_embedding"], positions)
    packed = visual["visual.transformer.resblocks.1.attn.in_proj_weight"]
    np.testing.assert_array_equal(encoder["blocks"]["attention"]["value"]["kernel"][1], packed[64:].T)
    norm = text["roberta.encoder.layer.1.attention.output.LayerNorm.weight"]
    np.testing.assert_array_equal(decoder["layers"]["norm_self"]["scale"][1], norm)
    np.testing.assert_array_equal(decoder["head_bias"], text["lm_head.bias"])


# How the reference draws what no backbone has: PyTorch's defaults for Linear, Conv2d and MultiheadAttention, its own
# normals (model/modules/vit.py, resampler.py), and in the decoder RobertaPreTrainedModel._init_weights.
FRESH = (
    (r".*(ln_\w+|adaptor_ln|LayerNorm|conv1\.\w+\.(2|5|8|11))\.weight", "ones", lambda fan_in, width: 1.0),
    (r".*(ln_\w+|adaptor_ln|LayerNorm|conv1\.\w+\.(2|5|8|11))\.bias", "zeros", lambda fan_in, width: 0.0),
    (r".*(in_proj_|out_proj\.)bias", "zeros", lambda fan_in, width: 0.0),
    (r".*in_proj_weight", "uniform", lambda fan_in, width: (6 / (4 * width)) ** 0.5),
    (r".*(latents|instance_embedding)", "normal", lambda fan_in, width: width**-0.5),
    (r"expert_encoder.*(weight|bias)", "uniform", lambda fan_in, width: fan_in**-0.5),
    (r"text_decoder.*weight", "normal", lambda fan_in, width: 0.02),
    (r"text_decoder.*bias", "zeros", lambda fan_in, width: 0.0),
)


def test_what_is_fresh_is_drawn_as_the_reference_draws_it():
    width = 128
    decoder = DECODER | dict(width=width, mlp_dim=192)
    model = build("tiny", "edge+obj_detection", **(SIZES | dict(width=width, heads=2, decoder=decoder)))
    state = conversion.to_torch(jax.jit(model.init_variables)(jax.random.key(0)), table.TABLE)
    parts = r"(adaptor|resampler|conv1\.(?!rgb)|instance|\.1\.(self|output)|output_layer)"
    fresh = [key for key in state if re.search(parts, key) and not re.search("running|batches", key)]
    assert len(fresh) > 80
    for key in fresh:
        kind, size = next((kind, size) for pattern, kind, size in FRESH if re.fullmatch(pattern, key))
        weight = state.get(re.sub(r"\.bias$", ".weight", key), state[key])
        array, size = state[key], size(np.prod(weight.shape[1:]), width)
        if kind in ("ones", "zeros"):
            np.testing.assert_array_equal(array, size, err_msg=key)
        else:
            spread = size / 3**0.5 if kind == "uniform" else size
            assert abs(array.std() / spread - 1) < 3 / array.size**0.5, key
            assert abs(array.mean()) < 5 * spread / array.size**0.5, key
            assert (np.abs(array).max() <= size) == (kind == "uniform"), key


def test_either_backbone_alone(model, init, roberta):
    found = backbones.initialize(model, text=roberta[0])
    fresh = init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, found["params"]["encoder"], fresh["params"]["encoder"])


def test_a_file_of_another_size_or_kind_says_what_it_is_for(model, clip, roberta, tmp_path):
    with pytest.raises(UserError, match=r"clip\.pt: is no RoBERTa: it lacks roberta\.embeddings"):
        backbones.initialize(model, text=clip[0])
    with pytest.raises(UserError, match=r"roberta\.safetensors: is no image encoder of CLIP: it lacks visual\.conv1"):
        backbones.initialize(model, vision=roberta[0])
    large = build("large", "none")
    with pytest.raises(UserError, match=r"\(width 32 instead of 1024, layers 2 instead of 24\); use another file"):
        backbones.initialize(large, text=roberta[0])
    blocks = {f"visual.transformer.resblocks.{layer}.ln_1.bias": np.zeros(1, np.float32) for layer in range(12)}
    write.torch_file(tmp_path / "b.pt", {"visual.conv1.weight": np.zeros((768, 3, 16, 16), np.float32), **blocks})
    with pytest.raises(UserError, match=r"layers 12 instead of 24\); use --variant prismer_base\."):
        backbones.initialize(large, vision=tmp_path / "b.pt")


def test_every_difference_is_reported_unless_allowed(model, clip, tmp_path):
    _, state = clip
    del state["visual.ln_pre.bias"]
    write.torch_file(tmp_path / "other.pt", {**state, "visual.ln_mid.bias": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=r"1 missing: visual\.ln_pre\.bias; 1 unexpected: visual\.ln_mid\.bias"):
        backbones.initialize(model, tmp_path / "other.pt")
    found = backbones.initialize(model, tmp_path / "other.pt", allow=[r"visual\.ln_(pre|mid)\.bias"])
    np.testing.assert_array_equal(found["params"]["encoder"]["norm_pre"]["bias"], np.zeros(32))


@pytest.mark.parametrize("name", ["prismer_base", "prismer_large_manifest", "prismer_huge_manifest"])
def test_public_keys_become_official_ones_as_in_the_reference(shared, name):
    """The reference renames keys and drops some; what it keeps must be what we keep, and have the official shapes."""
    tensors = json.loads((shared / "golden" / name / "manifest.json").read_text())["tensors"]
    shapes = conversion.shapes_of(build(name.split("_")[1], "all"))

    def keys(table):
        return rules.key_shapes(table, {name: shapes[name] for rule in table.rules for name in rule.names})

    ours = {}
    for key, shape in keys(backbones.VISION).items():
        key = key.replace("visual.", "expert_encoder.").replace("conv1.", "conv1.rgb.")
        head, *rest = key.split("resblocks.")
        ours[f"{head}resblocks.{rest[0].replace('.', '.0.', 1)}" if rest else key] = shape
    for key, shape in keys(backbones.TEXT).items():
        head, *rest = f"text_decoder.{key}".split("encoder.layer.")
        ours[f"{head}encoder.layer.{rest[0].replace('.', '.0.', 1)}" if rest else head] = shape
    assert ours == {key: tuple(tensors[key]["shape"]) for key in ours}
    left = tensors.keys() - ours.keys()
    new = ("conv1", "instance", "resampler", "adaptor", "output_layer", ".1.self", ".1.output")
    assert not [key for key in left if not any(part in key for part in new)]
