"""ONNX files of DINOv2: names, kernels, positions, pixels."""

import numpy as np
import pytest

from prismer_jax.errors import UserError
from prismer_jax.weights.onnx import PIXEL_MEAN, PIXEL_STD, Dinov2, normalized

onnx = pytest.importorskip("onnx", reason="ONNX files are read by the package onnx (extra `onnx`)")

WIDTH, MLP, PATCH, GRID, LAYERS = 64, 96, 4, 3, 2
LINEAR = {
    "attention.attention.query": (WIDTH, WIDTH),
    "attention.attention.key": (WIDTH, WIDTH),
    "attention.attention.value": (WIDTH, WIDTH),
    "attention.output.dense": (WIDTH, WIDTH),
    "mlp.fc1": (MLP, WIDTH),
    "mlp.fc2": (WIDTH, MLP),
}


def written(path, leave_out=(), positions=GRID**2):
    """Writes what torch.onnx writes of such a model inside a larger one; returns {key of Dinov2Model: array}."""
    rng = np.random.default_rng(0)
    random = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    state = {
        "embeddings.cls_token": random(1, 1, WIDTH),
        "embeddings.patch_embeddings.projection.weight": random(WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": random(WIDTH),
        "layernorm.weight": random(WIDTH),
        "layernorm.bias": random(WIDTH),
    }
    kernels = {}
    for layer in (f"encoder.layer.{i}" for i in range(LAYERS)):
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "layer_scale1.lambda1"):
            state[f"{layer}.{name}"] = random(WIDTH)
        state[f"{layer}.layer_scale2.lambda1"] = random(WIDTH)
        for name, shape in LINEAR.items():
            state[f"{layer}.{name}.bias"] = random(shape[0])
            kernels[f"{layer}.{name}"] = random(*shape)
    tables = {f"backbone.{key}": array for key, array in state.items() if key not in leave_out}
    own, grid = random(1, 1, WIDTH), random(1, positions, WIDTH)
    tables |= {"head.weight": random(5, 5), "onnx::Concat_7": own, "onnx::Reshape_9": grid}
    nodes = []
    for number, (key, kernel) in enumerate(kernels.items()):
        place = f"/backbone/{key.replace('.', '/').replace('layer/', 'layer.')}"
        tables[f"onnx::MatMul_{number}"] = kernel.T
        nodes.append(onnx.helper.make_node("MatMul", ["x", f"onnx::MatMul_{number}"], ["y"], name=f"{place}/MatMul"))
    tensors = [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in tables.items()]
    onnx.save_model(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], tensors)), path)
    state["embeddings.position_embeddings"] = np.concatenate([own, grid], axis=1)
    return state | {f"{key}.weight": kernel for key, kernel in kernels.items()}


def test_keys_and_arrays_are_those_of_transformers(tmp_path):
    expected, state = written(tmp_path / "a.onnx"), Dinov2(tmp_path / "a.onnx")
    assert set(state) == set(expected)
    assert len(state) == len(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(state[key], array, err_msg=key)
    assert state.config == {
        "image_size": GRID * PATCH,
        "patch_size": PATCH,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 1,
        "intermediate_size": MLP,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(leave_out=["embeddings.cls_token"]), "has no table embeddings.cls_token"),
        (dict(leave_out=["embeddings.patch_embeddings.projection.weight"]), "only DINOv2 in ONNX files is read"),
        (dict(positions=8), "position embeddings are not one of a class token and a square grid's"),
    ],
)
def test_other_models_are_refused(tmp_path, options, message):
    written(tmp_path / "a.onnx", **options)
    with pytest.raises(UserError, match=message):
        Dinov2(tmp_path / "a.onnx")


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\x07\x12"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.onnx: "):
        Dinov2(tmp_path / "a.onnx")


def test_normalisation_is_a_part_of_the_patch_convolution():
    rng = np.random.default_rng(0)
    kernel, bias, pixels = rng.standard_normal((5, 3, 2, 2)), rng.standard_normal(5), rng.random((3, 2, 2))
    expected = np.einsum("oihw,ihw->o", kernel, (pixels - np.reshape(PIXEL_MEAN, (3, 1, 1))) /
                         np.reshape(PIXEL_STD, (3, 1, 1))) + bias  # fmt: skip
    kernel, bias = normalized(kernel, bias)
    np.testing.assert_allclose(np.einsum("oihw,ihw->o", kernel, pixels) + bias, expected, rtol=1e-12)
