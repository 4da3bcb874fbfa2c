"""Texts as vectors: SentenceEmbedder("all-MiniLM-L6-v2").embed(texts), as the library sentence-transformers makes them.

Of its models, those that are a BERT and the mean of its states are read, as all-MiniLM-L6-v2 is.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax import pp, tree
from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.towers.sentence import SentenceEncoder
from prismer_jax.weights import modules, rules, safe

WEIGHTS = pathlib.Path("weights/sentences")  # where tools.download puts models
TABLE = rules.Table(
    (
        *modules.roberta_embeddings("embeddings", "encoder"),
        *modules.roberta_layer("encoder.layer.{}", "encoder/layers"),
    ),
    spellings=((r"^bert\.", ""), *modules.OLD_NORMS),
    ignored=(r"embeddings\.position_ids", r"pooler\..*", r"cls\..*"),
)
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
LENGTHS = (16, 32, 64, 128, 256, 512)  # columns of what is compiled


class SentenceEmbedder:
    """A model of sentence-transformers, read from its folder; its weights with the first texts.

    Attributes:
      width: numbers in a vector.
      longest: tokens of a text that are read, [CLS] and [SEP] among them; the others are cut off, as there.
    """

    def __init__(self, path: storage.PathLike) -> None:
        """Reads all but the weights.

        Args:
          path: the model's folder, or the name of one in `weights/sentences`.

        Raises:
          UserError: there is no such model, or it is not a BERT with mean pooling.
        """
        self.folder = _folder(path)
        config = {"model_type": None} | _json(self.folder / "config.json", None)
        expected = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        if other := [key for key, value in expected.items() if config.get(key, value) != value]:
            raise UserError(
                f"{self.folder}: has {other[0]} {config[other[0]]!r}; only a BERT with mean pooling is read."
            )
        if lacking := [key for key in SIZES if not isinstance(config.get(key), int)]:
            raise UserError(f"{self.folder}/config.json: has no {lacking[0]}. Fetch it again.")
        pooling = _json(self.folder / "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
        modes = [mode for mode, chosen in pooling.items() if mode.startswith("pooling_mode_") and chosen is True]
        if modes != ["pooling_mode_mean_tokens"] and pooling.get("pooling_mode") != "mean":
            raise UserError(f"{self.folder}: pools by {', '.join(modes) or 'nothing'}; only means of tokens are made.")
        parts = _json(self.folder / "modules.json", [{"type": "Normalize"}])
        kinds = [str(part.get("type")) for part in parts if isinstance(part, dict)]
        self._unit = any(kind.endswith("Normalize") for kind in kinds)
        self._tokenizer = pp.tokenizer.load(f"tokenizers:{self.folder}")
        self._model = SentenceEncoder(
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            mlp_dim=config["intermediate_size"],
            vocab_size=config["vocab_size"],
            max_positions=config["max_position_embeddings"],
            token_types=config.get("type_vocab_size", 2),
            epsilon=config.get("layer_norm_eps", 1e-12),
        )
        most = _json(self.folder / "sentence_bert_config.json", {}).get("max_seq_length")
        self.longest = min(most or self._model.max_positions, self._model.max_positions)
        self.width = self._model.width

    def embed(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Returns float32 [texts, width]; of length 1 where the model's vectors are.

        Texts of like length are read together; a vector does not depend on the others.

        Raises:
          UserError: the weights are missing or do not fit.
        """
        tokenizer, vectors = self._tokenizer, np.zeros((len(texts), self.width), np.float32)
        rows = [[tokenizer.bos, *tokenizer.encode(text.strip())[: self.longest - 2], tokenizer.eos] for text in texts]
        order = sorted(range(len(texts)), key=lambda place: len(rows[place]))
        for start in range(0, len(texts), batch_size):
            places = order[start : start + batch_size]
            columns = next((n for n in LENGTHS if n >= len(rows[places[-1]])), self._model.max_positions)
            ids = np.full((batch_size, min(columns, self._model.max_positions)), tokenizer.pad, np.int32)
            real = np.zeros(ids.shape, bool)
            for row, place in enumerate(places):
                ids[row, : len(rows[place])], real[row, : len(rows[place])] = rows[place], True
            vectors[places] = self._run(self._params, ids, real)[: len(places)]
        return vectors

    @functools.cached_property
    def _params(self) -> Any:
        ids = jnp.zeros((1, 2), jnp.int32)
        shapes = jax.eval_shape(self._model.init, jax.random.key(0), ids, ids == 0)
        shapes = tree.flatten({"params": {"encoder": shapes["params"]}})
        arrays = rules.from_torch(safe.load(self.folder), TABLE, shapes, str(self.folder))
        return tree.unflatten({name: jnp.asarray(make()) for name, make in arrays.items()})["params"]["encoder"]

    @functools.cached_property
    def _run(self) -> Any:
        def run(params: Any, ids: jax.Array, real: jax.Array) -> jax.Array:
            vectors = self._model.apply({"params": params}, ids, real)
            norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
            return vectors / jnp.maximum(norms, 1e-12) if self._unit else vectors

        return jax.jit(run)


def _folder(path: storage.PathLike) -> pathlib.Path:
    folder = storage.on_disk(path)
    if not folder.is_dir() and (WEIGHTS / folder).is_dir():
        return WEIGHTS / folder
    if not folder.is_dir():
        raise UserError(
            f"{path}: no such folder, nor {WEIGHTS / folder}. Fetch it with python -m tools.download sentences "
            f"{folder.name}."
        )
    return folder


def _json(path: pathlib.Path, default: Any) -> Any:
    """Returns what a file of JSON holds, a dict unless the default is a list; the default where there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is not None:
            return default
        raise UserError(f"{path}: there is none. Give the folder of a model of sentence-transformers.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error}). Fetch it again.") from None
    if not isinstance(content, type(default or {})):
        raise UserError(f"{path}: is no file of a model of sentence-transformers. Fetch it again.")
    return content
