"""Tables on the Hub, read through huggingface_hub itself from a server on this machine that answers as the Hub does.

Source of its answers: huggingface.co/docs/hub/api, as huggingface_hub 2.4 asks for them.
"""

import http.server
import io
import json
import os
import re
import subprocess
import sys
import urllib.parse
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from prismer_jax import datasets
from prismer_jax.testing import ROOT, served


def table(name):
    """Returns the bytes of a table of ten photos in row groups of two, each photo of about 50 kB."""
    out, rows = io.BytesIO(), []
    for number in range(10):
        pixels, photo = np.random.default_rng(number).integers(0, 256, (128, 128, 3), np.uint8), io.BytesIO()
        Image.fromarray(pixels).save(photo, "PNG")
        rows.append({"image": {"bytes": photo.getvalue(), "path": "a.png"}, "caption": f"{name} {number}"})
    parquet.write_table(pyarrow.Table.from_pylist(rows), out, row_group_size=2)
    return out.getvalue()


FILES = {f"data/{name}.parquet": table(name) for name in ("test-0", "train-0", "train-1")} | {"README.md": b"# Photos"}


def entries(paths):
    return [{"type": "file", "oid": "o" * 40, "path": path, "size": len(FILES[path])} for path in paths]


@pytest.fixture
def hub():
    """Serves the data set user/photos; notes which files were asked for, and how many bytes of each were sent."""
    sent = dict.fromkeys(FILES, 0)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = urllib.parse.unquote(self.path.partition("?")[0])
            if match := re.fullmatch(r"/datasets/user/photos/resolve/main/(.+)", path):
                return self.send_file(match[1])
            if match := re.fullmatch(r"/api/datasets/user/photos/tree/main/?(.*)", path):
                inside = [path for path in FILES if path.startswith(match[1])]
                return self.answer(entries(inside)) if inside else self.answer({"error": "Entry not found"}, 404)
            known = re.fullmatch(r"/api/datasets/user/photos(/revision/main)?", path)
            described = {"id": "user/photos", "sha": "c" * 40, "siblings": []}
            return self.answer(described, 200) if known else self.answer({}, 404)

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/api/datasets/user/photos/paths-info/main"
            self.answer(entries([path for path in asked["paths"] if path in FILES]))

        def send_file(self, path):
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
            part = FILES[path][first : last + 1]
            sent[path] += len(part)
            self.answer(part, 206)

        def answer(self, content, status=200):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound" if "photos" in self.path else "RepoNotFound")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with served(Handler) as url:
        yield SimpleNamespace(url=url, sent=sent)


@pytest.fixture
def build(hub, tmp_path):
    """Runs tools.build_dataset with a table; returns its status and its last line."""

    def build(path, *flags):
        program = [sys.executable, "-m", "tools.build_dataset", "--processes", "1"]
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        command = [*program, "--parquet", path, "--output", str(tmp_path / "shards"), *flags]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        return done.returncode, (done.stderr.strip() or "-").splitlines()[-1]

    return build


def test_row_groups_of_the_hub_become_records_and_no_more_is_fetched(hub, build, tmp_path):
    assert build("hf://datasets/user/photos/data/train-*", "--limit", "3")[0] == 0
    records = datasets.load("records", path=tmp_path / "shards", task="caption")
    captions = [records[number]["captions"] for number in range(len(records))]
    assert captions == [[f"train-0 {number}"] for number in range(3)]
    photo = np.asarray(Image.open(io.BytesIO(records[2]["image"])))
    np.testing.assert_array_equal(photo, np.random.default_rng(2).integers(0, 256, (128, 128, 3), np.uint8))
    assert hub.sent["data/test-0.parquet"] == hub.sent["data/train-1.parquet"] == 0
    # Of the five row groups two, once each, and the table's end, of which pyarrow fetches 64 kB at once.
    assert 0.4 < hub.sent["data/train-0.parquet"] / len(FILES["data/train-0.parquet"]) < 0.6
    assert not list((tmp_path / "cache").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hf://datasets/user/photos/other", "hf://datasets/user/photos/other: has no Parquet file"),
        ("hf://datasets/user/nowhere", "hf://datasets/user/nowhere: "),
    ],
)
def test_what_the_hub_has_not_is_one_line(build, path, message):
    status, line = build(path)
    assert status == 2
    assert line.startswith(f"error: {message}")
