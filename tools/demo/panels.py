"""Parts of the page as HTML: pictures lie in it, so that none is ever a file."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from prismer_jax.report import draw

from .model import Said

PICTURE, THUMB = 480, 176  # pixels of the longer side of a picture, of one for a word


EMPTY = '<p class="hint empty">Choose a photo: what the experts and the model say of it appears here.</p>'


def header(title: str) -> str:
    """Returns the head of the page, which names the model."""
    return f"<header><h1>What does the model see?</h1><p>{html.escape(title)}</p></header>"


def heading(text: str) -> str:
    """Returns the head of a part of the page."""
    return f"<h2>{html.escape(text)}</h2>"


def hint(text: str) -> str:
    """Returns a line in small letters."""
    return f'<p class="hint">{html.escape(text)}</p>'


def notice(text: str, kind: str = "problem") -> str:
    """Returns a line for the visitor, which screen readers say at once; '' for none."""
    role = "alert" if kind == "problem" else "status"
    return f'<p class="notice {kind}" role="{role}">{html.escape(text)}</p>' if text else ""


def maps(sample: Mapping[str, Any], awaited: Sequence[str] = ()) -> str:
    """Returns the photo, its label maps and their legend; in the place of maps that are awaited, what they will be."""
    figures = [_figure(picture, title) for title, picture in draw.pictures(sample)]
    figures += [
        f'<figure class="awaited"><div aria-hidden="true"></div><figcaption>{draw.title(name)} …</figcaption></figure>'
        for name in awaited
    ]
    keys = "".join(
        f'<li><i style="background: rgb{color}"></i>{html.escape(name)}</li>' for color, name in draw.legend(sample)
    )
    return f'<div class="maps">{"".join(figures)}</div>' + (f'<ul class="legend">{keys}</ul>' if keys else "")


def texts(said: Said, title: str) -> str:
    """Returns texts with their scores, as numbers and as bars that compare them."""
    best = max(said.scores)
    rows = [
        f'<li><span class="text">{html.escape(text) or "<em>(nothing)</em>"}</span>'
        f'<span class="score" title="log-probability">{score:.2f}</span>'
        f'<span class="bar" aria-hidden="true"><i style="width: {100 * math.exp(score - best):.0f}%"></i></span></li>'
        for text, score in zip(said.texts, said.scores, strict=True)
    ]
    return f'<ol class="texts" aria-label="{html.escape(title)}">{"".join(rows)}</ol>'


def attention(said: Said, photo: np.ndarray) -> str:
    """Returns the photo once for each word of the first text, bright where the model looked; '' if none can be told."""
    if not said.attention:
        return ""
    figures = []
    for word, seen in said.attention:
        share = f"{100 * float(seen.sum()):.0f} % of its attention is on the photo"
        figures.append(_figure(lit(photo, seen), word, f"Where the model looks for “{word}”: {share}", share))
    return f'<h3>Where it looked for each word</h3><div class="words">{"".join(figures)}</div>'


def lit(photo: np.ndarray, seen: np.ndarray, size: int = THUMB) -> np.ndarray:
    """Returns a photo that is dark but for where a model looked: uint8 [h, w, 3], the longer side `size`.

    Args:
      photo: uint8 [H, W, 3].
      seen: shares of the cells of a grid over the whole photo [rows, columns]; the largest is shown in full light.
    """
    small = _scaled(photo, size, enlarge=True)
    light = cv2.resize(seen.astype(np.float32), small.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    light = (light / max(float(light.max()), 1e-12))[..., None]
    warm = np.array([255, 176, 32], np.float32)
    lit = small * (0.22 + 0.78 * light)
    return np.clip(lit + 0.22 * light * (warm - lit), 0, 255).astype(np.uint8)


def comparison(answers: Mapping[str, str]) -> str:
    """Returns a table of the answers with all experts, '', and without each of them; those that differ are marked."""
    whole = answers[""]
    rows = []
    for name, text in answers.items():
        what = f"without {draw.title(name).lower()}" if name else "all experts"
        changed = "changed" if text != whole else ""
        mark = '<b class="mark">changes</b>' if changed else ""
        rows.append(
            f'<tr class="{changed}"><th scope="row">{what}</th><td>{html.escape(text)}</td><td>{mark}</td></tr>'
        )
    return f'<table class="without"><caption>Answers without one expert</caption>{"".join(rows)}</table>'


def _figure(picture: np.ndarray, title: str, alt: str = "", hint: str = "") -> str:
    picture = _scaled(picture, PICTURE)
    kind, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 88]) if title == "Photo" or hint else (".png", [])
    data = base64.b64encode(cv2.imencode(kind, picture[..., ::-1], options)[1].tobytes()).decode()
    source = f"data:image/{'jpeg' if kind == '.jpg' else 'png'};base64,{data}"
    tip = f' title="{html.escape(hint)}"' if hint else ""
    sharp = "" if kind == ".jpg" else ' class="sharp"'
    return (
        f'<figure{tip}><img{sharp} src="{source}" alt="{html.escape(alt or title)}">'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
    )


def _scaled(picture: np.ndarray, size: int, enlarge: bool = False) -> np.ndarray:
    """Returns a picture whose longer side is `size`; without `enlarge` smaller ones stay as they are."""
    longer = max(picture.shape[:2])
    if longer == size or (longer < size and not enlarge):
        return picture
    width, height = (max(1, round(side * size / longer)) for side in picture.shape[1::-1])
    how = cv2.INTER_CUBIC if longer < size else cv2.INTER_AREA
    return cv2.resize(picture, (width, height), interpolation=how)
