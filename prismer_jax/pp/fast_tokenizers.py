"""Tokenizers that the `tokenizers` library runs: its own JSON, such as SmolLM2's, and RoBERTa's two files."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

import tokenizers

from prismer_jax.errors import UserError
from prismer_jax.pp.tokenizer import Tokenizer

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

    @staticmethod
    def paths(where: pathlib.Path) -> list[pathlib.Path]:
        path = where / "tokenizer.json" if where.is_dir() else where
        config = path.parent / "tokenizer_config.json"
        return [path, *([config] if config.is_file() else [])]

    def read(self) -> None:
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
                named = json.loads(config.read_text(encoding="utf-8"))
                token = named.get(f"{kind}_token") or named.get({"bos": "cls_token", "eos": "sep_token"}.get(kind))
            except (ValueError, AttributeError, RecursionError) as error:
                raise UserError(f"{config}: not a tokenizer's configuration ({error}).") from None
            token = token.get("content") if isinstance(token, dict) else token
            names = () if token is None else (token,)
        ids = (self._model.token_to_id(name) for name in names)
        return next((token for token in ids if token is not None), None)


class Roberta(_Fast):
    """RoBERTa's byte-level BPE from vocab.json and merges.txt, as transformers' RobertaTokenizer splits plain text.

    Text that spells a special token, such as "</s>", is text here: no caption can end itself.
    """

    @staticmethod
    def paths(where: pathlib.Path) -> list[pathlib.Path]:
        return [where / name for name in ("vocab.json", "merges.txt")]

    def read(self) -> None:
        vocab, merges = self._paths
        try:
            table = json.loads(vocab.read_text(encoding="utf-8"))
            bos, pad, eos, unk = (table[token] for token in ("<s>", "<pad>", "</s>", "<unk>"))
        except KeyError as error:
            raise UserError(f"{vocab}: not RoBERTa's, it has no token {error}. Fetch its vocab.json again.") from None
        except (ValueError, TypeError, RecursionError) as error:
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


class Opt(Roberta):
    """OPT's vocab.json and merges.txt as BLIP-2 uses them: a text begins with </s> and ends with a line break.

    Source: salesforce/LAVIS, models/blip2_models/blip2_opt.py.
    """

    def read(self) -> None:
        super().read()
        line_break = self.id_of("\u010a")  # as byte-level BPE spells it
        if line_break is None:
            raise UserError(f"{self._paths[0]}: has no line break among its tokens; it is not OPT's. Fetch it again.")
        self.bos, self.eos = self.eos, line_break


def extended(text: str, tokens: Sequence[str]) -> str:
    """Returns the text of a tokenizer.json with further special tokens, numbered behind its own."""
    model = tokenizers.Tokenizer.from_str(text)
    model.add_special_tokens(list(tokens))
    return model.to_str(pretty=True)
