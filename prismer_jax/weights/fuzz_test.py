"""Damaged files of every format: they are read or refused with a UserError, never anything else."""

import io
import zipfile

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prismer_jax.errors import UserError
from prismer_jax.weights import safe, testing

SEEDS = testing.formats()
EXAMPLES = 800
BYTES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from(
        [
            b"\x00",
            b"\xff" * 4,
            b"\xff" * 8,
            b"\x7f" * 8,
            b"-1",
            b"[",
            b"(",
            b".",
            b"0",
            b"R",
            b"b",
            b"q\x01",
            b",1",
            b"[]",
        ]
    ),
)
# Where (as a part of the file's length), what happens there, and with which bytes.
DAMAGE = st.tuples(st.floats(0, 1), st.sampled_from(["flip", "overwrite", "insert", "delete", "cut", "repeat"]), BYTES)


def damaged(data, damage):
    for place, how, new in damage:
        at = int(place * len(data))
        match how:
            case "flip":
                data = data[:at] + bytes([data[at] ^ new[0]]) + data[at + 1 :] if at < len(data) else data
            case "overwrite":
                data = data[:at] + new + data[at + len(new) :]
            case "insert":
                data = data[:at] + new + data[at:]
            case "delete":
                data = data[:at] + data[at + new[0] :]
            case "cut":
                data = data[:at]
            case "repeat":
                data = data[:at] + data[max(at - new[0], 0) :]
    return data


def parts_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {part: archive.read(part) for part in archive.namelist()}


def touch(tree):
    """Reads every element, so that an array beyond the file's end would end the process."""
    if isinstance(tree, np.ndarray):
        assert tree.nbytes <= 64 << 20
        assert tree.dtype.kind != "O"
        tree.tobytes()
    elif isinstance(tree, dict):
        for value in tree.values():
            touch(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            touch(value)


def draw_file(data):
    """Returns (format, damaged file of that format)."""
    what = data.draw(st.sampled_from(sorted(SEEDS)))
    content, damage = SEEDS[what], data.draw(st.lists(DAMAGE, min_size=1, max_size=4))
    if what.startswith(("torch zip", "torch script", "npz")) and data.draw(st.booleans()):
        parts = parts_of(content)  # damage inside, under a correct checksum
        part = data.draw(st.sampled_from([name for name in parts if name.endswith((".pkl", ".npy", "order"))]))
        return what, testing.zipped(parts | {part: damaged(parts[part], damage)})
    return what, damaged(content, damage)


def test_damaged_files_are_read_or_refused(tmp_path):
    outcomes, path = [], tmp_path / "weights"

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check(data):
        what, content = draw_file(data)
        path.write_bytes(content)
        problem = None
        with testing.bounded(200):
            try:
                touch(safe.load_tree(path))
            except UserError as error:
                problem = str(error)
        assert problem is None or (problem.isprintable() and len(problem) < 1000)
        outcomes.append((what, problem is None))

    check()
    assert len(outcomes) >= 500
    assert {what for what, _ in outcomes} == set(SEEDS)
    assert {read for _, read in outcomes} == {True, False}
