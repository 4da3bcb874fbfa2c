"""PaliGemma's files become models and come back to the bit, in both layouts."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from prismer_jax import checkpoint, pp
from prismer_jax.errors import UserError
from prismer_jax.models import conversion
from prismer_jax.models.paligemma import RESIZE, build
from prismer_jax.models.paligemma.conversion import TABLE, official_table
from prismer_jax.pp import location_tokens
from prismer_jax.weights import rules, safe
from tools import convert, export


def state_of(table, language=None, dtype=np.float32, prefix=""):
    """Returns a state dict of the tiny model, with random arrays."""
    shapes = conversion.shapes_of(build("tiny", language=language or {}))
    rng = np.random.default_rng(0)
    keys = rules.key_shapes(table(build("tiny", language=language or {})), shapes)
    return {prefix + key: rng.standard_normal(shape).astype(dtype) for key, shape in keys.items()}


def converted(path, output, *flags):
    convert.main(["paligemma", "--input", str(path), "--variant", "tiny", "--output", str(output), *flags])
    return checkpoint.load_export(output)[0]["params"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("inside", [True, False])
def test_an_npz_comes_back_to_the_bit(tmp_path, dtype, inside):
    state = state_of(official_table, dtype=dtype)
    named = state if inside else {key.removeprefix("params/"): array for key, array in state.items()}
    np.savez(tmp_path / "in.npz", **named)
    flags = [] if dtype == np.float32 else ["--dtype", "bfloat16"] if dtype == ml_dtypes.bfloat16 else []
    converted(tmp_path / "in.npz", tmp_path / "model", *flags)
    out = ["--checkpoint", str(tmp_path / "model"), "--format", "big_vision", "--output", str(tmp_path / "out")]
    export.main(out)
    back = safe.load(tmp_path / "out" / "model.npz")
    assert back.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(np.asarray(back[key], np.float32), np.asarray(array, np.float32))
        assert back[key].dtype == (dtype if dtype != np.float16 else np.float32)


def test_hugging_faces_names_old_and_new_and_its_padding_are_read(tmp_path):
    state = state_of(lambda model: TABLE)
    del state["language_model.lm_head.weight"]
    words = "language_model.model.embed_tokens.weight"
    state[words] = np.concatenate([state[words], np.full((64, 64), 7, np.float32)])
    renamed = {
        key.replace("vision_tower.vision_model", "model.vision_tower")
        .replace("multi_modal_projector", "model.multi_modal_projector")
        .replace("language_model.model", "model.language_model"): array
        for key, array in state.items()
    }
    for name, arrays in (("old", state), ("new", renamed)):
        save_file(arrays, tmp_path / f"{name}.safetensors")
    old, new = (converted(tmp_path / f"{name}.safetensors", tmp_path / name) for name in ("old", "new"))
    jax.tree.map(np.testing.assert_array_equal, old, new)
    np.testing.assert_array_equal(old["language"]["word_embedding"], state[words][:300])
    np.testing.assert_array_equal(old["projector"]["bias"], state["multi_modal_projector.linear.bias"])


def test_gemma_2s_norms_are_told_from_gemma_1s():
    keys = rules.key_shapes(TABLE, conversion.shapes_of(build("tiny", language=dict(post_norms=True))))
    names = {key.split(".")[-2] for key in keys if "language_model.model.layers.0" in key and "norm" in key}
    assert names == {
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    }


def test_other_resolutions_are_interpolated_between_aligned_corners(tmp_path, capsys):
    state = state_of(official_table)
    table = np.random.default_rng(1).standard_normal((1, 36, 32)).astype(np.float32)
    np.savez(tmp_path / "in.npz", **state | {"params/img/pos_embedding": table})
    params = converted(tmp_path / "in.npz", tmp_path / "model")
    own = params["vision"]["position_embedding"]
    assert "Its 36 positions were interpolated to 16" in capsys.readouterr().out
    np.testing.assert_allclose(own, RESIZE["params/vision/position_embedding"](table[0], (16, 32)))
    np.testing.assert_allclose(np.asarray(own)[[0, 3, 12, 15]], table[0][[0, 5, 30, 35]], rtol=1e-6)  # the corners


def test_a_tokenizer_gets_the_pieces_that_it_lacks(tmp_path, shared):
    case = shared / "golden" / "paligemma_pp_text"
    state = state_of(official_table, dict(vocab_size=1572))
    np.savez(tmp_path / "in.npz", **state)
    converted(tmp_path / "in.npz", tmp_path / "model", "--tokenizer", str(case / "toy.model"))
    description = json.loads((tmp_path / "model" / "config.json").read_text())
    tokenizer = pp.tokenizer.load_from(tmp_path / "model", description["tokenizer"])
    special = json.loads((case / "manifest.json").read_text())["special"]
    assert tokenizer.encode("<loc1023><seg000>") == special["loc1023"] + special["seg000"]
    assert (tokenizer.pad, tokenizer.eos, tokenizer.bos, tokenizer.vocab_size) == (0, 1, 2, 1572)
    whole = location_tokens.extended((case / "toy.model").read_bytes())
    assert location_tokens.extended(whole) == whole


def test_a_tokenizer_of_another_model_is_refused(tmp_path, shared):
    np.savez(tmp_path / "in.npz", **state_of(official_table))
    tokenizer = shared / "golden" / "paligemma_pp_text" / "toy.model"
    with pytest.raises(UserError, match="has 420 pieces, the model 300 words"):
        converted(tmp_path / "in.npz", tmp_path / "model", "--tokenizer", str(tokenizer))
