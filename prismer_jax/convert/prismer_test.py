import jax
import numpy as np
import pytest

from prismer_jax.convert import prismer, rules
from prismer_jax.errors import UserError
from prismer_jax.models.layers import resize_positions
from prismer_jax.models.prismer import build

DECODER = dict(width=32, layers=2, heads=2, mlp_dim=64, vocab_size=50, max_positions=20)
SIZES = dict(image_size=32, width=32, layers=2, heads=2, resampler_layers=2, decoder=DECODER)


def a_state(model) -> dict[str, np.ndarray]:
    """A state dict of the model's keys: random numbers, with tied and constant arrays as PyTorch saves them."""
    rng = np.random.RandomState(0)
    shapes = rules.key_shapes(prismer.TABLE, prismer.shapes_of(model))
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
    variables = prismer.from_torch(state, model)
    back = prismer.to_torch(variables)
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
    params = prismer.from_torch(state, model)["params"]
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
        prismer.from_torch(state, model, "model.bin")
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
    full = prismer.from_torch(state, model)
    for key in ("lm_head.decoder.weight", "lm_head.decoder.bias", "roberta.embeddings.position_ids"):
        del state[f"text_decoder.{key}"]
    jax.tree.map(np.testing.assert_array_equal, prismer.from_torch(state, model), full)


def test_positions_of_another_resolution_are_interpolated_on_request():
    small, large = build("tiny", "none", **SIZES), build("tiny", "none", **{**SIZES, "image_size": 64})
    state = a_state(small)
    with pytest.raises(UserError, match="positional_embedding"):
        prismer.from_torch(state, large)
    ours = prismer.from_torch(state, large, resize=True)["params"]["encoder"]["position_embedding"]
    np.testing.assert_array_equal(ours, resize_positions(state[prismer.POSITIONS], (4, 4)))
