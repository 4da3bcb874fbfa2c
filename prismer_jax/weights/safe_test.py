import argparse
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from prismer_jax.errors import UserError
from prismer_jax.weights import safe, testing, wrappers
from prismer_jax.weights.testing import item, mapping, name, tensor, torch_older, torch_zip, whole

FORMATS = testing.formats()
COPIED = ("torch zip, compressed", "npz, compressed", "pickle 0", "pickle 1", "pickle 2")  # as the format forces
FLOATS = np.arange(12, dtype=np.float32)


ENTRY = b'{"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'
DEFLATED = testing.zipped({"x.npy": bytes(100)}, zipfile.ZIP_DEFLATED)


def save(folder, data):
    path = folder / "weights"  # no suffix: the content decides
    path.write_bytes(data)
    return path


def one_tensor(*layout, count=12, kind="Float"):
    """A file with one tensor of twelve floats, whose shape, strides and offset are given."""
    return torch_zip(whole(mapping({"x": tensor("0", kind, count, *layout)})), {"0": FLOATS.tobytes()})


def mapped(array):
    while array is not None and not isinstance(array, np.memmap):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return array is not None


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        assert ours[key].dtype == array.dtype, key
        np.testing.assert_array_equal(ours[key], array, err_msg=key, strict=True)


@pytest.mark.parametrize("what", FORMATS)
def test_reads_every_format_as_views_that_cannot_be_written(tmp_path, what):
    state = safe.load(save(tmp_path, FORMATS[what]))
    same(state, testing.arrays() if what.startswith(("torch", "safe")) else testing.plain_arrays())
    for key, array in state.items():
        assert not array.flags.writeable, key
        # Short strings of bytes in a pickle are cheaper to copy.
        if what not in COPIED and (array.nbytes >= 256 or not what.startswith("pickle")):
            assert mapped(array), key


