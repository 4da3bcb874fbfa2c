"""What img2dataset leaves beside photos from the web: the table of captions, and the count of what it could not fetch.

Its files (github.com/rom1504/img2dataset, writer.py and logger.py): a photo KEY.jpg with KEY.txt and KEY.json
(captions.py); these lie in a folder SHARD/ or in SHARD.tar, beside SHARD.parquet, the table of all that was tried, and
SHARD_stats.json. A shard of which nothing could be fetched is an empty folder or a tar without members.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from prismer_jax.datasets import captions
from prismer_jax.files import parquet, regular
from prismer_jax.files.dropped import Dropped

# What it says of photos that were fetched but could not be decoded, or not resized (its resizer.py); what else it says
# is of the fetching. Errors of OpenCV, which it passes on, begin with this name.
_OF_RESIZING = (
    "image decoding error",
    "image too small",
    "image area too large",
    "aspect ratio too large",
    "blurrer not defined",
    "opencv(",
)


def count_failures(shard: str, dropped: Dropped) -> None:
    """Counts what img2dataset failed to fetch into a shard (its path without ending), from SHARD_stats.json if any."""
    path = f"{shard}_stats.json"
    try:
        stats = json.loads(regular.read(path))
        downloads, resizes = (int(stats.get(f"failed_to_{what}", 0)) for what in ("download", "resize"))
        messages = {str(text): int(count) for text, count in stats.get("status_dict", {}).items() if text != "success"}
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        dropped.add("unreadable side file", f"{path}: not img2dataset's statistics ({error}).")
        return
    of_resizing = {text: n for text, n in messages.items() if resizes and (not downloads or _is_of_resizing(text))}
    of_fetching = {text: n for text, n in messages.items() if text not in of_resizing}
    for reason, count, own in (
        ("not downloaded", downloads, of_fetching),
        ("downloaded but no image", resizes, of_resizing),
    ):
        if count > 0:
            dropped.add(reason, shard + _most_frequent(own, count), count)


def _is_of_resizing(text: str) -> bool:
    return text.casefold().startswith(_OF_RESIZING)


def _most_frequent(messages: Mapping[str, int], count: int) -> str:
    """Says which message most of a reason's cases have; nothing where those that cannot be told apart may be more."""
    text = max(messages, key=messages.__getitem__, default=None)
    unclear = abs(sum(messages.values()) - count)
    return f": mostly '{text}', {messages[text]} times" if text and messages[text] > unclear else ""


def table_captions(shard: str, dropped: Dropped) -> dict[str, list[str]]:
    """Returns key -> captions from SHARD.parquet; an empty dict if there is none.

    It repeats what side files say, and is for shards that lack these. Captions that are no texts are counted.

    Raises:
      UserError: it cannot be read.
    """
    path = f"{shard}.parquet"
    if not os.path.exists(path):
        return {}
    names = parquet.Table(path).columns
    column = next((key for key in captions.KEYS if key in names), None)
    if column is None or "key" not in names:
        return {}
    by_key = {}
    for row in parquet.read(path, ("key", column)):
        key, value = row["key"], row[column]
        texts, lost = captions.texts(value)
        if texts:
            by_key[str(key)] = texts
        if lost:
            dropped.add(lost, f"{path}: {key!r}: {column} is {value!r}")
    return by_key
