"""What the dense layers of a model read, as its loss feels it, by which towers.gptq packs their kernels.

What a small error of a layer costs goes with the square of the loss's gradient at the layer's output. So tokens count
by that square, summed over columns (Kim et al., GuidedQuant, arXiv 2505.07004, with all columns as one group): one of
which nothing is read any more counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from prismer_jax import losses, tree
from prismer_jax.models import lora
from prismer_jax.towers import gptq
from prismer_jax.typing import Array


def products(
    model: nn.Module, kernels: Collection[str], variables: Any, loss: losses.Loss, batch: Mapping[str, Array]
) -> dict[str, Array]:
    """Returns {name: [*layers g r r]}, `gptq.products` of what these kernels read times the gradient's size there.

    They are zeros where the loss needs a kernel not at all.

    Args:
      model: without adapters or packed kernels.
      kernels: names of those that count, of `lora.kernels`.
      loss: (forward, batch) -> costs, which may call several methods of the model.
    """

    def probe(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        y = call(*args, **kwargs)
        read = lora.is_dense(context) and lora.kernel_name(context.module) in kernels
        return Probe(name="probe")(y, *args) if read else y

    def costs(probes: dict[str, Array]) -> Array:
        probed = tree.unflatten({**tree.flatten(variables), **probes})
        with nn.intercept_methods(probe):
            return loss(lambda *args, **options: losses.apply(model, probed, *args, **options), batch)["loss"][0].sum()

    with nn.intercept_methods(probe):
        shapes = tree.flatten(jax.eval_shape(model.init_variables, jax.random.key(0)))
    names = {f"params/{kernel.rpartition('/')[0]}/probe/products": kernel for kernel in kernels}
    products = jax.grad(costs)({name: jnp.zeros(shapes[name].shape) for name in names})
    return {kernel: products[name] for name, kernel in names.items()}


class Probe(nn.Module):
    """Gives a layer's output on as it is; the gradient of its parameter is what `products` returns.

    As a parameter it has the axes of the scans that the layer is in, and a backward pass fills it layer by layer.
    """

    @nn.compact
    def __call__(self, y: Array, x: Array) -> Array:
        number, rows = gptq.groups(x.shape[-1])
        return _probed(y, x, self.param("products", nn.initializers.zeros, (number, rows, rows)))


@jax.custom_vjp
def _probed(y: Array, x: Array, products: Array) -> Array:
    return y


def _weighted(x: Array, gradient: Array) -> tuple[Array, None, Array]:
    size = jnp.linalg.norm(gradient.astype(jnp.float32), axis=-1, keepdims=True)
    return gradient, None, gptq.products(x.astype(jnp.float32) * size)


_probed.defvjp(lambda y, x, products: (y, x), _weighted)
