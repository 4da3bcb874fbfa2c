"""Weights in several files: which shards an index names, given the index, one of its shards or their folder.

transformers and its relatives write large models so: `model-00001-of-00002.safetensors` ... and beside them
`model.safetensors.index.json`, {"metadata": ..., "weight_map": {key: name of a shard}}; or `pytorch_model-*.bin` and
`pytorch_model.bin.index.json`.
"""

from __future__ import annotations

import json
import ntpath
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from prismer_jax.weights.classes import Malformed, Refused, quoted

SUFFIX = ".index.json"
_LARGEST = 100_000_000  # bytes of an index: more than a million keys
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
# A folder's file of weights, in the order in which transformers looks for it.
_NAMES = ("model.safetensors", f"model.safetensors{SUFFIX}", "pytorch_model.bin", f"pytorch_model.bin{SUFFIX}")
_LISTED = 12


def file_in(folder: pathlib.Path) -> pathlib.Path:
    """Returns the file of weights, or the index of several, in a folder.

    Raises:
      Refused: none has a usual name, or there are several indices.
    """
    usual = [folder / name for name in _NAMES if (folder / name).is_file()]
    files = usual[:1] or sorted(folder.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        raise Refused(f"has several indices of weights: give one, such as {files[0]}")
    if not files:
        raise Refused(f"is a folder without {', '.join(_NAMES[:-1])} or {_NAMES[-1]}: give a file in it")
    return files[0]


def index_of(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the index that a file is, or is a shard of; None where it is neither.

    Raises:
      Refused: it is a shard of several, and no index lies beside it.
    """
    if path.name.endswith(SUFFIX):
        return path
    shard = _SHARD.fullmatch(path.name)
    if shard is None or int(shard[3]) < 2 or not path.is_file():
        return None
    index = path.with_name(f"{shard[1]}{shard[4]}{SUFFIX}")
    if not index.is_file():
        raise Refused(f"is shard {int(shard[2])} of {int(shard[3])}: put {index.name} and all shards beside it")
    return index


def shards(index: pathlib.Path) -> dict[pathlib.Path, list[str]]:
    """Returns {shard: the keys that an index says it holds}, all of them files beside the index.

    Raises:
      Malformed, Refused: see there; shards that are missing are named.
      OSError: the index cannot be read.
    """
    keys: dict[pathlib.Path, list[str]] = {}
    for key, name in _weight_map(index).items():
        keys.setdefault(index.with_name(name), []).append(key)
    if missing := [shard.name for shard in keys if not shard.is_file()]:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise Refused(
            f"names {len(keys)} shards, of which {len(missing)} are missing in its folder: "
            f"{', '.join(map(quoted, missing[:_LISTED]))}{more}. Fetch them too"
        )
    return keys


def _weight_map(index: pathlib.Path) -> Mapping[str, str]:
    if index.stat().st_size > _LARGEST:
        raise Refused(f"is larger than {_LARGEST:,} bytes, as no index is")
    try:
        content = json.loads(index.read_bytes(), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError):
        raise Malformed("it is not JSON") from None
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise Refused('is a JSON file without {"weight_map": {key: name of a shard}}, which an index of weights has')
    for name in names.values():
        if not isinstance(name, str) or ntpath.basename(name) != name or name in ("", ".", ".."):
            what = quoted(name) if isinstance(name, str) else f"a {type(name).__name__}"
            raise Refused(f"names {what} as a shard, which is no file beside it: only such are read")
    return names


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the dict of an object in JSON, for `json.loads`, which alone would take the last of two equal keys."""
    if len(entries := dict(pairs)) != len(pairs):
        raise Malformed("a key stands twice in its JSON")
    return entries
