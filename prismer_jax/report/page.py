"""The report of a run: `report.png` (panels), `curves.png` and `report.html`, one file that holds everything."""

from __future__ import annotations

import base64
import html
import io
import math
import pathlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from prismer_jax import metrics as logged
from prismer_jax.config import provenance
from prismer_jax.files import storage
from prismer_jax.report import draw

VARIANTS = {"": "model", "blank": "blank image", "most_frequent": "most frequent"}
CURVES = ("loss", "cider", "bleu4", "accuracy")  # of an evaluator's metrics, those with a curve
COLORS = {"": "#2563eb", "blank": "#9aa3b2", "most_frequent": "#d97706"}
MAX_POINTS = 2000


def write_report(
    workdir: pathlib.Path, samples: Sequence[Mapping[str, Any]], metrics: Mapping[str, float], config: str
) -> None:
    """Writes report.html and, where there is something to draw, report.png and curves.png into a run's workdir.

    Args:
      workdir: holds what `metrics.Writer` wrote.
      samples: what evaluators return from `samples(n)`; see `report.draw`.
      metrics: final values, such as {"vqa/accuracy": 61.2, "vqa/accuracy_blank": 28.0}.
      config: text that the page shows.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if samples:
        with storage.replacing(workdir / "report.png") as name:
            draw.contact([draw.panel(sample) for sample in samples]).save(name, "png", compress_level=4)
    if chart := curves(logged.read(workdir)):
        storage.write(workdir / "curves.png", chart)
    storage.write(workdir / "report.html", _page(samples, metrics, chart, config))


def split_name(name: str) -> tuple[str, str, str, str]:
    """Splits 'vqa/accuracy_blank/color' into evaluator 'vqa', metric 'accuracy', variant 'blank' and type 'color'."""
    evaluator, _, rest = name.rpartition("/") if name.count("/") <= 1 else name.partition("/")
    metric, _, kind = rest.partition("/")
    for variant in ("blank", "most_frequent"):
        if metric.endswith(f"_{variant}"):
            return evaluator, metric.removesuffix(f"_{variant}"), variant, kind
    return evaluator, metric, "", kind


# ---------------------------------------------------------------- curves


def curves(lines: Sequence[Mapping[str, float]]) -> bytes | None:
    """Draws training loss, learning rate and the evaluators' main metrics with their baselines; PNG bytes, or None.

    Args:
      lines: of metrics.jsonl.
    """
    plots: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for name, value in line.items():
            evaluator, metric, variant, kind = split_name(name)
            rate = metric in ("lr", "learning_rate") or metric.startswith("lr_")
            shown = not kind and (metric in CURVES or rate or (evaluator == "train" and "loss" in metric))
            if shown and isinstance(value, int | float) and math.isfinite(value):
                plots[f"{evaluator}/{metric}".strip("/")][variant].append((line["step"], value))
    if not plots:
        return None
    from matplotlib.figure import Figure

    columns = min(3, len(plots))
    rows = -(-len(plots) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), dpi=110, facecolor="white", layout="constrained")
    for i, (name, variants) in enumerate(plots.items(), 1):
        axes = figure.add_subplot(rows, columns, i)
        axes.set_title(name, fontsize=10, loc="left", color="#1c2028")
        for variant, points in variants.items():
            steps, values = np.array(points[:: -(-len(points) // MAX_POINTS)], float).T
            noisy = len(values) > 60
            axes.plot(
                steps,
                values,
                color=COLORS[variant],
                lw=0.8 if noisy else 1.8,
                alpha=0.35 if noisy else 1.0,
                ls="-" if not variant else "--",
                marker="o" if len(values) < 20 else None,
                ms=3,
                label=None if noisy else VARIANTS[variant],
            )
            if noisy:
                axes.plot(steps, _smooth(values), color=COLORS[variant], lw=1.8, label=VARIANTS[variant])
        if len(variants) > 1:
            axes.legend(fontsize=8, frameon=False)
        axes.grid(alpha=0.25, lw=0.6)
        axes.tick_params(labelsize=8, colors="#646c78")
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#c4cad3")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred mean over a thirtieth of the curve, over fewer values at its ends."""
    half = max(1, len(values) // 60)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low, high = np.clip([np.arange(len(values)) - half, np.arange(len(values)) + half + 1], 0, len(values))
    return (sums[high] - sums[low]) / (high - low)


# ---------------------------------------------------------------- page


def _page(samples: Sequence[Mapping[str, Any]], metrics: Mapping[str, float], chart: bytes | None, config: str) -> str:
    facts = provenance()
    versions = [*(f"{name} {version}" for name, version in facts["packages"].items()), f"Python {facts['python']}"]
    parts = []
    if metrics:
        parts += ["<h2>Metrics</h2>", f'<div class="tables">{"".join(tables(metrics))}</div>']
    if chart:
        parts += ["<h2>Learning curves</h2>", f'<img class="chart" alt="learning curves" src="{_data("png", chart)}">']
    if samples:
        parts += ["<h2>Samples</h2>", cards(samples)]
    text = f"<summary>config</summary><pre>{html.escape(config)}</pre>"
    parts += ["<h2>Config</h2>", f'<details class="card">{text}</details>']
    parts += ["<h2>Versions</h2>", f'<div class="card soft">{html.escape(", ".join(versions))}</div>']
    return document("prismer_jax", ", ".join(versions[:3]), parts)


def document(title: str, subtitle: str, parts: Sequence[str]) -> str:
    """Returns a page that loads nothing from elsewhere; `parts` are HTML, title and subtitle are texts."""
    heading = f'<h1>{html.escape(title)}</h1><p class="sub">{html.escape(subtitle)}</p>'
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    style = (pathlib.Path(__file__).parent / "page.css").read_text()
    head = f"{meta}<title>{html.escape(title)}</title><style>{style}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{heading}{"".join(parts)}</body></html>\n'


def tables(metrics: Mapping[str, float]) -> list[str]:
    """Returns a table for each evaluator and each metric with types: a row a metric or type, a column a variant.

    Percentages of types have a bar behind them.
    """
    cells: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for name, value in metrics.items():
        evaluator, metric, variant, kind = split_name(name)
        if kind:
            cells[evaluator, f"{metric} by type"][kind][variant] = value
        else:
            cells[evaluator, ""][metric][variant] = value
    tables = []
    for (evaluator, by), rows in sorted(cells.items()):
        variants = [v for v in VARIANTS if any(v in row for row in rows.values())]
        percent = bool(by) and max(value for row in rows.values() for value in row.values()) > 10  # CIDEr is at most 10
        header = "".join(f"<th>{VARIANTS[v]}</th>" for v in variants) if len(variants) > 1 else "<th></th>"
        body = "".join(
            f"<tr><th>{html.escape(name)}</th>{''.join(_cell(row.get(v), v, percent) for v in variants)}</tr>"
            for name, row in sorted(rows.items())
        )
        caption = html.escape(" · ".join(filter(None, (evaluator or "run", by))))
        tables.append(
            f'<div class="card"><table><caption>{caption}</caption><tr><th></th>{header}</tr>{body}</table></div>'
        )
    return tables


def _cell(value: float | None, variant: str, percent: bool) -> str:
    if value is None:
        return "<td></td>"
    bar = ""
    if percent and not variant:
        bar = f' style="background:linear-gradient(90deg,var(--bar) {value:.0f}%,transparent 0)"'
    return f"<td{' class=model' if not variant else ''}{bar}>{value:,.4g}</td>"


def cards(samples: Sequence[Mapping[str, Any]]) -> str:
    """Returns the samples in a grid, each as `card`."""
    return f'<div class="samples">{"".join(map(card, samples))}</div>'


def card(sample: Mapping[str, Any]) -> str:
    """Returns a sample of `report.draw` as HTML: photo, label maps, prediction, references and score."""
    figures = "".join(
        f'<figure{"" if title == "Photo" else " class=map"}><img alt="{title}" src="{image(picture, title)}">'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
        for title, picture in draw.pictures(sample)
    )
    keys = "".join(
        f'<span><i style="background:rgb{color}"></i>{html.escape(name)}</span>' for color, name in draw.legend(sample)
    )
    mark, _ = draw.verdict(sample)
    style = {"✓": " right", "✗": " wrong", "~": " partly"}.get(mark, "")
    texts = []
    if sample.get("question"):
        texts.append(f'<div class="question">{html.escape(sample["question"])}</div>')
    if sample.get("prediction") is not None:
        texts.append(f'<div class="said{style}">{mark} {html.escape(sample["prediction"] or "(nothing)")}</div>')
    if sample.get("blank") is not None:
        texts.append(f'<div class="soft">blank image: {html.escape(sample["blank"] or "(nothing)")}</div>')
    name, value = sample.get("score") or ("", None)
    pill = "" if value is None else f'<div class="pill">{html.escape(name)} {value:.3g}</div>'
    references = references_list(sample.get("references", ()))
    alone = "" if sample.get("labels") else " alone"
    return (
        f'<div class="card"><div class="pictures{alone}">{figures}</div><div class="legend">{keys}</div>'
        f"{pill}{''.join(texts)}{references}</div>"
    )


def references_list(references: Sequence[str]) -> str:
    """Returns the references, each text once."""
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in draw.distinct(references))}</ul>"


def image(picture: np.ndarray, title: str) -> str:
    """Returns a picture as the address of an <img>: a photo as JPEG, a label map as PNG without smoothing."""
    buffer = io.BytesIO()
    shown = Image.fromarray(np.ascontiguousarray(picture))
    if title == "Photo":
        shown.thumbnail((640, 640))
        shown.save(buffer, "jpeg", quality=90)
        return _data("jpeg", buffer.getvalue())
    if max(shown.size) > 320:
        shown = shown.resize([max(1, round(n * 320 / max(shown.size))) for n in shown.size], Image.Resampling.NEAREST)
    shown.save(buffer, "png")
    return _data("png", buffer.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
