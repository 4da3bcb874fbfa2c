"""BLIP-2's files become a model and are written again; what is missing is said in one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import checkpoint, models, tree
from prismer_jax.errors import UserError
from prismer_jax.models import conversion
from prismer_jax.models.blip2 import config_json, parts
from prismer_jax.models.blip2.model import VARIANTS
from prismer_jax.models.blip2.table import table
from prismer_jax.weights import write
from tools import convert, export

OPT = dict(model_type="opt", hidden_size=40, num_hidden_layers=2, num_attention_heads=4, ffn_dim=80, vocab_size=96)
OPT |= dict(max_position_embeddings=128, do_layer_norm_before=True, word_embed_proj_dim=40)


def state_of(variant, seed):
    model = models.build("blip2", variant=variant)
    leaves = conversion.shapes_of(model)
    rng = np.random.default_rng(seed)
    params = {
        name.removeprefix("params/"): rng.standard_normal(leaf.shape).astype(np.float32)
        for name, leaf in leaves.items()
    }
    return conversion.to_torch({"params": tree.unflatten(params)}, table(model))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """LAVIS's files of tiny models: of stages 1 and 2 without what is frozen, the vision transformer, an OPT."""
    folder = tmp_path_factory.mktemp("blip2")
    whole, first = state_of("tiny", 0), state_of("tiny_stage1", 1)
    vision = {k.removeprefix("visual_encoder."): x for k, x in whole.items() if k.startswith("visual_encoder.")}
    unused = {"blocks.39.norm1.weight": np.ones(48, np.float32), "norm.weight": np.ones(48, np.float32)}
    write.torch_file(folder / "eva_vit_g.pth", {k: x.astype(np.float16) for k, x in (vision | unused).items()})
    for name, state in (("stage1.pth", first), ("stage2.pth", whole)):
        write.torch_file(folder / name, {k: x for k, x in state.items() if not k.startswith(("visual_", "opt_model."))})
    (folder / "opt").mkdir()
    own = {k.removeprefix("opt_model."): x for k, x in whole.items() if k.startswith("opt_model.")}
    write.safetensors_file(folder / "opt/model.safetensors", {k: x for k, x in own.items() if k != "lm_head.weight"})
    (folder / "opt/config.json").write_text(json.dumps(OPT))
    return folder, whole, first


def flags(folder, **paths):
    return [text for name, path in paths.items() for text in (f"--{name}", str(folder / path))]


def test_three_files_are_one_model_which_is_written_as_both_originals_are(files, tmp_path, caplog):
    folder, whole, _ = files
    given = flags(folder, qformer="stage2.pth", vision="eva_vit_g.pth", language="opt")
    convert.main(["blip2", "--variant", "tiny", *given, "--output", str(tmp_path / "model")])
    export.main(["--checkpoint", str(tmp_path / "model"), "--format", "torch", "--output", str(tmp_path / "again.pth")])
    again = parts.queries(tmp_path / "again.pth").state
    assert again.keys() == whole.keys()
    for key, array in again.items():
        close = 1e-3 if key.startswith("visual_encoder.") else 0  # the file is in half precision
        np.testing.assert_allclose(array, whole[key], atol=4 * close, rtol=close)
    export.main(["--checkpoint", str(tmp_path / "model"), "--format", "blip2_hf", "--output", str(tmp_path / "hf")])
    assert "hf: no text may have the last word, 95, which stands for the image there." in caplog.text
    theirs = parts.queries(tmp_path / "hf").state
    assert all(np.array_equal(theirs[key], again[key]) for key in again if not key.endswith("position_ids"))
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["text_config"] == OPT
    convert.main(["blip2", "--input", str(tmp_path / "hf"), "--variant", "tiny", "--output", str(tmp_path / "back")])
    first, second = (checkpoint.load_export(tmp_path / name)[0]["params"] for name in ("model", "back"))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_stage_1_and_a_language_model_are_what_stage_2_begins_with(files, tmp_path):
    folder, whole, first = files
    given = flags(folder, qformer="stage1.pth", vision="eva_vit_g.pth")
    convert.main(["blip2", "--variant", "tiny_stage1", *given, "--output", str(tmp_path / "stage1")])
    options = ["--language", str(folder / "opt"), "--dtype", "bfloat16", "--output", str(tmp_path / "model")]
    convert.main(["blip2", "--qformer", str(tmp_path / "stage1"), *options])
    variables, description = checkpoint.load_export(tmp_path / "model")
    tokens = variables["params"]["qformer"]["query_tokens"]
    np.testing.assert_array_equal(tokens, first["query_tokens"][0].astype(jnp.bfloat16))
    words = variables["params"]["language"]["word_embedding"]
    np.testing.assert_array_equal(words, whole["opt_model.model.decoder.embed_tokens.weight"].astype(jnp.bfloat16))
    assert {"temperature", "match_head"}.isdisjoint(variables["params"])
    assert models.build(**description["model"]).language["width"] == 40


def test_a_model_of_this_project_whose_config_names_no_variant_is_read(tmp_path):
    fields = {"name": "blip2", **VARIANTS["tiny"]}
    shapes = jax.eval_shape(models.build(**fields).init_variables, jax.random.key(0))
    checkpoint.export(tmp_path / "in", jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes), {"model": fields})
    convert.main(["blip2", "--qformer", str(tmp_path / "in"), "--output", str(tmp_path / "out")])
    assert models.build(**checkpoint.description(tmp_path / "out")["model"]) == models.build(**fields)


