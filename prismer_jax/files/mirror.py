"""A folder of a bucket as a folder of this machine: what lies there is fetched first, what changes here is sent.

    with Mirror("gs://bucket/run", leave_out=("checkpoints",), sends=True) as mirror:
        (mirror.folder / "metrics.jsonl").write_text(...)  # there within seconds, or after mirror.push()

Files that are appended to, tables, event files, pictures: whoever writes them need not know of buckets.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from prismer_jax.errors import UserError
from prismer_jax.files import remote, storage, versions

EVERY = 10.0  # seconds between two looks at what changed
LOCK = ".lock"  # an object that is written at each of them, by the one who sends
STALE = 3  # looks after which the owner of one that did not change is dead

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def mirrored(path: pathlib.Path, sends: bool = True) -> Iterator[pathlib.Path]:
    """Yields a folder on a disk: the same, or that of a `Mirror` where it is in a bucket."""
    if not storage.is_remote(path):
        yield path
        return
    with Mirror(os.fspath(path), sends=sends) as mirror:
        yield mirror.folder


class Mirror(contextlib.AbstractContextManager):
    """The folder, as a context: see above.

    Attributes:
      folder: on this machine, gone at the end.
    """

    def __init__(self, url: str, leave_out: Sequence[str] = (), sends: bool = True) -> None:
        """Says which folder it is.

        Args:
          url: of the folder, which need not be there.
          leave_out: names in it of what is neither fetched nor sent.
          sends: False in all processes but one, which fetch alone.
        """
        self._url, self._left_out, self._sends = url.rstrip("/"), (*leave_out, LOCK), sends
        self._sent: dict[str, tuple[int, int]] = {}  # {name: time and size of what is there}
        self._token, self._beats = secrets.token_hex(8), 0
        self._pushing, self._end = threading.Lock(), threading.Event()

    def __enter__(self) -> Mirror:
        """Fetches what is there.

        Raises:
          UserError: the folder cannot be reached, or another program sends to it.
        """
        if self._sends:
            self._wait_for_others()
            self._beat()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="prismer_jax."))
        for path in remote.find(self._url):
            name = path.removeprefix(f"{self._url}/")
            if ".." in name.split("/") or name.startswith("/"):
                raise UserError(f"{path}: has a name that no folder can have. Delete it.")
            if name.partition("/")[0] not in self._left_out and not name.endswith("/"):
                with contextlib.suppress(FileNotFoundError):  # whoever sends has deleted it since
                    data = remote.read(path)
                    (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                    storage.write(self.folder / name, data)
        if self._sends and self._lock() != self._beat_text():  # another program has begun in the same moment
            shutil.rmtree(self.folder, ignore_errors=True)
            raise self._taken()
        self._sent = self._files()
        self._thread = threading.Thread(target=self._push_now_and_then, daemon=True)
        if self._sends:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._sends:
            self._end.set()
            self._thread.join()
            try:
                self.push()
            except UserError as error:
                raise UserError(f"{error} What is not there yet lies in {self.folder}.") from None
            with contextlib.suppress(FileNotFoundError):
                remote.delete(f"{self._url}/{LOCK}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def push(self) -> None:
        """Sends what was made or changed, and deletes there what was deleted here."""
        with self._pushing:
            files = self._files() if self._sends else self._sent
            for name in [name for name in files if files[name] != self._sent.get(name)]:
                with contextlib.suppress(FileNotFoundError):  # replaced or deleted since
                    remote.put(os.fspath(self.folder / name), f"{self._url}/{name}")
                    self._sent[name] = files[name]
            for name in self._sent.keys() - files.keys():
                with contextlib.suppress(FileNotFoundError):
                    remote.delete(f"{self._url}/{name}")
                del self._sent[name]

    def _files(self) -> dict[str, tuple[int, int]]:
        version_of = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if name.partition("/")[0] not in self._left_out and not name.endswith(storage.TEMPORARY):
                with contextlib.suppress(FileNotFoundError):
                    if path.is_file():
                        version_of[name] = versions.version(path)
        return version_of

    def _push_now_and_then(self) -> None:
        while not self._end.wait(EVERY):
            try:
                self._beat()
                self.push()
            except UserError as error:  # a network that fails for a while; the next look, or the end, sends it
                logger.warning("%s", error)

    def _beat(self) -> None:
        self._beats += 1
        storage.write(f"{self._url}/{LOCK}", self._beat_text())

    def _beat_text(self) -> bytes:
        return f"{self._token} {self._beats}".encode()

    def _lock(self) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return remote.read(f"{self._url}/{LOCK}")

    def _taken(self) -> UserError:
        return UserError(f"{self._url}: another program is writing there. Wait for it, or choose another folder.")

    def _wait_for_others(self) -> None:
        """Returns when nobody else sends; one that was killed is told by a lock that stays as it is."""
        if before := self._lock():
            logger.warning("%s was not closed. Is it still in use? %d s will tell.", self._url, STALE * EVERY)
            time.sleep(STALE * EVERY)
            if self._lock() not in (before, None):
                raise self._taken()
