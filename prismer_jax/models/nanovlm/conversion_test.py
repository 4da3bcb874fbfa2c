"""nanoVLM's folders become models and come back byte for byte; new models start from a SigLIP and a SmolLM2."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
from PIL import Image
from safetensors.numpy import save_file

from prismer_jax import checkpoint, pp
from prismer_jax.caption import Captioner
from prismer_jax.errors import UserError
from prismer_jax.models import conversion
from prismer_jax.models.nanovlm import build, config_json
from prismer_jax.models.nanovlm.conversion import FREQUENCIES, HEAD, LLAMA, SIGLIP, TABLE, WORDS
from prismer_jax.pp import chat
from prismer_jax.pp.chat_test import letters
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


def test_bfloat16_files_are_read(tmp_path):
    state = official(tmp_path / "in", ml_dtypes.bfloat16)
    convert.main(["nanovlm", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "model")])
    variables, _ = checkpoint.load_export(tmp_path / "model")
    words = variables["params"]["language"]["word_embedding"]
    np.testing.assert_array_equal(np.asarray(words), state[HEAD].astype(np.float32))


def test_a_new_model_starts_from_both_backbones(tmp_path):
    rng = np.random.default_rng(0)
    model = build("tiny", **SIZES)
    for part, table, extra in (("vision", SIGLIP, ("logit_scale", "text_model.x")), ("language", LLAMA, ())):
        shapes = {k: v for k, v in conversion.shapes_of(model).items() if k.startswith(f"params/{part}/")}
        state = {key: rng.standard_normal(shape, np.float32) for key, shape in rules.key_shapes(table, shapes).items()}
        state |= {key: np.zeros(3, np.float32) for key in extra}
        if part == "language":
            state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:259]
            words = state["model.embed_tokens.weight"]
        (tmp_path / part).mkdir()
        save_file(state, tmp_path / part / "model.safetensors")
    (tmp_path / "vision" / "config.json").write_text(
        json.dumps({"vision_config": dict(image_size=32, patch_size=4, hidden_size=48, num_hidden_layers=2)
                    | dict(num_attention_heads=4, intermediate_size=96)})
    )  # fmt: skip
    (tmp_path / "language" / "config.json").write_text(
        json.dumps(dict(hidden_size=72, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2)
                   | dict(intermediate_size=128, vocab_size=259, max_position_embeddings=8192, rope_theta=100000)
                   | dict(rms_norm_eps=1e-5, tie_word_embeddings=True))
    )  # fmt: skip
    letters(tmp_path / "language", ())
    flags = ["--vision", str(tmp_path / "vision"), "--language", str(tmp_path / "language")]
    flags += ["--tokenizer", str(tmp_path / "language")]
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
