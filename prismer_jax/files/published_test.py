"""Fetching from a server on this machine, by huggingface_hub too, and from a fake of that library."""

import base64
import hashlib
import http.server
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from prismer_jax.errors import UserError
from prismer_jax.files import published
from prismer_jax.files.published import Facts, HubFile, Repository, Unreachable, WebFile
from prismer_jax.testing import served

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """Serves CONTENT at almost every address, by ranges and with the hub's headers, and notes what was asked for."""
    asked: list[str | None] = []
    broken: set[str] = set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, body=True):
            if "missing" in self.path or self.path.startswith("/api"):
                return self.send_error(404)
            asked.append(self.headers.get("Range") if body else "head")
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
            start = 0 if self.path == "/whole" else start  # a server that knows no ranges
            if start >= len(CONTENT):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            for name, value in {"ETag": f'"{SHA256}"', "X-Repo-Commit": "c" * 40}.items():
                self.send_header(name, value)
            if "composed" not in self.path:
                digest = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
                self.send_header("x-goog-hash", "crc32c=AAAAAA==")
                self.send_header("x-goog-hash", f"md5={digest}")
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            if body:
                breaks = "breaks" in self.path and self.path not in broken  # once
                broken.add(self.path)
                self.wfile.write(CONTENT[start : start + 1000] if breaks else CONTENT[start:])

        def log_message(self, *_):
            pass

    with served(Handler) as url:
        yield SimpleNamespace(url=url, asked=asked)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_checked(server, tmp_path):
    source = WebFile(f"{server.url}/x", SHA256)
    assert source.facts() == Facts(len(CONTENT), SHA256)
    source.fetch(tmp_path / "new/x.pt")
    assert (tmp_path / "new/x.pt").read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["x.pt"]


