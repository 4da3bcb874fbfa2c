"""The page of a comparison: metrics side by side with their differences, and where the runs differ most."""

from __future__ import annotations

import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from prismer_jax import datasets
from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.label_png import MAX_PIXELS
from prismer_jax.pp.image import read_image
from prismer_jax.report import page, selection

Sample = Mapping[str, Any]
ERRORS = {"loss", "abs_rel", "angle"}  # of which less is better, also beside a score of which more is


def write(
    path: pathlib.Path,
    records: Sequence[Mapping[str, Any]],
    samples: Mapping[str, Sequence[Sequence[Sample]]],
    table: Mapping[str, Any],
    shown: int,
) -> None:
    """Writes the page, one file that holds everything.

    Args:
      path: of the page.
      records: metrics.json of each run; the first is the base.
      samples: {evaluator: the samples of each run}.
      table: what `prismer_jax.compare` returns: runs, metrics with values, differences and intervals.
      shown: how many samples in which a run is better than the base are shown for each evaluator, and how many worse.
    """
    letters = [chr(ord("A") + i) for i in range(len(records))]
    parts = [_runs(table["runs"], records, letters), "<h2>Metrics</h2>", *_tables(table, letters, records[0])]
    for name, ours in samples.items():
        evaluator = records[0]["evaluators"][name]
        photos, missing = _photos(evaluator["config"]["data"])
        parts.append(f'<h2 id="{html.escape(name)}">{html.escape(name)}</h2>')
        parts.append(f'<p class="sub">{html.escape(missing)}</p>' if missing else "")
        for place, letter in enumerate(letters[1:], 1):
            parts += _differences(evaluator, ours, place, letter, letters, photos, shown)
    subtitle = ", ".join(f"{letter}: {run}" for letter, run in zip(letters, table["runs"], strict=True))
    storage.write(path, page.document("Comparison", subtitle, parts))


def _runs(names: Sequence[str], records: Sequence[Mapping[str, Any]], letters: Sequence[str]) -> str:
    head = "".join(f"<th>{text}</th>" for text in ("", "results", "checkpoint", "step", "config", "evaluated"))
    rows = ""
    for name, record, letter in zip(names, records, letters, strict=True):
        checkpoint = record["checkpoint"]
        texts = [letter, name, checkpoint["path"], checkpoint["step"], record.get("config"), record.get("date")]
        cells = "".join(f"<td>{'' if text is None else html.escape(str(text))}</td>" for text in texts)
        rows += f"<tr>{cells}</tr>"
    return f'<div class="card facts"><table><tr>{head}</tr>{rows}</table></div>'


def _tables(table: Mapping[str, Any], letters: Sequence[str], base: Mapping[str, Any]) -> list[str]:
    """One table an evaluator, one a metric with question types: a column a run, then each difference to the first."""
    note = (
        f"Differences are to {letters[0]}, with {table['level']} % intervals of a paired bootstrap over photos "
        f"({table['resamples']} draws, seed {table['seed']}); bold where the interval leaves zero out."
    )
    groups: dict[str, dict[tuple[int, str], tuple[str, int, Mapping[str, Any]]]] = {}
    for name, row in table["metrics"].items():
        evaluator, metric, variant, kind = page.split_name(name)
        title = f"{evaluator} · {metric} by type" if kind else evaluator
        more = base["evaluators"][evaluator]["higher_is_better"] and not ERRORS & {metric, kind}
        sign = 0 if variant else 1 if more else -1
        shown = (kind or metric) + (f" · {page.VARIANTS[variant]}" if variant else "")
        if variant != "most_frequent" or any(row["differences"]):  # which is a fact of the data, the same for all
            groups.setdefault(title, {})[list(page.VARIANTS).index(variant), shown] = shown, sign, row
    cards = ""
    for title, rows in sorted(groups.items()):
        head = "".join(f"<th>{letter}</th>" for letter in letters)
        head += "".join(f"<th>{letter} − {letters[0]}</th><th></th>" for letter in letters[1:])
        reach = max((abs(end) for *_, row in rows.values() for i in row["intervals"] if i for end in i), default=0.0)
        body = "".join(
            f"<tr><th>{html.escape(name)}</th>{_row(row, sign, reach)}</tr>"
            for _, (name, sign, row) in sorted(rows.items())
        )
        heading = f"<caption>{html.escape(title)}</caption><tr><th></th>{head}</tr>"
        cards += f'<div class="card"><table>{heading}{body}</table></div>'
    return [f'<p class="sub">{html.escape(note)}</p><br>', f'<div class="tables">{cards}</div>']


