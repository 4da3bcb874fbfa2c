"""Which programs are readied: started again for huge pages as the same program, with garbage looked for rarely."""

import functools
import gc
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from prismer_jax import programs
from prismer_jax.testing import ROOT


@pytest.fixture
def thresholds():
    """What `prepare` tells the garbage collector."""
    return []


@pytest.fixture
def started(monkeypatch, tmp_path, thresholds):
    """What `prepare` starts for a command, its arguments and its tunables, or nothing."""

    def start(command, mode="always [madvise] never", module="-m", told=None):
        (tmp_path / "enabled").write_text(mode)
        starts = []
        monkeypatch.setattr(programs, "SETTING", tmp_path / "enabled")
        monkeypatch.setattr(os, "execve", lambda *program: starts.append(program))
        monkeypatch.setattr(sys, "orig_argv", command.split())
        monkeypatch.setattr(sys, "argv", [module])
        monkeypatch.setattr(gc, "set_threshold", thresholds.append)
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if told is not None:
            monkeypatch.setenv("GLIBC_TUNABLES", told)
        programs.prepare()
        return [(words[1:], environment["GLIBC_TUNABLES"]) for _, words, environment in starts]

    return start


@pytest.mark.parametrize("command", ["python -m prismer_jax.train --workdir -m", "python -X dev -m tools.bench step"])
def test_commands_of_this_package_start_again_as_they_are(started, thresholds, command):
    assert started(command) == [(command.split()[1:], programs.TUNABLES)]
    assert not started(command, told=programs.TUNABLES)  # the second start
    assert thresholds == [programs.GARBAGE] * 2


def test_what_the_user_has_tuned_is_kept(started):
    command = "python -m prismer_jax.train"
    assert started(command, told="glibc.malloc.check=1")[0][1] == f"glibc.malloc.check=1:{programs.TUNABLES}"
    assert not started(command, told="glibc.malloc.hugetlb=0")


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("python -m prismer_jax.train", "/a/prismer_jax/train.py"),  # it runs already
        ("python mine.py -m", "mine.py"),
        ("python -m pytest", "-m"),
        ("python -m prismer_jax_mine.train", "-m"),
    ],
)
def test_other_programs_are_left_as_they_are(started, thresholds, command, module):
    assert not started(command, module=module)
    assert not thresholds


@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]"])  # no need, or no use, to ask
def test_other_kernels_are_left_as_they_are(started, mode):
    assert not started("python -m prismer_jax.train", mode=mode)


def test_a_system_without_huge_pages_is_left_as_it_is(started, monkeypatch, tmp_path):
    started("python -m prismer_jax.train")
    monkeypatch.setattr(programs, "SETTING", tmp_path / "absent")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execve", lambda *program: pytest.fail("started again"))
    programs.prepare()


def test_a_program_starts_twice_at_most_with_the_same_arguments(tmp_path):
    if not programs.SETTING.is_file() or "[madvise]" not in programs.SETTING.read_text():
        pytest.skip(f"{programs.SETTING}: this kernel does not give huge pages on request")
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"with open({str(tmp_path / 'starts')!r}, 'a') as file:\n"
        "    print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), *sys.orig_argv[1:], file=file)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    environment.pop("GLIBC_TUNABLES", None)
    command = ["-m", "tools.convert", "--help"]
    ran = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "python -m tools.convert" in ran.stdout
    (first, *words), (second, *again) = map(str.split, (tmp_path / "starts").read_text().splitlines())
    assert first == second  # one process
    assert words == ["None", *command]
    assert again == [programs.TUNABLES, *command]


def test_an_interrupt_while_a_program_imports_is_one_line_and_status_2(tmp_path):
    """At any moment from its first line on: what it imports took a traceback of dozens of lines there."""
    command = [sys.executable, "-m", "prismer_jax.train", "--help"]
    heeded = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell runs behind ignores it
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heeded)
    maps = pathlib.Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "jaxlib" not in maps.read_text():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 2
    assert process.stderr.read() == "interrupted: stopped by Ctrl-C while it was starting.\n"
