#!/usr/bin/env bash
# Hugging Face's tokenizers learn a vocabulary from counts, with nothing random in it. Yet a WordPiece, trained five
# times on the same sentences in one process, has five different vocabularies: most words have other ids, some are other
# words, and the same text is cut differently. A BPE with end_of_word_suffix="</w>", as CLIP's is, learns the same words
# each time, but gives them other ids. Who trains a tokenizer anew instead of keeping its file, on each process of a
# slice or at the start of a resumed run, reads the ids of another vocabulary, all of them valid, and embeddings of
# other words. Neither TOKENIZERS_PARALLELISM=false nor one thread changes it. A plain BPE, by bytes too, WordLevel and
# Unigram are the same each time. The pieces with a prefix or a suffix get their ids as a hash map yields words, and
# these ids decide between pairs that are equally frequent (huggingface/tokenizers#1794, where it was first taken for
# dropout). Seen with tokenizers 0.23.3. prismer_jax trains no tokenizer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tokenizers==0.23.3
TOKENIZERS_PARALLELISM=false RAYON_NUM_THREADS=1 "$folder/venv/bin/python" - <<'P'
import importlib.metadata
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

print("tokenizers", importlib.metadata.version("tokenizers"))
TEXTS = ["a brown dog runs over the green hill", "two cats sleep on a red sofa in the house"]
TEXTS += ["a man rides a bicycle along the river", "children play football in the park"]
TEXTS = (TEXTS + ["an old train crosses the long bridge"]) * 20
ASKED = "two dogs sleep on the bridge"
options = dict(vocab_size=120, special_tokens=["[UNK]"], show_progress=False)
byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
alphabet = dict(initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
kinds = {
    "WordPiece": (models.WordPiece, trainers.WordPieceTrainer, {}, None),
    "BPE with a suffix": (models.BPE, trainers.BpeTrainer, dict(end_of_word_suffix="</w>"), None),
    "BPE": (models.BPE, trainers.BpeTrainer, {}, None),
    "BPE by bytes": (models.BPE, trainers.BpeTrainer, dict(vocab_size=300, **alphabet), byte_level),
    "WordLevel": (models.WordLevel, trainers.WordLevelTrainer, {}, None),
}


def train(model, trainer, more, pre_tokenizer):
    tokenizer = Tokenizer(model(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXTS, trainer(**(options | more)))
    return tokenizer


seen = {}
for name, kind in kinds.items():
    trained = [train(*kind) for _ in range(5)]
    ids = len({tuple(sorted(tokenizer.get_vocab().items())) for tokenizer in trained})
    words = len({frozenset(tokenizer.get_vocab()) for tokenizer in trained})
    seen[name] = ids, words
    print(f"{name}, trained 5 times: {words} different sets of words, {ids} different numberings", end="; ")
    encoded = trained[0].encode(ASKED)
    other = trained[1].decode(encoded.ids, skip_special_tokens=False)
    print(f"{ASKED!r} by the first, read by the second: {other!r}")
changed = seen["WordPiece"][0] == 1 or seen["WordPiece"][1] == 1 or seen["BPE with a suffix"][0] == 1
changed |= seen["BPE with a suffix"][1] != 1 or any(seen[name] != (1, 1) for name in ("BPE", "BPE by bytes", "WordLevel"))
sys.exit("The behaviour has changed." if changed else 0)
P
