"""nanoVLM's folders become models and come back byte for byte; new models start from a SigLIP and a SmolLM2."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
from PIL import Image
from safetensors.numpy import save_file

from prismer_jax import checkpoint, pp, tree
from prismer_jax.captioner import Captioner
from prismer_jax.errors import UserError
from prismer_jax.models import conversion
from prismer_jax.models.nanovlm import build, config_json
from prismer_jax.models.nanovlm.conversion import FREQUENCIES, HEAD, LLAMA, SIGLIP, TABLE, WORDS, encoder, write
from prismer_jax.pp import chat
from prismer_jax.pp.chat_test import letters
from prismer_jax.towers.vit import ViT
from prismer_jax.weights import onnx as onnx_files
from prismer_jax.weights import rules, safe
from tools import convert, export

SIZES = dict(vision=dict(layers=2), language=dict(layers=2))


def official(folder, dtype=np.float32, words=HEAD, **changes):
    """Writes what the original's save_pretrained writes of a small model; returns its state dict."""
    model = build("tiny", **SIZES)
    rng = np.random.default_rng(0)
    shapes = rules.key_shapes(TABLE, conversion.shapes_of(model))
    state = {key: rng.standard_normal(shape).astype(dtype) for key, shape in shapes.items() if key != WORDS}
    state[words] = state.pop(HEAD)
    state[FREQUENCIES] = np.ones(6, np.float32)
    config = {**config_json.of(model), **changes}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    save_file(state, folder / "model.safetensors", {WORDS: HEAD})
    return state


def test_the_tokenizer_of_a_model_that_was_trained_here_is_said_not_to_be_the_folders(tmp_path, caplog):
    model = build("tiny", **SIZES)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree.unflatten(conversion.shapes_of(model)))
    fields = dict(name="nanovlm", variant="tiny", **SIZES)
    write(tmp_path / "out", variables, {"model": fields, "tokenizer": "scenes"})
    assert "out/config.json: lm_tokenizer is HuggingFaceTB/SmolLM2-360M-Instruct" in caplog.text
    assert "here scenes." in caplog.text
    caplog.clear()
    write(tmp_path / "out", variables, {"model": fields, "nanovlm": config_json.of(model)})
    assert not caplog.text


def test_the_original_is_told_how_a_model_that_was_trained_here_has_seen_photos(tmp_path):
    model = build("tiny", **SIZES)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree.unflatten(conversion.shapes_of(model)))
    look = "decode|tiles(32, 64, 5, method='bicubic', reference=True)|ask()|chat(248, 4)"
    description = {"model": dict(name="nanovlm", variant="tiny", **SIZES), "tasks": {"caption": {"pp": look}}}
    write(tmp_path / "out", variables, description)
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert (said["max_img_size"], said["resize_to_max_side_len"]) == (64, True)  # of generate.py
    description["tasks"] = {"caption": {"pp": "decode|tiles(32, enlarge=False)|ask()|chat(248, 4)"}}
    write(tmp_path / "out", variables, description)
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert (said["max_img_size"], said["resize_to_max_side_len"]) == (32, False)


def test_a_model_with_a_word_for_the_image_alone_is_written_for_version_02():
    language = dict(layers=2, vocab_size=260)
    config = config_json.of(build("tiny", vision=dict(layers=2), language=language))
    assert config_json.generation_of(config) == "v0.2"
    assert config["vlm_extra_tokens"] == {"image_token": "<|image|>"}
    assert config["lm_max_length"] == 512


@pytest.mark.parametrize(
    ("part", "setting"),
    [("language", dict(head_dim=16)), ("language", dict(logit_cap=30.0)), ("vision", dict(class_token=True))],
)
def test_a_model_that_the_original_would_read_as_another_is_refused(tmp_path, part, setting):
    fields = dict(name="nanovlm", variant="tiny", **SIZES | {part: SIZES[part] | setting})
    with pytest.raises(UserError, match=rf"mine: the original has no setting for {part}\.{min(setting)}; use tools"):
        write(tmp_path / "out", {"params": {}}, {"model": fields, "folder": "mine"})


