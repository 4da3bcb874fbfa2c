"""BLIP-2 beside salesforce/LAVIS: a part of tools.bench, `blip2 --reference CHECKOUT --reference-python PYTHON`.

    captions           4 photos, 5 beams of 30 tokens each, beside LAVIS of today, whose OPT is transformers' own
    captions_uncached  the same beside LAVIS before 720f689, whose own OPT keeps no cache with transformers 4.26
    captions_t5, rerank, stage2   as beside transformers: see tools/bench/blip2.py
    stage1             a step on 4 photos and texts of 32 tokens: contrast, matching and text in one

The models and our side are those of tools/bench/blip2.py; theirs is reference/run_lavis.py. Both train as their recipes
do: with dropout, but for the parts that are frozen, where theirs has it in the language model, too.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from prismer_jax import runtime
from prismer_jax.errors import UserError

from . import blip2
from .blip2 import settings  # noqa: F401  (of worker.compare)
from .reference.serving import serve
from .worker import Row, compare

OWN_OPT = "lavis/models/blip2_models/blip2_opt.py"
ROWS = {
    "captions": blip2.ROWS["captions"],
    "captions_uncached": Row("captions beside LAVIS without a cache, photos/s", blip2.BATCH, 4.0),
    **{name: row for name, row in blip2.ROWS.items() if name != "captions"},
}
OURS = blip2.OURS | {"captions_uncached": blip2.captions}


def measure(
    reference: pathlib.Path, python: str | pathlib.Path, *, rows: Sequence[str] = (), **options: Any
) -> list[dict[str, Any]]:
    """Prints the table, and returns it.

    Args:
      reference: a checkout of salesforce/LAVIS.
      python: the interpreter for it: see reference/run_lavis.py.
      rows: names of ROWS; by default all that its generation has.
      options: the others of `worker.compare`.

    Raises:
      UserError: the reference is no checkout, or one of the other generation than a row's; a worker ends early.
    """
    absent = "captions" if keeps_no_cache(reference) else "captions_uncached"
    if absent in rows:
        revision = "720f689^" if absent == "captions_uncached" else "main"
        raise UserError(f"{reference}: the row '{absent}' needs LAVIS as of {revision}: git checkout {revision}")
    rows = rows or [name for name in ROWS if name != absent]
    more = {"source": str(reference.resolve())}
    return compare("BLIP-2, small ViT, float32", sys.modules[__name__], python, rows=rows, more=more, **options)


def keeps_no_cache(reference: pathlib.Path) -> bool:
    """Returns whether a checkout is of the time when LAVIS had an OPT of its own.

    Raises:
      UserError: it is no checkout of LAVIS.
    """
    file = reference / OWN_OPT
    if not file.is_file():
        raise UserError(f"{reference}: no checkout of salesforce/LAVIS: it has no {OWN_OPT}.")
    return "\nfrom lavis.models.blip2_models.modeling_opt import" in file.read_text()


if __name__ == "__main__":
    runtime.use_compilation_cache()
    serve(OURS[sys.argv[1]])
