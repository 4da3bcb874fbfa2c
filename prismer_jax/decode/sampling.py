"""One token after the other, drawn from the model's distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from prismer_jax.decode.cache import Batch, Extend, Prefill, row_keys
from prismer_jax.decode.greedy import fill
from prismer_jax.errors import choose
from prismer_jax.typing import Array, Float, Int, typed


@typed
def sample(
    prefill: Prefill,
    extend: Extend,
    encoded: Any,
    batch: Batch,
    *,
    rng: Array,
    eos: int,
    pad: int,
    max_new: int,
    min_new: int = 0,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    filtering: str = "huggingface",
    num_return: int = 0,
    forbidden: Sequence[int] = (),
) -> tuple[Int[Array, "b n {max_new}"], Float[Array, "b n"]]:
    """Draws `num_samples` sequences an image, from the tokens that temperature, top_k and top_p leave.

    Args:
      filtering: in which order these act, a name of FILTERINGS.
      num_return: returns so many of the sequences with the best scores, best first; 0 returns all as they were drawn.
      forbidden: ids that are never drawn.
      rng: one typed key (jax.random.key), or one for each row of the batch. Of one key, row i draws with
        fold_in(rng, i), so that the size of the batch does not matter.

    Returns:
      The tokens after the prompt, `pad` after `eos`; the sum of the *model's* log-probabilities (temperature 1, nothing
      cut off) of what was generated, so that samples can be compared and re-ranked.

    Raises:
      UserError: there is no column to fill, or no such filtering.
    """
    narrow = choose("filtering", filtering, FILTERINGS)
    keys = rng if rng.ndim else row_keys(rng, jnp.arange(len(batch["text"])))

    def pick(log_probs: Array, column: Array) -> Array:
        drawn = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, column)
        logits = narrow(log_probs, temperature=temperature, top_k=top_k, top_p=top_p)
        return jax.vmap(jax.random.categorical)(drawn, logits)

    lengths = dict(max_new=max_new, min_new=min_new)
    result = fill(prefill, extend, encoded, batch, num_samples, pick, eos=eos, pad=pad, forbidden=forbidden, **lengths)
    return best_first(*result, num_return) if num_return else result


def best_first(
    tokens: Int[Array, "b n s"], scores: Float[Array, "b n"], number: int
) -> tuple[Int[Array, "b m s"], Float[Array, "b m"]]:
    """Returns the `number` sequences of each image with the best scores; of equal ones the first."""
    scores, order = lax.top_k(scores, number)
    return jnp.take_along_axis(tokens, order[..., None], axis=1), scores


@typed
def narrow(
    logits: Float[Array, "*b v"], *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Float[Array, "*b v"]:
    """Divides by the temperature; sets to -inf what is not among the top_k (0: all), then what is outside the nucleus.

    The nucleus is the smallest set of likeliest tokens whose probability reaches top_p (Holtzman et al., arXiv
    1904.09751). Tokens as likely as the last one kept are kept too. `eos` may be -inf beforehand.
    """
    logits = _likeliest(logits / temperature, top_k)
    return _nucleus(logits, lambda before, probs: before < top_p) if top_p < 1 else logits


@typed
def narrow_first(
    logits: Float[Array, "*b v"], *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Float[Array, "*b v"]:
    """Does what `narrow` does in the order of huggingface/nanoVLM (models/utils.py): the temperature comes last.

    Its nucleus is smaller by one token: the largest set of likeliest tokens whose probability is at most top_p, or the
    likeliest alone.
    """
    logits = _likeliest(logits, top_k)
    if top_p < 1:
        logits = _nucleus(logits, lambda before, probs: (before + probs <= top_p) | (before == 0))
    return logits / temperature


def _likeliest(logits: Array, top_k: int) -> Array:
    if not 0 < top_k < logits.shape[-1]:
        return logits
    # Without a barrier XLA sorts whole rows on a CPU (jax 0.10.2), see findings/jax_cpu_top_k_sliced.sh.
    largest = lax.optimization_barrier(lax.top_k(logits, top_k)[0])
    return jnp.where(logits >= largest[..., -1:], logits, -jnp.inf)


def _nucleus(logits: Array, inside: Callable[[Array, Array], Array]) -> Array:
    """Keeps what is as likely as the last token for which `inside(probability of all likelier ones, its own)` holds."""
    falling = jnp.sort(logits, axis=-1, descending=True)
    probs = jax.nn.softmax(falling)
    before = jnp.cumsum(probs, axis=-1) - probs
    least = jnp.where(inside(before, probs), falling, jnp.inf).min(-1, keepdims=True)
    return jnp.where(logits >= least, logits, -jnp.inf)


FILTERINGS: dict[str, Callable[..., Array]] = {"huggingface": narrow, "nanovlm": narrow_first}