@pytest.mark.parametrize("words", [HEAD, WORDS])
def test_a_folder_becomes_a_model_and_comes_back_to_the_bit(tmp_path, words):
    state = official(tmp_path / "in", words=words)
    convert.main(["nanovlm", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "model")])
    flags = ["--checkpoint", str(tmp_path / "model"), "--format", "nanovlm"]
    export.main([*flags, "--output", str(tmp_path / "out")])
    back = safe.load(tmp_path / "out" / "model.safetensors")
    state[HEAD] = state.pop(words)
    assert back.keys() == state.keys()
    for key in back.keys() - {FREQUENCIES}:
        np.testing.assert_array_equal(back[key], state[key])
    np.testing.assert_allclose(back[FREQUENCIES][:2], [1.0, 0.1467799], rtol=1e-6)
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {WORDS: HEAD}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads(
        (tmp_path / "in" / "config.json").read_text()
    )


def test_a_field_that_the_user_gave_is_in_the_config_that_is_written(tmp_path):
    official(tmp_path / "in", lm_tokenizer="mine", lm_re_base=10000)
    flags = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "model")]
    convert.main(["nanovlm", *flags, "--config.model.language.rope_base=50000.0", "--config.model.image_token=99"])
    export.main(["--checkpoint", str(tmp_path / "model"), "--format", "nanovlm", "--output", str(tmp_path / "out")])
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("in", "out"))
    assert after == before | {"lm_re_base": 50000, "lm_base_vocab_size": 99}


def test_a_tower_that_is_given_a_value_is_refused_in_one_line(tmp_path):
    official(tmp_path / "in")
    (tmp_path / "in" / "config.json").unlink()
    flags = ["--input", str(tmp_path / "in/model.safetensors"), "--output", str(tmp_path / "model")]
    with pytest.raises(UserError, match=r"--config\.model\.vision=3: it has fields; give them"):
        convert.main(["nanovlm", *flags, "--config.model.vision=3"])


def test_a_field_that_no_config_json_has_goes_with_the_model(tmp_path):
    official(tmp_path / "in")
    flags = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "model"), "--config.model.positions=column"]
    convert.main(["nanovlm", *flags])
    assert checkpoint.description(tmp_path / "model")["model"]["positions"] == "column"


def test_a_field_that_adds_what_the_original_lacks_is_refused_in_one_line(tmp_path):
    official(tmp_path / "in")
    flags = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "model"), "--config.model.experts=depth"]
    with pytest.raises(UserError, match=r"The original has no batch_stats/labels/.* and \d+ more\. Convert the model"):
        convert.main(["nanovlm", *flags])


def test_bfloat16_files_are_read(tmp_path):
    state = official(tmp_path / "in", ml_dtypes.bfloat16)
    convert.main(["nanovlm", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "model")])
    variables, _ = checkpoint.load_export(tmp_path / "model")
    words = variables["params"]["language"]["word_embedding"]
    np.testing.assert_array_equal(np.asarray(words), state[HEAD].astype(np.float32))


def smollm(folder, rng):
    """Writes a small SmolLM2's files; returns its table of words."""
    shapes = {k: v for k, v in conversion.shapes_of(build("tiny", **SIZES)).items() if k.startswith("params/language/")}
    state = {key: rng.standard_normal(shape, np.float32) for key, shape in rules.key_shapes(LLAMA, shapes).items()}
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:259]
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps(dict(hidden_size=72, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2)
                   | dict(intermediate_size=128, vocab_size=259, max_position_embeddings=8192, rope_theta=100000)
                   | dict(rms_norm_eps=1e-5, tie_word_embeddings=True))
    )  # fmt: skip
    letters(folder, ())
    return state["model.embed_tokens.weight"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (dict(rope_scaling=dict(rope_type="llama3", factor=32.0)), "rope_scaling is .*; only models with null"),
        (dict(hidden_act="gelu"), "hidden_act is 'gelu'; only models with 'silu'"),
        (dict(head_dim=16), "head_dim is 16; only models with 12"),
    ],
)
def test_a_llama_that_is_computed_in_another_way_is_refused(tmp_path, setting, message):
    smollm(tmp_path / "language", np.random.default_rng(0))
    config = json.loads((tmp_path / "language/config.json").read_text())
    assert config_json.language_fields(config, tmp_path)["rope_base"] == 100000.0
    with pytest.raises(UserError, match=message):
        config_json.language_fields(config | setting, tmp_path)


