"""The statistics of a data set's labels as one picture and as a table in text."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax.labels import EXPERTS
from prismer_jax.report.draw import id_colors, title
from prismer_jax.report.statistics import Statistics, name_of

SHOWN = 12  # classes of a histogram
INK, SOFT, GRID, WARN = "#1c2028", "#646c78", "#e3e6eb", "#b3261e"
STATES = {  # of a photo's map -> colour
    "labelled": "#3b7dd8",
    "empty": "#b9c3d0",
    "one value": "#e2a33b",
    "missing": "#d64b45",
}


def table(statistics: Mapping[str, Statistics], names: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Returns rows of cells, the head first: how many maps there are and what is in them, a row an expert."""
    rows = [["expert", "maps", "missing", "empty", "one value", "background", "content"]]
    for expert, stats in statistics.items():
        background = f"{stats.share('background'):.1%}" if EXPERTS[expert].storage == "ids" else "-"
        shares = [f"{stats.share(name):.1%}" for name in ("missing", "empty", "constant")]
        rows.append([expert, str(stats.present), *shares, background, _content(stats, names.get(expert, ()))])
    return rows


def _content(stats: Statistics, names: Sequence[str]) -> str:
    row = EXPERTS[stats.expert]
    if row.storage != "ids":
        mean, spread = stats.distribution()
        return f"values {'/'.join(f'{m:.0f}' for m in mean)} ± {'/'.join(f'{s:.0f}' for s in spread)}"
    parts = []
    if row.embed != "classes":
        what = "instances" if row.embed == "instances" else "words"
        parts.append(f"{stats.per_photo():.1f} {what} a photo, at most {max(stats.counts, default=0)}")
    if stats.classes:
        total = stats.classes.total()
        top = [f"{name_of(k, names).split(',')[0]} {n / total:.0%}" for k, n in stats.classes.most_common(4)]
        parts.append(f"{len(stats.classes)} classes: {', '.join(top)}")
    return "; ".join(parts)


