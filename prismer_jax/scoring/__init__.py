"""Scores of a file of predictions, whoever made them: no model is needed, and no jax.

    python -m prismer_jax.evaluate --score predictions.json --references FILE [--annotations FILE] --output DIR

Predictions and references are joined by their ids, or by their photos and questions. What finds no partner is named and
counted, and above a fraction it is an error: a score of half a set is not that of the set.
"""

from __future__ import annotations

import hashlib
import logging
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from prismer_jax import registry
from prismer_jax.errors import UserError, choose
from prismer_jax.files.dropped import Dropped
from prismer_jax.report import evaluation, selection
from prismer_jax.scores.answers import SCORES, score_records
from prismer_jax.scores.caption import FURTHER, score_captions
from prismer_jax.scores.vqa import score_answers
from prismer_jax.scoring.predictions import OFFICIAL, TEXTS, Prediction, Task, read_predictions, task_of
from prismer_jax.scoring.references import References

MAX_UNMATCHED = 0.01
ANSWERS = [name for name in SCORES if name != "letter"]  # whose choices no list of references has

logger = logging.getLogger(__name__)


class Scored:
    """Predictions with their scores, as reports take what evaluators leave; photos are not looked for."""

    higher_is_better = True

    def __init__(self, main_score: str, records: list[dict[str, Any]], predictions: list[dict[str, Any]]) -> None:
        self.main_score, self.records, self.predictions = main_score, records, predictions

    def samples(self, n: int, which: Literal["random", "best", "worst"] = "random") -> list[dict[str, Any]]:
        """Returns at most n samples for the page: the best, the worst, or some at random."""
        chosen = selection.chosen(self.records, n, which, self.main_score, self.higher_is_better)
        return [self._sample(record) for record in chosen]

    def _sample(self, record: dict[str, Any]) -> dict[str, Any]:
        score = record["scores"][self.main_score]
        correct = None if self.main_score == "cider" else score / 100
        return {**record, "correct": correct, "score": (self.main_score, score)}


def score(
    predictions: pathlib.Path,
    references: Sequence[pathlib.Path],
    folder: pathlib.Path,
    *,
    annotations: Sequence[pathlib.Path] = (),
    split: str | None = None,
    task: Task | None = None,
    metrics: Sequence[str] = (),
    answers: str | None = None,
    max_unmatched: float = MAX_UNMATCHED,
) -> dict[str, float]:
    """Scores predictions and writes metrics.json, samples and report.html, as an evaluation does; returns the metrics.

    Args:
      predictions: [{"image_id", "caption"}], [{"question_id", "answer"}], what `prismer_jax.caption` writes, or the
        like (scoring/predictions.py).
      references: lists of a layout that `datasets.formats` reads; `annotations` and `split` as in `lists.load`.
      folder: of the results, made if need be.
      task: 'caption', 'vqa' or 'choice'; by default what the predictions' keys say.
      metrics: more of captions', 'meteor' and 'spice', which need Java.
      answers: how answers are scored, of ANSWERS; by default as VQA's are.
      max_unmatched: the fraction of the predictions, and of the references, that may be left out.

    Returns:
      {'task/metric': value}, with `task/unscored`, the number of references that no prediction was scored by, if any.

    Raises:
      UserError: a file is not of these layouts, two predictions are of one reference, more than `max_unmatched` is left
        out, or nothing can be scored.
    """
    for name in metrics:
        registry.imported("metric", name, FURTHER).check()
    entries = read_predictions(predictions)
    task = task_of(entries, predictions) if task is None else choose("task", task, tuple(TEXTS))
    if metrics and task != "caption":
        raise UserError("meteor and spice are scores of captions.")
    if answers and task == "caption":
        raise UserError(f"{answers} is a score of answers, and {predictions} has captions.")
    table, dropped = References(references, annotations, split, task), Dropped()
    records = _join(predictions, entries, table, task, dropped, max_unmatched)
    for line in dropped.lines():
        logger.warning("not scored: %s", line.strip())
    constant = Counter(text for record in records for text in record["references"]).most_common(1)[0][0]
    if task == "caption":
        main, named = "cider", score_captions(records, constant, metrics)
    elif answers:
        how = SCORES[choose("score of answers:", answers, ANSWERS)]
        main, named = how.name, score_records(records, how, constant)
    else:
        main, named = "accuracy", score_answers(records, constant)
    scores = {f"{task}/{name}": value for name, value in named}
    if len(records) < len(table.entries):
        scores[f"{task}/unscored"] = float(len(table.entries) - len(records))
    id_key, text_key = OFFICIAL["vqa" if table.has_questions else task]
    scored = Scored(main, records, [{id_key: r["id"], text_key: r["prediction"]} for r in records])
    described = {
        "type": "scored file",
        "samples": len(records),
        "decoding": {},
        "score": scored.main_score,
        "higher_is_better": True,
        "config": {"data": {}},
    }
    digest = hashlib.sha256(predictions.read_bytes()).hexdigest()[:16]
    record = {
        "checkpoint": {"path": str(predictions), "step": None, "fingerprint": f"sha256 {digest}"},
        "references": [str(path) for path in (*references, *annotations)],
        "not_scored": dropped.to_json(),
        "evaluators": {task: described},
        "devices": "",
    }
    evaluation.write(folder, {task: scored}, scores, record)
    return scores


def _join(
    path: pathlib.Path,
    entries: Sequence[Prediction],
    table: References,
    task: Task,
    dropped: Dropped,
    max_unmatched: float,
) -> list[dict[str, Any]]:
    """Returns the records of the references that a prediction is of, in their order; counts all else.

    Raises:
      UserError: as `score` says of the two files together.
    """
    scorable = [reference for reference in table.entries if reference.texts]
    if not scorable:
        raise UserError(f"{table.where}: has no {table.noun}, so nothing can be scored. {table.hint}".strip())
    partners: dict[int, tuple[Prediction, str]] = {}
    for number, entry in enumerate(entries, 1):
        case = f"entry {number} of {path.name}, {entry}"
        reference = table.find(entry)
        if reference is not None and reference.place in partners:
            first, _ = partners[reference.place]
            raise UserError(f"{path}: entry {number} is a second prediction of {reference}, after {first}. Keep one.")
        if (text := entry.text(task)) is None:
            dropped.add("prediction without a text", case)
        elif reference is None:
            dropped.add("prediction without reference", case)
        else:
            partners[reference.place] = entry, text
    unused = dropped.total
    records = [{**r.record(), "prediction": partners[r.place][1]} for r in scorable if r.place in partners]
    for reference in scorable:
        if reference.place not in partners:
            dropped.add("reference without prediction", str(reference))
    if bare := len(table.entries) - len(scorable):
        dropped.add(f"reference without {table.noun}", count=bare)
    cases = "; ".join(line.strip() for line in dropped.lines()[:3])
    if not records:
        raise UserError(f"{path}: none of its predictions has a reference in {table.where}: {cases}.")
    missing = len(scorable) - len(records)
    for count, total, what in (
        (unused, len(entries), "predictions have no text or no reference"),
        (missing, len(scorable), "references have no prediction"),
    ):
        if count > max_unmatched * total:
            allow = f"allow more with --max-unmatched (now {max_unmatched})"
            raise UserError(f"{path}: {count} of {total} {what}: {cases}. Check the ids, or {allow}.")
    return records
