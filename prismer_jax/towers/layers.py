"""Building blocks shared by the encoder, the resampler and the text decoder."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from prismer_jax import errors
from prismer_jax.sharding import constrain, gathered, platform
from prismer_jax.typing import Array, Float, Int, typed

FLOAT32 = dict(preferred_element_type=jnp.float32)
_DOTS = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
EPSILON = 1e-5  # of every LayerNorm and BatchNorm of the reference
Initializer = Callable[..., Array]
FUSED, FUSED_MASKED = 256, 2048  # queries and keys from which on attention is one kernel on a TPU (docs/scaling.md)

# What a layer keeps for its backward pass; everything else is computed again.
REMAT: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": lambda primitive, *a, **k: primitive is jax.lax.conv_general_dilated_p or _DOTS(primitive, *a, **k),
}


def look_up(table: Float[Array, "n d"], ids: Int[Array, "*b"], pad: int) -> Float[Array, "*b d"]:
    """Returns rows of a table; those of `pad` pass it no gradient, as PyTorch's Embedding(padding_idx=...) has it."""
    rows = table[ids]
    return jnp.where((ids == pad)[..., None], jax.lax.stop_gradient(rows), rows)


def zero_row(init: Initializer, row: int) -> Initializer:
    """Returns an initialiser of tables of which one row, that of padding, is 0."""
    return lambda key, shape, dtype=jnp.float32: init(key, shape, dtype).at[row].set(0.0)


def torch_uniform(fan_in: int) -> Initializer:
    """U(-1/√fan_in, 1/√fan_in): what PyTorch gives to weights *and* biases of its Linear and Conv2d layers."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def unfilled(keys: Any, room: int) -> Any:
    """Returns zeros [layers b 1 room h d], a cache for as many columns, like the keys and values [layers b 1 t h d]."""
    return jax.tree.map(lambda x: jnp.zeros((*x.shape[:3], room, *x.shape[4:]), x.dtype), keys)


def appended(own: Any, new: Any, column: Array) -> Any:
    """Returns keys and values [layers b k room h d] of a cache with new ones [layers b k t h d] from a column on."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice(x, y, (0, 0, 0, column, 0, 0)), own, new)


def gelu(x: Array) -> Array:
    """x·Φ(x). By erf, as PyTorch has it: jax.nn.gelu's erfc costs half as much again on a CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


def quick_gelu(x: Array) -> Array:
    """x·σ(1.702x), the GELU of CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def squared_relu(x: Array) -> Array:
    return jnp.square(jax.nn.relu(x))


class LayerNorm(nn.Module):
    """Normalises the last axis in float32, whatever the compute type, and casts back."""

    epsilon: float = EPSILON

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * scale + bias).astype(x.dtype)


@jax.custom_vjp
def product(x: Float[Array, "*b i"], kernel: Float[Array, "i o"], bias: Array | None = None) -> Float[Array, "*b o"]:
    """Returns x @ kernel + bias in the type of x; gradients of both are sums over all tokens, made in float32.

    In bfloat16 such a sum stops growing: 65536 ones give 8192 on a CPU (jaxlib 0.10.2), and the kernel's takes thrice
    as long. The bias's is a product with ones: a sum of columns has XLA compute those once more, on one CPU thread.
    """
    return _forward(x, kernel, bias)[0]


def _forward(x: Array, kernel: Array, bias: Array | None) -> tuple[Array, tuple[Array, ...]]:
    # Not `product` again: policies of remat, such as `dots`, see no product within a function with its own derivative.
    y = x @ gathered(kernel.astype(x.dtype))
    return y if bias is None else (y + bias).astype(x.dtype), (x, kernel, bias)


def _gradients(kept: tuple[Array, ...], g: Array) -> tuple[Array, ...]:
    (x, kernel, bias), rows = kept, tuple(range(g.ndim - 1))
    summed = functools.partial(jax.lax.dot_general, rhs=g, dimension_numbers=((rows, rows), ((), ())), **FLOAT32)
    if bias is not None:
        bias = summed(jnp.ones_like(g[..., 0]), precision="highest").astype(bias.dtype)
    return g @ gathered(kernel.astype(g.dtype)).T, summed(x).astype(kernel.dtype), bias


product.defvjp(_forward, _gradients)


class Dense(nn.Module):
    """x @ kernel + bias in the compute type; the parameters' gradients stay in float32 (`product`)."""

    features: int
    dtype: Any = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros
    use_bias: bool = True

    @nn.compact
    @typed
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b {self.features}"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        return constrain(product(x.astype(self.dtype), kernel, bias))


class Keys(NamedTuple):
    """A part of the keys and values that queries attend to.

    Attributes:
      k, v: [*b s h d]. A part without the sequence axis of queries [b n t h d] is [b s h d]: all n sequences of a row
        read it, and it is never copied for them. There may be fewer heads than queries have: h/r, each for r of these.
      mask: bool, broadcast to [*b t s]; True where a query may look. None: everywhere.
    """

    k: Array
    v: Array
    mask: Array | None = None


