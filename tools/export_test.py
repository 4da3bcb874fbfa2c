import json

import jax
import numpy as np
import pytest
from flax import serialization

from prismer_jax import checkpoint, tree
from prismer_jax.errors import UserError
from prismer_jax.models import conversion
from prismer_jax.models.prismer import build, table
from prismer_jax.models.prismer.table_test import DECODER, a_state
from prismer_jax.weights import safe
from tools import export

MODEL = dict(
    variant="tiny", experts=["edge", "seg_coco"], image_size=32, width=32, layers=2, heads=2, resampler_layers=1
)


@pytest.fixture(scope="module")
def state():
    return a_state(build(**MODEL, decoder=DECODER))


@pytest.fixture
def folder(state, tmp_path):
    model = build(**MODEL, decoder=DECODER)
    variables = {
        **conversion.from_torch(state, model, table.TABLE),
        "tables": {"seg_coco": np.ones((134, 64), np.float32)},
    }
    (tmp_path / "vocab.json").write_text("{}")
    description = {"model": {"name": "prismer", **MODEL, "decoder": DECODER}, "tokenizer": "roberta:.", "tasks": {}}
    checkpoint.export(tmp_path / "in", variables, description, {"vocab.json": tmp_path / "vocab.json"})
    return tmp_path / "in"


def run(folder, kind, output, *flags):
    export.main(["--checkpoint", str(folder), "--format", kind, "--output", str(output), *flags])


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_the_official_state_dict_comes_back_bit_for_bit(folder, state, tmp_path, kind):
    run(folder, kind, tmp_path / "new" / "file")
    found = safe.load(tmp_path / "new" / "file")
    assert found.keys() == state.keys()
    for key, array in state.items():
        assert found[key].dtype == array.dtype, key
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_model_that_names_no_family_is_of_the_default_one(folder, state, tmp_path):
    variables, description = checkpoint.load_export(folder)
    del description["model"]["name"]
    checkpoint.export(tmp_path / "unnamed", variables, description)
    run(tmp_path / "unnamed", "safetensors", tmp_path / "file")
    assert safe.load(tmp_path / "file").keys() == state.keys()


def test_orbax_is_a_whole_export(folder, tmp_path):
    run(folder, "orbax", tmp_path / "out")
    (before, described), (after, again) = checkpoint.load_export(folder), checkpoint.load_export(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert {**described, "folder": ""} == {**again, "folder": ""}
    assert (tmp_path / "out" / "vocab.json").read_text() == "{}"


def test_a_checkpoint_of_a_run_becomes_an_export(folder, tmp_path):
    variables, description = checkpoint.load_export(folder)
    del description["folder"], description["versions"]
    state = {**variables, "opt": {"mu": np.ones(3)}, "step": np.asarray(7)}
    with checkpoint.Checkpointer(tmp_path / "run" / "checkpoints", config=description, best_metric="m") as checkpoints:
        checkpoints.save(7, state, {"m": 1.0})
    run(tmp_path / "run", "orbax", tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load_export(tmp_path / "out")[0], variables)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "weights"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tokenizer"] == "roberta:."


def test_of_a_checkpoint_without_a_description_nothing_that_lies_beside_it_is_copied(tmp_path):
    with checkpoint.Checkpointer(tmp_path / "mine") as checkpoints:
        checkpoints.save(7, {"params": {"any": np.ones(1)}})
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    run(tmp_path / "mine" / "7", "orbax", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "weights"]


def test_msgpack_is_read_by_flax(folder, tmp_path):
    run(folder, "msgpack", tmp_path / "out")
    data, variables = (tmp_path / "out").read_bytes(), checkpoint.load_export(folder)[0]
    assert data == serialization.msgpack_serialize(variables)
    found, wanted = (tree.flatten(nested) for nested in (serialization.msgpack_restore(data), variables))
    assert found.keys() == wanted.keys()
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("kind", ["torch", "safetensors", "orbax", "msgpack"])
def test_nothing_is_overwritten_unless_asked_for(folder, tmp_path, kind):
    run(folder, kind, tmp_path / "out")
    with pytest.raises(UserError, match=r"out exists; choose another name, or replace it with --force"):
        run(folder, kind, tmp_path / "out")
    run(folder, kind, tmp_path / "out", "--force")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"mine (is a folder|exists and is no exported model)"):
        run(folder, kind, tmp_path / "mine", "--force")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_written_to(folder, tmp_path):
    (tmp_path / "out").mkdir()
    run(folder, "orbax", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("kind", ["torch", "safetensors", "msgpack"])
def test_a_link_to_a_file_is_followed(folder, tmp_path, kind):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/file").write_text("older")
    (tmp_path / "out").symlink_to(tmp_path / "far/file")
    run(folder, kind, tmp_path / "out", "--force")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "far/file").read_bytes() != b"older"


