"""--tokenizer of tools.convert, which is one thing for all families, and the files that a checkpoint then carries."""

from __future__ import annotations

import argparse
from typing import Any

from prismer_jax.files import storage
from prismer_jax.pp import tokenizer


def read(given: str, kind: str) -> tokenizer.Tokenizer:
    """Returns the tokenizer that --tokenizer names, which is the same in all commands.

    Args:
      given: a spec, such as 'tokenizers:FOLDER', or a path alone: of a SentencePiece model, where it ends in '.model',
        else of the family's own kind.
      kind: the latter, a name of tokenizer.KINDS.

    Raises:
      UserError: an unknown kind, or a file is missing or garbled.
    """
    kind_given, colon, _ = given.partition(":")
    if given == "scenes" or (colon and (kind_given in tokenizer.KINDS or not storage.on_disk(given).exists())):
        return tokenizer.load(given)
    return tokenizer.load(f"{'sentencepiece' if given.endswith('.model') else kind}:{given}")


def carried(given: tokenizer.Tokenizer) -> tuple[str, dict[str, Any]]:
    """Returns the spec of a tokenizer whose files lie in the export's folder, and {name: path} of them."""
    kind, files = given.spec.partition(":")[0], {path.name: path for path in given.files()}
    folder = kind in ("opt", "roberta", "tokenizers")
    return (f"{kind}:." if folder else f"sentencepiece:{min(files)}"), files


def add(parser: argparse.ArgumentParser, kind: str, required: bool = False) -> None:
    """Adds --tokenizer, which `read` takes; `kind` says what a path alone is."""
    alone = f"a path alone is a SentencePiece model if it ends in .model, else {kind}"
    text = f"KIND:PATH, kinds: {', '.join(tokenizer.KINDS)}; {alone}"
    parser.add_argument("--tokenizer", required=required, metavar="SPEC", help=text)
