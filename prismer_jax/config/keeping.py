"""Keeping a config with the results: as JSON in the workdir, which belongs to it, beside what else they depend on."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import prismer_jax
from prismer_jax.config.command_line import RECIPES
from prismer_jax.config.section import leaves, unwrapped
from prismer_jax.errors import UserError
from prismer_jax.files import storage


def to_json(config: Any) -> str:
    """Returns the config as indented JSON; functions appear by name, other things that JSON lacks as text."""
    return json.dumps(unwrapped(config), indent=2, default=lambda x: getattr(x, "__qualname__", None) or str(x))


class Workdir(NamedTuple):
    """Where a run lies.

    Attributes:
      path: of its checkpoints and its export, on a disk or in a bucket.
      files: of all else: the same, or a copy on this machine of what lies in the bucket.
      push: sends what changed in `files` to the bucket, which happens now and then anyway.
    """

    path: pathlib.Path
    files: pathlib.Path
    push: Callable[[], None] = lambda: None

    def has_checkpoints(self) -> bool:
        """Returns whether it belongs to a run: one that failed before its first checkpoint leaves it to any other."""
        return bool(storage.names(os.fspath(self.path / "checkpoints")))


@contextlib.contextmanager
def locked_workdir(workdir: pathlib.Path, first: bool = True) -> Iterator[Workdir]:
    """Makes a workdir and keeps other trainings out of it; of a training's processes, the `first` asks.

    Raises:
      UserError: it cannot be written, or another training is under way in it.
    """
    if storage.is_remote(workdir):
        mirror = importlib.import_module("prismer_jax.files.mirror").Mirror
        with mirror(os.fspath(workdir), ("checkpoints", "export"), sends=first) as here:
            yield Workdir(workdir, here.folder, here.push)
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written ({error.strerror}). Choose another --workdir.") from None
    with file:
        try:
            if first:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{workdir}: another training is under way in it. Choose another --workdir.") from None
        except OSError:
            pass  # a disk without locks
        yield Workdir(workdir, workdir)


def save_resolved(workdir: Workdir, config: Any, may_change: Sequence[str] = ()) -> None:
    """Writes WORKDIR/config.json, the resolved config, and WORKDIR/versions.json, the `provenance`.

    Args:
      workdir: without checkpoints it takes any config.
      config: the config of this start.
      may_change: regexes of full key names ('log_.*') that may differ from what an earlier start saved.

    Raises:
      UserError: the workdir holds the results of another config.
    """
    file = workdir.files / "config.json"
    new = dict(leaves(json.loads(to_json(config))))
    if file.exists() and workdir.has_checkpoints():
        try:
            old = dict(leaves(json.loads(file.read_text())))
        except ValueError:
            raise UserError(f"{file} is damaged. Delete it to continue with this config.") from None
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]  # None is as if it were left out
        if changed := [key for key in changed if not any(re.fullmatch(pattern, key) for pattern in may_change)]:
            what = ", ".join(f"{k}: {old.get(k, 'absent')!r} -> {new.get(k, 'absent')!r}" for k in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UserError(
                f"{workdir.path} belongs to another config ({what}{more}). Use another --workdir or delete it."
            )
    storage.write(file, to_json(config) + "\n")
    storage.write_json(workdir.files / "versions.json", provenance())


def provenance() -> dict[str, Any]:
    """Returns what results depend on besides the config: package versions, Python, the machine, the git commit."""
    versions = {"prismer_jax": prismer_jax.__version__}
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    facts = dict(packages=versions, python=platform.python_version(), platform=platform.platform(), command=sys.argv)
    if (RECIPES / ".git").exists():  # not some other repository in which this package is merely installed
        commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
        if commit is not None:
            facts["git"] = {"commit": commit, "dirty": bool(status)}
    return facts


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(RECIPES), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
