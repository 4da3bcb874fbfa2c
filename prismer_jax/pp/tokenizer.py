"""Tokenizers: SentencePiece, the `tokenizers` library's JSON and RoBERTa's files. Each keeps the ids of its files."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prismer_jax.errors import UserError, choose
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


# How published tokenizers spell their special tokens, where nothing beside the file says which they are.
_SPELLINGS = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|im_start|>", "<|endoftext|>", "[CLS]"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "[SEP]"),
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
}


class _Fast(Tokenizer):
    """What those have in common that the `tokenizers` library runs."""

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def id_of(self, token: str) -> int | None:
        return self._model.token_to_id(token)

    def _text(self, ids: list[int]) -> str:
        return self._model.decode(ids, skip_special_tokens=False)


class TokenizersJson(_Fast):
    """A tokenizer.json of the `tokenizers` library; tokenizer_config.json beside it names the special tokens."""

    def read(self) -> None:
        import tokenizers

        path = self._paths[0]
        try:
            self._model = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises plain Exception
            raise UserError(f"{path}: not a tokenizer of the tokenizers library ({error}).") from None
        self._model.no_truncation()
        self._model.no_padding()
        self.vocab_size = self._model.get_vocab_size()
        self.special = frozenset(i for i, t in self._model.get_added_tokens_decoder().items() if t.special)
        self.set_ids(path, *(self._id(kind) for kind in ("bos", "eos", "pad")))

    def _id(self, kind: str) -> int | None:
        names = _SPELLINGS[kind]
        if len(self._paths) > 1:
            config = self._paths[1]
            try:
                token = json.loads(config.read_text(encoding="utf-8")).get(f"{kind}_token")
            except (ValueError, AttributeError) as error:
                raise UserError(f"{config}: not a tokenizer's configuration ({error}).") from None
            token = token.get("content") if isinstance(token, dict) else token
            names = () if token is None else (token,)
        ids = (self._model.token_to_id(name) for name in names)
        return next((token for token in ids if token is not None), None)


class Roberta(_Fast):
    """RoBERTa's byte-level BPE from vocab.json and merges.txt, as transformers' RobertaTokenizer splits plain text.

    Text that spells a special token, such as "</s>", is text here: no caption can end itself.
    """

    def read(self) -> None:
        import tokenizers

        vocab, merges = self._paths
        try:
            table = json.loads(vocab.read_text(encoding="utf-8"))
            bos, pad, eos, unk = (table[token] for token in ("<s>", "<pad>", "</s>", "<unk>"))
        except KeyError as error:
            raise UserError(f"{vocab}: not RoBERTa's, it has no token {error}. Fetch its vocab.json again.") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{vocab}: not a table of tokens ({error}). Fetch RoBERTa's vocab.json again.") from None
        try:
            model = tokenizers.models.BPE.from_file(str(vocab), str(merges))
        except Exception as error:  # the Rust library raises plain Exception
            raise UserError(f"{merges}: not BPE merges of {vocab} ({error}). Fetch merges.txt again.") from None
        self._model = tokenizers.Tokenizer(model)
        self._model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._model.decoder = tokenizers.decoders.ByteLevel()
        self.vocab_size = self._model.get_vocab_size()
        self.special = frozenset({bos, pad, eos, unk, *([table["<mask>"]] if "<mask>" in table else [])})
        self.set_ids(vocab, bos, eos, pad)


def _one(where: pathlib.Path) -> list[pathlib.Path]:
    return [where]


def _roberta(where: pathlib.Path) -> list[pathlib.Path]:
    return [where / name for name in ("vocab.json", "merges.txt")]


def _json(where: pathlib.Path) -> list[pathlib.Path]:
    path = where / "tokenizer.json" if where.is_dir() else where
    config = path.parent / "tokenizer_config.json"
    return [path, *([config] if config.is_file() else [])]


# {kind: its class, and from the PATH of the spec to the files}
KINDS = {
    "scenes": (SentencePiece, _one),
    "sentencepiece": (SentencePiece, _one),
    "roberta": (Roberta, _roberta),
    "tokenizers": (TokenizersJson, _json),
}


def load(spec: str) -> Tokenizer:
    """Returns the tokenizer of a spec.

    Args:
      spec: 'scenes' (shipped with the package), 'sentencepiece:FILE', 'roberta:DIR' (vocab.json and merges.txt), or
        'tokenizers:PATH' (tokenizer.json or its folder, with tokenizer_config.json if it is there).

    Raises:
      UserError: the kind is unknown, or a file is missing or garbled.
    """
    kind, _, where = spec.partition(":")
    cls, files = choose("tokenizer", kind, KINDS)
    if kind != "scenes" and not where:
        raise UserError(f"The tokenizer {spec!r} names no {'folder' if kind == 'roberta' else 'file'}: {kind}:PATH.")
    path = SCENES if kind == "scenes" else storage.on_disk(where)
    return cls(spec, *files(path))


def extended(text: str, tokens: Sequence[str]) -> str:
    """Returns the text of a tokenizer.json with further special tokens, numbered behind its own."""
    import tokenizers

    model = tokenizers.Tokenizer.from_str(text)
    model.add_special_tokens(list(tokens))
    return model.to_str(pretty=True)


def load_from(folder: str | os.PathLike, spec: str) -> Tokenizer:
    """Returns the tokenizer of an exported checkpoint, from the copies of its files in `folder`.

    Raises:
      UserError: as `load`.
    """
    kind, _, where = spec.partition(":")
    if kind in ("roberta", "tokenizers"):
        return load(f"{kind}:{folder}")
    return load(f"sentencepiece:{pathlib.Path(folder) / (pathlib.Path(where).name or SCENES.name)}")


def check_ids(description: Mapping[str, Any], where: str | os.PathLike) -> None:
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
