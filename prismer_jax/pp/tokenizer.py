"""Tokenizers: SentencePiece here, the `tokenizers` library's in fast_tokenizers.py. Each keeps the ids of its files."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from prismer_jax import registry
from prismer_jax.errors import UserError
from prismer_jax.files import storage

SCENES = pathlib.Path(__file__).parent / "scenes.model"


class Tokenizer:
    """Text to ids and back. Pickled as its spec.

    Nothing else knows an id: models, packing, decoding and evaluators take them from here.

    Attributes:
      spec: what `load` was given.
      bos: the id that a text begins with: that of the file, or `eos` where it has none (as GPT-2 and OPT do).
      eos: the id that ends a text.
      pad: the id of padding: that of the file, or `eos` where it has none (as SmolLM2 does).
      special: all ids that are no text; `decode` drops them.
    """

    def __init__(self, spec: str, *paths: pathlib.Path) -> None:
        self.spec = spec
        self._paths = paths
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path}: no such file; the tokenizer {spec!r} needs it.")
        self.read()  # so that a garbled file is reported here and not in a worker

    @staticmethod
    def paths(where: pathlib.Path) -> list[pathlib.Path]:
        """Returns the files of a tokenizer, from the PATH of its spec."""
        return [where]

    def files(self) -> list[pathlib.Path]:
        """Returns the files that make up the tokenizer, for an exported checkpoint to carry."""
        return list(self._paths)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return load, (self.spec,)

    def read(self) -> None:
        """Reads the files and sets `vocab_size`, `bos`, `eos`, `pad` and `special`."""
        raise NotImplementedError

    def set_ids(self, where: pathlib.Path, bos: int | None, eos: int | None, pad: int | None) -> None:
        """Sets the special ids, of which a file may lack `bos` and `pad`.

        Raises:
          UserError: the file has no `eos`: no text could end.
        """
        if eos is None:
            raise UserError(f"{where}: names no token that ends a text (eos). Use a tokenizer that has one.")
        self.bos, self.eos, self.pad = eos if bos is None else bos, eos, eos if pad is None else pad

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without special ids around them."""
        raise NotImplementedError

    def id_of(self, token: str) -> int | None:
        """Returns the id of a token of the vocabulary as its file spells it, or None."""
        raise NotImplementedError

    def encode_after(self, text: str) -> list[int]:
        """Returns the ids of a text that follows another one after a space."""
        return self.encode(f" {text}")

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids up to the first end, without special ids and ids beyond the vocabulary."""
        words = []
        for token in map(int, ids):
            if token == self.eos:
                break
            if token not in self.special and token < self.vocab_size:
                words.append(token)
        return self._text(words)

    def _text(self, ids: list[int]) -> str:
        raise NotImplementedError


class SentencePiece(Tokenizer):
    """A SentencePiece model, such as those of T5, Gemma and Llama."""

    def read(self) -> None:
        import sentencepiece

        (path,) = self._paths
        try:
            if not (data := path.read_bytes()):
                raise OSError("the file is empty")
            self._model = model = sentencepiece.SentencePieceProcessor(model_proto=data)
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path}: not a SentencePiece model ({str(error).splitlines()[0]}).") from None
        self.vocab_size = model.get_piece_size()
        self.special = frozenset(i for i in range(self.vocab_size) if model.is_control(i) or model.is_unknown(i))
        ids = (model.bos_id(), model.eos_id(), model.pad_id())
        self.set_ids(path, *(None if token < 0 else token for token in ids))
        # Most models put a space before every text themselves; a second one would be a token of its own.
        self._adds_space = model.encode("a", out_type=str)[0].startswith("\u2581")

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def id_of(self, token: str) -> int | None:
        number = self._model.piece_to_id(token)
        return number if self._model.id_to_piece(number) == token else None

    def encode_after(self, text: str) -> list[int]:
        return self.encode(text if self._adds_space else f" {text}")

    def _text(self, ids: list[int]) -> str:
        return self._model.decode(ids)


# Kind -> module and class; imported when a tokenizer of it is asked for.
KINDS = {
    **dict.fromkeys(("scenes", "sentencepiece"), "prismer_jax.pp.tokenizer:SentencePiece"),
    "opt": "prismer_jax.pp.fast_tokenizers:Opt",
    "roberta": "prismer_jax.pp.fast_tokenizers:Roberta",
    "tokenizers": "prismer_jax.pp.fast_tokenizers:TokenizersJson",
}


def load(spec: str) -> Tokenizer:
    """Returns the tokenizer of a spec.

    Args:
      spec: 'scenes' (shipped here), 'sentencepiece:FILE', 'roberta:DIR', 'opt:DIR' (vocab.json and merges.txt), or
        'tokenizers:PATH' (tokenizer.json or its folder, with tokenizer_config.json if it is there).

    Raises:
      UserError: the kind is unknown, or a file is missing or garbled.
    """
    kind, _, where = str(spec).partition(":")
    cls = registry.imported("tokenizer", kind, KINDS)
    if kind != "scenes" and not where:
        raise UserError(f"The tokenizer {spec!r} names no folder or file: {kind}:PATH.")
    return cls(spec, *cls.paths(SCENES if kind == "scenes" else storage.on_disk(where)))


def load_from(folder: storage.PathLike, spec: str) -> Tokenizer:
    """Returns the tokenizer of an exported checkpoint, from the copies of its files in `folder`.

    Raises:
      UserError: as `load`.
    """
    kind, _, where = spec.partition(":")
    if kind in ("opt", "roberta", "tokenizers"):
        return load(f"{kind}:{folder}")
    return load(f"sentencepiece:{pathlib.Path(folder) / (pathlib.Path(where).name or SCENES.name)}")


def check_ids(description: Mapping[str, Any], where: storage.PathLike) -> None:
    """Checks that a checkpoint's tokenizer has the ids that its embeddings were trained with.

    Args:
      description: of `checkpoint.description`.
      where: names the checkpoint in the error.

    Raises:
      UserError: version 0.1 trained it, which moved the ids of SentencePiece models to RoBERTa's layout.
    """
    spec, version = description.get("tokenizer", ""), description.get("versions", {}).get("prismer_jax", "")
    if version.startswith("0.1.") and spec.startswith("sentencepiece:"):
        tokenizer = load_from(description["folder"], spec)
        if (tokenizer.bos, tokenizer.pad, tokenizer.eos, len(tokenizer.special)) != (0, 1, 2, 4):
            raise UserError(
                f"{where}: version {version} numbered the words of {spec} otherwise than their file. Convert it: "
                f"python -m tools.convert renumber --input {where} --output DIR"
            )
