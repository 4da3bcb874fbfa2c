"""What dense layers read: sums over tokens, calls and passes of each layer, by gradients, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from prismer_jax import losses, models
from prismer_jax.batch import Batch, prompts
from prismer_jax.models import calibration, lora
from prismer_jax.towers import layers


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        down = nn.Dense(8, use_bias=False, name="down")
        return x + down(layers.Dense(16, name="up")(x)) + down(jnp.ones((1, 16))), None


class Stack(nn.Module):
    """Three of them, scanned and computed again in the backward pass, and a head that the loss does not use."""

    @nn.compact
    def __call__(self, x):
        return layers.stack(Layer, 3, "full", broadcast=0)(name="blocks")(x)[0]

    @nn.compact
    def aside(self, x):
        return nn.Dense(4, name="head")(x)

    def init_variables(self, rng):
        x = jnp.ones((2, 8))
        return {"params": self.init(rng, x)["params"] | self.init(rng, x, method="aside")["params"]}


def test_products_are_of_inputs_times_the_size_of_the_gradient_of_each_layers_output():
    model, rng = Stack(), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), shapes)
    x, target = (jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32) for _ in range(2))

    def loss(forward, batch):
        errors = (forward(scale * batch) - target for scale in (1, 2))
        return {"loss": (sum(jnp.square(error).sum((1, 2)) for error in errors), jnp.ones(2))}

    names = ("blocks/up/kernel", "blocks/down/kernel", "head/kernel")
    found = calibration.products(model, names, variables, loss, x)
    params = jax.tree.map(np.float64, variables["params"]["blocks"])
    expected = {names[0]: np.zeros((3, 8, 8)), names[1]: np.zeros((3, 16, 16))}
    for scale in (1, 2):
        read, y = [], scale * np.float64(x).reshape(-1, 8)
        for layer in range(3):
            hidden = y @ params["up"]["kernel"][layer] + params["up"]["bias"][layer]
            read.append((y, hidden))
            y = y + (hidden + 1) @ params["down"]["kernel"][layer]
        gradient = 2 * (y - np.float64(target).reshape(-1, 8))
        for layer in (2, 1, 0):
            y, hidden = read[layer]
            at_ones = np.square(gradient.sum(0)).sum() * np.ones((16, 16))  # one row that all tokens share
            weighted = hidden * np.linalg.norm(gradient, axis=1, keepdims=True)
            expected[names[1]][layer] += weighted.T @ weighted + at_ones
            at_hidden = gradient @ params["down"]["kernel"][layer].T
            weighted = y * np.linalg.norm(at_hidden, axis=1, keepdims=True)
            expected[names[0]][layer] += weighted.T @ weighted
            gradient = gradient + at_hidden @ params["up"]["kernel"][layer].T
    for name, of_layers in expected.items():
        np.testing.assert_allclose(found[name][:, 0], of_layers, rtol=1e-3, atol=1e-3 * of_layers.max())
    assert found["head/kernel"].shape == (1, 8, 8)
    assert not found["head/kernel"].any()  # what no loss needs
    assert calibration.products(model, names[:1], variables, loss, x).keys() == {names[0]}


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("prismer", dict(experts="none")),
        pytest.param("nanovlm", dict(image_token=None), marks=pytest.mark.slow),
        pytest.param("paligemma", dict(remat="full"), marks=pytest.mark.slow),
        pytest.param("blip2", {}, marks=pytest.mark.slow),
    ],
)
def test_every_kernel_of_every_family_is_felt(family, fields):
    model, rng = models.build(family, variant="tiny", **fields), np.random.default_rng(0)
    text, size = rng.integers(3, 190, (2, 6)).astype(np.int32), model.image_size
    image = rng.integers(0, 256, (2, size, size, 3), np.uint8)
    batch = dict(image=image, **prompts(text, text > 0), mask_loss=np.ones((2, 6), np.float32))
    kernels, variables = lora.kernels(model), jax.jit(model.init_variables)(jax.random.key(0, impl="rbg"))

    @jax.jit
    def felt(variables, batch):
        return calibration.products(model, kernels, variables, losses.cross_entropy, Batch(batch))

    for name, x in felt(variables, batch).items():
        assert np.isfinite(x).all(), name
        assert np.asarray(x).any((-1, -2, -3)).all(), name  # in each layer
