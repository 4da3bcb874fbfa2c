"""GGUF files of Llamas: names, rows of queries and keys, types, tokenizer."""

import numpy as np
import pytest

from prismer_jax import pp
from prismer_jax.errors import UserError
from prismer_jax.weights.gguf import Llama

gguf = pytest.importorskip("gguf", reason="GGUF files are read by the package gguf (extra `gguf`)")

WIDTH, HEADS, KV_HEADS, MLP = 64, 4, 2, 96
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "1", "2"]


def llama_cpp_order(array, heads):
    """The rows of a query's or key's matrix as llama.cpp's converter lays them: halves of a head become pairs."""
    return array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)


def written(path, kind="llama", quantization="F32", pre="smollm"):
    """Writes a file of one layer; returns {key: array} as transformers has it."""
    rng = np.random.default_rng(0)
    kv = WIDTH // HEADS * KV_HEADS
    shapes = {
        "token_embd": (len(TOKENS), WIDTH),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (kv, WIDTH),
        "blk.0.attn_v": (kv, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (MLP, WIDTH),
        "blk.0.ffn_up": (MLP, WIDTH),
        "blk.0.ffn_down": (WIDTH, MLP),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,),
        "output_norm": (WIDTH,),
    }
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, kind)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_feed_forward_length(MLP)
    writer.add_context_length(128)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    for name, array in arrays.items():
        heads = {"blk.0.attn_q": HEADS, "blk.0.attn_k": KV_HEADS}.get(name)
        stored = llama_cpp_order(array, heads) if heads else array
        kind_of = gguf.GGMLQuantizationType[quantization if array.ndim == 2 else "F32"]
        writer.add_tensor(f"{name}.weight", gguf.quantize(stored, kind_of), raw_dtype=kind_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays


@pytest.mark.parametrize(
    ("quantization", "error"), [("F32", 0), ("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 2e-2), ("Q4_1", 0.2)]
)
def test_arrays_are_those_of_transformers(tmp_path, quantization, error):
    arrays = written(tmp_path / "m.gguf", quantization=quantization)
    state = Llama(tmp_path / "m.gguf")
    for key, name in (
        ("model.embed_tokens.weight", "token_embd"),
        ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q"),
        ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k"),
        ("model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm"),
        ("model.norm.weight", "output_norm"),
    ):
        difference = np.abs(state[key] - arrays[name]).max()
        assert state[key].dtype == np.float32
        assert difference <= error * np.abs(arrays[name]).max()
    assert len(state) == len(arrays)


def test_sizes_and_tokenizer_are_in_the_file(tmp_path):
    written(tmp_path / "m.gguf")
    state = Llama(tmp_path / "m.gguf")
    assert state.config["rms_norm_eps"] == 1e-5
    assert state.config["tie_word_embeddings"]
    assert (state.config["num_attention_heads"], state.config["num_key_value_heads"]) == (HEADS, KV_HEADS)
    for name, text in state.tokenizer_files().items():
        (tmp_path / name).write_text(text)
    tokenizer = pp.tokenizer.load(f"tokenizers:{tmp_path}")
    assert tokenizer.encode("<|im_start|>ab12") == [1, 5, 6, 7]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.vocab_size) == (1, 2, 2, len(TOKENS))


def test_other_files_say_what_they_are(tmp_path):
    (tmp_path / "text.gguf").write_text("no such thing")
    with pytest.raises(UserError, match="not a GGUF file"):
        Llama(tmp_path / "text.gguf")
    written(tmp_path / "other.gguf", kind="gpt2")
    with pytest.raises(UserError, match="of the kind 'gpt2'"):
        Llama(tmp_path / "other.gguf")
    written(tmp_path / "types.gguf", quantization="Q5_0")
    with pytest.raises(UserError, match="type Q5_0"):
        Llama(tmp_path / "types.gguf")
    written(tmp_path / "pre.gguf", pre="llama-bpe")
    with pytest.raises(UserError, match="only SmolLM2's"):
        Llama(tmp_path / "pre.gguf").tokenizer_files()
