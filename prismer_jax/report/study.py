"""A study: what the arms of a sweep reach with several seeds each, as tables in Markdown and as a plot.

Results are {arm: {seed: {metric: value}}}; arms without a finished run are there with no seed.
"""

from __future__ import annotations

import contextlib
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prismer_jax.files import storage

Results = Mapping[str, Mapping[int, Mapping[str, float]]]

RIVALS = ("_blank", "_most_frequent")  # metrics of blindness, the same for all arms or nearly so
DOT, MEAN, GUIDES = "#2a6fb0", "#1c2028", ("#168a49", "#c8322f", "#b07000", "#646c78")


def metrics_of(results: Results) -> list[str]:
    """Returns all metrics of the runs, in their order, but for those of blindness."""
    names = dict.fromkeys(name for runs in results.values() for values in runs.values() for name in values)
    return [name for name in names if not any(rival in name for rival in RIVALS)]


def values_of(results: Results, arm: str, metric: str) -> dict[int, float]:
    """Returns {seed: value} of an arm's finished runs that have the metric."""
    return {seed: values[metric] for seed, values in results[arm].items() if metric in values}


def table(results: Results, metrics: Sequence[str]) -> str:
    """Returns mean ± sample standard deviation over the seeds: a row an arm, a column a metric."""
    rows = []
    for arm, runs in results.items():
        cells = [_mean(list(values_of(results, arm, metric).values()), _digits(results, metric)) for metric in metrics]
        rows.append([arm, str(len(runs)), *cells])
    return markdown(["arm", "seeds", *metrics], rows)


def differences(results: Results, metrics: Sequence[str], baseline: str) -> str:
    """Returns each arm's lead over the baseline with the same seed: mean (least to most) over the seeds of both.

    Runs of one seed share initial values and the order of the data. Where least and most have one sign, all seeds
    agree on who is better; with three seeds that happens by chance to every fourth pair of equals.
    """
    rows = []
    for arm in results:
        cells = []
        for metric in metrics:
            ours, theirs = values_of(results, arm, metric), values_of(results, baseline, metric)
            gains = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
            digits = _digits(results, metric)
            cells.append(
                f"{statistics.mean(gains):+.{digits}f} ({min(gains):+.{digits}f} to {max(gains):+.{digits}f})"
                if gains
                else "–"
            )
        if arm != baseline:
            rows.append([arm, *cells])
    return markdown([f"beside {baseline}", *metrics], rows)


def plot(path: pathlib.Path, results: Results, metrics: Sequence[str], baselines: Sequence[str] = ()) -> None:
    """Writes a PNG: a panel a metric, in it a dot a seed and a bar at the mean of each arm, and lines at baselines."""
    colours = dict(zip(baselines, GUIDES, strict=False))
    with panels(path, list(results), metrics) as drawn:
        for panel, metric in zip(drawn, metrics, strict=True):
            for arm, colour in colours.items():
                if values := values_of(results, arm, metric):
                    mean = statistics.mean(values.values())
                    panel.axvline(mean, color=colour, linewidth=1, linestyle=":", zorder=1)
            for row, arm in enumerate(results):
                if values := list(values_of(results, arm, metric).values()):
                    ends, colour = [row - 0.32, row + 0.32], colours.get(arm, DOT)
                    panel.plot([statistics.mean(values)] * 2, ends, color=MEAN, linewidth=2, zorder=2)
                    panel.plot(values, [row] * len(values), "o", color=colour, markersize=4.5, alpha=0.8, zorder=3)
            panel.tick_params(axis="y", length=0)
            panel.grid(axis="x", color="#e4e7ec", linewidth=0.6)
            panel.set_axisbelow(True)
            panel.spines["left"].set_visible(False)


@contextlib.contextmanager
def panels(path: pathlib.Path, arms: Sequence[str], titles: Sequence[str]) -> Iterator[list[Any]]:
    """Yields a panel of Matplotlib for each title, to draw a row for each arm into; then writes all as a PNG."""
    from matplotlib.figure import Figure

    columns = min(len(titles), 4)
    rows = -(-len(titles) // columns)
    width, height = 0.075 * max(map(len, arms)) + 2.3 * columns, rows * (0.27 * len(arms) + 0.75)
    figure = Figure(figsize=(width, height), dpi=100)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel in axes.flat[len(titles) :]:
        panel.remove()
    drawn = list(axes.flat[: len(titles)])
    yield drawn
    for panel, title in zip(drawn, titles, strict=True):
        panel.set_title(title, fontsize=8)
        panel.set_yticks(range(len(arms)), arms, fontsize=8)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.tick_params(axis="x", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with storage.replacing(path) as name:
        figure.savefig(name, format="png")


def _digits(results: Results, metric: str) -> int:
    """Decimals of a metric: one for percentages, more for what is smaller."""
    largest = max((abs(v) for arm in results for v in values_of(results, arm, metric).values()), default=0.0)
    return 1 if largest >= 10 else 2 if largest >= 1 else 3


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
