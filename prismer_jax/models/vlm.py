"""The interface of a vision-language model: all that training, decoding, evaluation and conversion know of one.

A model is a linen module whose fields are hashable. A family is a module with what stands in FAMILY; one row in
`prismer_jax.models` names it. docs/adding.md shows a whole one.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Protocol

import jax.numpy as jnp

from prismer_jax.errors import UserError
from prismer_jax.typing import Array, Bool, Float, Int, typed

# What a family's module has: how it is built, sizes by name, freezing modes {name: regexes of parameters}, functions
# {name of a parameter: (array, shape) -> array} that fit it to another resolution. (And its conversion TABLE; of a
# family that is a package, that is read only where files are converted, from its conversion.py.)
FAMILY = ("build", "VARIANTS", "FREEZE", "RESIZE")


class VisionLanguageModel(Protocol):
    """The methods and attributes of a model.

    Attributes:
      experts: names of prismer_jax.labels.EXPERTS whose labels it reads; () for none.
      classes: {expert: names of the classes in its label maps}, where a data set has its own.
      image_size: pixels of a side of its images.
      vocab_size: ids that it has embeddings for.
      rngs: names of the random streams that training draws from.
    """

    experts: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    image_size: int
    vocab_size: int
    rngs: tuple[str, ...]

    def encode(self, batch: Mapping[str, Array], train: bool = False) -> Any:
        """Returns what the decoder reads of the images, any pytree with leading axis B; computed once an image."""

    def __call__(self, batch: Mapping[str, Array], train: bool = False) -> Float[Array, "b t v"]:
        """Returns float32 logits of the next token at every position of `text`."""

    def prefill(self, encoded: Any, batch: Mapping[str, Array], room: int) -> tuple[Float[Array, "b 1 v"], dict]:
        """Reads the prompt in `text`. Returns the logits after its last column, and a cache with `room` columns.

        The cache is {'shared': one row an image, 'own': leaves [layers b 1 room ...], 'rows': leaves [b 1 ...],
        'index': columns filled}; see prismer_jax.decode.
        """

    def extend(
        self, cache: dict, tokens: Int[Array, "b k t"], seen: Bool[Array, "b k t t"] | None = None
    ) -> tuple[Float[Array, "b k t v"], dict]:
        """Appends tokens to k sequences an image. Returns the logits after each, and the cache with their columns.

        `seen` makes them a tree: which of them lead to each, itself too, and count in its position; none is kept.
        """

    def init_variables(self, rng: Array) -> dict[str, Any]:
        """Returns fresh variables {'params', ...}; no shape of theirs depends on a batch."""


def check(model: Any, family: types.ModuleType) -> None:
    """Raises a UserError that names what a family's module, or its model, lacks of the interface."""
    methods = ("encode", "__call__", "prefill", "extend", "init_variables")
    missing = [f"{family.__name__}.{name}" for name in FAMILY if not hasattr(family, name)]
    # A family that is trained here and writes no text does without the methods for it, and says so.
    needed = (n for n in (*methods, *VisionLanguageModel.__annotations__) if n not in getattr(family, "WITHOUT", ()))
    missing += [f"{type(model).__name__}.{name}" for name in needed if not hasattr(model, name)]
    if missing:
        raise UserError(f"The model lacks {', '.join(missing)}; prismer_jax/models/vlm.py says what each of them is.")


@typed
def text_mask(batch: Mapping[str, Any]) -> Bool[Array, "b t t"]:
    """Returns which columns of a batch's text each column sees: see `mask_ar` and `segment` in prismer_jax.batch."""
    real, segment = batch["mask_input"], batch["segment"]
    blocks = jnp.cumsum(batch["mask_ar"] * real, axis=1, dtype=jnp.int32)  # padding before a text begins no block
    seen = blocks[:, None, :] <= blocks[:, :, None]
    return seen & (segment[:, None, :] == segment[:, :, None]) & real[:, None, :]


@typed
def ordinals(batch: Mapping[str, Any]) -> Int[Array, "b t"]:
    """Returns the number of tokens of its segment up to each column of a batch's text; 0 for padding."""
    real, segment = batch["mask_input"], batch["segment"]
    before = jnp.tri(real.shape[1], dtype=bool) & (segment[:, None, :] == segment[:, :, None]) & real[:, None, :]
    return before.sum(-1, dtype=jnp.int32) * real


def init_from_shapes(model: Any, rng: Array, image_size: int) -> dict[str, Any]:
    """Returns the variables of a model that is called with one image of this side and a text of two tokens."""
    text = jnp.zeros((1, 2), jnp.int32)
    batch = {"image": jnp.zeros((1, image_size, image_size, 3), jnp.uint8), "text": text, "segment": text}
    batch |= {"mask_input": text == 0, "mask_ar": text + 1}
    return {key: part for key, part in model.init(rng, batch).items() if key != "patches"}  # sown, see training.targets
