import csv
import io
import json
import struct
import subprocess
import sys
import types

import numpy as np
import pytest
from tensorboardX.record_writer import masked_crc32c

from prismer_jax import metrics
from prismer_jax.errors import UserError


def table(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- files ---


def test_a_line_a_step_with_floats_in_full(tmp_path):
    loss = np.float32(0.1)
    with metrics.Writer(tmp_path / "run") as writer:
        writer.write(1, {"train/loss": loss, "n": 3})
        writer.write(2, {"train/loss": 1 / 3})
    text = (tmp_path / "run/metrics.jsonl").read_text()
    assert (
        text
        == '{"step": 1, "train/loss": 0.10000000149011612, "n": 3}\n{"step": 2, "train/loss": 0.3333333333333333}\n'
    )
    assert np.float32(json.loads(text.splitlines()[0])["train/loss"]) == loss
    assert [row["train/loss"] for row in table(tmp_path / "run")] == ["0.10000000149011612", "0.3333333333333333"]


def test_columns_may_come_later(tmp_path):
    with metrics.Writer(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
        writer.write(2, {"loss": 0.5, "val/cider": 7.0})
        writer.write(3, {"loss": float("nan")})
    assert table(tmp_path) == [
        {"step": "1", "loss": "1.0", "val/cider": ""},
        {"step": "2", "loss": "0.5", "val/cider": "7.0"},
        {"step": "3", "loss": "nan", "val/cider": ""},
    ]


def test_resuming_repairs_a_torn_line_and_drops_what_will_be_logged_again(tmp_path):
    with metrics.Writer(tmp_path) as writer:
        for step in range(1, 7):
            writer.write(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # kill -9 in the middle of a line
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4, 5, 6]
    with metrics.Writer(tmp_path, first_step=4) as writer:
        writer.write(5, {"loss": 50})
    assert [(line["step"], line["loss"]) for line in metrics.read(tmp_path)] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 50),
    ]
    assert [row["loss"] for row in table(tmp_path)] == ["1", "2", "3", "4", "50"]
    with metrics.Writer(tmp_path) as writer:  # from the beginning: nothing of the old remains
        writer.write(0, {"loss": 0})
    assert metrics.read(tmp_path) == [{"step": 0, "loss": 0}]


def test_only_one_process_writes(tmp_path):
    with metrics.Writer(tmp_path / "run", enabled=False) as writer:
        writer.write(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write metrics to .*file/run: Not a directory"):
        metrics.Writer(tmp_path / "file" / "run")


def parse_message(data):
    """Yields (field number, value) of a protocol buffer; nested messages stay bytes."""

    def varint(i):
        value = shift = 0
        while True:
            value, shift, i = value | (data[i] & 0x7F) << shift, shift + 7, i + 1
            if data[i - 1] < 0x80:
                return value, i

    i = 0
    while i < len(data):
        key, i = varint(i)
        match key & 7:
            case 0:
                value, i = varint(i)
            case 1:
                value, i = struct.unpack_from("<d", data, i)[0], i + 8
            case 2:
                size, i = varint(i)
                value, i = data[i : i + size], i + size
            case 5:
                value, i = struct.unpack_from("<f", data, i)[0], i + 4
        yield key >> 3, value


def read_events(folder):
    """Returns the events of all files, (step, {tag: value}, is a session's start)."""
    events = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            size, crc = struct.unpack("<QI", data[:12])
            body = data[12 : 12 + size]
            assert crc == masked_crc32c(data[:8])
            assert struct.unpack("<I", data[12 + size : 16 + size])[0] == masked_crc32c(body)
            data = data[16 + size :]
            event = dict(parse_message(body))
            values = {}
            for _, value in parse_message(event.get(5, b"")):
                fields = dict(parse_message(value))
                values[fields[1].decode()] = fields[2]
            events.append((event.get(2), values, 7 in event))
    return events


def test_event_files_hold_every_scalar_and_mark_a_resumed_run(tmp_path):
    with metrics.Writer(tmp_path) as writer:
        writer.write(1, {"loss": 0.5, "große/Änderung": -1e40})
        writer.write(300, {"loss": float("nan")})
    with metrics.Writer(tmp_path, first_step=200):
        pass
    events = read_events(tmp_path / "tensorboard")
    assert [(step, start) for step, _, start in events] == [
        (None, False),
        (1, True),
        (1, False),
        (300, False),
        (None, False),
        (201, True),
    ]
    assert events[2][1] == {"loss": 0.5, "große/Änderung": float("-inf")}
    assert np.isnan(events[3][1]["loss"])


def test_tensorboard_reads_the_event_files(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first_step, value in [(0, 1.0), (3, 10.0)]:
        with metrics.Writer(tmp_path, first_step=first_step) as writer:
            for step in range(first_step + 1, 6):
                writer.write(step, {"loss": step * value})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50)]