@typed
def attend(
    q: Float[Array, "*b t h d"],
    *parts: Keys,
    dropout: Callable[[Array], Array] | None = None,
    bias: Float[Array, "*n h t s"] | None = None,
    cap: float = 0.0,
) -> Float[Array, "*b t h d"]:
    """Multi-head attention over all parts under one softmax, in float32; only logits are ever joined.

    A query that no mask lets look anywhere attends to everything alike, or in a TPU's kernel to the first key (never
    NaN). `bias` is added to the logits, which before that `soft_cap` bounds by `cap`.
    """
    if dropout is bias is None and _fused(q, parts):
        return importlib.import_module("prismer_jax.towers.fused_attention").attend(q, *parts[0], cap)
    logits = jnp.concatenate([_logits(q, part) for part in parts], axis=-1) if parts[1:] else _logits(q, parts[0])
    logits = soft_cap(logits, cap)
    if bias is not None:
        logits = logits + bias
    if any(part.mask is not None for part in parts):
        logits = jnp.where(_joined(parts)[..., None, :, :], logits, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(logits).astype(parts[0].v.dtype)
    probs = probs if dropout is None else dropout(probs)
    ends = np.cumsum([part.k.shape[-3] for part in parts])[:-1]
    mixed = (_mixed(p, part, q.ndim) for p, part in zip(jnp.split(probs, ends, axis=-1), parts, strict=True))
    return functools.reduce(jnp.add, mixed)


def _fused(q: Array, parts: Sequence[Keys]) -> bool:
    """Whether a TPU computes this in one kernel: without a cache, where the weights would be much of what moves."""
    (k, _, mask), *cached = parts
    long = min(q.shape[-3], k.shape[-3]) >= (FUSED if mask is None else FUSED_MASKED)
    return not cached and q.ndim == k.ndim and long and platform() == "tpu"


def soft_cap(logits: Array, cap: float) -> Array:
    """Returns cap·tanh(logits / cap), as Gemma 2 bounds its logits (arXiv 2408.00118); 0 leaves them as they are."""
    return cap * jnp.tanh(logits / cap) if cap else logits


def _logits(q: Array, part: Keys) -> Array:
    """Returns float32 [*b h t s]. With fewer heads of keys than of queries, neighbouring queries share one."""
    q, groups = q * q.shape[-1] ** -0.5, part.k.shape[-2]
    shared = part.k.ndim < q.ndim
    if groups == q.shape[-2]:
        if shared:  # one row of queries a sequence and token: a CPU reads keys as they lie, where they lie head by head
            rows = jnp.einsum("bhrd,bshd->bhrs", rearrange(q, "b n t h d -> b h (n t) d"), part.k, **FLOAT32)
            return rearrange(rows, "b h (n t) s -> b n h t s", n=q.shape[1])
        return jnp.einsum("...thd,...shd->...hts", q, part.k, **FLOAT32)
    q = rearrange(q, "... t (g r) d -> ... t g r d", g=groups)
    spec = "bntgrd,bsgd->bngrts" if shared else "...tgrd,...sgd->...grts"
    logits = jnp.einsum(spec, q, part.k, **FLOAT32)
    return rearrange(logits, "... g r t s -> ... (g r) t s")


def _mixed(probs: Array, part: Keys, rank: int) -> Array:
    shared, groups = part.v.ndim < rank, part.v.shape[-2]
    if groups == probs.shape[-3]:
        if shared:
            rows = jnp.einsum("bhrs,bshd->bhrd", rearrange(probs, "b n h t s -> b h (n t) s"), part.v)
            return rearrange(rows, "b h (n t) d -> b n t h d", n=probs.shape[1])
        return jnp.einsum("...hts,...shd->...thd", probs, part.v)
    probs = rearrange(probs, "... (g r) t s -> ... g r t s", g=groups)
    mixed = jnp.einsum("bngrts,bsgd->bntgrd" if shared else "...grts,...sgd->...tgrd", probs, part.v)
    return rearrange(mixed, "... g r d -> ... (g r) d")


def _joined(parts: Sequence[Keys]) -> Array:
    """Returns one mask [*b t s] over the keys of all parts."""
    whole = [jnp.ones(part.k.shape[-3], bool) if part.mask is None else part.mask for part in parts]
    shape = np.broadcast_shapes(*(m.shape[:-1] for m in whole))
    return jnp.concatenate([jnp.broadcast_to(m, (*shape, m.shape[-1])) for m in whole], axis=-1)


class Attention(nn.Module):
    """Projections around `attend`. Keys and values are made apart, so that a decoder can keep them."""

    width: int
    heads: int
    dropout: float = 0.0
    deterministic: bool = True
    dtype: Any = jnp.float32
    kernel_init: Initializer | None = None  # default: as PyTorch's MultiheadAttention
    out_init: Initializer | None = None
    key_bias: bool = True

    def setup(self) -> None:
        # PyTorch initialises query, key and value as one [3·width, width] matrix: Xavier over a fan of 4·width.
        xavier = torch_uniform(self.width * 4 / 6)
        dense = functools.partial(Dense, self.width, dtype=self.dtype, kernel_init=self.kernel_init or xavier)
        self.query, self.key, self.value = dense(), dense(use_bias=self.key_bias), dense()
        self.out = dense(kernel_init=self.out_init or torch_uniform(self.width))
        self.drop = nn.Dropout(self.dropout, deterministic=self.deterministic)

    def keys(self, x: Float[Array, "*b s c"], positions: Array | float = 0, mask: Array | None = None) -> Keys:
        """Returns keys of x + positions and values of x alone, [*b s heads d], for queries that `mask` lets look."""
        return Keys(self._split(self.key(x + positions)), self._split(self.value(x)), mask)

    def __call__(self, x: Float[Array, "*b t c"], *parts: Keys) -> Float[Array, "*b t width"]:
        looked_at = self.is_mutable_collection("intermediates") or (self.dropout and not self.deterministic)
        out = attend(self._split(self.query(x)), *parts, dropout=self._seen if looked_at else None)
        return self.out(rearrange(out, "... h d -> ... (h d)"))

    def _seen(self, probs: Array) -> Array:
        self.sow("intermediates", "weights", probs.mean(-3))  # for decode.attention
        return self.drop(probs)

    def _split(self, x: Array) -> Array:
        return rearrange(x, "... (h d) -> ... h d", h=self.heads)


class MLP(nn.Module):
    """Two dense layers around an activation; PyTorch's initialisation unless told otherwise."""

    hidden: int
    activation: Callable[[Array], Array]
    dtype: Any = jnp.float32
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    out_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        width = x.shape[-1]
        first, second = torch_uniform(width), torch_uniform(self.hidden)
        x = Dense(self.hidden, self.dtype, self.kernel_init or first, self.bias_init or first, name="up")(x)
        out_init = self.out_init or self.kernel_init or second
        return Dense(width, self.dtype, out_init, self.bias_init or second, name="down")(self.activation(x))


def rematerialised(layer: type[nn.Module], remat: str, **options: Any) -> Callable[..., nn.Module]:
    """Returns a module class of which the backward pass keeps what `remat` says, a name of REMAT."""
    policy = errors.choose("remat policy", remat, REMAT)
    return layer if remat == "none" else nn.remat(layer, policy=policy, **options)


def stack(layer: type[nn.Module], length: int, remat: str, broadcast: int, cached: int = 0) -> Callable[..., nn.Module]:
    """Returns a module class that runs `length` copies of `layer` one after the other, compiled once.

    Parameters, intermediates and outputs get a leading layer axis. `layer(carry, *cached, *broadcast)` returns
    (carry, output): the first arguments are sliced along their leading axis, the others reach every layer alike.
    """
    return nn.scan(
        rematerialised(layer, remat, prevent_cse=False),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0,) * cached + (nn.broadcast,) * broadcast,
        length=length,
    )


