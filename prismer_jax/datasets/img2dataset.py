"""What img2dataset leaves beside photos from the web: captions, and the count of those that it could not fetch.

Its files (github.com/rom1504/img2dataset, writer.py and logger.py): a photo KEY.jpg with KEY.txt, its caption, and
KEY.json with `caption` and where it came from; these lie in a folder SHARD/ or in SHARD.tar, beside SHARD.parquet, the
table of all that was tried, and SHARD_stats.json.
"""

from __future__ import annotations

import json
import os
import pathlib

from prismer_jax.errors import BadSample, UserError
from prismer_jax.files.dropped import Dropped

SIDES = (".txt", ".json")  # of a photo: where its caption is, the first that is there


def read_caption(path: str) -> list[str]:
    """The caption in a side file, if there is one in it.

    Raises:
      BadSample: as `caption_in`, or the file cannot be read.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise BadSample(f"{path}: {error.strerror}.", "unreadable file") from None
    return caption_in(data, path)


def caption_in(data: bytes, where: str) -> list[str]:
    """The caption in a side file's bytes: none or one. Of a text it is the first line, as in the reference.

    Args:
      data: the bytes.
      where: the file's name, whose ending says what it is.

    Raises:
      BadSample: the bytes are not UTF-8, or not JSON where they should be.
    """
    try:
        text = data.decode("utf-8-sig")
        if where.lower().endswith(".json"):
            content = json.loads(text)
            caption = content.get("caption") if isinstance(content, dict) else None
        else:
            caption = text.split("\n", 1)[0]
        if isinstance(caption, str):
            caption.encode()  # JSON can hold half a character
    except UnicodeError as error:
        raise BadSample(f"{where}: not UTF-8 ({error}).", "caption that is not UTF-8") from None
    except ValueError as error:
        raise BadSample(f"{where}: not JSON ({error}).", "unreadable side file") from None
    return [caption.strip()] if isinstance(caption, str) and caption.strip() else []


def count_failures(shard: str, dropped: Dropped) -> None:
    """Counts what img2dataset failed to fetch into a shard (its path without ending), from SHARD_stats.json if any."""
    path = pathlib.Path(f"{shard}_stats.json")
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
        failed = {
            "not downloaded": int(stats.get("failed_to_download", 0)),
            "downloaded but no image": int(stats.get("failed_to_resize", 0)),
        }
        messages = {str(text): int(count) for text, count in stats.get("status_dict", {}).items() if text != "success"}
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, AttributeError) as error:
        dropped.add("unreadable side file", f"{path}: not img2dataset's statistics ({error}).")
        return
    most = max(messages, key=messages.__getitem__, default=None)
    case = shard if most is None else f"{shard}: mostly '{most}', {messages[most]} times"
    for reason, count in failed.items():
        if count > 0:
            dropped.add(reason, case, count)


def table_captions(shard: str) -> dict[str, str]:
    """Key -> caption from SHARD.parquet; empty if there is none.

    It repeats what side files say, and is for shards that lack these.

    Raises:
      UserError: it cannot be read.
    """
    path = f"{shard}.parquet"
    if not os.path.exists(path):
        return {}
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: pip install 'prismer_jax[data]' reads the captions in it.") from None
    try:
        if not {"key", "caption"} <= set(parquet.read_schema(path).names):
            return {}
        table = parquet.read_table(path, columns=["key", "caption"]).to_pydict()
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}). Fetch it again, or remove it: its shard then has no captions."
        ) from None
    return {str(key): text for key, text in zip(table["key"], table["caption"], strict=True) if text}
