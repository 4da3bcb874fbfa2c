import numpy as np
import pytest

from prismer_jax.errors import UserError
from prismer_jax.experts import EXPERTS, testing, weights
from prismer_jax.experts.testing import ToyDepth, ToyDetection
from prismer_jax.weights import write
from tools import download

DEPTH = {"head.weight": np.ones((1, 3), np.float32), "head.bias": np.zeros(1, np.float32)}
DETECTION = {"roi.head.weight": np.ones((2, 3), np.float32), "roi.head.bias": np.zeros(2, np.float32)}


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    monkeypatch.setattr(weights, "EXPERTS", testing.TOYS)


def test_official_files_and_converted_folders_give_the_same(tmp_path):
    write.torch_file(tmp_path / ToyDepth.file, DEPTH)
    first = weights.load(ToyDepth(), tmp_path)
    np.testing.assert_array_equal(first["params"]["out"]["kernel"], np.ones((3, 1)))
    weights.export(tmp_path / "depth", ToyDepth(), first)
    (tmp_path / ToyDepth.file).unlink()
    again = weights.load(ToyDepth(), tmp_path)
    np.testing.assert_array_equal(again["params"]["out"]["kernel"], first["params"]["out"]["kernel"])


def test_a_wrong_file_is_named_with_the_expert_that_it_seems_to_be(tmp_path):
    write.torch_file(tmp_path / ToyDepth.file, DETECTION)
    with pytest.raises(UserError, match="seem to be weights of the expert obj_detection, not of depth") as error:
        weights.load(ToyDepth(), tmp_path)
    assert ToyDepth.file in str(error.value)
    write.torch_file(tmp_path / ToyDepth.file, {"model.classifier": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="2 missing"):
        weights.load(ToyDepth(), tmp_path)


@pytest.mark.parametrize("name", EXPERTS)
def test_wrapped_files_of_every_expert_are_read(name):
    keys = {rule.key.format(0): np.zeros(1) for rule in EXPERTS[name].table.rules}
    for prefix in ("module.", "_orig_mod.", "_orig_mod.module."):
        wrapped = {f"{prefix}{key}": array for key, array in keys.items()}
        assert EXPERTS[name].table.spell(wrapped).keys() == EXPERTS[name].table.spell(keys).keys()


def test_a_wrapped_file_of_an_expert_is_read(tmp_path):
    for prefix in ("module.", "_orig_mod."):
        write.torch_file(tmp_path / ToyDepth.file, {f"{prefix}{key}": array for key, array in DEPTH.items()})
        variables = weights.load(ToyDepth(), tmp_path)
        np.testing.assert_array_equal(variables["params"]["out"]["kernel"], np.ones((3, 1)))


def test_another_experts_folder_does_not_fit(tmp_path):
    weights.export(tmp_path / "depth", ToyDetection(), ToyDetection().random_variables())
    with pytest.raises(UserError, match=r"is of another model.*out/kernel \(float32\[3, 2\] instead of"):
        weights.load(ToyDepth(), tmp_path)


def test_nothing_there_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"neither toy_depth.pt nor a folder depth .* tools.download experts depth"):
        weights.load(ToyDepth(), tmp_path)


def test_the_downloader_fetches_the_files_that_experts_read():
    assert {name: expert.file for name, expert in EXPERTS.items()}.items() <= download.EXPERTS.items()
