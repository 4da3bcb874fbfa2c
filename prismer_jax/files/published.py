"""Published files that are fetched: from repositories of the Hugging Face Hub, and from plain addresses.

HubFile and WebFile state what is certain of a file without a network (`stated`), ask for more (`facts`), and fetch it
(`fetch`). A file appears when it is whole and has the checksum that it should have; fetching goes on where an earlier
try stopped, in whichever process that was. Of a file without a checksum it begins anew: what is published there may
have changed meanwhile, and nothing would tell that the two ends do not belong together.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import http.client
import os
import pathlib
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from prismer_jax.errors import UserError
from prismer_jax.files import progress, storage

T = TypeVar("T")
_CHUNK = 1 << 20
_MB = 1e6  # bytes
_TIMEOUT = 30  # seconds without an answer


class Unreachable(Exception):
    """A server does not answer: there is no network, or none to that place."""


@dataclass(frozen=True)
class Facts:
    """What is known of a file: bytes; a checksum of its contents, SHA-1 as git names it; the commit that it is of."""

    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    md5: str | None = None
    commit: str | None = None

    @property
    def checked(self) -> bool:
        """Whether there is a checksum."""
        return any((self.sha256, self.git_sha1, self.md5))

    def problem(self, path: pathlib.Path) -> str | None:
        """Says how a file differs from these facts; None if it does not."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"has {size} bytes instead of {self.size}"
        sums = ("sha256", self.sha256, b""), ("sha1", self.git_sha1, b"blob %d\0" % size), ("md5", self.md5, b"")
        for name, expected, start in sums:
            if expected is not None and (digest := _digest(path, name, start)) != expected:
                return f"has the checksum {digest} instead of {expected}"
        return None


@dataclass(frozen=True)
class HubFile:
    """A file of a repository of the Hugging Face Hub. It is kept in the hub's own cache too, for all who use that."""

    repository: str
    path: str

    stated = Facts()

    @property
    def address(self) -> str:
        return _hub().hf_hub_url(self.repository, self.path)

    def facts(self) -> Facts:
        """Asks the hub, whose ETag is the SHA-256 of large files and git's SHA-1 of small ones.

        Raises:
          Unreachable: no answer.
          UserError: there is no such file, or it is behind a licence and the environment has no token (HF_TOKEN).
        """
        return _facts(self._metadata())

    def fetch(self, target: pathlib.Path) -> None:
        """Fetches it, or takes it out of the cache; raises as `facts`, or UserError for other contents."""
        try:
            metadata = self._metadata()
        except Unreachable as offline:
            try:
                cached = _ask(
                    lambda hub: hub.hf_hub_download(self.repository, self.path, local_files_only=True), self.address
                )
            except Unreachable:
                raise offline from None
            return _place(pathlib.Path(cached), target)  # files in the cache are whole
        facts = _facts(metadata)
        if facts.sha256 and not (blob := self._blob(facts)).exists():
            # huggingface_hub (2.4) itself throws away what a process that was stopped had fetched. Large files lie
            # elsewhere, at an address that is good for a while and asks for no token.
            _fetch(self.address, blob, facts, metadata.location)
        cached = _ask(lambda hub: hub.hf_hub_download(self.repository, self.path, revision=facts.commit), self.address)
        whole = pathlib.Path(cached).resolve()
        if problem := facts.problem(whole):
            whole.unlink()
            raise UserError(f"{self.address}: what arrived {problem}. It is deleted; run the same again.")
        _place(whole, target)

    def _blob(self, facts: Facts) -> pathlib.Path:
        """Where huggingface_hub looks for the contents (its documentation, 'Understand caching')."""
        folder = f"models--{self.repository.replace('/', '--')}"
        return pathlib.Path(_hub().constants.HF_HUB_CACHE, folder, "blobs", str(facts.sha256))

    def _metadata(self) -> Any:
        return _ask(lambda hub: hub.get_hf_file_metadata(self.address), self.address)


@dataclass(frozen=True)
class Repository:
    """A repository of the Hugging Face Hub with as many files as the hub says, such as weights in shards."""

    name: str

    def files(self, *suffixes: str) -> list[HubFile]:
        """Asks the hub for its files with these suffixes; raises as `HubFile.facts`."""
        address = f"https://huggingface.co/{self.name}"
        names = _ask(lambda hub: hub.HfApi().list_repo_files(self.name), address)
        return [HubFile(self.name, name) for name in sorted(names) if name.endswith(suffixes)]


@dataclass(frozen=True)
class WebFile:
    """A file at a plain address, of known SHA-256, or of the MD5 that Google's storage states when it is asked."""

    address: str
    sha256: str | None = None
    size: int | None = None

    @property
    def stated(self) -> Facts:
        return Facts(self.size, self.sha256)

    def facts(self) -> Facts:
        """Asks for what is not known.

        Raises:
          Unreachable: no answer.
          UserError: there is no such file.
        """
        if self.size is not None:
            return self.stated
        with _open(self.address, method="HEAD") as answer:
            length = answer.headers.get("Content-Length")
            # cloud.google.com/storage/docs/xml-api/reference-headers: of files that were not composed of others.
            md5 = re.search(r"md5=([\w+/=]+)", ",".join(answer.headers.get_all("x-goog-hash", [])))
        size, digest = None if length is None else int(length), md5 and base64.b64decode(md5[1]).hex()
        return Facts(size, self.sha256, md5=None if self.sha256 else digest)

    def fetch(self, target: pathlib.Path) -> None:
        """Fetches it; raises as `facts`, or UserError for other contents."""
        _fetch(self.address, target, self.stated if self.sha256 else self.facts())


