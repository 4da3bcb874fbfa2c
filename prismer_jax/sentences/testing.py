"""A small model of sentence-transformers with random weights."""

from __future__ import annotations

import json
import pathlib
import zlib

import numpy as np
import safetensors.numpy
import tokenizers

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "sofa", "on", "the", "##s", "red", "cafe", ",")
CONFIG = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}


def write_model(folder: pathlib.Path) -> pathlib.Path:
    """Writes a model whose weights depend on their names alone; returns its folder."""
    width, hidden = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {
        f"embeddings.{name}_embeddings.weight": (rows, width)
        for name, rows in (
            ("word", CONFIG["vocab_size"]),
            ("position", CONFIG["max_position_embeddings"]),
            ("token_type", 2),
        )
    }
    shapes |= _norm("embeddings.LayerNorm", width)
    for layer in range(CONFIG["num_hidden_layers"]):
        key = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _linear(f"{key}.attention.{part}", width, width)
        shapes |= _norm(f"{key}.attention.output.LayerNorm", width) | _norm(f"{key}.output.LayerNorm", width)
        shapes |= _linear(f"{key}.intermediate.dense", hidden, width) | _linear(f"{key}.output.dense", width, hidden)
    shapes |= _linear("pooler.dense", width, width)
    state = {}
    for key, shape in shapes.items():
        noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
        size = 0.1 if len(shape) == 1 else 1.0
        state[key] = (size * noise + key.endswith("LayerNorm.weight")).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    safetensors.numpy.save_file(state, folder / "model.safetensors", {"format": "pt"})
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    model.normalizer = tokenizers.normalizers.BertNormalizer()
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    model.add_special_tokens(list(WORDS[:4]))
    model.save(str(folder / "tokenizer.json"))
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [
        {"path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(("Pooling", "Normalize"), 1)
    ]
    for name, content in {
        "config.json": CONFIG,
        "tokenizer_config.json": special | {"tokenizer_class": "BertTokenizer"},
        "sentence_bert_config.json": {"max_seq_length": 10, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True},
        "modules.json": [{"idx": i, "name": str(i), **module} for i, module in enumerate(modules)],
    }.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def _linear(key: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{key}.weight": (outputs, inputs), f"{key}.bias": (outputs,)}


def _norm(key: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}