def test_a_new_model_starts_from_a_dinov2_and_a_smollm2(tmp_path):
    onnx_test = pytest.importorskip("prismer_jax.weights.onnx_test", reason="needs the package onnx")
    state = onnx_test.written(tmp_path / "vit.onnx")
    words = smollm(tmp_path / "language", np.random.default_rng(0))
    flags = ["--vision", str(tmp_path / "vit.onnx"), "--language", str(tmp_path / "language")]
    flags += ["--tokenizer", str(tmp_path / "language"), "--shuffle", "2", "--extra-tokens", "0"]
    with pytest.raises(UserError, match="--image-size 15: not a multiple of the 4 pixels"):
        convert.main(["nanovlm", *flags, "--image-size", "15", "--output", str(tmp_path / "model")])
    photos = np.random.default_rng(1).integers(0, 256, (20, 16, 16, 3), np.uint8)
    rows = [{"image": f"{number:02d}.png", "caption": "red" if number % 2 else "blue"} for number in range(20)]
    for photo, row in zip(photos, rows, strict=True):
        Image.fromarray(photo).save(tmp_path / row["image"])
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    flags += ["--image-size", "16", "--match-words", str(tmp_path / "captions.json")]
    convert.main(["nanovlm", *flags, "--output", str(tmp_path / "model")])
    variables, description = checkpoint.load_export(tmp_path / "model")
    vision = variables["params"]["vision"]
    positions = state["embeddings.position_embeddings"][0]
    assert vision["position_embedding"].shape == (17, 64)
    np.testing.assert_array_equal(vision["position_embedding"][0], positions[0])
    grid = np.asarray(vision["position_embedding"][1:]).reshape(4, 4, 64)
    np.testing.assert_allclose(grid.mean((0, 1)), positions[1:].mean(0), atol=0.25)
    query = vision["blocks"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(query[1], state["encoder.layer.1.attention.attention.query.weight"].T)
    np.testing.assert_array_equal(vision["blocks"]["scale_mlp"][1], state["encoder.layer.1.layer_scale2.lambda1"])
    assert (description["model"]["vision"]["image_size"], description["model"]["image_token"]) == (16, None)
    model = build(**{key: value for key, value in description["model"].items() if key != "name"})
    tokens = model.apply(variables, {"image": photos}, method="encode")
    assert tokens.shape == (20, 4, 72)
    assert np.sqrt(np.mean(np.square(tokens))) == pytest.approx(np.sqrt(np.mean(np.square(words))), rel=1e-2)


def test_a_new_model_starts_from_both_backbones(tmp_path):
    rng = np.random.default_rng(0)
    model = build("tiny", **SIZES)
    shapes = {k: v for k, v in conversion.shapes_of(model).items() if k.startswith("params/vision/")}
    state = {key: rng.standard_normal(shape, np.float32) for key, shape in rules.key_shapes(SIGLIP, shapes).items()}
    state |= {key: np.zeros(3, np.float32) for key in ("logit_scale", "text_model.x")}
    (tmp_path / "vision").mkdir()
    save_file(state, tmp_path / "vision" / "model.safetensors")
    words = smollm(tmp_path / "language", rng)
    (tmp_path / "vision" / "config.json").write_text(
        json.dumps({"vision_config": dict(image_size=32, patch_size=4, hidden_size=48, num_hidden_layers=2)
                    | dict(num_attention_heads=4, intermediate_size=96)})
    )  # fmt: skip
    flags = ["--vision", str(tmp_path / "vision"), "--language", str(tmp_path / "language")]
    flags += ["--tokenizer", str(tmp_path / "language")]
    with pytest.raises(UserError, match="A new nanoVLM has no experts, adapters or packed kernels"):
        convert.main(["nanovlm", *flags, "--output", str(tmp_path / "model"), "--config.model.experts=depth"])
    convert.main(["nanovlm", *flags, "--output", str(tmp_path / "model")])
    variables, description = checkpoint.load_export(tmp_path / "model")
    params = variables["params"]
    np.testing.assert_array_equal(params["language"]["word_embedding"][:259], words)
    rest = np.asarray(params["language"]["word_embedding"][259:])
    assert rest.shape == (66, 72)
    assert abs(rest.std() - 0.02) < 0.001
    assert abs(np.asarray(params["projector"]["kernel"]).std() - 0.02) < 0.001
    assert description["model"]["image_token"] == 259
    tokenizer = pp.tokenizer.load_from(tmp_path / "model", description["tokenizer"])
    assert [tokenizer.id_of(token) for token in chat.EXTRA_TOKENS] == list(range(259, 325))
    assert (tokenizer.eos, tokenizer.pad) == (2, 2)
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "photo.png")
    said = Captioner(tmp_path / "model").answer([str(tmp_path / "photo.png")], "Who?", max_new=3)
    assert said[0]["question"] == "Who?"
    assert isinstance(said[0]["answers"][0], str)