def _fetch(address: str, target: pathlib.Path, facts: Facts, location: str | None = None) -> None:
    """Writes NAME.part beside the target until all is there and as the facts say; raises as `fetch` does.

    Args:
      address: of the file, in what is said.
      location: where it lies, if that is another place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    before = target.exists()
    with _alone(part):
        if not before and target.exists() and not facts.problem(target):  # another process fetched it meanwhile
            return
        start = part.stat().st_size if part.exists() and facts.checked else 0
        if start == 0 or facts.problem(part):
            start = start if facts.size is None or start < facts.size else 0
            if not _receive(address, part, start, location or address):
                goes_on = ": it goes on from there" if facts.checked else ""
                raise UserError(f"{address}: the connection broke. Run the same again{goes_on}.")
        if problem := facts.problem(part):
            part.unlink()
            raise UserError(f"{address}: what arrived {problem}. It is deleted; run the same again.")
        storage.publish(part, target)


@contextmanager
def _alone(part: pathlib.Path) -> Iterator[None]:
    """Waits until no other process of this host writes to a file; leaves no empty one behind."""
    with _locked(part):
        try:
            yield
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()


def _locked(part: pathlib.Path) -> BinaryIO:
    """Returns a file with a lock on it: the one that has this name now, which whoever had the lock may have moved."""
    while True:
        file = open(part, "ab")  # noqa: SIM115
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(part)):
                return file
        file.close()


def _receive(address: str, part: pathlib.Path, start: int, location: str) -> bool:
    """Adds to a file what a server sends from a byte on; returns whether all has come."""
    with _open(location, Range=f"bytes={start}-") if start else _open(location) as answer:
        if answer.status == 416:  # it is not longer than what came before
            return True
        start = start if answer.status == 206 else 0  # else the server sends the whole file again
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        name = urllib.parse.unquote(urllib.parse.urlparse(address).path.rpartition("/")[2])
        size = None if total is None else total / _MB
        with (
            progress.bar(name, size, unit="MB", done=start / _MB) as advance,
            open(part, "ab" if start else "wb") as file,
        ):
            while chunk := _read(answer):
                file.write(chunk)
                advance(len(chunk) / _MB)
    return chunk is not None and (total is None or part.stat().st_size >= total)


@contextmanager
def _open(address: str, method: str = "GET", **headers: str) -> Iterator[Any]:
    request = urllib.request.Request(address, headers=headers, method=method)
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise UserError(f"{address}: the server answers {error.code} {error.reason}.") from None
        answer = error
    except OSError as error:  # URLError among them
        raise Unreachable(_reason(error)) from None
    with answer:
        yield answer


def _read(answer: Any) -> bytes | None:
    """Returns the next bytes, b"" at the end, or None where the connection broke: what has arrived stays."""
    try:
        return answer.read(_CHUNK)
    except (OSError, http.client.HTTPException):
        return None


def _ask(question: Callable[[Any], T], address: str) -> T:
    """Asks huggingface_hub; raises as `HubFile.facts`."""
    try:
        return question(_hub())
    except Exception as error:  # of whatever HTTP library this version of huggingface_hub uses
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or getattr(error, "filename", None):
            raise  # the disk, not the network
        if (response := getattr(error, "response", None)) is None:
            raise Unreachable(_reason(error)) from None
        if response.status_code in (401, 403):
            raise UserError(
                f"{address}: not for everyone (the hub answers {response.status_code}). Accept its licence on the page "
                "of the repository, and put a token with the right to read it into the environment, as HF_TOKEN."
            ) from None
        raise UserError(f"{address}: the hub answers {response.status_code}. Is the file still there?") from None


def _facts(metadata: Any) -> Facts:
    etag = metadata.etag or ""
    return Facts(
        size=metadata.size,
        sha256=etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None,
        git_sha1=etag if re.fullmatch(r"[0-9a-f]{40}", etag) else None,
        commit=metadata.commit_hash,
    )


def _hub() -> Any:
    import huggingface_hub  # here: it takes a second, and most commands have no use for it

    return huggingface_hub


def _reason(error: BaseException) -> str:
    error = getattr(error, "reason", error)
    return " ".join(str(error).split())[:200] or type(error).__name__


def _digest(path: pathlib.Path, name: str, start: bytes) -> str:
    digest = hashlib.new(name, start)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _place(source: pathlib.Path, target: pathlib.Path) -> None:
    """Gives a file in the hub's cache its name here: a hard link, or a copy on another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with storage.replacing(target) as name:
        try:
            os.link(source.resolve(), name)
        except OSError:
            shutil.copyfile(source, name)
