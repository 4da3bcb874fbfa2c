"""Caption scores: corpus BLEU-1..4, ROUGE-L and CIDEr-D, with the numbers of the COCO caption evaluation.

`caption_metrics` scores texts. The functions below it take `predictions`, a list of token lists, and `references`, for
each prediction the token lists of its references (at least one). Tokens are those of `ptb.tokenize_all`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from prismer_jax import registry
from prismer_jax.errors import UserError
from prismer_jax.scores import ptb

Tokens = Sequence[str]
ORDERS = 4  # n-grams of one to four words
SCORES = (*(f"bleu{n}" for n in range(1, ORDERS + 1)), "rouge_l", "cider")
# Scores of the official Java programs, each with a `check` of whether it can be computed here.
FURTHER = {"meteor": "prismer_jax.scores.jars:meteor", "spice": "prismer_jax.scores.jars:spice"}

# pycocoevalcap adds these to numerators and denominators; they are visible where nothing matches at all.
TINY, SMALL = 1e-15, 1e-9


def caption_metrics(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]], metrics: Sequence[str] = ()
) -> dict[str, float]:
    """Returns the caption scores of one prediction an image: {"bleu1".."bleu4", "rouge_l", "cider"}.

    BLEU and ROUGE-L are in [0, 1]; CIDEr is the usual ratio in [0, 10] (1.33 is what papers print as 133). Texts are
    split by `ptb.tokenize_all`, in the references' order. An empty prediction is legal and scores as a caption without
    words; so is an empty reference among others.

    Args:
      predictions: {id: caption}.
      references: {id: captions}, of the same ids.
      metrics: more of them, names of FURTHER, which need Java.

    Raises:
      UserError: the two do not hold the same ids, there is none, an image has no reference, a caption is no text, or
        what those of FURTHER raise.
    """
    return caption_scores(predictions, references, metrics)[0]


def caption_scores(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]], metrics: Sequence[str] = ()
) -> tuple[dict[str, float], dict[Hashable, float]]:
    """Returns `caption_metrics`, and {id: CIDEr-D} of the predictions, whose mean is that of the set."""
    if not references:
        raise UserError("Nothing to score: the set of references is empty. Check the data set's split or list.")
    if missing := [key for key in references if key not in predictions]:
        raise UserError(f"{len(missing)} of {len(references)} ids have no prediction, such as {missing[0]!r}.")
    if unknown := [key for key in predictions if key not in references]:
        raise UserError(f"{len(unknown)} predictions have ids without references, such as {unknown[0]!r}.")
    if bare := [image for image, captions in references.items() if not captions]:
        raise UserError(f"Image {bare[0]!r} has no reference caption ({len(bare)} such): remove it from the set.")
    for image, captions in references.items():
        if isinstance(captions, str) or not all(isinstance(text, str) for text in (predictions[image], *captions)):
            raise UserError(f"Image {image!r}: a prediction is one text, its references are a list of texts.")
    guesses = ptb.tokenize_all([predictions[image] for image in references])
    tokens = iter(ptb.tokenize_all([caption for captions in references.values() for caption in captions]))
    targets = [[next(tokens) for _ in captions] for captions in references.values()]
    # A token with a space in it, such as '1\u00a01/2', is two words to the official BLEU and CIDEr, but one to ROUGE.
    words, rivals = list(map(_words, guesses)), [list(map(_words, refs)) for refs in targets]
    scores = {f"bleu{n}": value for n, value in enumerate(bleu(words, rivals), 1)}
    cider, each = cider_d(words, rivals)
    scores |= {"rouge_l": rouge_l(guesses, targets), "cider": cider}
    scores |= {name: registry.imported("metric", name, FURTHER)(guesses, targets) for name in metrics}
    return scores, dict(zip(references, each, strict=True))


def score_captions(
    records: Sequence[dict[str, Any]], constant: str, metrics: Sequence[str] = ()
) -> Iterator[tuple[str, float]]:
    """Yields (name, value) of the predictions, of what is said of a blank image, and of one caption for all images.

    Args:
      records: one an image: `id`, `prediction`, `references`, perhaps `blank` and `type`, its domain. Each gets its
        `scores`, CIDEr-D of what it and its rivals say.
      constant: the caption for all.
      metrics: as in `caption_metrics`, of the predictions alone.
    """
    references = {record["id"]: record["references"] for record in records}
    kinds = sorted({record["type"] for record in records if record.get("type")})
    rivals = {"": {record["id"]: record["prediction"] for record in records}}
    if all(record.get("blank") is not None for record in records):
        rivals["_blank"] = {record["id"]: record["blank"] for record in records}
    rivals["_most_frequent"] = dict.fromkeys(references, constant)
    for suffix, captions in rivals.items():
        more = () if suffix else metrics
        values, each = caption_scores(captions, references, more)
        for record in records:
            record.setdefault("scores", {})[f"cider{suffix}"] = each[record["id"]]
        yield from ((f"{name}{suffix}", value) for name, value in values.items())
        for kind in kinds:
            ids = [record["id"] for record in records if record["type"] == kind]
            parts = [{i: texts[i] for i in ids} for texts in (captions, references)]
            yield from ((f"{name}{suffix}/{kind}", v) for name, v in caption_metrics(*parts, more).items())


def _words(tokens: Tokens) -> list[str]:
    return " ".join(tokens).split()


def ngrams(tokens: Tokens) -> list[Counter]:
    """Counts the n-grams of a caption, one Counter per order 1..4."""
    return [Counter(zip(*(tokens[i:] for i in range(n)), strict=False)) for n in range(1, ORDERS + 1)]


def bleu(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """Corpus BLEU-1..4 in [0, 1] (Papineni et al. 2002), brevity penalty against the closest reference length."""
    matches, guesses = [0] * ORDERS, [0] * ORDERS
    length = reference_length = 0
    for prediction, refs in zip(predictions, references, strict=True):
        length += len(prediction)
        reference_length += min((abs(len(ref) - len(prediction)), len(ref)) for ref in refs)[1]
        counts = [ngrams(ref) for ref in refs]
        for n, guessed in enumerate(ngrams(prediction)):
            guesses[n] += max(0, len(prediction) - n)
            matches[n] += sum(min(count, max(ref[n][gram] for ref in counts)) for gram, count in guessed.items())
    ratio = (length + TINY) / (reference_length + SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(ORDERS):
        product *= (matches[n] + TINY) / (guesses[n] + SMALL)
        scores.append(penalty * product ** (1 / (n + 1)))
    return scores


def rouge_l(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]], beta: float = 1.2) -> float:
    """Returns the mean ROUGE-L in [0, 1]: F-score of best precision and best recall, of two references if need be."""
    total = 0.0
    for prediction, refs in zip(predictions, references, strict=True):
        # An empty caption counts as one empty word in pycocoevalcap: it matches an empty reference.
        guess, refs = prediction or ("",), [ref or ("",) for ref in refs]
        common = [_common_subsequence(guess, ref) for ref in refs]
        precision = max(common) / len(guess)
        recall = max(c / len(ref) for c, ref in zip(common, refs, strict=True))
        if precision > 0:
            total += (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    return total / len(predictions)


def cider_d(
    predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]], sigma: float = 6.0
) -> tuple[float, list[float]]:
    """Returns CIDEr-D (Vedantam et al. 2015): the mean and each caption's score, as ratios (1.33 is quoted as 133).

    The document frequencies are those of the references passed in, so a score depends on the whole set; for a single
    image every weight is log(1) = 0 and so is the score.
    """
    counted = [[ngrams(ref) for ref in refs] for refs in references]
    frequency: Counter = Counter()
    for refs in counted:
        frequency.update({gram for ref in refs for order in ref for gram in order})
    log_images = math.log(len(references))
    # An n-gram that no reference holds weighs as much as one that a single image holds.
    weights = {gram: log_images - math.log(count) for gram, count in frequency.items()}

    def vectors(counts: list[Counter]) -> tuple[list[dict], list[float], int]:
        weighted = [{gram: count * weights.get(gram, log_images) for gram, count in order.items()} for order in counts]
        norms = [math.sqrt(sum(w * w for w in order.values())) for order in weighted]
        return weighted, norms, counts[1].total()  # the reference measures length in bigrams

    scores = []
    for prediction, refs in zip(predictions, counted, strict=True):
        guess, guess_norms, guess_length = vectors(ngrams(prediction))
        total = 0.0
        for ref in refs:
            target, target_norms, target_length = vectors(ref)
            penalty = math.exp(-((guess_length - target_length) ** 2) / (2 * sigma**2))
            for n in range(ORDERS):
                if guess_norms[n] and target_norms[n]:
                    shared = guess[n].keys() & target[n].keys()
                    dot = sum(min(guess[n][gram], target[n][gram]) * target[n][gram] for gram in shared)
                    total += penalty * dot / (guess_norms[n] * target_norms[n])
        scores.append(10.0 * total / (ORDERS * len(refs)))
    return math.fsum(scores) / len(scores), scores


def _common_subsequence(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence, a whole row of the table per integer operation (Hyyrö 2004)."""
    positions: dict[str, int] = {}
    for i, token in enumerate(a):
        positions[token] = positions.get(token, 0) | 1 << i
    everywhere = (1 << len(a)) - 1
    row = everywhere
    for token in b:
        matched = row & positions.get(token, 0)
        row = (row + matched) | (row - matched)
    return len(a) - (row & everywhere).bit_count()
