"""The report of a run: `report.png` (panels), `curves.png` and `report.html`, one file that holds everything."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import pathlib
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from PIL import Image

from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.report import draw

VARIANTS = {"": "model", "blank": "blank image", "most_frequent": "most frequent"}
PACKAGES = ("prismer_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
CURVES = ("loss", "cider", "bleu4", "accuracy")  # of an evaluator's metrics, those with a curve
COLORS = {"": "#2563eb", "blank": "#9aa3b2", "most_frequent": "#d97706"}
MAX_POINTS = 2000


def write_report(
    workdir: str | os.PathLike,
    samples: Sequence[Mapping[str, Any]] = (),
    metrics: Mapping[str, float] | None = None,
    config: Any = None,
    title: str = "prismer_jax",
) -> dict[str, pathlib.Path]:
    """Writes the report of a run into its workdir.

    Args:
      workdir: holds `metrics.jsonl`, one JSON object a logged step, where there are curves to draw.
      samples: what evaluators return from `samples(n)`; see `report.draw`.
      metrics: final values, such as {"vqa/accuracy": 61.2, "vqa/accuracy_blank": 28.0}; by default the last of each
        name in metrics.jsonl.
      config: anything that prints, a ConfigDict or its text.
      title: heading of the page.

    Returns:
      The files written: {"html", "png", "curves"}, the last two where there was something to draw.
    """
    workdir = storage.on_disk(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    history = read_history(workdir / "metrics.jsonl")
    if metrics is None:
        metrics = {name: values[-1] for name, (_, values) in history.items()}
    written = {}
    if samples:
        written["png"] = workdir / "report.png"
        with storage.replacing(written["png"]) as name:
            draw.contact([draw.panel(sample) for sample in samples]).save(name, "png", compress_level=4)
    chart = curves(history)
    if chart:
        written["curves"] = workdir / "curves.png"
        storage.write(written["curves"], chart)
    written["html"] = workdir / "report.html"
    storage.write(written["html"], _page(title, samples, metrics, chart, config))
    return written


def read_history(path: pathlib.Path) -> dict[str, tuple[list[int], list[float]]]:
    """Reads metrics.jsonl to {name: (steps, values)}; no file is an empty history, a cut last line is left out.

    Raises:
      UserError: another line is not a JSON object with a step.
    """
    history: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            step = int(entry.pop("step"))
        except (ValueError, KeyError, AttributeError, TypeError):
            if number == len(lines):  # the run was killed while it wrote
                break
            raise UserError(f"{path}:{number}: not a JSON object with a step. Delete that line.") from None
        for name, value in entry.items():
            if isinstance(value, int | float) and math.isfinite(value):
                history[name][0].append(step)
                history[name][1].append(float(value))
    return dict(history)


def split_name(name: str) -> tuple[str, str, str, str]:
    """Splits 'vqa/accuracy_blank/color' into evaluator 'vqa', metric 'accuracy', variant 'blank' and type 'color'."""
    evaluator, _, rest = name.rpartition("/") if name.count("/") <= 1 else name.partition("/")
    metric, _, kind = rest.partition("/")
    for variant in ("blank", "most_frequent"):
        if metric.endswith(f"_{variant}"):
            return evaluator, metric.removesuffix(f"_{variant}"), variant, kind
    return evaluator, metric, "", kind


# ---------------------------------------------------------------- curves


def curves(history: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> bytes | None:
    """Draws training loss, learning rate and the evaluators' main metrics with their baselines; PNG bytes, or None."""
    plots: dict[str, dict[str, tuple[Sequence[int], Sequence[float]]]] = defaultdict(dict)
    for name, series in history.items():
        evaluator, metric, variant, kind = split_name(name)
        rate = metric in ("lr", "learning_rate") or metric.startswith("lr_")
        if not kind and (metric in CURVES or rate or (evaluator == "train" and "loss" in metric)):
            plots[f"{evaluator}/{metric}".strip("/")][variant] = series
    if not plots:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(plots))
    rows = -(-len(plots) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), dpi=110, facecolor="white", layout="constrained")
    for i, (name, variants) in enumerate(plots.items(), 1):
        axes = figure.add_subplot(rows, columns, i)
        axes.set_title(name, fontsize=10, loc="left", color="#1c2028")
        for variant, (steps, values) in variants.items():
            stride = -(-len(steps) // MAX_POINTS)
            steps, values = np.asarray(steps)[::stride], np.asarray(values)[::stride]
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
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred mean over a thirtieth of the curve, over fewer values at its ends."""
    half = max(1, len(values) // 60)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low, high = np.clip([np.arange(len(values)) - half, np.arange(len(values)) + half + 1], 0, len(values))
    return (sums[high] - sums[low]) / (high - low)


# ---------------------------------------------------------------- page

STYLE = """
:root { color-scheme: light dark; --ink: #1c2028; --soft: #646c78; --card: #fff; --ground: #f0f2f5; --line: #d8dce2;
  --right: #168a49; --wrong: #c8322f; --partly: #b07000; --bar: #dbe7ff; --accent: #2563eb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa3b2; --card: #1b1f27; --ground: #12151b;
  --line: #323845; --right: #4cc38a; --wrong: #ff7b72; --partly: #e3b341; --bar: #24406f;
  --accent: #6ea0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px; max-width: 1500px; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 12px; }
p.sub { margin: 0; color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.tables { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 6px; }
th, td { padding: 3px 14px 3px 0; text-align: right; }
th { color: var(--soft); font-weight: 500; } th:first-child { text-align: left; }
tr + tr > * { border-top: 1px solid var(--line); } td.model { font-weight: 600; padding-left: 6px; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(620px, 100%), 1fr)); gap: 14px; }
.pictures { display: grid; grid-template-columns: 2fr 1fr 1fr 1fr; gap: 8px; }
.pictures.alone { grid-template-columns: minmax(0, 300px); }
figure { margin: 0; } figure:first-child { grid-row: span 2; } figcaption { font-size: 12px; color: var(--soft); }
figure img { width: 100%; display: block; border-radius: 4px; } figure.map img { image-rendering: pixelated; }
.legend { font-size: 12px; color: var(--soft); margin: 8px 0; display: flex; flex-wrap: wrap; gap: 2px 12px; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 4px; }
.said { font-weight: 600; font-size: 16px; }
.right { color: var(--right); } .wrong { color: var(--wrong); } .partly { color: var(--partly); }
.question { font-weight: 600; } .soft, ul { color: var(--soft); font-size: 14px; }
ul { margin: 4px 0 0; padding-left: 18px; }
.card, figure, .said { overflow-wrap: anywhere; }
.pill { float: right; margin-left: 8px; padding: 1px 9px; border-radius: 9px; background: var(--bar); font-size: 13px;
  font-variant-numeric: tabular-nums; }
img.chart { max-width: 100%; background: #fff; border-radius: 10px; border: 1px solid var(--line); }
h3 { font-size: 15px; margin: 20px 0 8px; } .facts th { text-align: left; } .facts td { text-align: left; }
.facts { margin-top: 12px; }
figure.histogram { max-width: 460px; margin-top: 10px; } .histogram svg { display: block; fill: var(--accent); }
.histogram figcaption { display: flex; justify-content: space-between; border-top: 1px solid var(--line); }
svg.whisker { width: 120px; height: 14px; vertical-align: middle; fill: var(--accent);
  stroke: var(--accent); stroke-width: 2; }
.whisker .zero { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 2; }
.samples.pairs { grid-template-columns: repeat(auto-fill, minmax(min(460px, 100%), 1fr)); }
.pair { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 4fr); gap: 14px; }
.pair table { width: 100%; margin: 6px 0; } .pair td { white-space: nowrap; vertical-align: top; }
.pair td.said { text-align: left; width: 100%; white-space: normal; }
pre { overflow-x: auto; font-size: 12px; margin: 8px 0 0; } summary { cursor: pointer; font-weight: 600; }
"""


def _page(
    title: str, samples: Sequence[Mapping[str, Any]], metrics: Mapping[str, float], chart: bytes | None, config: Any
) -> str:
    versions = _versions()
    parts = []
    if metrics:
        parts += ["<h2>Metrics</h2>", f'<div class="tables">{"".join(tables(metrics))}</div>']
    if chart:
        parts += ["<h2>Learning curves</h2>", f'<img class="chart" alt="learning curves" src="{_data("png", chart)}">']
    if samples:
        parts += ["<h2>Samples</h2>", cards(samples)]
    if config is not None:
        text = html.escape(str(config))
        parts.append(f'<h2>Config</h2><details class="card"><summary>config</summary><pre>{text}</pre></details>')
    parts += [f'<h2>Versions</h2><div class="card soft">{html.escape(", ".join(versions))}</div>']
    return document(title, ", ".join(versions[:3]), parts)


def document(title: str, subtitle: str, parts: Sequence[str]) -> str:
    """Returns a page that loads nothing from elsewhere; `parts` are HTML, title and subtitle are texts."""
    heading = f'<h1>{html.escape(title)}</h1><p class="sub">{html.escape(subtitle)}</p>'
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head = f"{meta}<title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{heading}{"".join(parts)}</body></html>\n'


def _versions() -> list[str]:
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return [*versions, f"Python {platform.python_version()}"]


def tables(metrics: Mapping[str, float]) -> list[str]:
    """Returns a table for each evaluator and each metric with types: a row a metric or type, a column a variant."""
    cells: dict[tuple[str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for name, value in metrics.items():
        evaluator, metric, variant, kind = split_name(name)
        if kind:
            cells[evaluator, f"{metric} by question type"][kind][variant] = value
        else:
            cells[evaluator, ""][metric][variant] = value
    tables = []
    for (evaluator, by), rows in sorted(cells.items()):
        variants = [v for v in VARIANTS if any(v in row for row in rows.values())]
        header = "".join(f"<th>{VARIANTS[v]}</th>" for v in variants) if len(variants) > 1 else "<th></th>"
        body = "".join(
            f"<tr><th>{html.escape(name)}</th>{''.join(_cell(row.get(v), v, bool(by)) for v in variants)}</tr>"
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
    number = f"{value:.1f}" if percent else f"{value:,.4g}"
    bar = ""
    if percent and not variant:
        bar = f' style="background:linear-gradient(90deg,var(--bar) {value:.0f}%,transparent 0)"'
    return f"<td{' class=model' if not variant else ''}{bar}>{number}</td>"


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
