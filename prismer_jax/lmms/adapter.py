"""The model class that lmms-eval asks: see prismer_jax.lmms."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image

from prismer_jax import runtime
from prismer_jax.captioner import Captioner
from prismer_jax.errors import BadSample, UserError
from prismer_jax.lmms.wording import worded

DEFAULT_TOKENS = 50  # of an answer, where a task names no number; huggingface/nanoVLM, eval/lmms_eval_wrapper.py
Example = dict[str, Any]

logger = logging.getLogger(__name__)


class PrismerJax(lmms):
    """Answers benchmarks' questions with a checkpoint of this project, through its own preprocessing.

    A sample that the checkpoint cannot read, such as one of more photos or tiles than its preprocessing takes, has an
    empty answer and is named in a warning. So is a continuation without a text, which counts as the least likely.
    """

    is_simple = True

    def __init__(self, checkpoint: str, batch_size: int | str = 1, wording: str = "plain", **_: Any) -> None:
        """Loads an export, or the latest checkpoint of a workdir.

        Args:
          checkpoint: a folder, as for prismer_jax.caption.
          batch_size: photos at a time; answers do not depend on it.
          wording: 'nanovlm' puts questions as the wrapper of huggingface/nanoVLM does, so that scores compare.
          _: what lmms-eval passes to every model: device, max_batch_size ...

        Raises:
          UserError: no such checkpoint or wording, or no number of photos.
        """
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UserError(f"batch_size={batch_size!r}: a number of photos, at least 1.")
        worded("", "", wording)
        runtime.use_compilation_cache()
        self.captioner, self.wording, self.batch_size = Captioner(checkpoint), wording, int(batch_size)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Returns an answer to each request (context, settings, photos of, document's number, task, split)."""
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(place)
        for places in groups.values():
            settings = requests[places[0]].args[1]
            examples = []
            for place in places:
                context, _, visual, number, task, split = requests[place].args
                examples.append(self._example(str(place), context, visual, number, task, split))
            for result in _usable(self.captioner.ask, examples, batch_size=self.batch_size, **self._method(settings)):
                answers[int(result["image"])] = self._cut(result["answers"][0], settings.get("until") or ())
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Returns, of each continuation, minus its log-probability a token, and whether it is the model's own answer.

        The sign is not that of the name: lmms-eval's multiple choice takes the least, because its models return losses
        (lmms_eval/api/task.py, process_results). The end of the text counts as a token. Each pair stands in for the
        text of a GenerationResult, the only shape in which the evaluator of lmms-eval 0.7.3 hands it on; it would turn
        a plain pair into a text (lmms_eval/api/instance.py, unwrap_generation_output).
        """
        costs: list[tuple[float, bool]] = [(float("inf"), False)] * len(requests)
        groups: dict[Any, dict[str, list[int]]] = {}
        for place, request in enumerate(requests):
            if len(request.args) != 6:
                raise UserError("A metric asks for texts without a context (acc_mutual_info), which is not offered.")
            context, target, _, number, task, split = request.args
            target = target if isinstance(target, str) else target(self.task_dict[task][split][number])
            groups.setdefault((context, number, task, split), {}).setdefault(str(target), []).append(place)
        for (context, number, task, split), targets in groups.items():
            visual = requests[next(iter(targets.values()))[0]].args[2]
            example, texts = self._example("0", context, visual, number, task, split), [t.strip() for t in targets]
            if not all(texts):
                logger.warning(
                    "Document %s of %s: a continuation is empty, and counts as the least likely.", number, task
                )
                texts = [text for text in texts if text]
            if not (texts and (ranked := _usable(self.captioner.rank, [example], texts))):
                continue
            longest = max(len(self.captioner.tokenizer.encode_after(text)) for text in texts)
            (said,) = self.captioner.ask([example], method="greedy", min_new=0, max_new=longest + 1)
            scores = dict(zip(ranked[0]["choices"], ranked[0]["scores"], strict=True))
            for text, places in zip(map(str.strip, targets), targets.values(), strict=True):
                for place in places if text else ():
                    costs[place] = -scores[text], said["answers"][0] == text
        return [GenerationResult(cost) for cost in costs]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raises a UserError: this model answers one question at a time."""
        raise UserError("prismer_jax answers one question at a time; tasks of several rounds are not offered.")

    def _example(self, name: str, context: str, visual: Any, number: int, task: str, split: str) -> Example:
        photos = [_pixels(photo) for photo in (visual(self.task_dict[task][split][number]) or ()) if photo is not None]
        question, begun = worded(context, task, self.wording)
        image = None if not photos else photos[0] if len(photos) == 1 else photos
        return {"id": name, "image": image, "question": question, "begun": begun}

    def _method(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Returns settings of `decode.generate` from those of a task, which are Hugging Face's."""
        made: dict[str, Any] = {"max_new": int(settings.get("max_new_tokens") or DEFAULT_TOKENS)}
        own = self.captioner.tasks["question"].get("decode") or {}
        if own.get("min_new", 0) > made["max_new"]:  # as many as the task takes are the fewest
            made["min_new"] = made["max_new"]
        temperature = float(settings.get("temperature") or 0)
        if settings.get("do_sample") and temperature > 0:
            return made | {"method": "sample", "temperature": temperature, "top_p": float(settings.get("top_p") or 1)}
        beams = int(settings.get("num_beams") or 1)
        return made | ({"method": "beam", "num_beams": beams} if beams > 1 else {"method": "greedy"})

    def _cut(self, answer: str, until: str | Sequence[str]) -> str:
        """Returns an answer up to the first text that ends it; nanoVLM's wrapper goes on to the end of the text."""
        if self.wording == "nanovlm":
            return answer
        for end in [until] if isinstance(until, str) else until:
            answer = answer.split(end)[0] if end else answer
        return answer


def _usable(ask: Callable[..., list[Example]], *args: Any, **settings: Any) -> list[Example]:
    """Returns results, [] where not one of the examples can be used."""
    try:
        return ask(*args, **settings)
    except BadSample as error:
        logger.warning("%s", error)
        return []


def _pixels(photo: Any) -> Any:
    """Returns what an example holds of a photo: a path, or uint8 RGB; a damaged one as it is, to be left out."""
    if isinstance(photo, Image.Image):
        try:
            return np.asarray(photo.convert("RGB"))
        except (OSError, SyntaxError, ValueError):  # of a file that is read only now
            return photo
    if isinstance(photo, str | np.ndarray):
        return photo
    raise UserError(f"A task gives a {type(photo).__name__}; photos alone are read, no video and no sound.")
