"""Photos alone: files and folders to be captioned. Of what lies beside them only expert labels are read."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from prismer_jax.datasets import folders
from prismer_jax.datasets.lists import Source
from prismer_jax.errors import UserError
from prismer_jax.files.dropped import Dropped
from prismer_jax.labels import EXPERTS, select

Path = str | os.PathLike

logger = logging.getLogger(__name__)


def load(
    images: Path | Sequence[Path], *, labels: Path | None = None, experts: str | Sequence[str] = tuple(EXPERTS)
) -> Source:
    """Returns a source of photos, in the order of `folders.photos`, without the captions that lie beside them.

    Args:
      images: a folder (recursively), a file, or several of either.
      labels: as in `lists.load`.
      experts: whose label files are looked for.

    Raises:
      UserError: there is no such photo or folder, or no photo in a folder.
    """
    if labels is not None and "{expert}" not in os.fspath(labels) and not os.path.isdir(labels):
        raise UserError(f"{labels}: no such folder of labels. Leave `labels` out for photos without labels.")
    dropped = Dropped()
    photos = [{"source": "", **_alone(photo)} for photo in folders.photos(images, dropped)]
    for line in dropped.lines():
        logger.warning("%s: left out: %s.", images, line.strip().rstrip("."))
    return Source(photos, "caption", None if labels is None else os.fspath(labels), select(experts), dropped)


def _alone(photo: dict[str, str]) -> dict[str, str | list[str]]:
    return {"id": photo["id"], "name": photo["name"], "image": photo["image"], "captions": []}