@pytest.mark.parametrize("start", [b"PK", b'{"', b"\x1f\x8b", b"\x80\x02"])
def test_a_safetensors_file_may_begin_like_another(tmp_path, start):
    text = json.dumps({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    data = testing.safetensors(text.ljust(int.from_bytes(start, "little")), b"\x07")
    assert data.startswith(start)
    assert safe.load(save(tmp_path, data))["x"] == [7]


@pytest.mark.parametrize("what", ["torch zip", "torch older", "torch script"])
def test_tied_parameters_stay_one_memory(tmp_path, what):
    state = safe.load(save(tmp_path, FORMATS[what]))
    assert np.shares_memory(state["a.weight"], state["tied"])


def test_loading_touches_little_more_than_the_names(tmp_path):
    size = 1 << 30
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(testing.safetensors({"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}))
        file.truncate(file.tell() + size)  # a hole: it takes no room on the disk
    tracemalloc.start()
    array = safe.load(path)["x"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert array.nbytes == size
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "wanted"),
    [
        ((2, 3), (1, 2), 0, FLOATS[:6].reshape(3, 2).T),
        ((2, 2), (6, 2), 1, FLOATS.reshape(2, 6)[:, 1:5:2]),
        ((4,), (0,), 11, np.full(4, 11, np.float32)),
        ((), (), 5, FLOATS[5]),
        ((1, 3), (10**12, 1), 9, FLOATS[None, 9:]),  # the stride of an axis of length 1 is never used
        ((0, 5), (5, 1), 99, np.zeros((0, 5), np.float32)),
    ],
)
def test_tensors_are_views_of_their_storage(tmp_path, shape, strides, offset, wanted):
    array = safe.load(save(tmp_path, one_tensor(shape, strides, offset)))["x"]
    np.testing.assert_array_equal(array, wanted, strict=True)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((13,), (1,), 0),
        ((12,), (1,), 1),
        ((2,), (12,), 0),
        ((2,), (-1,), 5),
        ((-1,), (1,), 0),
        ((2,), (1,), -1),
        ((2**62, 2), (2**62, 1), 0),
        ((2**62, 4), (0, 0), 0),
        ((2**40,), (0,), 0),
        ((0, 2**62, 2**62), (1, 1, 1), 0),
        ((2**63,), (1,), 0),
        ((2,), (1, 1), 0),
        ((1,) * 40, (1,) * 40, 0),
        ((2.0,), (1,), 0),
        ((True,), (1,), 0),
        ((2,), (1,), "0"),
        ([2], [1], 0),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(tmp_path, shape, strides, offset):
    with pytest.raises(UserError, match=r"weights: (is damaged|holds a tensor larger)"):
        safe.load(save(tmp_path, one_tensor(shape, strides, offset)))


@pytest.mark.parametrize(
    "data",
    [
        one_tensor((2,), (1,), count=13),
        one_tensor((2,), (1,), count=-1),
        one_tensor((2,), (1,), count=2**61),
        torch_zip(whole(mapping({"x": tensor("1", "Float", 12, (2,), (1,))})), {"0": FLOATS.tobytes()}),
        torch_older(whole(mapping({"x": tensor("0", "Float", 12, (2,), (1,), older=True)})), {}),
        torch_older(whole(mapping({"x": tensor("0", "Float", 12, (2,), (1,), older=True)})), {"0": (11, b"0" * 48)}),
        torch_older(whole(item({})), {"0": (1, b"0000")}),
    ],
)
def test_a_storage_of_another_size_than_said_is_refused(tmp_path, data):
    with pytest.raises(UserError, match="is damaged"):
        safe.load(save(tmp_path, data))


def test_an_older_file_may_save_parts_of_a_storage(tmp_path):
    def part(offset, count):
        return testing.group(item("1"), item(offset), item(count))

    def code(*view):
        return whole(mapping({"x": tensor("0", "Float", 12, (2,), (1,), 1, part(*view), older=True)}))

    storages = {"0": (12, FLOATS.tobytes())}
    state = safe.load(save(tmp_path, torch_older(code(4, 3), storages)))
    np.testing.assert_array_equal(state["x"], [5, 6])
    for view in [(4, 2), (11, 3), (-1, 3)]:
        with pytest.raises(UserError, match="is damaged"):
            safe.load(save(tmp_path, torch_older(code(*view), storages)))


def test_the_one_obvious_nest_is_entered(tmp_path):
    x = np.ones(3)
    for nest in wrappers.NESTS:
        path = save(tmp_path, pickle.dumps({nest: {"x": x}, "epoch": 3, "optimizer": [{"lr": 0.1}]}))
        same(safe.load(path), {"x": x})
    with pytest.raises(UserError, match="holds both model and state_dict"):
        safe.load(save(tmp_path, pickle.dumps({"model": {"x": x}, "state_dict": {"x": x}})))
    same(safe.load(save(tmp_path, pickle.dumps({"model": x}))), {"model": x})  # a parameter of that name


class Options(dict):
    """As of programs whose options are a dict of their own."""


class Touch:
    def __reduce__(self):
        return os.mkdir, ("touched",)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_what_lies_beside_the_weights_may_be_of_any_class(tmp_path, monkeypatch, protocol):
    """Options are often saved so. The class is not looked for, and where the object is wanted it is refused."""
    monkeypatch.chdir(tmp_path)
    x, options, namespace = np.ones(3), Options(lr=0.1), argparse.Namespace(seed=1, inner=Options())
    options.frozen = True
    beside = {"args": namespace, "options": options, "kind": argparse.Namespace}
    same(safe.load(save(tmp_path, pickle.dumps({**beside, "model": {"x": x}}, protocol))), {"x": x})
    for tree in ({**beside, "x": x}, {"model": {"x": x, "args": namespace}}, {"model": namespace}, namespace):
        with pytest.raises(UserError, match=r"weights: holds 'argparse\.Namespace', which is no tensor"):
            safe.load(save(tmp_path, pickle.dumps(tree, protocol)))
    with pytest.raises(UserError, match=r"holds 'argparse\.Namespace'"):
        safe.load_tree(save(tmp_path, pickle.dumps({**beside, "model": {"x": x}}, protocol)))
    with pytest.raises(UserError, match=r"holds 'argparse\.Namespace'"):
        safe.load(save(tmp_path, pickle.dumps({"model": {"x": x}, "state": {argparse.Namespace: 1}}, protocol)))
    # What would be called is refused wherever it stands.
    with pytest.raises(UserError, match=r"holds '(posix|nt)\.mkdir', .*nothing of it was executed"):
        safe.load(save(tmp_path, pickle.dumps({"model": {"x": x}, "args": Touch()}, protocol)))
    assert os.listdir(tmp_path) == ["weights"]


@pytest.mark.parametrize("file", [torch_zip, torch_older])
def test_options_may_lie_beside_the_weights_in_files_of_pytorch(tmp_path, file):
    options = name("argparse.Namespace") + b")\x81" + mapping({"lr": item(0.1)}) + b"b"
    pickled = whole(mapping({"args": options, "model": mapping({})}))
    with pytest.raises(UserError, match="holds nothing"):  # but it is looked at
        safe.load(save(tmp_path, file(pickled, {})))
    with pytest.raises(UserError, match=r"holds 'argparse\.Namespace'"):
        safe.load_tree(save(tmp_path, file(pickled, {})))


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"mine": {"x": np.ones(3)}, "epoch": 3}, "'mine' (dict), 'epoch' (int) are no arrays"),
        ({3: np.ones(3)}, "int (ndarray)"),
        ([1, 2], "holds a list instead of a state dict"),
        ({}, "holds nothing"),
    ],
)
def test_what_is_no_state_dict_is_named(tmp_path, tree, problem):
    with pytest.raises(UserError) as raised:
        safe.load(save(tmp_path, pickle.dumps(tree)))
    assert problem in str(raised.value)


