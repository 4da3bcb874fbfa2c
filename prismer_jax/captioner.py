"""A trained model with all that it needs to be used, from Python; prismer_jax.caption is its command."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from prismer_jax import checkpoint, datasets, decode, input, models, pp
from prismer_jax.batch import BY_TEXT
from prismer_jax.checkpoint.fingerprint import fingerprint
from prismer_jax.datasets.photos import NO_PHOTO, Asked, Examples, Photo, Photos, are_files
from prismer_jax.decode.ranking import rank_answers
from prismer_jax.errors import BadSample, UserError, choose
from prismer_jax.evaluators.journal import Journal
from prismer_jax.pp.chat import takes_prompt
from prismer_jax.pp.choices import choice_tokens, read_choices
from prismer_jax.pp.text import style_of

Path = str | os.PathLike
Result = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Request:
    """What is asked about photos.

    Attributes:
      source: the photos, each as often as something is asked about it.
      how: the checkpoint's section of the task.
      settings: all else that the results depend on, as JSON has it.
      say: from (host batch, its arrays) to what is said of each row.
      asked: what is asked about each photo, in the words of the results; {} for nothing.
    """

    source: Any
    how: Mapping[str, Any]
    settings: dict[str, Any]
    say: Callable[[Mapping[str, Any], dict[str, Any]], Sequence[Result]]
    asked: Sequence[Result] = ({},)

    @property
    def photos(self) -> int:
        return len(self.source) // len(self.asked)


def load(checkpoint: Path, experts: Path | None = None) -> Captioner:
    """Loads a trained model, to caption photos, answer questions about them, choose, or label them.

        model = prismer_jax.load("runs/quickstart", experts="weights/experts")
        model.caption("photo.jpg")
        model.answer([photo, other], ["What is it?", "What color is it?"])  # images of Pillow, arrays, or files' bytes

    Args:
      checkpoint: an export, or a workdir, of which the latest checkpoint is taken.
      experts: folder of the experts' weights, official files or converted ones. With it the model's experts label each
        photo when it is asked about, once: labels are kept in the cache folder ($PRISMER_CACHE_DIR).

    Raises:
      UserError: there is no such checkpoint or folder, or the checkpoint does not say how it is used.
    """
    return Captioner(checkpoint, experts)


class Captioner:
    """A trained model with all that it needs to be used: tokenizer, preprocessing and decoding of each of its tasks.

    Attributes:
      experts: what labels photos, a labelling.cached.Cached; None where labels come from files, or there are none.
      left_out: of the last call, {"image": path, "error": why} of each photo that could not be used: a damaged photo or
        label. It is not among the results, and a warning names it. If no photo can be used, the call is a UserError.
    """

    def __init__(self, path: Path, experts: Path | None = None) -> None:
        """Loads an export, or the latest checkpoint of a workdir; `experts` as in `load`.

        Raises:
          UserError: there is no such thing, or it does not say how it is used.
        """
        self.variables, cfg = checkpoint.load_export(path, shardings=_on_one_device)
        if not {"model", "tokenizer", "tasks"} <= cfg.keys():
            raise UserError(f"{path}: its config.json lacks model, tokenizer or tasks. Export it with this version.")
        pp.tokenizer.check_ids(cfg, path)
        self.tokenizer = pp.tokenizer.load_from(cfg["folder"], cfg["tokenizer"])
        self.model = models.build(**cfg["model"], tokenizer=self.tokenizer)
        self.tasks = cfg["tasks"]
        self.folder = pathlib.Path(cfg["folder"])
        self.left_out: list[Result] = []
        self.experts = None if experts is None else _open(experts, self.model, path)

    def caption(
        self,
        images: Photo | Sequence[Photo] | None = None,
        *,
        prompt: str | None = None,
        labels: Path | None = None,
        num_captions: int = 1,
        batch_size: int = 16,
        seed: int = 0,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """Captions photos.

        Args:
          images: a folder (recursively), a file, or several of either; or photos in memory, the bytes of a file, an
            image of Pillow or an array uint8 [h, w, 3], or several, called '0', '1' ...; None for a prompt alone, whose
            result has the image "".
          prompt: what is said instead of the checkpoint's own prompt, if it is one that is asked in words.
          labels: folder of expert labels in the official layout; experts without a label see the background. By
            default the experts label the photos, if their weights were given to `load`.
          num_captions: of each photo; several are sampled.
          batch_size: photos at a time; the result does not depend on it.
          seed: of the sampling.
          settings: of `decode.generate` (method, num_beams, top_p, temperature ...), instead of the checkpoint's own.

        Returns:
          [{"image": path, "captions": [text, ...], "scores": [log-probability, ...]}], in the order of the files,
          without those in `left_out`.

        Raises:
          UserError: no usable photo, an unknown setting, or a prompt for a checkpoint whose captions have none.
        """
        return list(self.results(self.to_caption(images, labels, num_captions, seed, settings, prompt), batch_size))

    def answer(
        self,
        images: Photo | Sequence[Photo],
        question: str | Sequence[str],
        *,
        labels: Path | None = None,
        num_answers: int = 1,
        batch_size: int = 16,
        seed: int = 0,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """Answers a question about each photo, or several: as `caption`, with "question" and "answers" in the results.

        A photo is encoded once, whatever the number of questions; `batch_size` counts them. With padding='reference' an
        answer depends on the longest question of its batch, as in the original.
        """
        request = self.to_answer(images, question, labels, num_answers, seed, settings)
        return list(self.results(request, batch_size))

    def choose(
        self,
        images: Photo | Sequence[Photo],
        choices: Path | Sequence[str],
        question: str | Sequence[str] | None = None,
        *,
        labels: Path | None = None,
        k: int | None = None,
        batch_size: int = 16,
    ) -> list[dict[str, Any]]:
        """Ranks given answers to a question about each photo, or, without one, given names of classes.

        Args:
          images, labels, batch_size: as in `caption`.
          choices: texts, or a JSON file with a list of them.
          k: so many, those with the likeliest first token, are ranked as a whole. Default: the reference's 16 answers
            (configs/vqa.yaml) or 32 classes (configs/classification.yaml).

        Returns:
          [{"image": path, "choices": [text, ...], "scores": [log-probability a token, ...]}], the best first; with
          "question" where one is asked.
        """
        return list(self.results(self.to_choose(images, choices, question, labels, k), batch_size))

    def label(self, images: Photo | Sequence[Photo]) -> list[dict[str, Any]]:
        """Labels photos with the model's experts, or looks up in the cache what they said.

        Args:
          images: as in `caption`.

        Returns:
          [{"image": path, "labels": {expert: uint8 [h, w, 1 or 3], as large as the photo}}], with "objects", the class
          id of each instance in the map of obj_detection, and "words", of each id in that of ocr_detection, if these
          are among the experts; without those in `left_out`.

        Raises:
          UserError: the model has no experts, or their weights were not given to `load`.
        """
        if self.experts is None:
            remedy = "Load it with their weights: experts=FOLDER" if self.model.experts else "It has none"
            raise UserError(f"Photos are labelled by the model's experts. {remedy}.")
        source, self.left_out, results = self._photos(images, None), [], []
        for place in range(len(source)):
            try:
                results.append(self.experts.said(source[place]))
            except BadSample as error:
                self._leave_out(source, {place: {"error": str(error)}})
        if not results:
            raise UserError(f"None of the {len(source)} photos can be used. The first: {self.left_out[0]['error']}")
        return results

    def ask(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        num_answers: int = 1,
        batch_size: int = 16,
        seed: int = 0,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """Answers a question of its own about each example, as `answer` does.

        Args:
          examples: {"id", "image", "question"}: the image is a path, a file's bytes or uint8 RGB, a list of these for a
            model that reads several, or None; where there are label maps, "labels/<expert>"; and "begun", what the
            answer begins with, for a model that is asked in words.

        Returns:
          [{"image": the example's id, "answers": [text, ...], "scores": [log-probability, ...]}], without those in
          `left_out`.
        """
        request = self._to_write("question", Examples(examples), "answers", num_answers, seed, settings, [{}])
        return list(self.results(request, batch_size))

    def rank(
        self, examples: Sequence[Mapping[str, Any]], choices: Sequence[str], *, batch_size: int = 16
    ) -> list[dict[str, Any]]:
        """Ranks all of the choices as answers to the question of each example of `ask`, as `choose` does.

        The scores are the log-probabilities a token, without the label smoothing of `choose`.
        """
        how = choose("task of this checkpoint", "question", self.tasks)
        settings = {"k": len(choices), "label_smoothing": 0.0}
        request = self._to_rank(Examples(examples), how, read_choices(choices), "answer", settings, [{}])
        return list(self.results(request, batch_size))

    def features(
        self,
        images: Path | Sequence[Path] | None = None,
        texts: Sequence[str] | None = None,
        *,
        labels: Path | None = None,
        batch_size: int = 16,
    ) -> dict[str, Any]:
        """Returns what a model of stage 1 of BLIP-2 makes of photos, of texts, and of photos with a text each.

        Args:
          images, labels, batch_size: as in `caption`.
          texts: with photos, the text of each.

        Returns:
          {"images": paths of those that could be used, "image": unit vectors [photos q e], "text": unit vectors
          [texts e], "multimodal": states of the queries [photos q d]}, as far as there are photos and texts.
        """
        source = None if images is None else self._photos(images, labels)
        return self.comparer().features(source, texts, min(batch_size, len(source or ())))

    def match(
        self, images: Path | Sequence[Path], texts: Sequence[str], *, labels: Path | None = None, batch_size: int = 16
    ) -> list[dict[str, Any]]:
        """Compares each photo with each text.

        Returns:
          [{"image": path, "texts": texts, "itc": cosine of each text and the photo's nearest query, "itm": probability
          that they match, "score": what LAVIS ranks by, the cosine and the logit of 'yes' in sum}], without those in
          `left_out`. Of a text that fits, "itm" is near 1, whereas "itc" of 0.3 to 0.4 is much.
        """
        source = self._photos(images, labels)
        return list(self.comparer().match(source, texts, min(batch_size, len(source))))

    def comparer(self) -> Any:
        """Returns the matching.Comparer of the model; raises UserError if it compares nothing."""
        from prismer_jax.matching import Comparer  # which captions need not

        self.left_out = []
        how = choose("task of this checkpoint", "match", self.tasks)
        return Comparer(self.model, self.variables, self.tokenizer, how, self._leave_out)

    # What is asked about photos, for `results`: the arguments are those of the methods above.

    def to_caption(
        self,
        images: Any,
        labels: Path | None,
        number: int,
        seed: int,
        settings: Mapping[str, Any],
        prompt: str | None = None,
    ) -> Request:
        if images is None and prompt is None:
            raise UserError("Give photos to caption, or a prompt.")
        if prompt is not None and not takes_prompt(choose("task of this checkpoint", "caption", self.tasks)["pp"]):
            raise UserError(
                f"prompt={prompt!r}: this checkpoint's captions are not asked for in words. Leave the prompt out, or "
                "ask it as a question."
            )
        if images is None and self.model.experts:
            raise UserError("This checkpoint sees its photos through experts too: give photos beside the prompt.")
        source = NO_PHOTO if images is None else self._photos(images, labels)
        asked = [{}] if prompt is None else [{"prompt": prompt}]
        return self._to_write("caption", source, "captions", number, seed, settings, asked)

    def to_answer(
        self,
        images: Any,
        question: str | Sequence[str],
        labels: Path | None,
        number: int,
        seed: int,
        settings: Mapping[str, Any],
    ) -> Request:
        asked = _questions(question)
        return self._to_write("question", self._photos(images, labels), "answers", number, seed, settings, asked)

    def to_choose(
        self,
        images: Any,
        choices: Path | Sequence[str],
        question: str | Sequence[str] | None,
        labels: Path | None,
        k: int | None,
    ) -> Request:
        task, kind = ("caption", "class") if question is None else ("question", "answer")
        how = choose("task of this checkpoint", task, self.tasks)
        settings = {"k": k or {"class": 32, "answer": 16}[kind]}
        asked = [{}] if question is None else _questions(question)
        return self._to_rank(self._photos(images, labels), how, read_choices(choices), kind, settings, asked)

    def _to_rank(
        self,
        source: Any,
        how: Mapping[str, Any],
        texts: Sequence[str],
        kind: Literal["answer", "class"],
        settings: dict[str, Any],
        asked: Sequence[Result],
    ) -> Request:
        tokens = choice_tokens(self.tokenizer, texts, kind, how.get("style", "plain"))
        settings = {**settings, "padding": how["decode"].get("padding", "own")}

        def say(batch: Mapping[str, Any], arrays: dict[str, Any]) -> list[Result]:
            ranked = rank_answers(self.model, self.variables, arrays, *tokens, **settings)
            _, candidates, scores = jax.device_get(ranked)
            orders = np.argsort(-scores, kind="stable")
            return [
                {"choices": [texts[i] for i in row[order]], "scores": score[order].tolist()}
                for row, score, order in zip(candidates, scores, orders, strict=True)
            ]

        described = {**settings, "asked": asked, "choices": texts}
        return Request(Asked(source, asked), how, described, say, asked)

    def _to_write(
        self,
        task: str,
        source: Any,
        key: str,
        number: int,
        seed: int,
        settings: Mapping[str, Any],
        asked: Sequence[Result],
    ) -> Request:
        how = choose("task of this checkpoint", task, self.tasks)
        texts = style_of(how.get("style", "plain"))
        write = {"caption": texts.caption_said, "question": texts.answer_said}[task]
        if number > 1 or settings.keys() & {"top_p", "top_k", "temperature"}:
            length = {k: v for k, v in how["decode"].items() if k in ("max_new", "min_new", "max_len", "min_len")}
            options = {"method": "sample", "num_samples": number, **length, **how.get("sample", {}), **settings}
        else:
            options = {**how["decode"], **settings}
        options |= {"eos": self.tokenizer.eos, "pad": self.tokenizer.pad}

        def say(batch: Mapping[str, Any], arrays: dict[str, Any]) -> list[Result]:
            rng = jax.random.key(seed)
            tokens, scores = jax.device_get(decode.generate(self.model, self.variables, arrays, rng=rng, **options))
            prompts = [text[mask].tolist() for text, mask in zip(batch["text"], batch["mask_input"], strict=True)]
            return [
                {key: [write(self.tokenizer, prompt, ids.tolist()) for ids in row], "scores": score.tolist()}
                for prompt, row, score in zip(prompts, tokens, scores, strict=True)
            ]

        described = {**options, "asked": asked, "task": task, "seed": seed}
        return Request(Asked(source, asked), how, described, say, asked)

    def _photos(self, images: Any, labels: Path | None) -> Any:
        """Returns a source of photos, with the labels of a folder or, without one, with those of the experts."""
        if are_files(images):
            source = datasets.load("photos", images=images, labels=labels, experts=self.model.experts)
        elif labels is not None:
            raise UserError(f"{labels}: label files are found by the names of photos, which those in memory lack.")
        else:
            source = Photos(images)
        if labels is not None or not self.model.experts:
            return source
        if self.experts is None:
            names = ", ".join(self.model.experts)
            logger.warning("The model does without its experts, %s: give their weights, or labels.", names)
            return source
        if line := self.experts.line():
            logger.warning("%s", line)
        return self.experts.label(source)

    def results(
        self, request: Request, batch_size: int, journal: Callable[[Mapping[str, Any]], Journal] | None = None
    ) -> Iterator[Result]:
        """Yields the result of each photo, in the order of the files, as they are found; notes what is left out.

        Args:
          request: what is asked.
          batch_size: photos at a time.
          journal: makes the journal of what is described to it, where results are kept and earlier starts left some.
        """
        self.left_out, source, count, times = [], request.source, len(request.source), len(request.asked)
        size = min(max(batch_size // times, 1), request.photos) * times
        kept = None if journal is None else journal(self._description(request))
        results = {} if kept is None else _earlier(kept, source)  # by the photo's place in the source
        batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
        todo = [number for number, places in enumerate(batches) if not results.keys() >= set(places)]
        chain = pp.build(request.how["pp"], tokenizer=self.tokenizer)
        loaded = iter(input.eval_batches(source, chain, batch_size=size, numbers=todo))
        for number, places in enumerate(batches):
            if number in todo:
                batch = next(loaded)
                new = {place: row for row, place in enumerate(places) if batch["_mask"][row] and place not in results}
                self._leave_out(source, {place: batch["meta"][row] for row, place in enumerate(places)})
                if new:
                    said = request.say(batch, _once(batch, times))
                    for place, row in new.items():
                        asked = request.asked[place % times]
                        results[place] = {"image": batch["meta"][row]["id"], **asked, **said[row]}
                    if kept is not None:
                        kept.write({"files": _files(source[place]), "result": results[place]} for place in new)
            yield from (results.pop(place) for place in places if place in results)

    def _description(self, request: Request) -> dict[str, Any]:
        """Returns what results depend on but for the photos themselves."""
        return {**request.settings, "pp": request.how["pp"], "weights": fingerprint(self.variables)}

    def _leave_out(self, source: Any, meta: Mapping[int, Mapping[str, Any]]) -> None:
        for place, row in meta.items():
            left = {"image": source.name(place), "error": row.get("error")}
            if "error" in row and self.left_out[-1:] != [left]:
                self.left_out.append(left)
                logger.warning("Left out: %s", row["error"])


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
    """Returns size and time of the photo and of its label files."""
    paths = {key: value for key, value in example.items() if key == "image" or key.startswith("labels/")}
    stats = {key: os.stat(path) for key, path in paths.items() if isinstance(path, str) and os.path.exists(path)}
    return {key: [stat.st_size, stat.st_mtime_ns] for key, stat in stats.items()}


def _questions(question: str | Sequence[str]) -> list[Result]:
    """Returns what is asked about each photo.

    Raises:
      UserError: there is no question.
    """
    asked = [{"question": text} for text in ([question] if isinstance(question, str) else question)]
    if not asked:
        raise UserError("There is no question to answer: give one, or several.")
    return asked


def _once(batch: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Returns the arrays of a batch whose every `times` rows are of one photo: what is not of the text once for all."""
    first = batch["_mask"].reshape(-1, times).argmax(1) + np.arange(0, len(batch["_mask"]), times)  # that can be used
    arrays = {key: value for key, value in batch.items() if isinstance(value, np.ndarray)}
    return {key: value if key in BY_TEXT else value[first] for key, value in arrays.items()}


def _open(experts: Path, model: Any, path: Path) -> Any:
    """Returns what labels photos with those of a model's experts whose weights are there; None if it has no experts."""
    if not model.experts:
        logger.warning("%s: the model has no experts, and does not use %s.", path, experts)
        return None
    from prismer_jax.labelling.cached import Cached  # with all experts, which nothing else here needs

    return Cached(model.experts, experts, model.classes)


def _on_one_device(shapes: Any) -> Any:
    return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)
