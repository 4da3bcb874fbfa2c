"""CLIP's text encoder (arXiv 2103.00020, ViT-L/14's) and the projection of its features to those of label maps.

Sources: openai/CLIP, clip/model.py and clip/simple_tokenizer.py; NVlabs/prismer, experts/generate_ocrdet.py.
"""

from __future__ import annotations

import gzip
import html
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from prismer_jax.errors import UserError
from prismer_jax.files.storage import PathLike
from prismer_jax.labels import FEATURES
from prismer_jax.towers import layers
from prismer_jax.typing import Array, Float, Int, typed
from prismer_jax.weights import modules, rules
from prismer_jax.weights.rules import Rule

CONTEXT = 77  # tokens of the longest text, its start and end among them
VOCABULARY = 49408
START, END = VOCABULARY - 2, VOCABULARY - 1
MERGES = VOCABULARY - 2 - 512  # 512: every byte, inside and at the end of a word
# How a text is split before the merges: contractions, words, single digits, runs of other signs.
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


class Block(nn.Module):
    """Attention to what comes before, and MLP, each after a norm."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, None]:
        width, tokens = x.shape[-1], x.shape[1]
        attention = layers.Attention(width, self.heads, dtype=self.dtype, name="attention")
        h = layers.LayerNorm(name="norm_attention")(x)
        x = x + attention(h, attention.keys(h, mask=jnp.tri(tokens, dtype=bool)))
        h = layers.LayerNorm(name="norm_mlp")(x)
        x = x + layers.MLP(4 * width, layers.quick_gelu, dtype=self.dtype, name="mlp")(h)
        self.sow("intermediates", "out", x)
        return x, None


class ClipText(nn.Module):
    """Texts become features: the transformer's output at the text's end, projected."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    features: int = 768
    dtype: Any = jnp.float32

    @nn.compact
    @typed
    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n {self.features}"]:
        """Returns features in float32.

        Args:
          tokens: START, text, END, then anything: no token sees those behind it. Up to CONTEXT.
        """
        normal = nn.initializers.normal
        embedding = self.param("embedding", normal(0.02), (VOCABULARY, self.width))
        positions = self.param("position_embedding", normal(0.01), (CONTEXT, self.width))
        x = (embedding[tokens] + positions[: tokens.shape[1]]).astype(self.dtype)
        self.sow("intermediates", "embedded", x)
        x, _ = layers.stack(Block, self.layers, "none", broadcast=0)(self.heads, self.dtype, name="blocks")(x)
        x = layers.LayerNorm(name="norm")(x)
        self.sow("intermediates", "normed", x)
        # END is the largest id, and the first one counts.
        last = x[jnp.arange(len(x)), tokens.argmax(1)].astype(jnp.float32)
        projection = self.param("projection", normal(self.width**-0.5), (self.width, self.features))
        return last @ projection


class WordFeatures(nn.Module):
    """CLIP's features of texts, of which the principal components of class names are kept."""

    clip: ClipText

    def setup(self) -> None:
        size = self.clip.features
        self.mean = self.param("mean", nn.initializers.zeros, (size,))
        self.components = self.param("components", nn.initializers.normal(size**-0.5), (FEATURES, size))

    @typed
    def __call__(self, tokens: Int[Array, "n t"]) -> Float[Array, "n 64"]:
        return self.reduce(self.clip(tokens))

    @typed
    def reduce(self, features: Float[Array, "n d"]) -> Float[Array, "n 64"]:
        """Projects features to the principal components, without whitening."""
        return jnp.einsum("nd,kd->nk", features - self.mean, self.components, precision=jax.lax.Precision.HIGHEST)


TABLE = rules.Table(
    rules=(
        Rule("token_embedding.weight", ("params/embedding",)),
        Rule("positional_embedding", ("params/position_embedding",)),
        *modules.clip_block("transformer.resblocks.{}", "blocks"),
        *modules.norm("ln_final", "norm"),
        Rule("text_projection", ("params/projection",)),
    ),
    ignored=(r"visual\..*", "logit_scale", "input_resolution", "context_length", "vocab_size"),
)


class Tokenizer:
    """CLIP's byte-level BPE. Every text has tokens: what is no known word is spelt, byte by byte if need be."""

    def __init__(self, merges: PathLike) -> None:
        """Reads the official bpe_simple_vocab_16e6.txt.gz.

        Raises:
          UserError: it is missing, damaged, or another file.
        """
        # Here: the Rust library takes a while to import.
        from tokenizers import Regex, models, pre_tokenizers
        from tokenizers import Tokenizer as Model

        path = pathlib.Path(merges)
        try:
            lines = gzip.decompress(path.read_bytes()).decode().splitlines()[1 : 1 + MERGES]
            pairs = [(first, second) for first, second in (line.split() for line in lines)]
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise UserError(f"{path}: cannot be read as CLIP's merges ({error}). Fetch it again.") from None
        bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
        pieces = [*bytes_, *(f"{byte}</w>" for byte in bytes_), *map("".join, pairs)]
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        if len(vocabulary) != START:
            raise UserError(f"{path}: holds {len(pairs)} merges instead of CLIP's {MERGES}. Fetch it again.")
        try:
            self._model = Model(models.BPE(vocabulary, pairs, end_of_word_suffix="</w>"))
        except Exception as error:  # the Rust library raises plain Exception
            raise UserError(f"{path}: is no list of merges ({error}). Fetch it again.") from None
        split = pre_tokenizers.Split(Regex(SPLIT), "removed", invert=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._model.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])

    def encode(self, text: str) -> list[int]:
        """Ids of a text between START and END; of one longer than CONTEXT, the first ones.

        HTML's entities become characters, as in the official tokenizer, and capitals small letters. Its repair of
        wrongly decoded text (ftfy) is left out: read words are plain ASCII.
        """
        text = html.unescape(html.unescape(text)).lower()
        return [START, *self._model.encode(text).ids[: CONTEXT - 2], END]

    def batch(self, texts: Sequence[str]) -> Int[np.ndarray, "n t"]:
        """Ids int32 of texts, padded with zeros to 8 or 16 tokens or CONTEXT, and with empty texts to a power of two.

        So few shapes are compiled. Short texts cost little: words have 3 to 6 tokens.
        """
        encoded = [self.encode(text) for text in texts]
        longest = max(map(len, encoded), default=0)
        length = next(size for size in (8, 16, CONTEXT) if longest <= size)
        tokens = np.zeros((1 << max(len(texts) - 1, 0).bit_length(), length), np.int32)
        for row, ids in zip(tokens, encoded, strict=False):
            row[: len(ids)] = ids
        return tokens