class Thing:
    pass


def npy(descr, shape):
    """A .npz with the header of one array and 24 bytes."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return testing.zipped({"x.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(24)})


def test_a_tree_keeps_plain_data_and_records_become_dicts(tmp_path):
    thing = Thing()
    thing.mean, thing.names = np.arange(40.0), ("a", None, 1.5)
    tree = {"a": [1, -(2**70), True, "ü"], 3: (b"\xff", {4, 5}, 1 + 2j), "thing": thing, "long": b"x" * 1000}
    thing_class = f"{__name__}.Thing"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path = save(tmp_path, pickle.dumps(tree, protocol))
        read = safe.load_tree(path, records=(thing_class,))
        np.testing.assert_array_equal(read["thing"].pop("mean"), thing.mean)
        assert read == tree | {"thing": {"names": thing.names}}
        with pytest.raises(UserError, match=thing_class):
            safe.load_tree(path)


def test_reads_the_official_label_tables(shared):
    folder = shared / "data" / "label_embeddings"
    counts = {"coco": 133, "ade": 150, "detection": 722}
    for kind, count in counts.items():
        table = safe.load_tree(folder / f"{kind}_features.pt")
        assert table["features"].shape == (count, 64)
        assert table["features"].dtype == np.float32
        assert len(table["labels"]) == count
        assert np.isfinite(table["features"]).all()
    assert table["labels"] == json.loads((folder / "obj_detection_label_map.json").read_text())
    assert safe.load_tree(folder / "background_features.pt").shape == (64,)


def test_reads_the_pca_without_scikit_learn(shared):
    path = shared / "data" / "label_embeddings" / "clip_pca.pkl"
    pca = safe.load_tree(path, records=("sklearn.decomposition._pca.PCA",))
    assert pca["n_components"] == 64
    assert pca["mean_"].shape == (768,)
    np.testing.assert_allclose(pca["components_"] @ pca["components_"].T, np.eye(64), atol=1e-9)
    with pytest.raises(UserError, match=r"'sklearn\.decomposition\._pca\.PCA'"):
        safe.load_tree(path)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html><body>404", "is a web page"),
        (b"\n  <HTML>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n", "git lfs pull"),
        (b'{"error": "Invalid credentials"}', "is a JSON file"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        (bytes(257) + b"ustar\x00" + bytes(249), "tar archive"),
        (b"hello world", "begins with b'hello wo', as no file of weights does"),
        (FORMATS["torch zip"][:-30], "is cut short"),
        (FORMATS["torch older"][:-30], "is cut short"),
        (FORMATS["torch older"][:200], "is cut short"),
        (FORMATS["safetensors"][:-3], "is cut short"),
        (FORMATS["safetensors"][:50], "is cut short"),
        (FORMATS["pickle 4"][:-30], "is cut short"),
        (FORMATS["safetensors"] + FORMATS["safetensors"][:100], "not fully covered"),
        (FORMATS["torch zip"].replace(b"a.bias", b"a.bios"), "checksum"),
        (testing.zipped({"readme.txt": b"hello"}), "neither PyTorch's nor NumPy's"),
        (testing.zipped({"x/model.json": b"{}", "x/tensors/0": b""}), "PyTorch before 1.4"),
        (one_tensor((2,), (1,), kind="QInt8"), "unknown dtype 'torch.QInt8Storage'"),
        (one_tensor((2,), (1,), kind="Fancy"), "holds 'torch.FancyStorage'"),
        (testing.safetensors({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"0"), "unknown dtype F4"),
        (testing.safetensors({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"0000"), "is damaged"),
        (testing.safetensors({"x": {"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}}, b"0"), "is damaged"),
        (testing.safetensors(b'{"x": %s, "x": %s}' % (ENTRY, ENTRY), b"0"), "twice"),
        (testing.safetensors(b'{"x": ['), "makes no sense"),
        (testing.safetensors({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, b"0"), "makes no sense"),
        (testing.safetensors({"x": {"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}}, b"0"), "makes no sense"),
        (testing.safetensors({"x": {"dtype": "U8", "shape": 1, "data_offsets": [0, 1]}}, b"0"), "makes no sense"),
        (testing.safetensors({"x": {"dtype": "U8", "shape": [1], "data_offsets": ["0", 1]}}, b"0"), "is damaged"),
        (testing.safetensors({"x": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}, b"0"), "is damaged"),
        (testing.safetensors({"x": [1]}), "makes no sense"),
        (testing.safetensors(b'{"x": 1e999}'), "makes no sense"),
        (testing.safetensors(b'{"x": ' + b"[" * 200_000), "is damaged"),
        (pickle.dumps({"x": np.array([Thing, None])}), "unknown dtype 'O8'"),
        (pickle.dumps({"x": np.zeros(2, [("a", "f4")])}), "unknown dtype 'V4'"),
        (npy("<f4", "(7,)"), "reaches beyond"),
        (npy("<f4", "(2 3)"), "the header of an array makes no sense"),
        (npy("<f4", "(-2,)"), "the header of an array makes no sense"),
        (npy("<f24", "(1,)"), "unknown dtype '<f24'"),
        (npy("|O", "(3,)"), "unknown dtype '|O'"),
        (npy("|S0", "(3,)"), "unknown dtype '|S0'"),
        (DEFLATED[:35] + b"\xff" + DEFLATED[36:], "cannot be unpacked"),  # after the header: no kind of block
        (torch_older(whole(b"}"), {}, {"little_endian": False}), "big-endian"),
        (torch_zip(whole(b"}"), {}, more={"byteorder": b"big"}), "big-endian"),
    ],
)
def test_files_that_are_something_else_are_named_with_the_remedy(tmp_path, data, problem):
    path = save(tmp_path, data)
    with pytest.raises(UserError) as raised:
        safe.load(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert problem in message
    assert "\n" not in message
    assert len(message) < 600


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        safe.load(tmp_path / "absent.bin")
    with pytest.raises(UserError, match="is a folder without"):
        safe.load(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = save(tmp_path, FORMATS["torch zip"])
    path.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        safe.load(path)


def test_reads_what_pytorch_writes(tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch, which is in the extra 'bench'")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    views = {
        "transposed": torch.randn(4, 6).t(),
        "part": torch.randn(10, 10)[2:5, ::3],
        "half": torch.randn(5).half(),
        "mask": torch.tensor([True, False]),
        "complex": torch.randn(2, dtype=torch.complex64),
        "none": torch.zeros(0, 3),
        "wide": torch.arange(4).expand(3, 4),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "unsigned": torch.arange(3).to(torch.uint8),
    }
    path = tmp_path / "weights"
    for older in (False, True):
        state = module.state_dict() | views
        torch.save(state, path, _use_new_zipfile_serialization=not older)
        same(safe.load(path), {key: tensor.detach().numpy() for key, tensor in state.items()})
        brain = torch.randn(3).bfloat16()
        torch.save({"brain": brain, "size": brain.shape}, path, _use_new_zipfile_serialization=not older)
        tree = safe.load_tree(path)
        assert tree["brain"].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(tree["brain"].astype(np.float32), brain.float().numpy())
        assert tree["size"] == (3,)
    torch.save({"x": torch.arange(3).to(torch.uint16), "y": torch.ones(3).to(torch.float8_e4m3fn)}, path)
    new = safe.load(path)
    np.testing.assert_array_equal(new["x"], np.arange(3, dtype=np.uint16), strict=True)
    np.testing.assert_array_equal(new["y"], np.ones(3, ml_dtypes.float8_e4m3fn), strict=True)
    torch.jit.script(module.eval()).save(path)
    same(safe.load(path), {key: tensor.numpy() for key, tensor in module.state_dict().items()})
    torch.jit.trace(module, torch.randn(1, 3, 8, 8)).save(path)
    same(safe.load(path), {key: tensor.numpy() for key, tensor in module.state_dict().items()})
    torch.save(module, path)
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.container\.Sequential"):
        safe.load(path)
