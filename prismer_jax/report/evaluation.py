"""What an evaluation leaves: predictions, samples, and a page with metrics, the worst, the best and some samples."""

from __future__ import annotations

import datetime
import html
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax import config
from prismer_jax.files import storage
from prismer_jax.report import page, results

GROUPS = {"worst": "Worst", "best": "Best", "random": "At random"}
BINS = 20  # of a histogram


def write(
    folder: pathlib.Path,
    evaluators: Mapping[str, Any],
    scores: Mapping[str, float],
    record: Mapping[str, Any],
    samples: int = 12,
) -> None:
    """Writes what `python -m prismer_jax.evaluate` leaves: metrics.json, predictions, samples/NAME.jsonl, report.html.

    What other evaluators have left in the folder stays, in metrics.json too, if it is of the same model, and goes to
    `before` if it is of another.

    Args:
      folder: made if need be.
      evaluators: {name: evaluator}, which have run: those of `prismer_jax.evaluators`.
      scores: what they yielded.
      record: what was evaluated, which metrics.json holds beside the metrics.
      samples: how many of the best, of the worst and of all samples the report shows for each evaluator.
    """
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    record = {"metrics": dict(scores), **record, "date": now, **config.provenance()}
    results.write_predictions(folder, evaluators)
    (folder / "samples").mkdir(exist_ok=True)
    for name, evaluator in evaluators.items():
        with storage.replacing(folder / "samples" / f"{name}.jsonl") as file, open(file, "w") as lines:
            lines.writelines(json.dumps(sample) + "\n" for sample in evaluator.records)
    _keep_others(folder, record)
    write_page(folder / "report.html", evaluators, record, samples)
    storage.write_json(folder / "metrics.json", record)


def _keep_others(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """Adds to a record what the folder's metrics.json says of other evaluators of this model.

    Of another model's evaluators the predictions and samples are moved to `before`, for nothing names them any more;
    but never predictions that have just been scored.
    """
    earlier = storage.read_json(folder / "metrics.json")
    if not isinstance(earlier, dict) or not {"metrics", "evaluators", "checkpoint"} <= earlier.keys():  # a training's
        return
    others = {name: part for name, part in earlier["evaluators"].items() if name not in record["evaluators"]}
    if _evaluated(earlier) == _evaluated(record):
        metrics = {key: value for key, value in earlier["metrics"].items() if key.partition("/")[0] in others}
        record |= {"metrics": metrics | record["metrics"], "evaluators": others | record["evaluators"]}
        return
    scored = pathlib.Path(record["checkpoint"]["path"]).resolve()
    for name in others:
        for part in (f"predictions/{name}.json", f"samples/{name}.jsonl"):
            file, aside = folder / part, folder / "before" / part
            if pathlib.PurePath(name).name == name and file.exists() and file.resolve() != scored:
                aside.parent.mkdir(parents=True, exist_ok=True)
                file.replace(aside)


def _evaluated(record: Mapping[str, Any]) -> list[Any]:
    """Returns what a record is of: a model, or a file of predictions and its references."""
    return [record["checkpoint"].get("fingerprint"), *(record.get(key) for key in ("model", "tokenizer", "references"))]


def write_page(path: pathlib.Path, evaluators: Mapping[str, Any], record: Mapping[str, Any], samples: int) -> None:
    """Writes the page, one file that holds everything; the arguments are those of `write`."""
    parts = [facts(record), "<h2>Metrics</h2>", f'<div class="tables">{"".join(page.tables(record["metrics"]))}</div>']
    for name, evaluator in evaluators.items():
        parts += [f'<h2 id="{html.escape(name)}">{html.escape(name)}</h2>', _settings(record["evaluators"][name])]
        scores = [record.get("scores", {}).get(evaluator.main_score, math.nan) for record in evaluator.records]
        if scores := [score for score in scores if math.isfinite(score)]:
            parts.append(histogram(scores, evaluator.main_score))
        for which, title in GROUPS.items():
            if chosen := evaluator.samples(samples, which):
                parts += [f"<h3>{title}</h3>", page.cards(chosen)]
    storage.write(path, page.document("Evaluation", record["checkpoint"]["path"], parts))


def facts(record: Mapping[str, Any]) -> str:
    """Returns what was evaluated, with what and when, as a table."""
    checkpoint = record["checkpoint"]
    rows = {
        "checkpoint": checkpoint["path"],
        "step": checkpoint["step"],
        "weights": checkpoint["fingerprint"],
        "config": " ".join([str(record.get("config") or ""), *(f"--config.{o}" for o in record.get("overrides", ()))]),
        "evaluated": record["date"],
        "on": record["devices"],
        "with": ", ".join(f"{name} {version}" for name, version in record["packages"].items()),
        "commit": record.get("git", {}).get("commit", "")
        + (" and changes" if record.get("git", {}).get("dirty") else ""),
    }
    body = "".join(
        f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items() if value
    )
    return f'<div class="card facts"><table>{body}</table></div>'


def _settings(section: Mapping[str, Any]) -> str:
    texts = [f"{section['samples']:,} samples", *(f"{name} {value}" for name, value in section["decoding"].items())]
    return f'<p class="sub">{html.escape(" · ".join(texts))}</p>'


def histogram(values: Sequence[float], name: str, width: int = 460, height: int = 90) -> str:
    """Draws how often which score was reached, in the page's colours."""
    counts, edges = np.histogram(values, bins=BINS, range=(min(0.0, min(values)), max(*values, 1e-9)))
    step, scale = width / BINS, height / counts.max()
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - count * scale:.1f}" width="{step - 2:.1f}" '
        f'height="{count * scale:.1f}"><title>{low:.3g} to {high:.3g}: {count}</title></rect>'
        for i, (count, low, high) in enumerate(zip(counts, edges[:-1], edges[1:], strict=True))
    )
    ends = [f"<span>{text}</span>" for text in (f"{edges[0]:.3g}", html.escape(name), f"{edges[-1]:.3g}")]
    drawn = f'<svg viewBox="0 0 {width} {height}">{bars}</svg><figcaption>{"".join(ends)}</figcaption>'
    return f'<figure class="histogram">{drawn}</figure>'
