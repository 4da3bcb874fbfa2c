"""A checkpoint that is loaded to be used, and the photos that it is used on."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from prismer_jax import checkpoint, datasets, label_files, models, pp
from prismer_jax.datasets.photos import Photos, are_files, several
from prismer_jax.errors import UserError
from prismer_jax.files.storage import PathLike

Result = dict[str, Any]

logger = logging.getLogger(__name__)


class Loaded:
    """A trained model with all that it needs to be used: tokenizer, preprocessing and decoding of each of its tasks.

    Attributes:
      experts: what labels photos, a labelling.cached.Cached; None where labels come from files, or there are none.
      left_out: of the last call, {"image": path, "error": why} of each photo that could not be used: a damaged photo or
        label. It is not among the results, and a warning names it. If no photo can be used, the call is a UserError.
    """

    def __init__(self, path: PathLike, experts: PathLike | None = None) -> None:
        """Loads an export, or the latest checkpoint of a workdir; `experts` as in `load`.

        Raises:
          UserError: there is no such thing, or it does not say how it is used.
        """
        self.variables, cfg = checkpoint.load_export(path, shardings=_on_one_device)
        if lacking := [key for key in ("model", "tokenizer", "tasks") if key not in cfg]:
            remedy = "Convert it again with --tokenizer" if lacking == ["tokenizer"] else "Export it with this version"
            raise UserError(f"{path}: its config.json lacks {' and '.join(lacking)}. {remedy}.")
        pp.tokenizer.check_ids(cfg, path)
        self.tokenizer = pp.tokenizer.load_from(cfg["folder"], cfg["tokenizer"])
        self.model = models.build(**cfg["model"], tokenizer=self.tokenizer)
        self.tasks = cfg["tasks"]
        self.folder = pathlib.Path(cfg["folder"])
        self.left_out: list[Result] = []
        self.experts = None if experts is None else _open(experts, self.model, path)

    def task(self, name: str) -> Result:
        """Returns how the model is asked for a task, `caption` or `question`; raises UserError if it is not."""
        if name not in self.tasks:
            named = ", ".join(self.tasks) or "none"
            raise UserError(f"{self.folder}: its tasks are {named}, not {name}. Give a checkpoint that learned it.")
        return self.tasks[name]

    def photos(self, images: Any, labels: PathLike | None) -> Any:
        """Returns a source of photos, with the labels of a folder or, without one, with those of the experts."""
        images = several(images)
        if are_files(images):
            source = datasets.load("photos", images=images, labels=labels, experts=self.model.experts, repeats=True)
        elif labels is not None:
            raise UserError(f"{labels}: label files are found by the names of photos, which those in memory lack.")
        else:
            source = Photos(images)
        if labels is not None:
            self._warn_of_absent(source, labels)
        if labels is not None or not self.model.experts:
            return source
        if self.experts is None:
            names = ", ".join(self.model.experts)
            logger.warning("The model does without its experts, %s: give their weights, or labels.", names)
            return source
        if line := self.experts.line():
            logger.warning("%s", line)
        return self.experts.label(source)

    def _warn_of_absent(self, source: Any, labels: PathLike) -> None:
        """Says of which experts a folder has no labels for photos: another folder's, or of other names, would."""
        folder, names = os.fspath(labels).replace("{dataset}", ""), [source.name(index) for index in range(len(source))]
        counts = {e: sum(not label_files.is_whole(folder, e, name) for name in names) for e in self.model.experts}
        if absent := ", ".join(f"{expert} for {count}" for expert, count in counts.items() if count):
            logger.warning("%s has no label by %s of %d photos, which are seen without.", labels, absent, len(names))

    def leave_out(self, source: Any, meta: Mapping[int, Mapping[str, Any]]) -> None:
        """Notes which photos of a source cannot be used; `meta` has those of a batch, by their place."""
        for place, row in meta.items():
            left = {"image": source.name(place), "error": row.get("error")}
            if "error" in row and self.left_out[-1:] != [left]:
                self.left_out.append(left)
                logger.warning("Left out: %s", row["error"])


def _open(experts: PathLike, model: Any, path: PathLike) -> Any:
    """Returns what labels photos with those of a model's experts whose weights are there; None if it has no experts."""
    if not model.experts:
        logger.warning("%s: the model has no experts, and does not use %s.", path, experts)
        return None
    from prismer_jax.labelling.cached import Cached  # with all experts, which nothing else here needs

    return Cached(model.experts, experts, model.classes)


def _on_one_device(shapes: Any) -> Any:
    return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)
