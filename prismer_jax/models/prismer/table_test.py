import json
import zlib

import jax
import numpy as np
import pytest

from prismer_jax.errors import UserError
from prismer_jax.models import conversion
from prismer_jax.models.prismer import build, table
from prismer_jax.towers.layers import resize_positions
from prismer_jax.weights import rules

DECODER = dict(width=32, layers=2, heads=2, mlp_dim=64, vocab_size=50, max_positions=20)
SIZES = dict(image_size=32, width=32, layers=2, heads=2, resampler_layers=2, decoder=DECODER)


def a_state(model) -> dict[str, np.ndarray]:
    """A state dict of the model's keys: random numbers, with tied and constant arrays as PyTorch saves them."""
    rng = np.random.RandomState(0)
    shapes = rules.key_shapes(table.TABLE, conversion.shapes_of(model))
    state = {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = np.asarray(rng.randint(1000), np.int64)
        elif key.endswith("position_ids"):
            state[key] = np.arange(shape[1])[None]
    state["text_decoder.lm_head.decoder.weight"] = state["text_decoder.roberta.embeddings.word_embeddings.weight"]
    state["text_decoder.lm_head.decoder.bias"] = state["text_decoder.lm_head.bias"]
    return state


@pytest.mark.parametrize("experts", ["all", "none", "edge", "seg_coco+seg_ade"])
def test_there_and_back_is_the_same_file_bit_for_bit(experts):
    model = build("tiny", experts, **SIZES)
    state = a_state(model)
    variables = conversion.from_torch(state, model, table.TABLE)
    back = conversion.to_torch(variables, table.TABLE)
    assert back.keys() == state.keys()
    for key, array in state.items():
        assert back[key].dtype == array.dtype, key
        np.testing.assert_array_equal(back[key], array, err_msg=key)
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    for part in ("params", "batch_stats"):
        assert jax.tree.structure(variables[part]) == jax.tree.structure(shapes[part])


def test_matrices_are_transposed_and_packed_ones_taken_apart():
    model = build("tiny", "all", **SIZES)
    state = a_state(model)
    params = conversion.from_torch(state, model, table.TABLE)["params"]
    packed = state["expert_encoder.transformer.resblocks.1.0.attn.in_proj_weight"]
    key = params["encoder"]["blocks"]["attention"]["key"]["kernel"][1]
    np.testing.assert_array_equal(key, packed[32:64].T)
    conv = state["expert_encoder.conv1.normal.4.weight"]
    ours = params["encoder"]["stem_normal"]["conv_1"]["kernel"]
    np.testing.assert_array_equal(ours[2, 0, 1], conv[:, 1, 2, 0])


def test_every_difference_is_reported_at_once():
    model = build("tiny", "all", **SIZES)
    state = a_state(model)
    for layer in range(2):
        del state[f"expert_encoder.transformer.resblocks.{layer}.0.ln_1.weight"]
    state["expert_encoder.class_embedding"] = np.zeros(32)
    state["expert_encoder.ln_pre.weight"] = np.zeros(64)
    state["text_decoder.lm_head.decoder.bias"] = state["text_decoder.lm_head.bias"] + 1
    with pytest.raises(UserError) as raised:
        conversion.from_torch(state, model, table.TABLE, "model.bin")
    message = str(raised.value)
    assert "\n" not in message
    for part in (
        "model.bin",
        "2 missing: expert_encoder.transformer.resblocks.*.*.ln_1.weight (2)",
        "1 unexpected: expert_encoder.class_embedding",
        "1 of shape [64] instead of [32]: expert_encoder.ln_pre.weight",
        "different from the parameter that they are tied to: text_decoder.lm_head.decoder.bias",
    ):
        assert part in message, message


def test_tied_and_constant_keys_may_be_absent():
    """PyTorch saves a tied tensor once or twice, depending on the version that saved it."""
    model = build("tiny", "none", **SIZES)
    state = a_state(model)
    full = conversion.from_torch(state, model, table.TABLE)
    for key in ("lm_head.decoder.weight", "lm_head.decoder.bias", "roberta.embeddings.position_ids"):
        del state[f"text_decoder.{key}"]
    jax.tree.map(np.testing.assert_array_equal, conversion.from_torch(state, model, table.TABLE), full)


def test_old_spellings_are_read():
    """Files of parallel training, norms with TensorFlow's names, BatchNorms of before PyTorch 0.4.1."""
    model = build("tiny", "edge", **SIZES)
    state = a_state(model)
    old = {f"module.{k}": v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): old[k]
        for k in old
    }
    assert not old.keys() & state.keys()
    back = conversion.to_torch(conversion.from_torch(old, model, table.TABLE), table.TABLE)
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], 0 if key.endswith("num_batches_tracked") else array, err_msg=key)
    assert table.facts_of(old) == table.facts_of(state)


