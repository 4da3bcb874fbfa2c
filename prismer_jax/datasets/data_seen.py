"""Whether the data of a run are still those that it began with."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from typing import Any

from prismer_jax.config import Workdir
from prismer_jax.datasets import checks
from prismer_jax.errors import BadSample, UserError
from prismer_jax.files import storage

FILE = "data.json"
_TEXTS = ("id", "name", "captions", "question", "answers", "turns", "class_name", "objects")


def fingerprint(source: Any) -> str:
    """Returns a digest of what a source's examples are.

    A source may know one: its `fingerprint`, of all names and texts. Otherwise it is that of the ids and texts of
    evenly spaced examples, however many there are; a change that falls between them goes unseen.
    """
    if (own := getattr(source, "fingerprint", None)) is not None:
        return own
    digest, count = hashlib.sha256(), len(source)
    for number in range(min(count, checks.SAMPLE)):
        try:
            example = source[number * count // min(count, checks.SAMPLE)]
        except BadSample:  # a few may be, which the loader counts
            example = {"id": None}
        texts = {key: example[key] for key in _TEXTS if key in example}
        digest.update(json.dumps(texts, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def check(workdir: Workdir, sources: Mapping[str, Any], allow: bool = False) -> None:
    """Writes WORKDIR/data.json: what is in each set, and its label files' sizes; a run that goes on must find that.

    Args:
      workdir: of the run; without checkpoints it belongs to nobody, and takes any data.
      sources: {name in config.data: source}, and {'evals.NAME': source} of evaluators, whose data may change.
      allow: take other data than the run began with.

    Raises:
      UserError: the data of a run that has checkpoints changed, and this is not allowed.
    """
    path = workdir.files / FILE
    seen = {name: {"examples": len(s), "fingerprint": fingerprint(s)} for name, s in sources.items()}
    for name, source in sources.items():
        labels = [x for key, x in next(checks.sample(source), {}).items() if key.startswith("labels/")]
        if any(isinstance(label, str) for label in labels):  # files, of which a list says nothing
            seen[name]["files"] = importlib.import_module("prismer_jax.files.versions").digest(checks.sample(source))
    if path.exists() and not allow and workdir.has_checkpoints():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{path} is damaged. Delete it to go on with the data that are there now.") from None
        for name, now in seen.items():
            old = before.get(name, {})  # of an earlier version it has no "files"
            if any(now.get(key) != value for key, value in old.items()) and not name.startswith("evals."):
                counts = f"{old.get('examples')} examples then, {now['examples']} now"
                raise UserError(
                    f"{workdir.path}: the data of config.data.{name} changed since this run began ({counts}). Restore "
                    "them, begin in another --workdir, or go on with other losses: --allow-changed-data."
                )
    storage.write_json(path, seen)