def test_wandb_gets_the_values_and_the_same_id_when_resumed(tmp_path, monkeypatch):
    starts, logged = [], []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **kwargs: starts.append(kwargs) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for first_step in (0, 1):
        with metrics.Writer(tmp_path, first_step=first_step, wandb={"project": "p"}, config={"lr": 1}) as writer:
            writer.write(first_step + 1, {"loss": 2.0})
    assert logged == [(1, {"loss": 2.0}), (2, {"loss": 2.0})]
    assert starts[0] == starts[1]
    metrics.Writer(tmp_path, wandb={}).__exit__()  # begins anew, at steps that the earlier run has
    assert starts[2]["id"] != starts[0]["id"]
    assert (starts[0]["project"], starts[0]["config"], starts[0]["resume"]) == ("p", {"lr": 1}, "allow")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="not installed: pip install wandb"):
        metrics.Writer(tmp_path, wandb={})
    with pytest.raises(UserError, match=r"wandb=False: a section of wandb.init's arguments"):
        metrics.Writer(tmp_path, wandb=False)


# --- progress ---


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_rates_leave_out_compilation_and_pauses():
    clock, out = Clock(), io.StringIO()
    with metrics.Progress(102, first_step=1, stream=out, clock=clock, every=0) as progress:
        clock.now += 60  # compiling
        progress.step(images=64)
        assert progress.show() == {}
        assert progress.seconds_left() is None
        for _ in range(10):
            clock.now += 0.5
            progress.step(images=64, tokens=640)
        with progress.paused("evaluating"):
            clock.now += 1000
        assert progress.show(loss=1.23456) == pytest.approx(
            {"steps_per_second": 2, "images_per_second": 128, "tokens_per_second": 1280}
        )
        assert progress.seconds_left() == pytest.approx(45)
        clock.now += 1
        progress.step(images=64)
        assert progress.show()["images_per_second"] == pytest.approx(64)  # since the last time only
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["step 2/102", "step 12/102  evaluating"]
    assert lines[2].startswith("step 12/102  loss 1.235  128 images/s  1,280 tokens/s  0:45 left, until ")


def test_lines_come_every_so_many_seconds_and_at_the_end():
    clock, out = Clock(), io.StringIO()
    with metrics.Progress(50, stream=out, clock=clock, every=10) as progress:
        for _ in range(50):
            clock.now += 1
            progress.step()
            progress.show()
    assert [line.split()[1] for line in out.getvalue().splitlines()] == [
        "1/50",
        "11/50",
        "21/50",
        "31/50",
        "41/50",
        "50/50",
    ]


def test_a_terminal_gets_a_bar():
    out = io.StringIO()
    with metrics.Progress(7, 2, stream=out, live=True) as progress:
        for _ in range(5):
            progress.step(images=8)
        progress.show(loss=0.25)
    assert "7/7" in out.getvalue()
    assert "loss 0.25" in out.getvalue()


def test_a_disabled_one_is_silent_but_measures():
    clock, out = Clock(), io.StringIO()
    with metrics.Progress(3, stream=out, live=True, enabled=False, clock=clock) as progress, progress.paused("x"):
        progress.step(images=1)
        progress.step(images=1)
        clock.now += 1
        assert progress.show()["images_per_second"] == 1
    assert out.getvalue() == ""


def test_import_is_light():
    code = "import sys, prismer_jax.metrics; assert not {'jax', 'numpy', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
