"""The audit of experts (tools/audit.py) as a table and as a plot: what a model loses when labels tell nothing."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from prismer_jax.report.study import markdown, panels

LOSS, OTHER, LINE = "#b42318", "#475467", "#98a2b3"


def chosen(metrics: Mapping[str, Any], scores: Mapping[str, str]) -> dict[str, Any]:
    """Returns of all metrics each evaluator's score, {evaluator: its name}, over all and then by type of question."""
    first = {name.partition("/")[0]: name for name in reversed(metrics)}  # of one that has no score
    names = [f"{one}/{score}" if f"{one}/{score}" in metrics else first.get(one, "") for one, score in scores.items()]
    return {
        **{name: metrics[name] for name in names if name in metrics},
        **{name: row for name, row in metrics.items() if name.rpartition("/")[0] in names},
    }


def table(results: Mapping[str, Any]) -> str:
    """Returns the audit as Markdown: a row an arm, its differences to the model as it is, with their intervals."""
    metrics = results["metrics"]
    rows = [[results["arms"][0], *(f"{row['values'][0]:.4g}" for row in metrics.values())]]
    for number, arm in enumerate(results["arms"][1:]):
        rows.append([arm, *(_cell(row, number) for row in metrics.values())])
    lines = [markdown(["", *metrics], rows)]
    lines += [f"Differences to the first row; in brackets {results['level']} % intervals, paired, over photos.", ""]
    for what in ("reading", "making"):
        if spent := results[f"{what}_ms"]:
            each = ", ".join(f"{name} {value:.3g}" for name, value in spent.items())
            lines += [f"Milliseconds a photo of {what} labels: {each}.", ""]
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], number: int) -> str:
    ends = row["intervals"][number]
    interval = "" if ends is None else f" [{ends[0]:+.3g}, {ends[1]:+.3g}]"
    return f"{row['differences'][number]:+.3g}{interval}"


def plot(path: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Writes a PNG: a panel a metric, in it a bar an arm with its interval; red where all of that is worse."""
    metrics, lower_is_better = results["metrics"], results.get("lower_is_better", ())
    titles = [f"{name}\nas it is: {row['values'][0]:.4g}" for name, row in metrics.items()]
    with panels(path, results["arms"][1:], titles) as drawn:
        for panel, (name, row) in zip(drawn, metrics.items(), strict=True):
            sign = -1 if name.partition("/")[0] in lower_is_better else 1
            for place, (value, ends) in enumerate(zip(row["differences"], row["intervals"], strict=True)):
                colour = LOSS if ends is not None and max(sign * end for end in ends) < 0 else OTHER
                panel.barh(place, value, color=colour, height=0.6, alpha=0.75)
                if ends is not None:
                    panel.plot(ends, [place, place], color="black", linewidth=1)
            panel.axvline(0, color=LINE, linewidth=1)