@pytest.mark.parametrize("generation", ["v0.1", "v0.2", "head"])
def test_the_generation_is_told_by_the_keys(tmp_path, generation):
    keys = dict.fromkeys(config_json.GENERATIONS[generation])
    assert config_json.generation_of(keys, tmp_path) == generation


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(lm_tie_weights=False), "lm_tie_weights is False"),
        (dict(vit_cls_flag=True), "vit_cls_flag is True"),
        (dict(lm_n_heads=...), "lacks lm_n_heads"),
        (dict(vit_registers=4), "has vit_registers"),
        (dict(lm_hidden_dim=84), "of shape"),
        ({"lm_n_heads": "six"}, "lm_n_heads is 'six', which is no size"),
        ({"mp_pixel_shuffle_factor": 0}, "mp_pixel_shuffle_factor is 0, which is no size"),
    ],
)
def test_other_folders_are_refused_in_one_line(tmp_path, changes, message):
    official(tmp_path / "in", **changes)
    with pytest.raises(UserError, match=message):
        convert.main(["nanovlm", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "model")])
    assert not (tmp_path / "model").exists()


def test_flags_say_what_a_model_is_made_of(tmp_path):
    with pytest.raises(UserError, match="Give --input"):
        convert.main(["nanovlm", "--output", str(tmp_path / "model")])
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        convert.main(["nanovlm", "--input", str(tmp_path), "--output", str(tmp_path / "model")])


@pytest.mark.slow
def test_the_real_encoder_is_its_graph(weights, shared):
    """The features of a photo beside a run of the graph by onnx's reference evaluator, which is NumPy alone."""
    onnx = pytest.importorskip("onnx", reason="needs the package onnx")
    from onnx.reference import ReferenceEvaluator

    photo = sorted((shared / "data" / "photos").glob("*.jp*g"))[0]
    image = np.asarray(Image.open(photo).convert("RGB").resize((224, 224)), np.float32)[None] / 255
    state, table, fields = encoder(weights / "vit_s14.onnx", 224)
    model = ViT(**fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(image.shape))["params"]
    named = {f"params/vision/{name}": leaf for name, leaf in tree.flatten(shapes).items()}
    flat = {name: make() for name, make in rules.from_torch(state, table, named).items()}
    features = model.apply({"params": tree.unflatten(flat)["params"]["vision"]}, jnp.asarray(image))

    graph = onnx.load_model(weights / "vit_s14.onnx")
    last = "/backbone/layernorm/Add_1_output_0"
    graph = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(graph)).extract_model(["input_image"], [last])
    pixels = (image - np.float32(onnx_files.PIXEL_MEAN)) / np.float32(onnx_files.PIXEL_STD)
    (expected,) = ReferenceEvaluator(graph).run(None, {"input_image": pixels.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(features, expected[:, 1:], rtol=1e-4, atol=1e-4)
