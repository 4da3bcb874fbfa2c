"""What training programs wrap around a state dict: dicts in which it is one entry of several, and prefixes of its keys.

`state_dict_in` and `own_key` undo both for every network alike: the one where a file is read, the other where a table
of rules is applied.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np

from prismer_jax.weights.classes import Array, Refused, Tensor

# Where training programs put the state dict beside optimiser and epoch. In a file with an average of the weights too,
# which of both is wanted its user has to say.
NESTS = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "module",  # DeepSpeed
    "net",
    "network",
    "params",
    "ema",
    "model_ema",
    "ema_model",
    "state_dict_ema",
    "ema_state_dict",
    "params_ema",
)
_DEEPEST = 4  # nests within nests; a dict may also contain itself
# torch.nn.DataParallel, DistributedDataParallel and torch.optim.swa_utils.AveragedModel put `module.` before all keys.
# The other names stand wherever a part was wrapped: torch.compile, FullyShardedDataParallel, checkpoint_wrapper.
_INNER = r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
_PREFIX = re.compile(rf"^(?:module\.|{_INNER})+|(?<=\.)(?:{_INNER})+")
_COUNT = "n_averaged"  # AveragedModel's own buffer


def own_key(key: str) -> str | None:
    """Returns a key as the network alone has it, or None for what a wrapper adds to its state dict."""
    key = _PREFIX.sub("", key)
    return None if key == _COUNT else key


def state_dict_in(tree: Any) -> Any:
    """Returns the state dict in what a training program saved, or everything where none of NESTS is there.

    Raises:
      Refused: there are several.
    """
    for _ in range(_DEEPEST):
        nests = [key for key in NESTS if isinstance(tree, dict) and isinstance(tree.get(key), dict)]
        if len(nests) > 1:
            nests = [key for key in nests if _holds_arrays(tree[key])]
        if len(nests) > 1:
            raise Refused(
                f"holds both {' and '.join(nests)}. Save the one that is wanted alone: "
                f"torch.save(torch.load(FILE)[{nests[0]!r}], NEW_FILE), say"
            )
        if not nests:
            break
        tree = tree[nests[0]]
    return tree


def _holds_arrays(nest: dict[Any, Any]) -> bool:
    return any(isinstance(value, dict | Tensor | Array | np.ndarray) for value in nest.values())


def prefix_of(unexpected: Collection[str], expected: Collection[str]) -> str:
    """Returns what stands before most of the unexpected keys and behind which they are expected ones, or ''."""
    counts: Counter[str] = Counter()
    for key in unexpected:
        for dot in itertools.islice(re.finditer(r"\.", key), _DEEPEST):
            counts[key[: dot.end()]] += key[dot.end() :] in expected
    [(prefix, count)] = counts.most_common(1) or [("", 0)]
    return prefix if 2 * count > len(unexpected) else ""
