import os
import socket

import pytest

from prismer_jax.files import regular


def test_only_regular_files_are_read_and_none_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    (tmp_path / "photo").write_bytes(b"bytes")
    os.symlink("photo", "link")
    assert regular.read("link") == b"bytes"
    os.mkfifo("pipe")
    os.symlink("pipe", "link_to_pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name in ("pipe", "link_to_pipe", "socket", os.devnull, ".", "absent"):
            with pytest.raises(OSError, match=name):
                regular.read(name)


def test_a_number_is_no_open_file_of_this_process(tmp_path):
    with (tmp_path / "photo").open("w") as file, pytest.raises(TypeError, match="not int"):
        regular.read(file.fileno())
