"""Files that appear whole or not at all; what is remote is fsspec's memory."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

from prismer_jax.errors import UserError
from prismer_jax.files import folders, storage


def temporaries(folder: pathlib.Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(storage.TEMPORARY)]


@pytest.mark.parametrize("folder", ["{}", "memory://bucket/{}"])
def test_a_written_file_replaces_the_old_one(tmp_path, folder):
    path = storage.join(folder.format(tmp_path), "a.txt")
    for text in ("a long first text", "ä"):
        storage.write(path, text)
        assert storage.read(path) == text.encode()
    storage.write_json(path, {"a": [1]}, indent=None)
    assert storage.read(path) == b'{"a": [1]}\n'
    assert storage.names(folder.format(tmp_path)) == ["a.txt"]


def fail_after_writing(name: str) -> None:
    pathlib.Path(name).write_bytes(b"half")
    raise ZeroDivisionError


@pytest.mark.parametrize("folder", ["{}", "memory://bucket/{}"])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path, folder):
    path = storage.join(folder.format(tmp_path), "a.txt")
    storage.write(path, b"old")
    with pytest.raises(ZeroDivisionError), storage.replacing(path) as name:
        fail_after_writing(name)
    assert storage.read(path) == b"old"
    assert storage.names(folder.format(tmp_path)) == ["a.txt"]


KILLED = """if True:
    import sys
    from prismer_jax.files import storage
    path, text = sys.argv[1:]
    storage.write(path, "whole")
    with storage.replacing(path) as name, open(name, "w") as file:
        file.write(text)
        file.flush()
        print("half", flush=True)
        sys.stdin.read()
"""


def test_a_process_killed_while_it_writes_leaves_the_old_file_whole(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a.txt"), "half a fi"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"half\n"
    process.kill()
    process.communicate()
    assert (tmp_path / "a.txt").read_text() == "whole"
    (half,) = temporaries(tmp_path)
    assert (tmp_path / half).read_text() == "half a fi"
    folders.sweep(tmp_path)
    assert storage.names(str(tmp_path)) == ["a.txt"]


def test_a_file_that_cannot_be_written_is_named_without_its_temporary_name(tmp_path):
    with pytest.raises(OSError, match="No such file") as error:
        storage.write(tmp_path / "nowhere" / "a.txt", "text")
    assert error.value.filename == str(tmp_path / "nowhere" / "a.txt")
    with pytest.raises(UserError, match="nowhere://a: cannot be reached"):
        storage.write("nowhere://a", b"")


def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is no file that can be written"):
        storage.write(tmp_path / "pipe", "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, "a" * 242])
def test_the_longest_names_that_a_disk_takes_are_written(tmp_path, name):
    storage.write(tmp_path / name, "whole")
    with storage.temporary(tmp_path / name) as half:
        assert pathlib.Path(half).parent == tmp_path
        assert len(os.path.basename(half).encode()) < 80
        pathlib.Path(half).write_bytes(b"half")
        folders.sweep(tmp_path)
        assert storage.names(str(tmp_path)) == [name]
    with folders.new_folder(tmp_path / "folder" / name) as folder:
        (folder / "a").touch()
    assert storage.names(str(tmp_path / "folder" / name)) == ["a"]
    with pytest.raises(OSError, match="name too long"):
        storage.write(tmp_path / ("a" * 256), "text")


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    for name in ("a.txt", ".tmp", ".notes.tmp", ".notes.of mine.tmp"):
        storage.write(tmp_path / name, "mine")
    (tmp_path / ".folder.tmp").mkdir()
    others = set(os.listdir(tmp_path))
    with storage.temporary(tmp_path / "set.json") as name:
        pathlib.Path(name).touch()
        assert len(os.listdir(tmp_path)) == len(others) + 1
        folders.sweep(tmp_path)
        assert set(os.listdir(tmp_path)) == others


def test_a_new_folder_appears_when_it_is_full_and_the_first_of_two_stays(tmp_path):
    final = tmp_path / "deep" / "folder"
    with folders.new_folder(final) as first, folders.new_folder(final) as second:
        (first / "a").write_text("first")
        (second / "a").write_text("second")
        assert not final.exists()
    assert (final / "a").read_text() == "second"  # the inner block has ended first
    with pytest.raises(ZeroDivisionError), folders.new_folder(tmp_path / "other"):
        raise ZeroDivisionError
    assert os.listdir(final.parent) == ["folder"]
    assert os.listdir(tmp_path) == ["deep"]
    (tmp_path / "usual").mkdir()
    assert final.stat().st_mode == (tmp_path / "usual").stat().st_mode  # not for its owner alone
