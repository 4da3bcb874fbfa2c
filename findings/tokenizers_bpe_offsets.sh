#!/usr/bin/env bash
# A BPE model of Hugging Face's tokenizers without an unknown token drops characters that it does not know, as one might
# expect, and the offsets of all tokens behind them in the word slide to the left: they name other characters than those
# of the token. With an unknown token they are right. Spans that are found through offsets, such as phrases of a caption
# that are grounded in boxes, then cover the wrong text.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

from tokenizers import Tokenizer, models, pre_tokenizers

print("tokenizers", importlib.metadata.version("tokenizers"))
text = "caf\u00e9s cats"
vocabulary = {letter: number for number, letter in enumerate("acfst")}
results = {}
for unknown in (None, "?"):
    model = models.BPE(vocabulary | ({unknown: 5} if unknown else {}), [], unk_token=unknown)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    encoding = tokenizer.encode(text)
    results[unknown] = [(token, text[start:end]) for token, (start, end) in zip(encoding.tokens, encoding.offsets)]
    print(f"unk_token={unknown!r}, {text!r}: tokens and the text at their offsets: {results[unknown]}")
cats = [("c", "c"), ("a", "a"), ("t", "t"), ("s", "s")]
expected = {
    None: [("c", "c"), ("a", "a"), ("f", "f"), ("s", "\u00e9"), *cats],
    "?": [("c", "c"), ("a", "a"), ("f", "f"), ("?", "\u00e9"), ("s", "s"), *cats],
}
sys.exit(0 if results == expected else "The behaviour has changed.")
P
