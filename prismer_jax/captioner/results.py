"""What a loaded model says of the photos of a request, in their order; what was said before a stop is said again."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax import input, pp
from prismer_jax.batch import BY_TEXT
from prismer_jax.captioner.loaded import Loaded
from prismer_jax.captioner.requests import Request, Result, check_counts
from prismer_jax.checkpoint.fingerprint import fingerprint
from prismer_jax.errors import BadSample, UserError
from prismer_jax.evaluators.journal import Journal
from prismer_jax.files import versions

logger = logging.getLogger(__name__)


def results_of(
    loaded: Loaded,
    request: Request,
    batch_size: int,
    journal: Callable[[Mapping[str, Any]], Journal] | None = None,
) -> Iterator[Result]:
    """Yields the result of each photo, in the order of the files, as they are found; notes what is left out.

    Args:
      loaded: the model; its `left_out` is of this call from now on.
      request: what is asked.
      batch_size: photos at a time.
      journal: makes the journal of what is described to it, where results are kept and earlier starts left some.
    """
    check_counts(batch_size=batch_size)
    if not len(request.source):
        raise UserError("There is no example: give one or more.")
    loaded.left_out, source, count, times = [], request.source, len(request.source), len(request.asked)
    size = min(max(batch_size // times, 1), request.photos) * times
    entries = None if journal is None else journal(_described(loaded, request))
    results = {} if entries is None else _earlier(entries, source)  # by the photo's place in the source
    batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
    todo = {number for number, places in enumerate(batches) if not results.keys() >= set(places)}
    chain = pp.build(request.how["pp"], tokenizer=loaded.tokenizer)
    said_of: set[str] = set()
    batches_read = iter(input.eval_batches(source, chain, batch_size=size, numbers=sorted(todo)))
    for number, places in enumerate(batches):
        if number in todo:
            batch = next(batches_read)
            new = {place: row for row, place in enumerate(places) if batch["_mask"][row] and place not in results}
            loaded.leave_out(source, {place: batch["meta"][row] for row, place in enumerate(places)})
            _say_of_cut(batch["meta"], said_of)
            if new:
                said = request.say(batch, _once(batch, times))
                for place, row in new.items():
                    asked = request.asked[place % times]
                    results[place] = {"image": batch["meta"][row]["id"], **asked, **said[row]}
                if entries is not None:
                    entries.write({"files": _files(source[place]), "result": results[place]} for place in new)
        yield from (results.pop(place) for place in places if place in results)


def _say_of_cut(meta: Sequence[Mapping[str, Any]], said_of: set[str]) -> None:
    """Says which texts the tokenizer has cut, once each: two questions that differ at their ends would be one."""
    for row in meta:
        text = row.get("question") or row.get("prompt")
        if row.get("cut") and text and text not in said_of:
            said_of.add(text)
            logger.warning("%r has more tokens than this checkpoint reads, and was cut.", text)


def _described(loaded: Loaded, request: Request) -> dict[str, Any]:
    """Returns what results depend on but for the photos themselves."""
    return {**request.settings, "how": dict(request.how), "weights": fingerprint(loaded.variables)}


def _earlier(journal: Journal, source: Any) -> dict[int, Result]:
    """Returns the results that earlier starts have left of photos that are as they were then, by place."""
    entries = {(entry["result"]["image"], entry["result"].get("question")): entry for entry in journal.read()}
    results = {}
    for place in range(len(source)) if entries else ():
        with contextlib.suppress(BadSample):  # of a label: it is left out when its batch is read
            example = source[place]
            entry = entries.get((example["id"], example.get("question")))
            if entry is not None and entry["files"] == _files(example):
                results[place] = entry["result"]
    return results


def _files(example: Mapping[str, Any]) -> dict[str, list[int]]:
    """Returns size and time of the photo and of its label files, as JSON has them."""
    return {key: list(version) for key, version in versions.of_files(example).items()}


def _once(batch: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Returns the arrays of a batch whose every `times` rows are of one photo: what is not of the text once for all."""
    first = batch["_mask"].reshape(-1, times).argmax(1) + np.arange(0, len(batch["_mask"]), times)  # that can be used
    arrays = {key: value for key, value in batch.items() if isinstance(value, np.ndarray)}
    return {key: value if key in BY_TEXT else value[first] for key, value in arrays.items()}
