"""Which programs start again for huge pages, and that one which does is the same program."""

import os
import subprocess
import sys

import pytest

from prismer_jax import huge_pages


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What `adopt` starts for a command, its arguments and its tunables, or nothing."""

    def start(command, mode="always [madvise] never", module="-m", told=None):
        (tmp_path / "enabled").write_text(mode)
        programs = []
        monkeypatch.setattr(huge_pages, "SETTING", tmp_path / "enabled")
        monkeypatch.setattr(os, "execve", lambda *program: programs.append(program))
        monkeypatch.setattr(sys, "orig_argv", command.split())
        monkeypatch.setattr(sys, "argv", [module])
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if told is not None:
            monkeypatch.setenv("GLIBC_TUNABLES", told)
        huge_pages.adopt()
        return [(words[1:], environment["GLIBC_TUNABLES"]) for _, words, environment in programs]

    return start


@pytest.mark.parametrize("command", ["python -m prismer_jax.train --workdir -m", "python -X dev -m tools.bench step"])
def test_commands_of_this_package_start_again_as_they_are(started, command):
    assert started(command) == [(command.split()[1:], huge_pages.TUNABLES)]


def test_what_the_user_has_tuned_is_kept(started):
    command = "python -m prismer_jax.train"
    assert started(command, told="glibc.malloc.check=1")[0][1] == f"glibc.malloc.check=1:{huge_pages.TUNABLES}"
    assert not started(command, told="glibc.malloc.hugetlb=0")
    assert not started(command, told=huge_pages.TUNABLES)  # the second start


@pytest.mark.parametrize(
    ("command", "module", "mode"),
    [
        ("python -m prismer_jax.train", "/a/prismer_jax/train.py", "[madvise]"),  # it runs already
        ("python mine.py -m", "mine.py", "[madvise]"),
        ("python -m pytest", "-m", "[madvise]"),
        ("python -m prismer_jax_mine.train", "-m", "[madvise]"),
        ("python -m prismer_jax.train", "-m", "[always] madvise never"),  # nobody need ask
        ("python -m prismer_jax.train", "-m", "always madvise [never]"),
    ],
)
def test_other_programs_and_kernels_are_left_as_they_are(started, command, module, mode):
    assert not started(command, mode=mode, module=module)


def test_a_system_without_huge_pages_is_left_as_it_is(started, monkeypatch, tmp_path):
    started("python -m prismer_jax.train")
    monkeypatch.setattr(huge_pages, "SETTING", tmp_path / "absent")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execve", lambda *program: pytest.fail("started again"))
    huge_pages.adopt()


def test_a_program_starts_twice_at_most_with_the_same_arguments(tmp_path):
    if not huge_pages.SETTING.is_file() or "[madvise]" not in huge_pages.SETTING.read_text():
        pytest.skip(f"{huge_pages.SETTING}: this kernel does not give huge pages on request")
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
    assert again == [huge_pages.TUNABLES, *command]
