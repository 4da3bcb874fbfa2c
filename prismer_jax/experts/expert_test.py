import jax
import numpy as np
import pytest

from prismer_jax import sharding, tree
from prismer_jax.errors import UserError
from prismer_jax.experts import EXPERTS
from prismer_jax.experts.testing import ToyDepth as Toy
from prismer_jax.weights import write

STATE = {"head.weight": np.array([[1.0, 2.0, -1.0]], np.float32), "head.bias": np.array([0.5], np.float32)}
PHOTOS = [np.random.default_rng(i).integers(0, 256, (h, w, 3), np.uint8) for i, (h, w) in enumerate([(6, 8), (13, 5)])]


def test_labels_have_the_photos_size_and_the_networks_numbers(tmp_path):
    write.torch_file(tmp_path / "toy.pt", {**STATE, "old.bias": np.zeros(1, np.float32)})
    expert = Toy()
    variables = expert.init_from_official(tmp_path / "toy.pt")
    first, second = expert.predict(PHOTOS, variables)
    assert first.map.shape == (6, 8, 1)
    assert second.map.shape == (13, 5, 1)
    assert first.map.dtype == np.uint8
    logits = PHOTOS[0] / 255 @ STATE["head.weight"][0] + 0.5
    np.testing.assert_allclose(first.map[..., 0], np.floor(255 / (1 + np.exp(-logits))), atol=1)


def test_a_batch_is_shared_by_the_mesh_and_padded_to_it():
    expert = Toy()
    variables = expert.random_variables()
    one = expert.predict(PHOTOS, variables, mesh=sharding.make_mesh(devices=jax.devices()[:1]))
    mesh = sharding.make_mesh()
    many = expert.predict(PHOTOS, variables, mesh=mesh)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a.map, b.map)
    placed = jax.device_put(variables, sharding.replicated(mesh))
    out = expert.run(placed, [expert.prepare(PHOTOS[0])], mesh, batch_size=9)
    assert out["bright"].shape == (16, 6, 8)
    assert len(out["bright"].sharding.device_set) == 8
    assert out["bright"].addressable_shards[0].data.shape == (2, 6, 8)


def test_a_batch_on_the_device_is_no_memory_of_the_photos():
    """On a CPU jax.device_put (0.10.2) shares the memory of an aligned array, and `run` returns before it is read."""
    expert, mesh = Toy(), sharding.make_mesh(devices=jax.devices()[:1])
    variables = jax.device_put(expert.random_variables(), sharding.replicated(mesh))
    prepared = [{"image": aligned((64, 64, 3), np.uint8)}]
    prepared[0]["image"][:] = 200
    expected = np.array(expert.run(variables, prepared, mesh)["bright"])
    out = expert.run(variables, prepared, mesh)
    prepared[0]["image"][:] = 0
    np.testing.assert_array_equal(out["bright"], expected)


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Returns zeros at an address that is a multiple of 64."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def test_shapes_and_random_variables_agree_and_depend_on_the_seed():
    expert = Toy(dtype="bfloat16", channels=3)
    assert {name: leaf.shape for name, leaf in expert.shapes.items()} == {
        "params/out/kernel": (3, 3),
        "params/out/bias": (3,),
    }
    kernels = [np.asarray(expert.random_variables(seed)["params"]["out"]["kernel"]) for seed in (0, 0, 1)]
    assert kernels[0].dtype == np.float32
    assert (kernels[0] == kernels[1]).all()
    assert (kernels[0] != kernels[2]).any()


def test_wrong_keys_are_one_error_unless_allowed():
    expert, state = Toy(), {"head.weight": STATE["head.weight"], "tail.bias": np.zeros(1, np.float32)}
    with pytest.raises(UserError, match=r"toy.pt does not fit .* 1 missing: head.bias; 1 unexpected: tail.bias"):
        expert.from_official(state, "toy.pt")
    variables = expert.from_official(state, "toy.pt", allow=[r"head\.bias", r"tail\..*"])
    np.testing.assert_array_equal(variables["params"]["out"]["bias"], [0])


@pytest.mark.parametrize("name", ["depth", "ocr_detection"])
def test_float32_is_multiplied_as_such_on_a_tpu(name):
    """Its default are operands in bfloat16, which move labels by more than a level."""
    expert = EXPERTS[name]()
    prepared = expert.prepare(np.zeros((96, 128, 3), np.uint8))
    batch = {key: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for key, x in prepared.items()}
    variables = tree.unflatten(expert.shapes)
    text = expert._jitted.trace(variables, batch).lower(lowering_platforms=("tpu",)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.convolution" in line or "dot_general" in line]
    assert products
    assert all("HIGHEST" in line for line in products)
