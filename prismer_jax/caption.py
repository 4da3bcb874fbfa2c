"""Photos in, captions or answers out: python -m prismer_jax.caption --checkpoint DIR --images FILES_OR_FOLDER ...

    python -m prismer_jax.caption --checkpoint runs/quickstart --images photos/
    python -m prismer_jax.caption --checkpoint runs/quickstart --images a.jpg --question "What color is the sphere?"
    python -m prismer_jax.caption --checkpoint runs/quickstart --images a.jpg --num-captions 3 --top-p 0.9
    python -m prismer_jax.caption --checkpoint runs/quickstart --images a.jpg --choices "a cone" "a sphere"
    python -m prismer_jax.caption --checkpoint models/nanovlm_222m --images a.jpg --prompt "What is this?"
    python -m prismer_jax.caption --checkpoint models/nanovlm_450m --prompt "What is the capital of France?"
    python -m prismer_jax.caption --checkpoint models/paligemma --images a.jpg --prompt "detect cat ; dog" --draw boxes/

Results come as they are found. A photo that cannot be used is named and left out; the exit status is then 1. What goes
to `--output` is kept beside it until all is there: a run that was stopped, even killed, goes on where it was.

From Python: `Captioner("runs/quickstart").caption(["a.jpg"])`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from prismer_jax import checkpoint, config, datasets, decode, input, models, pp, runtime
from prismer_jax.checkpoint.fingerprint import fingerprint
from prismer_jax.decode.ranking import rank_answers
from prismer_jax.errors import BadSample, UserError, choose, run_main
from prismer_jax.evaluators.journal import Journal
from prismer_jax.files import storage
from prismer_jax.label_png import MAX_PIXELS
from prismer_jax.objects import codec as codecs
from prismer_jax.pp.chat import takes_prompt
from prismer_jax.pp.choices import choice_tokens, read_choices
from prismer_jax.pp.image import read_image
from prismer_jax.pp.text import style_of
from prismer_jax.report import objects

Path = str | os.PathLike
Result = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class _Request:
    """What is asked about photos.

    Attributes:
      source: the photos, with the question about each if there is one.
      how: the checkpoint's section of the task.
      settings: all else that the results depend on, as JSON has it.
      say: from (host batch, its arrays) to what is said of each row.
    """

    source: Any
    how: Mapping[str, Any]
    settings: dict[str, Any]
    say: Callable[[Mapping[str, Any], dict[str, Any]], Sequence[Result]]


class Captioner:
    """A trained model with all that it needs to be used: tokenizer, preprocessing and decoding of each of its tasks.

    Attributes:
      left_out: of the last call, {"image": path, "error": why} of each photo that could not be used: a damaged photo or
        label. It is not among the results, and a warning names it. If no photo can be used, the call is a UserError.
    """

    def __init__(self, path: Path) -> None:
        """Loads an export, or the latest checkpoint of a workdir.

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

    def caption(
        self,
        images: Path | Sequence[Path] | None = None,
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
          images: a folder (recursively), a file, or several of either; None for a prompt alone, whose result has the
            image "".
          prompt: what is said instead of the checkpoint's own prompt, if it is one that is asked in words.
          labels: folder of expert labels in the official layout; experts without a label see the background.
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
        return list(self._results(self._to_caption(images, labels, num_captions, seed, settings, prompt), batch_size))

    def answer(
        self,
        images: Path | Sequence[Path],
        question: str,
        *,
        labels: Path | None = None,
        num_answers: int = 1,
        batch_size: int = 16,
        seed: int = 0,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """Answers one question about each photo: as `caption`, with "question" and "answers" in the result."""
        request = self._to_answer(images, question, labels, num_answers, seed, settings)
        return list(self._results(request, batch_size))

    def choose(
        self,
        images: Path | Sequence[Path],
        choices: Path | Sequence[str],
        question: str | None = None,
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
        return list(self._results(self._to_choose(images, choices, question, labels, k), batch_size))

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
        request = self._to_write("question", _Examples(examples), "answers", num_answers, seed, settings, {})
        return list(self._results(request, batch_size))

    def rank(
        self, examples: Sequence[Mapping[str, Any]], choices: Sequence[str], *, batch_size: int = 16
    ) -> list[dict[str, Any]]:
        """Ranks all of the choices as answers to the question of each example of `ask`, as `choose` does.

        The scores are the log-probabilities a token, without the label smoothing of `choose`.
        """
        how = choose("task of this checkpoint", "question", self.tasks)
        settings = {"k": len(choices), "label_smoothing": 0.0}
        request = self._to_rank(_Examples(examples), how, read_choices(choices), "answer", settings, {})
        return list(self._results(request, batch_size))

    def _to_caption(
        self,
        images: Any,
        labels: Path | None,
        number: int,
        seed: int,
        settings: Mapping[str, Any],
        prompt: str | None = None,
    ) -> _Request:
        if images is None and prompt is None:
            raise UserError("Give photos to caption, or a prompt.")
        if prompt is not None and not takes_prompt(choose("task of this checkpoint", "caption", self.tasks)["pp"]):
            raise UserError(
                f"prompt={prompt!r}: this checkpoint's captions are not asked for in words. Leave the prompt out, or "
                "ask it as a question."
            )
        if images is None and self.model.experts:
            raise UserError("This checkpoint sees its photos through experts too: give photos beside the prompt.")
        source, asked = _NoPhoto() if images is None else self._photos(images, labels), {}
        if prompt is not None:
            source, asked = _Asked(source, prompt=prompt), {"prompt": prompt}
        return self._to_write("caption", source, "captions", number, seed, settings, asked)

    def _to_answer(
        self, images: Any, question: str, labels: Path | None, number: int, seed: int, settings: Mapping[str, Any]
    ) -> _Request:
        source, asked = _Asked(self._photos(images, labels), question=question), {"question": question}
        return self._to_write("question", source, "answers", number, seed, settings, asked)

    def _to_choose(
        self, images: Any, choices: Path | Sequence[str], question: str | None, labels: Path | None, k: int | None
    ) -> _Request:
        task, kind = ("caption", "class") if question is None else ("question", "answer")
        how = choose("task of this checkpoint", task, self.tasks)
        source, asked = self._photos(images, labels), {}
        if question is not None:
            source, asked = _Asked(source, question=question), {"question": question}
        settings = {"k": k or {"class": 32, "answer": 16}[kind]}
        return self._to_rank(source, how, read_choices(choices), kind, settings, asked)

    def _to_rank(
        self,
        source: Any,
        how: Mapping[str, Any],
        texts: Sequence[str],
        kind: Literal["answer", "class"],
        settings: dict[str, Any],
        asked: Result,
    ) -> _Request:
        tokens = choice_tokens(self.tokenizer, texts, kind, how.get("style", "plain"))
        settings = {**settings, "padding": how["decode"].get("padding", "own")}

        def say(batch: Mapping[str, Any], arrays: dict[str, Any]) -> list[Result]:
            ranked = rank_answers(self.model, self.variables, arrays, *tokens, **settings)
            _, candidates, scores = jax.device_get(ranked)
            orders = np.argsort(-scores, kind="stable")
            return [
                {**asked, "choices": [texts[i] for i in row[order]], "scores": score[order].tolist()}
                for row, score, order in zip(candidates, scores, orders, strict=True)
            ]

        return _Request(source, how, {**settings, **asked, "choices": texts}, say)

    def _to_write(
        self, task: str, source: Any, key: str, number: int, seed: int, settings: Mapping[str, Any], asked: Result
    ) -> _Request:
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
                {
                    **asked,
                    key: [write(self.tokenizer, prompt, ids.tolist()) for ids in row],
                    "scores": score.tolist(),
                }
                for prompt, row, score in zip(prompts, tokens, scores, strict=True)
            ]

        return _Request(source, how, {**options, **asked, "task": task, "seed": seed}, say)

    def _photos(self, images: Any, labels: Path | None) -> Any:
        return datasets.load("photos", images=images, labels=labels, experts=self.model.experts)

    def _results(
        self, request: _Request, batch_size: int, journal: Callable[[Mapping[str, Any]], Journal] | None = None
    ) -> Iterator[Result]:
        """Yields the result of each photo, in the order of the files, as they are found; notes what is left out.

        Args:
          request: what is asked.
          batch_size: photos at a time.
          journal: makes the journal of what is described to it, where results are kept and earlier starts left some.
        """
        self.left_out, source, count = [], request.source, len(request.source)
        size = min(batch_size, count)
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
                    arrays = {key: value for key, value in batch.items() if isinstance(value, np.ndarray)}
                    said = request.say(batch, arrays)
                    results |= {place: {"image": batch["meta"][row]["id"], **said[row]} for place, row in new.items()}
                    if kept is not None:
                        kept.write({"files": _files(source[place]), "result": results[place]} for place in new)
            yield from (results.pop(place) for place in places if place in results)

    def _description(self, request: _Request) -> dict[str, Any]:
        """Returns what results depend on but for the photos themselves."""
        return {**request.settings, "pp": request.how["pp"], "weights": fingerprint(self.variables)}

    def _leave_out(self, source: Any, meta: Mapping[int, Mapping[str, Any]]) -> None:
        for place, row in meta.items():
            if "error" in row:
                self.left_out.append({"image": source.name(place), "error": row["error"]})
                logger.warning("Left out: %s", row["error"])


def _earlier(journal: Journal, source: Any) -> dict[int, Result]:
    """Returns the results that earlier starts have left of photos that are as they were then, by place."""
    entries = {entry["result"]["image"]: entry for entry in journal.read()}
    results = {}
    for place in range(len(source)) if entries else ():
        with contextlib.suppress(BadSample):  # of a label: it is left out when its batch is read
            example = source[place]
            entry = entries.get(example["id"])
            if entry is not None and entry["files"] == _files(example):
                results[place] = entry["result"]
    return results


def _files(example: Mapping[str, Any]) -> dict[str, list[int]]:
    """Returns size and time of the photo and of its label files."""
    paths = {key: value for key, value in example.items() if key == "image" or key.startswith("labels/")}
    stats = {key: os.stat(path) for key, path in paths.items() if isinstance(path, str) and os.path.exists(path)}
    return {key: [stat.st_size, stat.st_mtime_ns] for key, stat in stats.items()}


class _NoPhoto:
    """A source of one example that has no photo."""

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return ""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": "", "image": None}


class _Examples:
    """A source of examples that are in memory."""

    def __init__(self, examples: Sequence[Mapping[str, Any]]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def name(self, index: int) -> str:
        return self.examples[index]["id"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.examples[index])


class _Asked:
    """A source of photos that asks the same question about each, or gives the same prompt."""

    def __init__(self, source: Any, **asked: str) -> None:
        self.source, self.asked = source, asked

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.source[index], **self.asked}


def _on_one_device(shapes: Any) -> Any:
    return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m prismer_jax.caption", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", required=True, type=storage.on_disk, help="a workdir, an export or a checkpoint"
    )
    parser.add_argument("--images", nargs="+", type=storage.on_disk, help="photos, or folders of them")
    parser.add_argument("--labels", type=storage.on_disk, help="folder of expert labels, labels/<expert>/<photo>.png")
    parser.add_argument("--question", help="answer this about each photo instead of captioning it")
    parser.add_argument("--prompt", help="say this instead of the checkpoint's own prompt; needs no photos")
    parser.add_argument("--choices", nargs="+", help="choose among these texts, or those of a JSON file")
    parser.add_argument("--num-captions", type=int, default=1, help="how many, sampled, of each photo")
    parser.add_argument("--top-p", type=float, help="sample from the smallest set of tokens of this probability")
    parser.add_argument("--temperature", type=float, help="of sampling")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=storage.on_disk, help="a JSON file for the results")
    parser.add_argument("--mask-codec", type=storage.on_disk, help="vae-oid.npz, for the masks that a model writes")
    parser.add_argument("--divide-by", type=int, default=1024, help="1024 or 1023, of the places that a model writes")
    parser.add_argument("--draw", type=storage.on_disk, help="a folder for photos with the boxes and masks in them")
    parser.add_argument("--save-labels", type=storage.on_disk, help="a folder for them as labels of objects, classes")
    args, overrides = parser.parse(argv)
    if overrides:
        raise UserError(f"Unknown argument --config.{overrides[0]}: a checkpoint carries its own config.")
    if args.choices is not None and (args.num_captions > 1 or args.top_p is not None or args.temperature is not None):
        raise UserError("--choices are ranked, not sampled: leave --num-captions, --top-p and --temperature out.")
    if args.prompt is not None and (args.choices is not None or args.question is not None):
        raise UserError("--prompt is said instead of asking: leave --question and --choices out.")
    if args.images is None and args.prompt is None:
        raise UserError("Give --images, photos or folders of them, or --prompt.")
    if args.num_captions < 1 or args.batch_size < 1:
        raise UserError("--num-captions and --batch-size must be at least 1.")
    if args.divide_by not in (1023, 1024):
        raise UserError(
            f"--divide-by {args.divide_by}: 1024, as in PaliGemma's announcement, or 1023, as in big_vision."
        )
    runtime.use_compilation_cache()
    runtime.log_warnings()
    captioner = Captioner(args.checkpoint)
    settings = {k: v for k, v in (("top_p", args.top_p), ("temperature", args.temperature)) if v is not None}
    if args.choices is not None:
        choices = args.choices[0] if len(args.choices) == 1 else args.choices
        request = captioner._to_choose(args.images, choices, args.question, args.labels, None)
    elif args.question is None:
        how_many = args.num_captions, args.seed, settings
        request = captioner._to_caption(args.images, args.labels, *how_many, args.prompt)
    else:
        request = captioner._to_answer(args.images, args.question, args.labels, args.num_captions, args.seed, settings)
    see = _reader(captioner, request.source, args)
    if args.output is None:
        for _ in _shown(map(see, captioner._results(request, args.batch_size))):
            pass
    else:
        write_results(args.output, captioner, request, args.batch_size, see)
    for problem in see.problems():
        print(problem, file=sys.stderr)
    if captioner.left_out:
        print(f"{len(captioner.left_out)} of {len(request.source)} photos were left out.", file=sys.stderr)
        sys.exit(1)


