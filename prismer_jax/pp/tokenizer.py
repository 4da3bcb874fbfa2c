"""SentencePiece and RoBERTa's byte-level BPE, both with RoBERTa's special ids: <s> 0, pad 1, </s> 2, unk 3."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from prismer_jax.errors import UserError, choose

SCENES = pathlib.Path(__file__).parent / "scenes.model"
BOS, PAD, EOS, UNK = 0, 1, 2, 3


class Tokenizer:
    """Text to ids and back. Pickled as its spec; its files are read on first use and at `load`.

    Attributes:
      spec: what `load` was given.
      bos, pad, eos, unk: the special ids, the same for every tokenizer, as models rely on them.
    """

    bos, pad, eos, unk = BOS, PAD, EOS, UNK

    def __init__(self, spec: str, *paths: pathlib.Path) -> None:
        self.spec = spec
        self._paths = paths
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path}: no such file; the tokenizer {spec!r} needs it.")

    def files(self) -> list[pathlib.Path]:
        """The files that make up the tokenizer, for an exported checkpoint to carry."""
        return list(self._paths)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return load, (self.spec,)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special ids around them."""
        raise NotImplementedError

    def encode_after(self, text: str) -> list[int]:
        """Ids of a text that follows another one after a space."""
        return self.encode(f" {text}")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first end; special ids and ids beyond the vocabulary are dropped."""
        raise NotImplementedError

    def _ordinary(self, ids: Iterable[int]) -> list[int]:
        kept = []
        for token in ids:
            if token == EOS:
                break
            if token > UNK and token < self.vocab_size:
                kept.append(int(token))
        return kept


class SentencePiece(Tokenizer):
    """A SentencePiece model. Where its own special ids lie elsewhere, all ids are moved to RoBERTa's layout."""

    @functools.cached_property
    def _model(self) -> Any:
        import sentencepiece

        (path,) = self._paths
        try:
            if not (data := path.read_bytes()):
                raise OSError("the file is empty")
            return sentencepiece.SentencePieceProcessor(model_proto=data)
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path}: not a SentencePiece model ({str(error).splitlines()[0]}).") from None

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """Our id of each of the model's: itself, where the model was trained in this layout."""
        model = self._model
        own = {model.bos_id(): BOS, model.pad_id(): PAD, model.eos_id(): EOS, model.unk_id(): UNK}
        own.pop(-1, None)  # what the model was trained without
        table = np.full(model.get_piece_size(), -1, np.int64)
        for theirs, ours in own.items():
            table[theirs] = ours
        rest = table < 0
        table[rest] = UNK + 1 + np.arange(rest.sum())
        return table

    @functools.cached_property
    def vocab_size(self) -> int:
        return int(self._table.max()) + 1

    @functools.cached_property
    def _inverse(self) -> dict[int, int]:
        return {int(ours): theirs for theirs, ours in enumerate(self._table)}

    def encode(self, text: str) -> list[int]:
        return self._table[self._model.encode(text)].tolist()

    def encode_after(self, text: str) -> list[int]:
        # Most models put a space before every text themselves; a second one would be a token of its own.
        return self.encode(text if self._adds_space else f" {text}")

    @functools.cached_property
    def _adds_space(self) -> bool:
        return self._model.encode("a", out_type=str)[0].startswith("\u2581")

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode([self._inverse[token] for token in self._ordinary(ids)])


class Roberta(Tokenizer):
    """RoBERTa's byte-level BPE from vocab.json and merges.txt, as transformers' RobertaTokenizer splits plain text.

    Text that spells a special token, such as "</s>", is text here: no caption can end itself.
    """

    @functools.cached_property
    def _model(self) -> Any:
        import tokenizers

        vocab, merges = self._paths
        try:
            table = json.loads(vocab.read_text(encoding="utf-8"))
            special = [table.get(token) for token in ("<s>", "<pad>", "</s>", "<unk>")]
        except (ValueError, AttributeError) as error:
            raise UserError(f"{vocab}: not a table of tokens ({error}). Fetch RoBERTa's vocab.json again.") from None
        if special != [BOS, PAD, EOS, UNK]:
            raise UserError(f"{vocab}: not RoBERTa's, <s> <pad> </s> <unk> are {special} instead of 0 1 2 3.")
        try:
            model = tokenizers.models.BPE.from_file(str(vocab), str(merges))
        except Exception as error:  # the Rust library raises plain Exception
            raise UserError(f"{merges}: not BPE merges of {vocab} ({error}). Fetch merges.txt again.") from None
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        return tokenizer

    @functools.cached_property
    def vocab_size(self) -> int:
        return self._model.get_vocab_size()

    @functools.cached_property
    def _mask(self) -> int | None:
        return self._model.token_to_id("<mask>")

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode([i for i in self._ordinary(ids) if i != self._mask], skip_special_tokens=False)


KINDS = {"scenes": SentencePiece, "sentencepiece": SentencePiece, "roberta": Roberta}


def load(spec: str) -> Tokenizer:
    """'scenes' (shipped with the package), 'sentencepiece:FILE', or 'roberta:DIR' (vocab.json and merges.txt).

    Raises:
      UserError: the kind is unknown, or a file is missing or garbled.
    """
    kind, _, where = spec.partition(":")
    cls = choose("tokenizer", kind, KINDS)
    if kind == "scenes":
        paths = [SCENES]
    elif not where:
        raise UserError(f"The tokenizer {spec!r} names no {'folder' if kind == 'roberta' else 'file'}: {kind}:PATH.")
    elif kind == "roberta":
        paths = [pathlib.Path(os.path.expanduser(where)) / name for name in ("vocab.json", "merges.txt")]
    else:
        paths = [pathlib.Path(os.path.expanduser(where))]
    tokenizer = cls(spec, *paths)
    _ = tokenizer.vocab_size  # reads the files, so that a garbled one is found here and not in a worker
    return tokenizer


def load_from(folder: str | os.PathLike, spec: str) -> Tokenizer:
    """The tokenizer of an exported checkpoint, from the copies of its files in `folder`.

    Raises:
      UserError: as `load`.
    """
    kind, _, where = spec.partition(":")
    if kind == "roberta":
        return load(f"roberta:{folder}")
    return load(f"sentencepiece:{pathlib.Path(folder) / (pathlib.Path(where).name or SCENES.name)}")
