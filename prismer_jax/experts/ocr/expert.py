"""Read words: CharNet finds and reads them, CLIP says what they mean; in the map, where each of them is.

Beside CharNet's checkpoint it needs FILES, which `python -m tools.download` fetches. They may lie in the checkpoint's
folder, in the folders beside it that tools.download makes, or where the official repository has them. Source:
NVlabs/prismer, experts/generate_ocrdet.py.

What the reference leaves open is defined here:
  no word      the map is all background, with no features
  many words   the 255 surest have ids
  no lexicon   of words whose characters are in doubt none is kept; a warning says so
  any sign     CLIP's tokenizer spells what it does not know in bytes; the 75 first tokens of a text count
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from prismer_jax import labels
from prismer_jax.errors import UserError
from prismer_jax.experts.expert import Label, SquareExpert, compiled
from prismer_jax.experts.ocr import clip_text, hourglass, reading
from prismer_jax.experts.ocr.lexicon import Lexicon
from prismer_jax.typing import Array, Float, Int, UInt8, typed
from prismer_jax.weights import label_tables, rules, safe
from prismer_jax.weights.rules import Rule

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

CLIP, PCA, MERGES, LEXICON = "ViT-L-14.pt", label_tables.PCA, "bpe_simple_vocab_16e6.txt.gz", "GenericVocabulary.txt"
# What to ask tools.download for.
FILES = {CLIP: "clip ViT-L/14", PCA: f"label-tables {PCA}", MERGES: f"words {MERGES}", LEXICON: f"words {LEXICON}"}
# Folders that are looked in, seen from the checkpoint's: it itself, tools.download's, the official repository's.
PLACES = (".", "../clip", "../label_tables", "../words", "../ocr_detection/datasets/ICDAR2015/test", "../../dataset")


class Networks(nn.Module):
    """Both networks, as one tree of variables.

    Attributes:
      charnet, clip: their sizes where they are not the official ones.
    """

    charnet: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    clip: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.reader = hourglass.CharNet(**self.charnet, dtype=self.dtype)
        self.meaning = clip_text.WordFeatures(clip_text.ClipText(**self.clip, dtype=self.dtype))

    def __call__(self, image: Array, tokens: Array) -> tuple[dict[str, Array], Array]:
        return self.read(image), self.embed(tokens)

    def read(self, image: Float[Array, "b h w 3"]) -> dict[str, Array]:
        """Maps of words and characters."""
        return self.reader(image)

    def embed(self, tokens: Int[Array, "n t"]) -> Float[Array, "n 64"]:
        """Features of words."""
        return self.meaning(tokens)


def _within(module: str, table: rules.Table) -> list[Rule]:
    """The rules of a part of the network."""
    return [
        dataclasses.replace(rule, names=tuple(name.replace("/", f"/{module}/", 1) for name in rule.names))
        for rule in table.rules
    ]


class OcrDetection(SquareExpert):
    """Words: a map of ids, and for each id the word and its features.

    Attributes:
      lexicon: known words, by which doubtful ones are corrected; empty until `open` finds the file.
      tokenizer: CLIP's. Until `open`, words have stand-in features (`labels.class_vectors`), for tests and timing.
    """

    name, file = "ocr_detection", "icdar2015_hourglass88.pth"
    network = Networks
    table = rules.Table(
        rules=(
            *_within("reader", hourglass.TABLE),
            *_within("meaning/clip", clip_text.TABLE),
            *(Rule(f"pca.{name}", (f"params/meaning/{name}",)) for name in ("mean", "components")),
        ),
        ignored=clip_text.TABLE.ignored,
    )

    def __init__(self, dtype: Any = jnp.float32, **sizes: Any) -> None:
        super().__init__(dtype, **sizes)
        self.lexicon = Lexicon()
        self.tokenizer: clip_text.Tokenizer | None = None

    def init(self, rng: jax.Array) -> Any:
        return self.module.init(rng, jnp.zeros((1, *self.shape(64, 64), 3)), jnp.zeros((1, 8), jnp.int32))

    def init_from_official(self, path: str | os.PathLike[str], allow: Sequence[str] = ()) -> dict[str, Any]:
        """Returns the variables of the official checkpoints of CharNet and CLIP and of the PCA, and opens the rest.

        Args:
          path: CharNet's; the others are looked for in PLACES.

        Raises:
          UserError: as the base class, or a file is missing; the message says how to get it.
        """
        self.open(path)
        folder = pathlib.Path(path).parent
        state = {**safe.load(path), **safe.load(find(folder, CLIP))}
        state |= {f"pca.{name}": array for name, array in label_tables.pca(find(folder, PCA)).items()}
        return self.from_official(state, os.fspath(path), allow)

    def open(self, path: str | os.PathLike[str]) -> None:
        """Reads tokenizer and lexicon, the first time, and looks whether all other FILES are there.

        Args:
          path: of CharNet's checkpoint, which needs CLIP's and the PCA, or of a converted folder, which holds both.

        Raises:
          UserError: a file other than the lexicon is missing, or one is damaged.
        """
        path = pathlib.Path(path)
        for name in () if path.is_dir() else (CLIP, PCA):
            find(path.parent, name)
        if self.tokenizer is not None:
            return
        self.tokenizer = clip_text.Tokenizer(find(path.parent, MERGES))
        try:
            lexicon = find(path.parent, LEXICON)
        except UserError as error:
            logging.warning("%s Until then words that are not read for sure are left out.", error)
        else:
            self.lexicon = Lexicon.read(lexicon)

    def beside(self, path: str | os.PathLike[str]) -> Sequence[str | os.PathLike[str]]:
        folder = pathlib.Path(path).parent
        return [file for name in FILES for place in PLACES if (file := folder / place / name).is_file()]

    @staticmethod
    @typed
    def normalize(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        x = image.astype(jnp.float32) / 255
        return (x - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_DEVIATION)

    def apply(self, variables: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        return scores(self.module.apply(variables, self.normalize(batch["image"]), method="read"))

    def finish(self, output: Mapping[str, np.ndarray], size: tuple[int, int], needed: Mapping[str, Label]) -> Label:
        """Finishes as the base class, with stand-ins for the words' features, which `complete` replaces."""
        ids, words = reading.label_map(reading.words_of(output, size, self.lexicon), size)
        return Label(ids, features=labels.class_vectors(words), words=words)

    def complete(self, variables: Any, label: Label) -> Label:
        """Gives the words their features: CLIP's, reduced to 64 dimensions."""
        if self.tokenizer is None or not label.words:
            return label
        features = self._embed(variables, self.tokenizer.batch(label.words))
        return dataclasses.replace(label, features=np.asarray(features)[: len(label.words)])

    @functools.cached_property
    def _embed(self) -> Any:
        return compiled(functools.partial(self.module.apply, method="embed"))


@typed
def scores(maps: Mapping[str, Float[Array, "b h w _"]]) -> dict[str, Float[Array, "b h w *c"]]:
    """Returns CharNet's maps with probabilities in place of logits, as `reading` takes them, with a batch axis."""
    probabilities = {name: maps[name] for name in ("word_sides", "char_sides")}
    probabilities |= {name: jax.nn.softmax(maps[name])[..., 1] for name in ("word_score", "char_score")}
    return {**probabilities, "word_angle": maps["word_angle"][..., 0], "char_class": jax.nn.softmax(maps["char_class"])}


def find(folder: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Returns where a file of FILES lies; `folder` is that of the checkpoints.

    Raises:
      UserError: in none of PLACES; the message says how to get it.
    """
    folder = pathlib.Path(folder)
    for place in PLACES:
        if (path := folder / place / name).is_file():
            return path
    raise UserError(
        f"{folder / name}: missing; words need it. Fetch it: python -m tools.download {FILES[name]} --output {folder}."
    )
