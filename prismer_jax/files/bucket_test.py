"""Folders in a bucket, and the bucket: as much of Google Cloud Storage's JSON API as gcsfs and tensorstore use.

Generations are what matters: tensorstore writes its manifest under the condition that nobody else wrote it meanwhile.
https://cloud.google.com/storage/docs/json_api
"""

from __future__ import annotations

import contextlib
import email
import http.server
import itertools
import json
import re
import shutil
import threading
import time
import urllib.parse
from typing import Any, ClassVar, NamedTuple

import pytest

from prismer_jax.errors import UserError
from prismer_jax.files import mirror, remote, storage

COUNT = itertools.count(1)


class Object(NamedTuple):
    content: bytes
    generation: int


class Bucket(http.server.BaseHTTPRequestHandler):
    """Answers requests for gs://bucket/."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one packet, for which no client waits
    objects: ClassVar[dict[str, Object]] = {}
    parts: ClassVar[dict[str, bytes]] = {}  # of objects that come in several
    lock = threading.Lock()

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # clients leave as they like
            super().handle()

    def do_GET(self) -> None:
        objects, name, query = self._asked()
        if objects is None:
            self._say(404)
        elif name is None:
            self._say(200, self._listed(objects, query) if "/o" in self.path else {"name": "bucket"})
        elif (found := objects.get(name)) is None:
            self._say(404)
        elif not self._holds(found, query):
            self._say(304 if "ifGenerationNotMatch" in query else 412)
        elif query.get("alt") != "media":
            self._say(200, self._resource(name, found))
        else:
            content, status, headers = found.content, 200, {"x-goog-generation": str(found.generation)}
            if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                begin, size = int(span[1]), len(content)
                content, status = content[begin : int(span[2] or size) + 1], 206
                headers["Content-Range"] = f"bytes {begin}-{begin + len(content) - 1}/{size}"
            self._say(status, content, headers)

    def do_POST(self) -> None:
        objects, _, query = self._asked()
        body, name = self._body(), query.get("name")
        if objects is None:
            return self._say(404)
        if query["uploadType"] == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            described, content = email.message_from_bytes(head + body).get_payload()
            name, body = json.loads(described.get_payload())["name"], content.get_payload(decode=True)
        elif query["uploadType"] == "resumable":
            name = name or json.loads(body)["name"]
            place = f"http://{self.headers['Host']}{urllib.parse.urlsplit(self.path).path}"
            query = urllib.parse.urlencode({"name": name, "uploadType": "rest"})
            self.parts[name] = b""
            return self._say(200, {}, {"Location": f"{place}?{query}"})
        self._write(objects, name, body, query)

    def do_PUT(self) -> None:
        objects, _, query = self._asked()
        name = query["name"]
        self.parts[name] += self._body()
        if self.headers["Content-Range"].endswith("/*"):
            return self._say(308, b"", {"Range": f"bytes=0-{len(self.parts[name]) - 1}"})
        self._write(objects, name, self.parts.pop(name), query)

    def do_DELETE(self) -> None:
        objects, name, query = self._asked()
        found = objects.get(name)
        if found is not None and self._holds(found, query):
            del objects[name]
            return self._say(204)
        self._say(404 if found is None else 412)

    def _write(self, objects: dict[str, Object], name: str, content: bytes, query: dict[str, str]) -> None:
        with self.lock:
            if not self._holds(objects.get(name), query):
                return self._say(412)
            objects[name] = Object(content, next(COUNT))
        self._say(200, self._resource(name, objects[name]))

    def _asked(self) -> tuple[dict[str, Object] | None, str | None, dict[str, str]]:
        url = urllib.parse.urlsplit(self.path)
        bucket, _, name = re.search(r"/b/([^/]+)(/o(?:/(.*))?)?$", url.path).groups()
        name = urllib.parse.unquote(name) if name else None
        return self.objects if bucket == "bucket" else None, name, dict(urllib.parse.parse_qsl(url.query))

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _holds(self, found: Object | None, query: dict[str, str]) -> bool:
        now = 0 if found is None else found.generation
        is_it, is_not = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
        return is_it in (None, str(now)) and (is_not is None or is_not != str(now))

    def _listed(self, objects: dict[str, Object], query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, folders = [], set()
        for name in sorted(objects):
            if name.startswith(prefix) and query.get("startOffset", "") <= name < query.get("endOffset", "\uffff"):
                inside, slash, _ = name[len(prefix) :].partition(delimiter or "\0")
                if slash:
                    folders.add(prefix + inside + slash)
                else:
                    items.append(self._resource(name, objects[name]))
        return {"items": items, "prefixes": sorted(folders)}

    def _resource(self, name: str, found: Object) -> dict[str, Any]:
        when = "2026-01-01T00:00:00.000Z"
        facts = {"name": name, "size": str(len(found.content)), "generation": str(found.generation)}
        return {**facts, "bucket": "bucket", "updated": when, "timeCreated": when, "etag": str(found.generation)}

    def _say(self, status: int, content: bytes | dict[str, Any] = b"", headers: dict[str, str] | None = None) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)


# --- one folder, seen from two machines ---


@pytest.fixture
def folder(bucket, monkeypatch):
    monkeypatch.setattr(mirror, "EVERY", 0.2)
    storage.write(f"{bucket}/metrics.jsonl", "1\n")
    storage.write(f"{bucket}/checkpoints/5/weights", "many")
    return bucket


def test_a_mirror_fetches_what_is_there_and_sends_what_changes(folder):
    with mirror.Mirror(folder, leave_out=("checkpoints",)) as here:
        assert [path.name for path in here.folder.rglob("*")] == ["metrics.jsonl"]
        with (here.folder / "metrics.jsonl").open("a") as file:
            file.write("2\n")
        (here.folder / "pictures").mkdir()
        (here.folder / "pictures/a.png").write_bytes(b"png")
        (here.folder / ".half.tmp").write_bytes(b"of a file")
        here.push()
        assert storage.read(f"{folder}/metrics.jsonl") == b"1\n2\n"
        assert set(storage.names(folder)) == {"metrics.jsonl", "checkpoints", "pictures", mirror.LOCK}
        (here.folder / "pictures/a.png").unlink()
    assert not here.folder.exists()
    assert set(storage.names(folder)) == {"metrics.jsonl", "checkpoints"}
    assert storage.read(f"{folder}/checkpoints/5/weights") == b"many"


def test_a_mirror_sends_by_itself_and_of_several_processes_one_does(folder):
    with mirror.Mirror(folder) as here, mirror.Mirror(folder, sends=False) as other:
        (other.folder / "other").write_text("of another process")
        (here.folder / "report.html").write_text("now")
        for _ in range(100):
            if "report.html" in storage.names(folder):
                break
            time.sleep(0.1)
        assert storage.read(f"{folder}/report.html") == b"now"
    assert "other" not in storage.names(folder)


def test_what_is_deleted_while_a_mirror_fetches_is_not_there(folder, monkeypatch):
    find = remote.find
    monkeypatch.setattr(remote, "find", lambda url: {f"{url}/report/gone.md": 3} | find(url))
    with mirror.Mirror(folder, leave_out=("checkpoints",), sends=False) as there:
        assert [path.name for path in there.folder.rglob("*")] == ["metrics.jsonl"]


def test_two_programs_do_not_write_to_one_folder_and_one_that_was_killed_is_no_obstacle(folder):
    with (
        mirror.Mirror(folder),
        pytest.raises(UserError, match="another program is writing there"),
        mirror.Mirror(folder),
    ):
        pass
    storage.write(f"{folder}/{mirror.LOCK}", "of one that was killed")
    with mirror.Mirror(folder):
        pass
    assert mirror.LOCK not in storage.names(folder)


def test_of_two_programs_that_start_in_the_same_moment_one_goes_on(folder, monkeypatch):
    other, find = mirror.Mirror(folder), remote.find

    def meanwhile(url):  # the other one has not seen this one's lock either
        monkeypatch.setattr(remote, "find", find)
        monkeypatch.setattr(other, "_wait_for_others", lambda: None)
        other.__enter__()
        return find(url)

    monkeypatch.setattr(remote, "find", meanwhile)
    with pytest.raises(UserError, match="another program is writing there"):
        mirror.Mirror(folder).__enter__()
    assert mirror.LOCK in storage.names(folder)
    other.__exit__(None, None, None)


def test_what_cannot_be_sent_at_the_end_is_kept_here(folder, monkeypatch):
    here = mirror.Mirror(folder).__enter__()
    (here.folder / "report.html").write_text("of days")
    monkeypatch.setattr(remote, "put", refuse)
    with pytest.raises(UserError, match=rf"no network\)\. What is not there yet lies in {here.folder}\."):
        here.__exit__(None, None, None)
    assert (here.folder / "report.html").read_text() == "of days"
    shutil.rmtree(here.folder)


def refuse(name, path):
    raise UserError(f"{path}: cannot be read or written (no network).")


def test_objects_whose_names_lead_out_of_the_folder_are_refused(bucket):
    Bucket.objects[f"{bucket.removeprefix('gs://bucket/')}/../../escaped"] = Object(b"", next(COUNT))
    with pytest.raises(UserError, match="has a name that no folder can have"), mirror.Mirror(bucket):
        pass


def test_what_other_machines_wrote_and_deleted_is_seen(bucket):
    storage.write(f"{bucket}/a", "1")
    assert storage.names(bucket) == ["a"]
    name = bucket.removeprefix("gs://bucket/")
    Bucket.objects[f"{name}/b"] = Object(b"2", next(COUNT))
    assert storage.names(bucket) == ["a", "b"]
    Bucket.objects[f"{name}/b"] = Object(b"longer", next(COUNT))
    assert storage.size(f"{bucket}/b") == 6
    del Bucket.objects[f"{name}/a"]
    assert storage.size(f"{bucket}/a") is None
    assert storage.names(bucket) == ["b"]
    assert list(remote.find(bucket)) == [f"{bucket}/b"]
    remote.delete_folder(bucket)
    assert storage.names(bucket) == []


def test_a_store_that_is_no_bucket_and_a_package_that_is_missing_are_said(monkeypatch, bucket):
    with pytest.raises(UserError, match="s3://b/run: is remote, where only a path on a disk will do"):
        storage.folder("s3://b/run")
    with pytest.raises(UserError, match="gs://nobody/run/a: cannot be written: there is no such bucket"):
        storage.write("gs://nobody/run/a", b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gcsfs"):
        storage.folder("gs://bucket/run")
