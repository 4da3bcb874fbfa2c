import json
import os
import pickletools
import struct
import subprocess
import sys
import textwrap
import zipfile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from prismer_jax.errors import UserError
from prismer_jax.weights import safe, testing, write

WRITERS = {"torch": write.torch_file, "safetensors": write.safetensors_file}


def arrays():
    """Arrays in every layout that has to be brought into the format's."""
    rng = np.random.RandomState(0)
    return testing.arrays() | {
        "transposed": rng.standard_normal((3, 4)).T,
        "sliced": rng.standard_normal((6, 8)).astype(np.float32)[1::2, ::-3],
        "wide": np.broadcast_to(np.arange(3), (2, 3)),
        "big-endian": np.arange(3, dtype=">i4"),
        "byte": np.arange(5, dtype=np.uint8),
        "schlüssel": np.zeros((2, 0, 3), np.float32),
    }


@pytest.mark.parametrize("format", WRITERS)
def test_what_is_written_is_read_again(tmp_path, format):
    state = arrays()
    path = tmp_path / "weights"
    WRITERS[format](path, state)
    read = safe.load(path)
    assert read.keys() == state.keys()
    for key, array in state.items():
        assert read[key].dtype == array.dtype.newbyteorder("<"), key
        np.testing.assert_array_equal(read[key], array, err_msg=key)
        assert read[key].flags.c_contiguous
        assert read[key].flags.aligned
    assert os.listdir(tmp_path) == ["weights"]


@pytest.mark.parametrize("format", WRITERS)
def test_equal_weights_are_equal_bytes(tmp_path, format):
    for name in ("first", "second"):
        WRITERS[format](tmp_path / name, arrays())
    first, second = ((tmp_path / name).read_bytes() for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize("limit", [zipfile.ZIP64_LIMIT, 100])
def test_tensors_begin_at_multiples_of_64_bytes(tmp_path, monkeypatch, limit):
    """Also those of more than 2 GB, whose headers are longer; the small limit makes some of ours such."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    path = tmp_path / "weights.pt"
    write.torch_file(path, arrays())
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            name, extra = struct.unpack("<HH", data[info.header_offset + 26 : info.header_offset + 30])
            start = info.header_offset + 30 + name + extra
            assert start % 64 == 0
            assert data[start : start + info.file_size] == archive.read(info)
    assert safe.load(path).keys() == arrays().keys()


def test_a_torch_file_holds_tied_parameters_once(tmp_path):
    table = np.arange(1000, dtype=np.float32)
    state = {"embedding": table, "other": table.copy(), "head": table, "half": table[:500]}
    path = tmp_path / "weights.pt"
    write.torch_file(path, state)
    with zipfile.ZipFile(path) as archive:
        sizes = [info.file_size for info in archive.infolist() if "/data/" in info.filename]
    assert sizes == [4000, 4000, 2000]
    read = safe.load(path)
    assert np.shares_memory(read["embedding"], read["head"])
    assert not np.shares_memory(read["embedding"], read["other"])


def test_a_torch_file_names_only_what_pytorch_admits(tmp_path):
    """Every name must be in the table of torch.load(weights_only=True)."""
    path = tmp_path / "weights.pt"
    write.torch_file(path, arrays())
    names = set()
    with zipfile.ZipFile(path) as archive:
        for opcode, argument, _ in pickletools.genops(archive.read("archive/data.pkl")):
            if opcode.name == "GLOBAL":
                names.add(argument)
    kinds = {"Float", "Double", "Half", "BFloat16", "Long", "Int", "Byte", "Bool"}
    assert names == {f"torch {kind}Storage" for kind in kinds} | {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
    }


def test_a_safetensors_file_is_what_its_specification_says(tmp_path):
    path = tmp_path / "weights.safetensors"
    write.safetensors_file(path, {"b": np.ones(3, np.int8), "a": np.ones((2, 2), np.float32)})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    assert json.loads(data[8 : 8 + length]) == {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "I8", "shape": [3], "data_offsets": [16, 19]},
    }
    assert len(data) == 8 + length + 19


@pytest.mark.parametrize("format", WRITERS)
def test_arrays_of_jax_are_written(tmp_path, format):
    path = tmp_path / "weights"
    WRITERS[format](path, {"x": jnp.ones((2, 2), jnp.bfloat16)})
    np.testing.assert_array_equal(safe.load(path)["x"], np.ones((2, 2), ml_dtypes.bfloat16), strict=True)


@pytest.mark.parametrize("format", WRITERS)
def test_a_type_that_the_format_lacks_is_named(tmp_path, format):
    for array in (np.array(["text"]), np.array([None]), np.zeros(2, ml_dtypes.int4)):
        with pytest.raises(UserError, match="weights: 'x' is of type"):
            WRITERS[format](tmp_path / "weights", {"y": np.ones(3), "x": array})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("format", WRITERS)
def test_a_full_disk_leaves_the_older_file_and_nothing_else(tmp_path, format):
    path = tmp_path / "weights"
    WRITERS[format](path, {"x": np.ones(3)})
    old = path.read_bytes()
    program = """
        import resource, sys
        import numpy as np
        from prismer_jax.weights import write
        from prismer_jax.errors import run_main
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        run_main(getattr(write, sys.argv[1]), sys.argv[2], {f"{i}": np.ones(1000) for i in range(100)})
    """
    command = [sys.executable, "-c", textwrap.dedent(program), f"{format}_file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {path}: cannot be written (File too large). Make space, or choose another folder.\n"
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["weights"]


@pytest.mark.parametrize("format", WRITERS)
def test_a_folder_that_is_not_there_and_an_error_half_way_leave_nothing(tmp_path, format, monkeypatch):
    with pytest.raises(UserError, match="cannot be written"):
        WRITERS[format](tmp_path / "absent" / "weights", {"x": np.ones(3)})
    monkeypatch.setattr(write, "_bytes", lambda array: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        WRITERS[format](tmp_path / "weights", {"x": np.ones(3)})
    assert not os.listdir(tmp_path)


def test_safetensors_reads_transposed_and_strided_arrays_as_they_are(tmp_path):
    """Its own save_file (safetensors 0.8.0) writes their memory in the order in which it lies."""
    state = {key: arrays()[key] for key in ("transposed", "sliced", "wide")}
    write.safetensors_file(tmp_path / "weights", state)
    for key, array in safetensors.numpy.load_file(tmp_path / "weights").items():
        np.testing.assert_array_equal(array, state[key], strict=True)


def test_pytorch_and_safetensors_read_what_is_written(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch, which is in the extra 'bench'")
    state = {key: array for key, array in arrays().items() if array.dtype != ml_dtypes.bfloat16}
    state |= {"brain": np.full(3, 1.5, ml_dtypes.bfloat16)}
    path = tmp_path / "weights"
    write.torch_file(path, state)
    readings = [torch.load(path, weights_only=True), torch.load(path, weights_only=True, mmap=True)]
    assert readings[0]["tied"].data_ptr() == readings[0]["a.weight"].data_ptr()
    package = pytest.importorskip("safetensors.torch", reason="needs the package safetensors beside torch")
    write.safetensors_file(path, state)
    readings.append(package.load_file(path))
    for read in readings:
        assert read.pop("brain").tolist() == [1.5] * 3
        assert read.keys() == state.keys() - {"brain"}
        for key, tensor in read.items():
            assert tensor.is_contiguous()
            np.testing.assert_array_equal(tensor.numpy(), state[key].astype(state[key].dtype.newbyteorder("=")), key)
