"""Reads Llama models in llama.cpp's GGUF files: the state dict, sizes and tokenizer that Hugging Face has for them."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from prismer_jax.errors import UserError

# llama.cpp's names (github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py) and those of transformers' LlamaModel.
_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
_CONTROL = 3  # a token's type in `tokenizer.ggml.token_type`


class Llama(Mapping[str, np.ndarray]):
    """The state dict of a GGUF file: float32 arrays under transformers' keys, dequantised when they are asked for.

    Attributes:
      config: what config.json says of such a model.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Opens a file.

        Raises:
          UserError: it is no GGUF file of a Llama, or holds a type that is not read (TYPES); or the package is missing.
        """
        try:
            import gguf
        except ImportError:
            raise UserError(f"{path}: pip install 'prismer_jax[gguf]' reads GGUF files.") from None
        try:
            reader = gguf.GGUFReader(path)
        except Exception as error:  # of many kinds
            raise UserError(f"{path}: not a GGUF file that can be read ({error}). Fetch it again.") from None
        self._path, self._dequantize = path, gguf.dequantize
        self._fields = {key: field.contents() for key, field in reader.fields.items()}
        if (kind := self._fields.get("general.architecture")) != "llama":
            raise UserError(f"{path}: holds a model of the kind {kind!r}; only 'llama' is read.")
        if others := {t.tensor_type.name for t in reader.tensors} - {*TYPES}:
            raise UserError(f"{path}: holds tensors of type {', '.join(sorted(others))}; {', '.join(TYPES)} are read.")
        self._tensors = {_spelled(tensor.name): tensor for tensor in reader.tensors}
        self.config = {
            "hidden_size": self._number("embedding_length"),
            "num_hidden_layers": self._number("block_count"),
            "num_attention_heads": self._number("attention.head_count"),
            "num_key_value_heads": self._number("attention.head_count_kv"),
            "intermediate_size": self._number("feed_forward_length"),
            "vocab_size": len(self._fields["tokenizer.ggml.tokens"]),
            "max_position_embeddings": self._number("context_length"),
            "rope_theta": self._number("rope.freq_base"),
            # Stored as float32: 1e-5 reads as 9.99999974e-06.
            "rms_norm_eps": float(f"{self._number('attention.layer_norm_rms_epsilon'):.6g}"),
            "tie_word_embeddings": "output.weight" not in self._tensors,
        }

    def __getitem__(self, key: str) -> np.ndarray:
        tensor = self._tensors[key]
        array = self._dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        if match := re.search(r"\.(q_proj|k_proj)\.weight$", key):
            # Rows lie in pairs for llama.cpp's rotation of neighbours; transformers turns halves.
            array = array.reshape(self.config[heads[match[1]]], -1, 2, array.shape[1]).swapaxes(1, 2)
            array = array.reshape(-1, array.shape[-1])
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def tokenizer_files(self) -> dict[str, str]:
        """Returns tokenizer.json and tokenizer_config.json of the file's byte-level BPE, {name: text}.

        Raises:
          UserError: its tokenizer is of another kind than SmolLM2's.
        """
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers

        get = self._fields.get
        kind = (get("tokenizer.ggml.model"), get("tokenizer.ggml.pre"))
        if kind != ("gpt2", "smollm"):
            raise UserError(f"{self._path}: has a tokenizer {kind}; only SmolLM2's ('gpt2', 'smollm') is read.")
        tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ")) for merge in get("tokenizer.ggml.merges")]
        model = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        model.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        model.decoder = decoders.ByteLevel()
        model.add_special_tokens([token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL])
        ids = {kind: get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos", "padding")}
        special = {f"{kind[:3]}_token": tokens[token] for kind, token in ids.items() if token is not None}
        return {"tokenizer.json": model.to_str(), "tokenizer_config.json": json.dumps(special, indent=2) + "\n"}

    def _number(self, name: str) -> Any:
        try:
            return self._fields[f"llama.{name}"]
        except KeyError:
            raise UserError(f"{self._path}: lacks llama.{name}; fetch a file that llama.cpp's tools wrote.") from None


def _spelled(name: str) -> str:
    """Returns transformers' key of a tensor."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if not match or match[2] not in _NAMES:
        return name
    layer = "" if match[1] is None else f"layers.{match[1]}."
    return f"model.{layer}{_NAMES[match[2]]}.weight"