def test_bad_usage_is_one_line(folder, tmp_path):
    with pytest.raises(UserError, match=r"Unknown format 'safetensor'\. Did you mean 'safetensors'"):
        run(folder, "safetensor", tmp_path / "out")
    with pytest.raises(UserError, match="does not exist"):
        run(tmp_path / "nothing", "torch", tmp_path / "out")
    checkpoint.export(tmp_path / "other", {"w": np.ones(2)}, {"model": {"name": "other"}})
    with pytest.raises(UserError, match=r"Unknown model 'other'\. Valid names: "):
        run(tmp_path / "other", "torch", tmp_path / "out")
    checkpoint.export(tmp_path / "small", {"w": np.ones(2)}, {"model": {"name": "student", "variant": "tiny"}})
    with pytest.raises(UserError, match=r"small: A student has no names in the files of other frameworks"):
        run(tmp_path / "small", "torch", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["nanovlm", "blip2_hf"])
def test_a_format_of_another_family_is_refused(tmp_path, kind):
    checkpoint.export(
        tmp_path / "in", {"params": {"any": np.ones(1)}}, {"model": dict(name="paligemma", variant="tiny")}
    )
    with pytest.raises(
        UserError, match=rf"is a paligemma, not written as {kind}; use one of torch, .*, paligemma_hf\.$"
    ):
        run(tmp_path / "in", kind, tmp_path / "out")


def test_the_help_says_which_formats_are_folders(capsys):
    with pytest.raises(SystemExit):
        export.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "a folder for orbax, adapter, blip2_hf, nanovlm, big_vision, paligemma_hf, else a file" in said


@pytest.mark.parametrize(("experts", "remedy"), [(["depth"], "orbax"), ("none", "safetensors")])
def test_a_blip2_that_transformers_does_not_know_names_a_format_that_takes_it(tmp_path, experts, remedy):
    fields = dict(name="blip2", variant="tiny_stage1", experts=experts)
    checkpoint.export(tmp_path / "in", {"params": {"any": np.ones(1)}}, {"model": fields})
    with pytest.raises(UserError, match=rf"use tools.export --format {remedy}\.$"):
        run(tmp_path / "in", "blip2_hf", tmp_path / "out")


@pytest.mark.parametrize(
    ("language", "message"),
    [
        (dict(word_width=24), "misreads an OPT of narrow words; use tools.export --format safetensors"),
        (dict(tower="llama", word_scale=5.0), "no setting for language.word_scale; use tools.export --format safet"),
    ],
)
def test_a_blip2_that_transformers_would_read_as_another_is_refused(tmp_path, language, message):
    llama = dict(width=24, layers=1, heads=4, kv_heads=2, mlp_dim=48, vocab_size=50) if "tower" in language else {}
    fields = dict(name="blip2", variant="tiny", language=llama | language)
    checkpoint.export(tmp_path / "in", {"params": {"any": np.ones(1)}}, {"model": fields})
    with pytest.raises(UserError, match=message):
        run(tmp_path / "in", "blip2_hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
