"""LoRA (arXiv 2106.09685) and QLoRA (2305.14314) for any family: `config.model.lora` and `config.model.quantize`.

    config.model.lora = dict(match="language/blocks/.*|vision/blocks/attention/(query|key|value)/.*", rank=8, alpha=16)
    config.model.quantize = dict(match="language/blocks/.*", kind="nf4")

A model's modules know nothing of either. Calls of dense layers are intercepted, wherever they are: in a layer that is
scanned and computed again in the backward pass, adapters are stacked and kernels are unpacked layer by layer. Beside
`kernel` stand the adapter's `lora/a` [i r] and `lora/b` [r o]; a packed `kernel` has the parts of towers.quantized.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from prismer_jax import config, models, tree
from prismer_jax.config import values
from prismer_jax.errors import UserError, choose
from prismer_jax.towers import layers, quantized
from prismer_jax.typing import Array

ADAPTERS = r".*/lora/[ab]"  # names of what is trained
FROZEN = (rf"(?!{ADAPTERS}$).*",)  # and of all else, unless config.freeze says otherwise
DENSE = (nn.Dense, layers.Dense)
SECTIONS = ("lora", "quantize")  # the keys of a model's fields that say these

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Lora:
    """What `config.model.lora` says.

    Attributes:
      match: regex, or several, of whole names of kernels, such as 'language/blocks/query/kernel'.
      rank: of the product that is added to a kernel.
      alpha: the product's factor is alpha / rank.
      dropout: of the adapter's input, in training.
    """

    match: str | tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1:
            raise UserError(
                f"config.model.lora: rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}; rank must be at "
                "least 1, alpha above 0, dropout in [0, 1)."
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class Quantize:
    """What `config.model.quantize` says: `match` as in Lora, and a name of towers.quantized.BLOCK."""

    match: str | tuple[str, ...]
    kind: str = "nf4"

    def __post_init__(self) -> None:
        choose("kind of config.model.quantize", self.kind, quantized.BLOCK)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A model of models.vlm with adapters beside kernels, with packed kernels, or with both.

    Attributes:
      model: the model itself.
      lora, quantize: None for none.
      adapters, packed: names of the kernels that these match.
    """

    model: Any
    lora: Lora | None
    quantize: Quantize | None
    adapters: frozenset[str]
    packed: frozenset[str]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Applies the model with its adapters, as flax.linen.Module.apply does."""
        with nn.intercept_methods(self._intercept):
            return self.model.apply(*args, **kwargs)

    def init_variables(self, rng: Array) -> dict[str, Any]:
        """Returns fresh variables: the model's own, packed where they are to be, and adapters that add nothing yet."""
        with nn.intercept_methods(self._intercept):
            return self.model.init_variables(rng)

    @property
    def rngs(self) -> tuple[str, ...]:
        """Returns the names of the model's random streams, and of that which the adapters' dropout draws from."""
        return tuple(dict.fromkeys((*self.model.rngs, *(["dropout"] if self.lora and self.lora.dropout else []))))

    def frozen(self, mode: tuple[str, ...]) -> tuple[str, ...]:
        """Returns regexes of what a freezing mode does not train: of 'none', with adapters, all else."""
        beside = [name.removesuffix("kernel") + "lora/a" for name in sorted(self.adapters)]
        if idle := [name for name in beside if any(re.fullmatch(pattern, name) for pattern in mode)]:
            remedy = "Leave config.freeze out to train adapters alone, or give it regexes"
            logger.warning("config.freeze also freezes %s: a new adapter then adds nothing. %s.", idle[0], remedy)
        return mode or (FROZEN if self.lora else ())

    @property
    def loading(self) -> dict[str, Any]:
        """Returns arguments of `checkpoint.initial.load_into` for files of the model without adapters, not packed."""
        pack = functools.partial(quantized.pack_stacked, kind=self.quantize.kind) if self.quantize else None
        packs = {f"params/{name}": pack for name in self.packed}
        return {"optional": (ADAPTERS,) if self.lora else (), "pack": packs}

    def tensor_rules(self, rules: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Returns the family's rules of sharding for kernels whether packed or not; adapters are whole everywhere."""
        return [(pattern.replace("kernel", "kernel(/codes|/scales|/bases)?"), rule) for pattern, rule in rules]

    def _intercept(
        self, call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        layer = context.module
        if not is_dense(context) or (name := kernel_name(layer)) not in self.adapters | self.packed:
            return call(*args, **kwargs)
        (x,) = args
        y = self._call_packed(layer, call, x) if name in self.packed else call(x)
        return y + Adapter(layer.features, self.lora, y.dtype, name="lora")(x) if name in self.adapters else y

    def _call_packed(self, layer: nn.Module, call: Callable[..., Any], x: Array) -> Array:
        if not layer.has_variable("params", "kernel"):  # it initialises, and was not called before
            y = call(x)
            packed = quantized.pack(layer.get_variable("params", "kernel"), self.quantize.kind)
            layer.put_variable("params", "kernel", packed)
            return y
        own = layer.variables["params"]
        kernel = quantized.unpack(dict(own["kernel"]), x.shape[-1])
        return layer.clone(parent=None, name=None).apply({"params": {**own, "kernel": kernel}}, x)


class Adapter(nn.Module):
    """What is added to a dense layer's output: (xA)B·alpha/rank. A starts as PyTorch's Linear does, B at zero.

    It is a module, so that its random numbers are its own: the layer's are those that it has without an adapter.
    """

    features: int
    lora: Lora
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width, rank = x.shape[-1], self.lora.rank
        a = self.param("a", layers.torch_uniform(width), (width, rank))
        b = self.param("b", nn.initializers.zeros, (rank, self.features))
        x = nn.Dropout(self.lora.dropout)(x, deterministic=not self.has_rng("dropout"))
        return layers.product(layers.product(x.astype(self.dtype), a), b) * self.lora.scale


def is_dense(context: nn.module.InterceptorContext) -> bool:
    return isinstance(context.module, DENSE) and context.method_name == "__call__"


def kernel_name(layer: nn.Module) -> str:
    return "/".join((*layer.path, "kernel"))


def kernels(model: nn.Module) -> list[str]:
    """Returns the names of the kernels of a model's dense layers, without computing anything."""
    names = []

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if is_dense(context):
            names.append(kernel_name(context.module))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(model.init_variables, jax.random.key(0))
    return sorted(set(names))


def adapt(model: nn.Module, lora: Mapping[str, Any] | None, quantize: Mapping[str, Any] | None) -> Adapted:
    """Returns a model with what these sections of its config say.

    Raises:
      UserError: an unknown key or kind, a value out of range, or a regex that matches no kernel of a dense layer.
    """
    names = kernels(model)

    def read(cls: type, section: Mapping[str, Any] | None, where: str) -> tuple[Any, frozenset[str]]:
        if not section:
            return None, frozenset()
        values.check(section, values.kinds(cls), where)
        match = section.get("match", ())
        patterns = (match,) if isinstance(match, str) else tuple(match)
        if "match" in section and not patterns:
            raise UserError(f"{where}.match is empty: name kernels, or leave {where} out.")
        settings = config.call(cls, {**section, "match": patterns} if match else section, where)
        return settings, frozenset(tree.first_match(patterns, names, f"{where}.match"))

    (lora, adapters), (quantize, packed) = (
        read(cls, section, f"config.model.{cls.__name__.lower()}")
        for cls, section in ((Lora, lora), (Quantize, quantize))
    )
    return Adapted(model, lora, quantize, adapters, packed)


def merged(model: Adapted, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters of the model without adapters: their products added to kernels, and nothing packed.

    Kernels are made in float32, layer by layer, and keep their type; those that were packed are float32.
    """
    flat = {name: np.asarray(leaf) for name, leaf in tree.flatten(params).items()}
    shapes = tree.flatten(jax.eval_shape(model.model.init_variables, jax.random.key(0))["params"])
    merged = {name: flat[name] for name in shapes if name in flat}
    for name in model.packed:
        packed = {key.removeprefix(f"{name}/"): x for key, x in flat.items() if key.startswith(f"{name}/")}
        merged[name] = np.asarray(jax.jit(quantized.unpack, static_argnums=1)(packed, shapes[name].shape[-2]))
    for name in model.adapters:
        a, b = (flat[f"{name.rpartition('/')[0]}/{part}"].astype(np.float32) for part in ("lora/a", "lora/b"))
        merged[name] = (merged[name] + np.float32(model.lora.scale) * (a @ b)).astype(merged[name].dtype)
    return tree.unflatten(merged)


def is_plain(fields: Mapping[str, Any]) -> bool:
    """Returns whether the fields of a model say neither of adapters nor of packed kernels."""
    return not any(map(fields.get, SECTIONS))


def check_plain(fields: Mapping[str, Any], where: Any) -> None:
    """Raises a UserError that names the remedy unless a model, whose checkpoint lies at `where`, is plain."""
    if not is_plain(fields):
        merge = "python -m tools.export --merge --format orbax"
        raise UserError(f"{where} has adapters or packed kernels: make it whole by {merge}.")


def plain(variables: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the variables and the fields of a model with its adapters in its kernels, none of these packed."""
    if not is_plain(fields):
        variables = {**variables, "params": merged(models.build(**fields), variables["params"])}
    return dict(variables), {key: value for key, value in fields.items() if key not in SECTIONS}