def test_what_reads_label_maps_goes_from_stage_1_to_stage_2_and_to_no_original(files, tmp_path):
    """The conversion knew no names for it and ended in a traceback, as did the export."""
    fields = dict(variant="tiny_stage1", experts=["depth", "obj_detection"], stem_width=24)
    fields |= dict(classes={"obj_detection": ["box", "cone"]})
    model, rng = models.build("blip2", **fields), np.random.default_rng(2)
    shapes = tree.flatten(jax.eval_shape(model.init_variables, jax.random.key(0)))
    flat = {name: rng.normal(0, 0.1, x.shape).astype(x.dtype) for name, x in shapes.items()}
    description = {"model": {"name": "blip2", **fields}, "tasks": {}}
    checkpoint.export(tmp_path / "stage1", tree.unflatten(flat), description)
    given = ["--qformer", str(tmp_path / "stage1"), "--language", str(files[0] / "opt")]
    convert.main(["blip2", *given, "--output", str(tmp_path / "model")])
    variables, description = checkpoint.load_export(tmp_path / "model")
    labels = {name: x for name, x in tree.flatten(variables).items() if name.split("/")[1] == "labels"}
    assert {name.split("/")[0] for name in labels} == {"params", "batch_stats", "tables"}
    for name, x in labels.items():
        np.testing.assert_array_equal(x, flat[name], err_msg=name)
    assert models.build(**description["model"]).classes["obj_detection"] == ("box", "cone")
    assert description["tasks"]["caption"]["pp"].startswith("labels_for('depth+obj_detection')|")
    with pytest.raises(UserError, match="the original of blip2 has no experts; use --format orbax"):
        export.main(["--checkpoint", str(tmp_path / "model"), "--format", "torch", "--output", str(tmp_path / "x")])


@pytest.mark.slow
@pytest.mark.parametrize("adapted", ["lora", "quantize"])
def test_a_stage_1_with_adapters_or_packed_kernels_is_read_as_one_without(tmp_path, adapted):
    section = {adapted: dict(match="qformer/.*/query/kernel")}
    fields = dict(name="blip2", variant="tiny_stage1")
    variables = jax.jit(models.build(**fields, **section).init_variables)(jax.random.key(0))
    checkpoint.export(tmp_path, variables, {"model": fields | section})
    read = parts.queries(tmp_path)
    assert read.fields == fields
    assert read.state.keys() == state_of("tiny_stage1", 0).keys()


def test_few_bits_are_packed_where_nothing_trains(files, tmp_path):
    folder, _, _ = files
    given = flags(folder, qformer="stage2.pth", vision="eva_vit_g.pth", language="opt")
    convert.main(["blip2", "--variant", "tiny", *given, "--dtype", "int8", "--output", str(tmp_path / "model")])
    params = checkpoint.load_export(tmp_path / "model")[0]["params"]
    assert params["language"]["blocks"]["mlp"]["up"]["kernel"]["codes"].dtype == np.int8
    assert params["qformer"]["query_tokens"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(qformer="stage2.pth"), "no vision transformer.*--vision eva_vit_g.pth"),
        (dict(qformer="stage2.pth", vision="eva_vit_g.pth"), "no language model: give --language"),
        (dict(qformer="eva_vit_g.pth"), "holds no queries"),
        (dict(vision="eva_vit_g.pth"), "Give --input"),
    ],
)
def test_what_is_missing_is_said_in_one_line(files, tmp_path, given, message):
    variant = ["--variant", "tiny"]
    with pytest.raises(UserError, match=message) as error:
        convert.main(["blip2", *variant, *flags(files[0], **given), "--output", str(tmp_path / "model")])
    assert "\n" not in str(error.value)


def test_a_language_model_of_another_width_is_refused(files, tmp_path):
    folder, _, _ = files
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/config.json").write_text(json.dumps(OPT | dict(hidden_size=44, word_embed_proj_dim=44)))
    write.safetensors_file(tmp_path / "opt/model.safetensors", {"lm_head.weight": np.zeros((96, 44), np.float32)})
    given = flags(folder, qformer="stage2.pth", vision="eva_vit_g.pth")
    with pytest.raises(UserError, match="of width 40, and this one has 44"):
        convert.main(
            ["blip2", "--variant", "tiny", *given, "--language", str(tmp_path / "opt"), "--output", str(tmp_path / "m")]
        )
    assert config_json.of(models.build("blip2", variant="tiny_t5"))["text_config"]["d_kv"] == 8


def test_a_llama_with_a_head_of_its_own_is_refused_by_what_it_is(tmp_path):
    llama = dict(model_type="llama", hidden_size=40, num_hidden_layers=1, num_attention_heads=2, intermediate_size=80)
    (tmp_path / "config.json").write_text(json.dumps(llama | dict(tie_word_embeddings=False)))
    write.safetensors_file(tmp_path / "model.safetensors", {"lm_head.weight": np.zeros((96, 40), np.float32)})
    with pytest.raises(UserError, match=r"its head is not tied to its embeddings, which BLIP-2 needs"):
        parts.language(tmp_path)
