import json
import tracemalloc

import numpy as np
import pytest

from prismer_jax.errors import UserError
from prismer_jax.weights import safe, testing, write

A, B = np.arange(3, dtype=np.float32), -np.ones((2, 2), np.float32)
WRITERS = {"model.safetensors": write.safetensors_file, "pytorch_model.bin": write.torch_file}


def shard(name, number, count=2):
    stem, _, suffix = name.rpartition(".")
    return f"{stem}-{number:05}-of-{count:05}.{suffix}"


def save(folder, name="model.safetensors", parts=({"a": A}, {"b": B}), **changes):
    """Writes shards and their index, whose weight_map has these changes; returns the index."""
    names = {}
    for number, part in enumerate(parts, 1):
        WRITERS[name](folder / shard(name, number, len(parts)), part)
        names |= dict.fromkeys(part, shard(name, number, len(parts)))
    index = folder / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 28}, "weight_map": {**names, **changes}}))
    return index


@pytest.mark.parametrize("name", WRITERS)
def test_an_index_a_shard_and_the_folder_give_all_keys(tmp_path, name):
    index = save(tmp_path, name)
    for path in (index, tmp_path / shard(name, 1), tmp_path / shard(name, 2), tmp_path, str(tmp_path)):
        state = safe.load(path)
        assert state.keys() == {"a", "b"}
        np.testing.assert_array_equal(state["a"], A, strict=True)
        np.testing.assert_array_equal(state["b"], B, strict=True)


def test_links_into_a_cache_are_shards_by_their_own_names(tmp_path):
    save(tmp_path)
    (tmp_path / "snapshot").mkdir()
    for number, path in enumerate(list(tmp_path.glob("model*"))):
        path.rename(tmp_path / f"blob{number}")
        (tmp_path / "snapshot" / path.name).symlink_to(tmp_path / f"blob{number}")
    assert safe.load(tmp_path / "snapshot" / shard("model.safetensors", 2)).keys() == {"a", "b"}


def test_a_folder_with_one_file_needs_no_index(tmp_path):
    write.torch_file(tmp_path / "pytorch_model.bin", {"old": A})
    assert safe.load(tmp_path).keys() == {"old"}
    write.safetensors_file(tmp_path / "model.safetensors", {"new": A})
    assert safe.load(tmp_path).keys() == {"new"}


def test_the_only_index_of_a_folder_may_have_any_name(tmp_path):
    save(tmp_path).rename(tmp_path / "diffusion.safetensors.index.json")
    assert safe.load(tmp_path).keys() == {"a", "b"}
    (tmp_path / "other.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"has several indices of weights: give one, such as .*diffusion"):
        safe.load(tmp_path)


def test_the_only_shard_of_one_needs_no_index(tmp_path):
    write.safetensors_file(tmp_path / shard("model.safetensors", 1, 1), {"a": A})
    assert safe.load(tmp_path / shard("model.safetensors", 1, 1)).keys() == {"a"}


def test_shards_are_mapped_not_read(tmp_path):
    size, index = 1 << 28, save(tmp_path)
    with (tmp_path / shard("model.safetensors", 1)).open("wb") as file:
        file.write(testing.safetensors({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}))
        file.truncate(file.tell() + size)  # a hole: it takes no room on the disk
    tracemalloc.start()
    assert safe.load(index)["a"].nbytes == size
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def refusal(path):
    with pytest.raises(UserError) as raised:
        safe.load(path)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_missing_shards_are_named(tmp_path):
    index = save(tmp_path, parts=[{f"k{i}": A} for i in range(20)])
    for number in range(2, 21):
        (tmp_path / shard("model.safetensors", number, 20)).unlink()
    message = refusal(index)
    assert message.startswith(f"{index}: names 20 shards, of which 19 are missing in its folder: ")
    assert f"{shard('model.safetensors', 2, 20)!r}, " in message
    assert message.count("-of-00020") == 12
    assert " and 7 more. Fetch them too." in message
    assert refusal(tmp_path / shard("model.safetensors", 1, 20)) == message
    assert "does not exist" in refusal(tmp_path / shard("model.safetensors", 2, 20))


def test_a_shard_without_its_index_is_no_whole(tmp_path):
    save(tmp_path).unlink()
    message = refusal(tmp_path / shard("model.safetensors", 2))
    assert "is shard 2 of 2: put model.safetensors.index.json and all shards beside it" in message
    assert "is a folder without model.safetensors, " in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "sub/x", "..\\x", "C:x", "..", ".", "", 3, None, ["x"]])
def test_a_shard_outside_of_the_folder_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    write.safetensors_file(tmp_path / "x", {"c": A})
    assert "no file beside it: only such are read" in refusal(save(tmp_path / "folder", c=name))


def test_an_index_and_its_shards_have_to_agree(tmp_path):
    one, two = shard("model.safetensors", 1), shard("model.safetensors", 2)
    assert f"says that {one} holds 'c', which is not there" in refusal(save(tmp_path, c=one))
    twice = save(tmp_path, parts=({"a": A, "c": A}, {"b": B, "c": B}))
    assert f"names two shards that hold 'c', {one} and {two}" in refusal(twice)
    # A key that only the shard tells of is read, as transformers does.
    index = save(tmp_path)
    write.safetensors_file(tmp_path / two, {"b": B, "more": A})
    assert safe.load(index).keys() == {"a", "b", "more"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not JSON"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "a key stands twice"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is a JSON file without"),
        ('{"weight_map": []}', "is a JSON file without"),
        ('{"weight_map": {}}', "is a JSON file without"),
    ],
)
def test_what_is_no_index_is_named(tmp_path, text, problem):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert problem in refusal(tmp_path / "model.safetensors.index.json")


def test_a_damaged_shard_is_named_itself(tmp_path):
    index = save(tmp_path)
    path = tmp_path / shard("model.safetensors", 2)
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(index).startswith(f"{path}: is damaged")