def _reader(captioner: Captioner, source: Any, args: argparse.Namespace) -> objects.Reader:
    """Returns what reads boxes and masks off the captions of a source's photos, draws and saves them."""
    own = captioner.folder / codecs.FILE
    path = args.mask_codec or (own if own.exists() else None)
    places: dict[str, int] = {}

    def place(image: str) -> int:
        if not places:
            places.update((source[index]["id"], index) for index in range(len(source)))
        return places[image]

    def read(image: str) -> np.ndarray:
        return read_image(source[place(image)]["image"], MAX_PIXELS, image)

    labels = None
    if args.save_labels is not None:
        from prismer_jax.experts.class_names import class_names  # with all experts, which nothing else here needs

        classes = {expert: captioner.model.classes.get(expert) or class_names(expert) for expert in objects.DRAWN}
        made_with = f"caption, weights {fingerprint(captioner.variables)}"
        labels = objects.Labels(args.save_labels, lambda image: source.name(place(image)), classes, made_with)
    codec = None if path is None else codecs.load(os.fspath(path))
    return objects.Reader(read, codec, args.divide_by, args.draw, labels)


def write_results(
    path: pathlib.Path, captioner: Captioner, request: _Request, batch_size: int, see: Callable[[Result], Result]
) -> None:
    """Writes the results to a JSON file, or as JSON lines (.jsonl), and shows them; goes on where an earlier start was.

    Until all is there, PATH.partial holds what was found. `see` adds to a result what is read off its texts.
    """
    journals: list[Journal] = []

    def journal(description: Mapping[str, Any]) -> Journal:
        journals.append(Journal(path.with_name(f"{path.name}.partial"), "results", description))
        return journals[0]

    results = list(_shown(map(see, captioner._results(request, batch_size, journal))))
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
    else:
        text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write(path, text)
    journals[0].discard()


def _shown(results: Iterable[Result]) -> Iterator[Result]:
    """Passes results on and prints them as they come."""
    for result in results:
        texts = result.get("captions") or result.get("answers") or result["choices"][:1]
        for text in map(objects.line_of, result["objects"]) if result.get("objects") else texts:
            print(f"{result['image']}: {text}" if result["image"] else text, flush=True)
        yield result


if __name__ == "__main__":
    run_main(main)