def _row(row: Mapping[str, Any], sign: int, reach: float) -> str:
    """Cells of a metric; `sign` says which way is better, 0 neither."""
    cells = "".join(f"<td>{value:,.4g}</td>" for value in row["values"])
    for difference, interval in zip(row["differences"], row["intervals"], strict=True):
        clear = interval is not None and (interval[0] > 0 or interval[1] < 0)
        way = {1: " right", -1: " wrong", 0: ""}[sign if difference > 0 else -sign]
        style = f' class="model{way}"' if clear else ""
        cells += f"<td{style}>{difference:+.3g}</td><td>{_whisker(difference, interval, reach)}</td>"
    return cells


def _whisker(difference: float, interval: Sequence[float] | None, reach: float) -> str:
    """The interval as a line beside zero, on the scale of its table."""
    if interval is None or not reach:
        return ""
    low, high, middle = (60 + 56 * x / reach for x in (*interval, difference))
    return (
        f'<svg class="whisker" viewBox="0 0 120 14"><title>{interval[0]:+.3g} to {interval[1]:+.3g}</title>'
        f'<line class="zero" x1="60" x2="60" y1="0" y2="14"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="7" y2="7"/>'
        f'<circle cx="{middle:.1f}" cy="7" r="3"/></svg>'
    )


def _differences(
    evaluator: Mapping[str, Any],
    ours: Sequence[Sequence[Sample]],
    place: int,
    letter: str,
    letters: Sequence[str],
    photos: Any,
    shown: int,
) -> list[str]:
    """Says how often a run is better or worse than the base, and where it is most."""
    score = evaluator["score"]
    sign = 1 if evaluator["higher_is_better"] else -1
    gains = [
        (sign * (two["scores"][score] - one["scores"][score]), one)
        for one, two in zip(ours[0], ours[place], strict=True)
        if score in one.get("scores", ()) and score in two.get("scores", ())
    ]
    if not gains:
        return []
    better, worse = [g for g in gains if g[0] > 0], [g for g in gains if g[0] < 0]
    count = (
        f"By {score}, {letter} is better than {letters[0]} in {len(better):,} samples, worse in {len(worse):,}, "
        f"and equal in {len(gains) - len(better) - len(worse):,}."
    )
    parts = [f'<p class="sub">{html.escape(count)}</p>']
    places = {one["index"]: i for i, one in enumerate(ours[0])}
    for title, pairs in (
        (f"{letter} is better than {letters[0]}", better),
        (f"{letter} is worse than {letters[0]}", worse),
    ):
        chosen = selection.by_score(pairs, shown, highest=pairs is better)
        cards = "".join(_card([run[places[s["index"]]] for run in ours], letters, score, photos) for s in chosen)
        parts.append(f'<h3>{title}</h3><div class="samples pairs">{cards or "<p>nowhere</p>"}</div>')
    return parts


def _card(answers: Sequence[Sample], letters: Sequence[str], score: str, photos: Any) -> str:
    """A sample: the photo, what each run said with its score, and what people said."""
    sample = answers[0]
    rows = ""
    values = [answer.get("scores", {}).get(score) for answer in answers]
    low, *_, high = sorted(value for value in values if value is not None)  # one and two are there
    for letter, answer, value in zip(letters, answers, values, strict=True):
        style = "" if low == high else " right" if value == high else " wrong" if value == low else ""
        number = "" if value is None else f"{value:.3g}"
        said = html.escape(answer.get("prediction") or ("(nothing)" if "prediction" in answer else ""))
        rows += f'<tr><th>{letter}</th><td class="said{style}">{said}</td><td>{number}</td></tr>'
    asked = f'<div class="question">{html.escape(sample["question"])}</div>' if sample.get("question") else ""
    photo = photos(sample["index"])
    figure = "" if photo is None else f'<figure><img alt="photo" src="{photo}"></figure>'
    texts = f"{asked}<table>{rows}</table>{page.references_list(sample.get('references', ()))}"
    return f'<div class="card pair">{figure}<div>{texts}</div></div>'


def _photos(data: Mapping[str, Any]) -> tuple[Any, str]:
    """(index -> the photo as the address of an <img>, or None; why there are none, if so)."""
    try:
        source = datasets.load(**data)
    except (UserError, OSError, TypeError) as error:
        return lambda index: None, f"Without photos, as the data set cannot be opened: {error}"

    def photo(index: int) -> str | None:
        try:
            example = source[index]
            return page.image(read_image(example["image"], MAX_PIXELS, str(example.get("id", index))), "Photo")
        except (UserError, OSError, IndexError):
            return None

    return photo, ""