def test_google_states_the_checksum_of_a_file_that_has_none_here(server, tmp_path):
    source = WebFile(f"{server.url}/x")
    assert source.facts() == Facts(len(CONTENT), md5=hashlib.md5(CONTENT).hexdigest())
    assert WebFile(f"{server.url}/composed").facts() == Facts(len(CONTENT))
    (tmp_path / "x.pt.part").write_bytes(CONTENT[:70_000][::-1])
    with pytest.raises(UserError, match="/x: what arrived has the checksum"):
        source.fetch(tmp_path / "x.pt")
    source.fetch(tmp_path / "x.pt")
    assert (tmp_path / "x.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("path", ["x", "whole"])
def test_what_broke_off_goes_on(server, tmp_path, path):
    (tmp_path / "x.pt.part").write_bytes(CONTENT[:70_000])
    WebFile(f"{server.url}/{path}", SHA256).fetch(tmp_path / "x.pt")
    assert server.asked == ["bytes=70000-"]
    assert (tmp_path / "x.pt").read_bytes() == CONTENT


def test_a_broken_connection_keeps_what_came(server, tmp_path):
    with pytest.raises(UserError, match=r"/breaks: the connection broke"):
        WebFile(f"{server.url}/breaks", SHA256).fetch(tmp_path / "x.pt")
    assert names(tmp_path) == ["x.pt.part"]
    assert (tmp_path / "x.pt.part").read_bytes() == CONTENT[:1000]


def test_a_file_without_a_checksum_is_fetched_anew(server, tmp_path):
    """It was joined from two files where another one was published after the connection broke."""
    (tmp_path / "x.pt.part").write_bytes(CONTENT[:70_000][::-1])
    WebFile(f"{server.url}/composed").fetch(tmp_path / "x.pt")
    assert (tmp_path / "x.pt").read_bytes() == CONTENT
    with pytest.raises(UserError, match=r"the connection broke. Run the same again\.$"):
        WebFile(f"{server.url}/composed-breaks").fetch(tmp_path / "y.pt")


def test_a_connection_that_broke_is_no_end_of_a_file_of_unknown_length(tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(b"5\r\nwhole\r\n" + (b"0\r\n\r\n" if self.path == "/x" else b"5\r\nha"))
            self.close_connection = True

        def log_message(self, *_):
            pass

    with served(Handler) as url:
        WebFile(f"{url}/x").fetch(tmp_path / "x.pt")
        with pytest.raises(UserError, match=r"/y: the connection broke. Run the same again\.$"):
            WebFile(f"{url}/y").fetch(tmp_path / "y.pt")
    assert (tmp_path / "x.pt").read_bytes() == b"whole"
    assert not (tmp_path / "y.pt").exists()


def test_of_two_processes_one_waits_for_the_other(server, tmp_path):
    source, target = WebFile(f"{server.url}/x", SHA256), tmp_path / "x.pt"
    with ThreadPoolExecutor(1) as pool, published._alone(tmp_path / "x.pt.part"):
        waiting = pool.submit(source.fetch, target)
        time.sleep(0.3)
        assert not waiting.done()
        target.write_bytes(CONTENT)
    assert waiting.result() is None
    assert (server.asked, names(tmp_path)) == ([], ["x.pt"])


def test_a_third_process_waits_for_a_second_that_waited_for_a_first(tmp_path):
    """The first left no file, so that the second had locked one that no other process would find."""

    def hold(begun, end):
        with published._alone(tmp_path / "x.pt.part"):
            begun.set()
            assert end.wait(20)

    begun, end = ([threading.Event() for _ in range(3)] for _ in range(2))
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(hold, begun[0], end[0])]
        assert begun[0].wait(20)
        running.append(pool.submit(hold, begun[1], end[1]))
        time.sleep(0.3)
        end[0].set()
        assert begun[1].wait(20)
        running.append(pool.submit(hold, begun[2], end[2]))
        waits = not begun[2].wait(0.3)
        for event in end:
            event.set()
    assert [task.result() for task in running] == [None] * 3
    assert waits
    assert names(tmp_path) == []


def test_a_part_of_another_file_is_fetched_anew(server, tmp_path):
    """As long as the file or longer: there is no range to ask for, and asking would fail for ever."""
    for source in (WebFile(f"{server.url}/x", SHA256, len(CONTENT)), WebFile(f"{server.url}/x", SHA256)):
        (tmp_path / "x.pt.part").write_bytes(CONTENT[::-1])
        if source.size is None:  # then only the server knows
            with pytest.raises(UserError, match=r"/x: what arrived has the checksum .* It is deleted; run the same"):
                source.fetch(tmp_path / "x.pt")
        source.fetch(tmp_path / "x.pt")
        assert (tmp_path / "x.pt").read_bytes() == CONTENT


def test_a_part_that_is_all_there_is_not_asked_for_again(server, tmp_path):
    (tmp_path / "x.pt.part").write_bytes(CONTENT)
    WebFile(f"{server.url}/x", SHA256).fetch(tmp_path / "x.pt")
    assert (server.asked, names(tmp_path)) == ([], ["x.pt"])


def test_other_contents_are_deleted(server, tmp_path):
    with pytest.raises(UserError, match=f"/x: what arrived has the checksum {SHA256} instead of 00"):
        WebFile(f"{server.url}/x", "00").fetch(tmp_path / "x.pt")
    assert names(tmp_path) == []


def test_a_missing_file_and_a_missing_server_differ(server, tmp_path):
    with pytest.raises(UserError, match="404"):
        WebFile(f"{server.url}/missing", SHA256).fetch(tmp_path / "x.pt")
    with pytest.raises(Unreachable):
        WebFile("http://127.0.0.1:1/x", SHA256).facts()


def test_facts_find_every_difference(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"hello\n")
    git = "ce013625030ba8dba906f756967f9e9ca394464a"  # what git names a file of hello and a line feed
    assert Facts(6, git_sha1=git).problem(path) is None
    assert Facts().problem(path) is None
    assert Facts(7).problem(path) == "has 6 bytes instead of 7"
    assert Facts(git_sha1="0" * 40).problem(path) == f"has the checksum {git} instead of {'0' * 40}"
    assert "instead of" in Facts(sha256=git).problem(path)


def test_the_hub_resumes_and_keeps_what_it_fetched(server, tmp_path):
    """With the library itself, in one process after another."""
    program = """
import pathlib, sys
from prismer_jax.errors import run_main
from prismer_jax.files.published import HubFile
run_main(HubFile("a/b", "breaks/model.bin").fetch, pathlib.Path(sys.argv[1]))
"""
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }

    def fetch(target):
        server.asked.clear()
        command = [sys.executable, "-c", program, str(tmp_path / target)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, [request for request in server.asked if request != "head"], done.stderr

    status, asked, problem = fetch("first.bin")
    assert (status, asked) == (2, [None])
    assert "breaks/model.bin: the connection broke. Run the same again" in problem
    assert names(tmp_path) == ["cache"]
    assert fetch("first.bin")[:2] == (0, ["bytes=1000-"])
    assert fetch("second.bin")[:2] == (0, [])  # out of the cache
    for name in ("first.bin", "second.bin"):
        assert (tmp_path / name).read_bytes() == CONTENT


class Hub:
    """What published.py uses of huggingface_hub, without a network."""

    def __init__(self, cache):
        self.constants = SimpleNamespace(HF_HUB_CACHE=str(cache))
        self.cache, self.content, self.etag, self.online = cache / "cached", CONTENT, SHA256, True
        self.calls, self.location = [], None
        for repository in ("a/b", "a"):  # its contents are there already: how they come, the test above shows
            blob = cache / f"models--{repository.replace('/', '--')}" / "blobs" / SHA256
            blob.parent.mkdir(parents=True)
            blob.touch()

    def hf_hub_url(self, repository, path, revision=None):
        return f"hub:{repository}/{path}"

    def get_hf_file_metadata(self, url):
        if not self.online:
            raise RuntimeError("Name or service\nnot known")  # as httpx's errors, no OSError
        if "missing" in url:
            error = RuntimeError("404 Client Error")
            error.response = SimpleNamespace(status_code=404)
            raise error
        if "gated" in url:
            error = RuntimeError("401 Client Error")
            error.response = SimpleNamespace(status_code=401)
            raise error
        return SimpleNamespace(etag=self.etag, size=len(CONTENT), commit_hash="c0ffee", location=self.location)

    def hf_hub_download(self, repository, path, revision=None, local_files_only=False):
        self.calls.append((repository, path, revision, local_files_only))
        if local_files_only and not self.cache.exists():
            raise FileNotFoundError("not in the cache")
        self.cache.write_bytes(self.content)
        return str(self.cache)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    (tmp_path / "cache").mkdir()
    hub = Hub(tmp_path / "cache")
    monkeypatch.setattr(published, "_hub", lambda: hub)
    return hub


def test_a_file_of_the_hub_gets_its_name_here(hub, tmp_path):
    HubFile("a/b", "c/d.bin").fetch(tmp_path / "out/d.bin")
    assert hub.calls == [("a/b", "c/d.bin", "c0ffee", False)]
    assert (tmp_path / "out/d.bin").read_bytes() == CONTENT
    assert (tmp_path / "out/d.bin").stat().st_nlink == 2  # the same bytes on disk as the cache's
    assert names(tmp_path / "out") == ["d.bin"]


def test_a_copy_is_made_where_there_can_be_no_link(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(published.os, "link", lambda *_: (_ for _ in ()).throw(OSError("another device")))
    HubFile("a/b", "d.bin").fetch(tmp_path / "d.bin")
    assert (tmp_path / "d.bin").read_bytes() == CONTENT
    assert (tmp_path / "d.bin").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("etag", "facts"),
    [
        (SHA256, Facts(len(CONTENT), sha256=SHA256, commit="c0ffee")),
        ("ab" * 20, Facts(len(CONTENT), git_sha1="ab" * 20, commit="c0ffee")),
        ("other", Facts(len(CONTENT), commit="c0ffee")),
        (None, Facts(len(CONTENT), commit="c0ffee")),
    ],
)
def test_the_etag_is_the_checksum_where_it_is_one(hub, etag, facts):
    hub.etag = etag
    assert HubFile("a/b", "d.bin").facts() == facts


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x"])
def test_a_damaged_file_leaves_neither_cache_nor_target(hub, tmp_path, content):
    hub.content = content
    with pytest.raises(UserError, match=r"hub:a/b/d\.bin: what arrived has .* run the same again"):
        HubFile("a/b", "d.bin").fetch(tmp_path / "d.bin")
    assert not (tmp_path / "d.bin").exists()
    assert not hub.cache.exists()


def test_without_a_network_the_cache_serves(hub, tmp_path):
    hub.online = False
    with pytest.raises(Unreachable, match="Name or service not known"):
        HubFile("a/b", "d.bin").fetch(tmp_path / "d.bin")
    hub.cache.write_bytes(CONTENT)
    HubFile("a/b", "d.bin").fetch(tmp_path / "d.bin")
    assert (tmp_path / "d.bin").read_bytes() == CONTENT


def test_a_refusal_is_no_missing_network(hub, tmp_path):
    with pytest.raises(UserError, match=r"hub:a/missing: the hub answers 404"):
        HubFile("a", "missing").fetch(tmp_path / "x")


def test_a_file_behind_a_licence_says_where_to_accept_it(hub, tmp_path):
    with pytest.raises(UserError, match=r"hub:a/gated: not for everyone .* licence .* HF_TOKEN"):
        HubFile("a", "gated").fetch(tmp_path / "x")


def test_a_large_file_comes_from_where_the_hub_says_that_it_lies(hub, server, tmp_path):
    """Behind a licence, only that place gives it without a token (huggingface_hub 2.4)."""
    hub.location = f"{server.url}/elsewhere?signed=1"
    HubFile("c/d", "model.bin").fetch(tmp_path / "model.bin")
    assert server.asked == [None]
    assert (tmp_path / "cache/models--c--d/blobs" / SHA256).read_bytes() == CONTENT


def test_a_repository_is_fetched_as_the_hub_lists_it(hub):
    listed = ["b.safetensors", "README.md", "a.safetensors", "config.json"]
    hub.HfApi = lambda: SimpleNamespace(list_repo_files=lambda repository: listed if repository == "a/b" else [])
    assert Repository("a/b").files(".safetensors", ".json") == [
        HubFile("a/b", name) for name in ("a.safetensors", "b.safetensors", "config.json")
    ]


def test_a_full_disk_is_no_missing_network(hub, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "hf_hub_download", full)
    with pytest.raises(OSError, match="No space left"):
        HubFile("a/b", "d.bin").fetch(tmp_path / "x")


def test_the_hubs_library_has_what_is_asked_of_it():
    """The fake above would hide a renamed function or argument."""
    import inspect

    import huggingface_hub

    assert {"revision", "local_files_only"} <= inspect.signature(huggingface_hub.hf_hub_download).parameters.keys()
    fields = huggingface_hub.HfFileMetadata.__dataclass_fields__
    assert {"etag", "size", "commit_hash", "location"} <= fields.keys()
    assert callable(huggingface_hub.HfApi.list_repo_files)
    assert callable(huggingface_hub.get_hf_file_metadata)
    assert pathlib.PurePosixPath(HubFile("a/b", "c/d.bin").address).parts[-4:] == ("resolve", "main", "c", "d.bin")