def picture(
    statistics: Mapping[str, Statistics], names: Mapping[str, Sequence[str]], warnings: Sequence[str], title: str
) -> bytes:
    """Draws a PNG: how many photos each expert has labelled, then what its maps hold, and the warnings below.

    Args:
      statistics: by expert.
      names: class names by expert.
      warnings: of `statistics.warnings`.
      title: of the data set.
    """
    from matplotlib.figure import Figure

    panels = [(expert, draw) for expert in statistics for draw in _panels(statistics[expert])]
    columns = 3
    rows = -(-len(panels) // columns)
    shown = list(warnings)[:12]
    head = 0.9 + 0.3 * len(statistics)
    heights = [head, *[2.6] * rows, 0.35 + 0.24 * max(1, len(shown))]
    figure = Figure(figsize=(13, sum(heights) + 0.55 * (rows + 1)), facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, hspace=0.06)
    grid = figure.add_gridspec(rows + 2, columns, height_ratios=heights)
    photos = max((stats.photos for stats in statistics.values()), default=0)
    figure.suptitle(f"{title} · {photos:,} photos", x=0.01, ha="left", fontsize=15, fontweight="bold", color=INK)
    _coverage(figure.add_subplot(grid[0, :]), statistics)
    for number, (expert, draw) in enumerate(panels):
        axes = figure.add_subplot(grid[1 + number // columns, number % columns])
        draw(axes, statistics[expert], names.get(expert, ()))
        _style(axes)
    _list_warnings(figure.add_subplot(grid[-1, :]), shown, len(warnings) - len(shown))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _panels(stats: Statistics) -> list[Any]:
    match EXPERTS[stats.expert].embed:
        case "scaled":
            return [_values]
        case "classes":
            return [_classes]
        case "instances":
            return [_counts, _classes]
        case _:
            return [_counts]


def _coverage(axes: Any, statistics: Mapping[str, Statistics]) -> None:
    """Draws a bar an expert: the photos by what became of their map."""
    for place, stats in enumerate(statistics.values()):
        labelled = stats.present - stats.empty - stats.constant
        left = 0.0
        for (state, color), count in zip(
            STATES.items(), (labelled, stats.empty, stats.constant, stats.missing), strict=True
        ):
            width = count / max(stats.photos, 1)
            axes.barh(place, width, left=left, color=color, height=0.68, label=state if place == 0 else None)
            if width > 0.06:
                text = f"{width:.0%}" if state == "labelled" else f"{state} {width:.0%}"
                axes.text(
                    left + width / 2,
                    place,
                    text,
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color=INK if state == "empty" else "white",
                )
            left += width
    axes.set_yticks(range(len(statistics)), [title(expert) for expert in statistics], fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.set_title("What the photos have", loc="left", fontsize=11, fontweight="bold", color=INK, pad=22)
    axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(-0.005, 0.985), frameon=False, fontsize=9, handlelength=1)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=INK)


def _values(axes: Any, stats: Statistics, names: Sequence[str]) -> None:
    """Draws how often each value occurs, a line a channel."""
    channels = ("#d64b45", "#3a9d5d", "#3b7dd8") if len(stats.values) == 3 else ("#4a5568",)
    total = np.maximum(stats.values.sum(1, keepdims=True), 1)
    # Eight values a bin: single ones are as ragged as what the expert rounds.
    shares = (stats.values / total).reshape(len(stats.values), 32, 8).sum(2)
    for share, color, label in zip(shares, channels, ("x (red)", "y (green)", "z (blue)"), strict=False):
        axes.stairs(share, np.arange(33) * 8, fill=len(shares) == 1, color=color, lw=1.8, alpha=0.85, label=label)
    if len(shares) == 3:
        axes.legend(frameon=False, fontsize=8.5)
    axes.set_xlim(0, 256)
    axes.set_xticks([0, 64, 128, 192, 255])
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
    axes.set_title(f"{title(stats.expert)}: values", **_heading())


def _classes(axes: Any, stats: Statistics, names: Sequence[str]) -> None:
    """Draws the most frequent classes, in the colours of the maps."""
    top, total = stats.classes.most_common(SHOWN), max(stats.classes.total(), 1)
    what = "pixels" if EXPERTS[stats.expert].embed == "classes" else "instances"
    colors = id_colors()[[kind % 255 for kind, _ in top]] / 255 if top else []
    axes.barh(range(len(top)), [count / total for _, count in top], color=colors, height=0.74)
    texts = [name_of(kind, names).split(",")[0] for kind, _ in top]
    axes.set_yticks(range(len(top)), [t if len(t) < 22 else t[:20] + "…" for t in texts], fontsize=8.5)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set_title(f"{title(stats.expert)}: {len(stats.classes)} classes, share of {what}", **_heading())
    if not top:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "none", ha="center", va="center", color=WARN, fontsize=11, transform=axes.transAxes)


def _counts(axes: Any, stats: Statistics, names: Sequence[str]) -> None:
    """Draws how many photos have so many instances or words."""
    most = max(stats.counts, default=0)
    width = max(1, -(-(most + 1) // 30))
    bins = np.zeros(most // width + 1)
    for count, photos in stats.counts.items():
        bins[count // width] += photos
    axes.bar(np.arange(len(bins)) * width + (width - 1) / 2, bins, width=0.86 * width, color=STATES["labelled"])
    if len(bins):
        axes.patches[0].set_color(STATES["empty"] if width == 1 else STATES["labelled"])
    axes.set_xlim(-0.7, max(most, 4) + width)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    what = "objects" if EXPERTS[stats.expert].embed == "instances" else "words"
    axes.set_title(f"{what.capitalize()} in a photo: {stats.per_photo():.1f} on average", **_heading())
    axes.set_ylabel("photos", fontsize=8.5, color=SOFT)


def _heading() -> dict[str, Any]:
    return dict(loc="left", fontsize=11, fontweight="bold", color=INK)


def _style(axes: Any) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#c4cad3")
    axes.tick_params(labelsize=8.5, colors=SOFT, length=0)
    axes.set_axisbelow(True)
    axes.grid(color=GRID, lw=0.7)


def _list_warnings(axes: Any, warnings: Sequence[str], more: int) -> None:
    axes.axis("off")
    lines = [f"▲ {text}" for text in warnings] or ["✓ Nothing looks like a bad expert run."]
    if more:
        lines.append(f"   and {more} more")
    color = WARN if warnings else "#168a49"
    text = axes.text(0, 1, "\n".join(lines), va="top", fontsize=10.5, color=color, linespacing=1.6)
    text.set_transform(axes.transAxes)
    text.set_in_layout(False)  # a long line would make all that is above it narrow