def test_positions_of_another_resolution_are_interpolated_on_request():
    small, large = build("tiny", "none", **SIZES), build("tiny", "none", **{**SIZES, "image_size": 64})
    state = a_state(small)
    with pytest.raises(UserError, match="positional_embedding"):
        conversion.from_torch(state, large, table.TABLE)
    resized = table.resized(state, table.POSITIONS, 16)
    ours = conversion.from_torch(resized, large, table.TABLE)["params"]["encoder"]["position_embedding"]
    np.testing.assert_array_equal(ours, resize_positions(state[table.POSITIONS], (4, 4)))


def test_an_expert_that_the_file_lacks_starts_afresh_if_that_is_allowed():
    with_depth, without = build("tiny", "depth+edge", **SIZES), build("tiny", "edge", **SIZES)
    state = a_state(without)
    with pytest.raises(UserError, match=r"missing: expert_encoder\.conv1\.depth"):
        conversion.from_torch(state, with_depth, table.TABLE)
    found = conversion.from_torch(state, with_depth, table.TABLE, allow=[r"expert_encoder\.conv1\.depth\..*"])
    fresh = jax.jit(with_depth.init_variables)(jax.random.key(0))
    for part in ("params", "batch_stats"):
        ours, initial = found[part]["encoder"]["stem_depth"], fresh[part]["encoder"]["stem_depth"]
        jax.tree.map(np.testing.assert_array_equal, ours, initial)
    np.testing.assert_array_equal(found["params"]["decoder"]["head_bias"], state["text_decoder.lm_head.bias"])


def test_an_expert_that_the_model_lacks_is_dropped_if_that_is_allowed():
    with_depth, without = build("tiny", "depth+edge", **SIZES), build("tiny", "edge", **SIZES)
    state = a_state(with_depth)
    variables = conversion.from_torch(state, without, table.TABLE, allow=[r"expert_encoder\.conv1\.depth\..*"])
    found = conversion.to_torch(variables, table.TABLE)
    assert state.keys() - found.keys() == {key for key in state if ".depth." in key}


@pytest.mark.parametrize("experts", ["all", "none", "depth"])
def test_a_checkpoint_says_which_model_it_is_of(experts):
    model = build("tiny", experts)
    facts = table.facts_of(a_state(model))
    assert (facts.variant, facts.grid, facts.resolution) == ("tiny", 6, 96)
    assert facts.stems == {"none": set(), "depth": {"depth"}}.get(experts, set(table._STEMS))
    assert table.facts_of({"visual.conv1.weight": np.zeros((2, 3, 4, 4))}) is None
    assert table.facts_of(a_state(build("tiny", experts, **SIZES))).variant is None


MANIFESTS = ["prismer_base", *(f"{name}_manifest" for name in ("prismer_large", "prismer_huge", "prismerz_base"))]
MANIFESTS += ["prismerz_large_manifest", "prismerz_huge_manifest"]


def full_size(shared, name) -> tuple:
    """The model of a manifest and its state dict: views of a few random bytes, as no machine of a test has them all."""
    manifest = json.loads((shared / "golden" / name / "manifest.json").read_text())
    size = max(int(np.prod(entry["shape"])) for entry in manifest["tensors"].values())
    noise = np.random.RandomState(0).randint(0, 2**32, size + 1000, np.uint32).view(np.float32)
    state = {}
    for key, entry in manifest["tensors"].items():
        start, count = zlib.crc32(entry.get("tied_to", key).encode()) % 1000, int(np.prod(entry["shape"]))
        floats = entry["dtype"].startswith("float")
        numbers = noise[start : start + count] if floats else np.arange(count) + (start if count == 1 else 0)
        state[key] = numbers.reshape(entry["shape"])
    variant = name.split("_")[1]
    return build(variant, "none" if name.startswith("prismerz") else "all"), state


@pytest.mark.parametrize("name", MANIFESTS)
def test_official_sizes_are_recognised(shared, name):
    model, state = full_size(shared, name)
    facts = table.facts_of(state)
    assert (facts.variant, facts.resolution, bool(facts.stems)) == (name.split("_")[1], 480, bool(model.experts))


@pytest.mark.slow  # moves up to 6 GB of numbers there and back
@pytest.mark.parametrize("name", MANIFESTS)
def test_official_sizes_come_back_bit_for_bit(shared, name):
    model, state = full_size(shared, name)
    found = rules.from_torch(state, table.TABLE, conversion.shapes_of(model))
    left = dict(state)
    for rule in table.TABLE.rules:
        if rule.names[0] in found and not rule.derived:
            back = rules.to_torch({name: found[name]() for name in rule.names}, table.TABLE)
            for key, array in back.items():
                assert array.dtype == state[key].dtype
                np.testing.assert_array_equal(
                    array.view(f"V{array.itemsize}"), left.pop(key).view(f"V{array.itemsize}")
                )
    assert not left