@functools.cache
def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Returns float32 [new, old]: bicubic interpolation of one axis, as PyTorch's `interpolate` does it.

    Keys' cubic convolution with a = -0.75, half-pixel centres, border taps clamped, no antialiasing
    (`jax.image.resize` differs in all of a, antialiasing and borders). Equal sizes give the identity.
    """
    a, matrix = -0.75, np.zeros((new, old))
    centres = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    taps = np.floor(centres).astype(int) + np.arange(-1, 3)
    d = np.abs(centres - taps)
    inner, outer = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
    np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), np.where(d <= 1, inner, outer))
    return matrix.astype(np.float32)


def check_patches(image: Array, patch_size: int, image_size: int) -> None:
    """Raises a UserError unless images [b h w 3] have as many patches as the model has places for."""
    if any(side // patch_size != image_size // patch_size for side in image.shape[1:3]):
        raise errors.UserError(f"The ops make photos of {image.shape[1:3]}, but model.image_size is {image_size}.")


@typed
def resize_positions(
    table: Float[Array, "n d"] | Float[np.ndarray, "n d"], grid: tuple[int, int]
) -> Float[Array, "m d"]:
    """Interpolates the position embedding of a square grid to another grid (rows, columns), bicubically.

    Source: `interpolate_pos_embed` of the reference (NVlabs/prismer, model/modules/utils.py).
    """
    side = int(table.shape[0] ** 0.5)
    if grid == (side, side):
        return jnp.asarray(table)
    rows, columns = bicubic_matrix(side, grid[0]), bicubic_matrix(side, grid[1])
    table = rearrange(table, "(a b) d -> a b d", a=side)
    out = jnp.einsum("ia,jb,abd->ijd", rows, columns, table, precision=jax.lax.Precision.HIGHEST)
    return rearrange(out, "i j d -> (i j) d")
