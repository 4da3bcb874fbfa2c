"""Photos in, captions or answers out: python -m prismer_jax.caption --checkpoint DIR --images FILES_OR_FOLDER ...

    python -m prismer_jax.caption --checkpoint runs/quickstart --images photos/
    python -m prismer_jax.caption --checkpoint runs/quickstart --images a.jpg --question "What color is the sphere?"
    python -m prismer_jax.caption --checkpoint runs/quickstart --images a.jpg --num-captions 3 --top-p 0.9
    python -m prismer_jax.caption --checkpoint runs/quickstart --images a.jpg --choices "a cone" "a sphere"

From Python: `Captioner("runs/quickstart").caption(["a.jpg"])`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prismer_jax import checkpoint, config, datasets, decode, input, models, pp, runtime
from prismer_jax.errors import UserError, choose, run_main
from prismer_jax.files import storage
from prismer_jax.pp.text import answer_said, caption_said, choice_tokens, read_choices

Path = str | os.PathLike


class Captioner:
    """A trained model with all that it needs to be used: tokenizer, preprocessing and decoding of each of its tasks."""

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

    def caption(
        self,
        images: Path | Sequence[Path],
        *,
        labels: Path | None = None,
        num_captions: int = 1,
        batch_size: int = 16,
        seed: int = 0,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """Captions photos.

        Args:
          images: a folder (recursively), a file, or several of either.
          labels: folder of expert labels in the official layout; experts without a label see the background.
          num_captions: of each photo; several are sampled.
          batch_size: photos at a time; the result does not depend on it.
          seed: of the sampling.
          settings: of `decode.generate` (method, num_beams, top_p, temperature ...), instead of the checkpoint's own.

        Returns:
          [{"image": path, "captions": [text, ...], "scores": [log-probability, ...]}], in the order of the files.
        """
        source = datasets.load("lists", images=images, labels=labels, experts=self.model.experts)
        return self._run("caption", source, "captions", num_captions, batch_size, seed, settings)

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
        source = datasets.load("lists", images=images, labels=labels, experts=self.model.experts)
        source = _Asked(source, question)
        results = self._run("question", source, "answers", num_answers, batch_size, seed, settings)
        return [{"image": r.pop("image"), "question": question, **r} for r in results]

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
        task, kind = ("caption", "class") if question is None else ("question", "answer")
        how, texts = choose("task of this checkpoint", task, self.tasks), read_choices(choices)
        tokens = choice_tokens(self.tokenizer, texts, kind, how.get("style", "plain"))
        settings = {"k": k or {"class": 32, "answer": 16}[kind], "padding": how["decode"].get("padding", "own")}
        source = datasets.load("lists", images=images, labels=labels, experts=self.model.experts)
        source, asked = (source, {}) if question is None else (_Asked(source, question), {"question": question})
        results = []
        for batch, arrays in self._batches(how, source, batch_size):
            ranked = decode.rank_answers(self.model, self.variables, arrays, *tokens, **settings)
            _, candidates, scores = jax.device_get(ranked)
            for row in np.flatnonzero(batch["_mask"]):
                order = np.argsort(-scores[row], kind="stable")
                best = {"choices": [texts[i] for i in candidates[row][order]], "scores": scores[row][order].tolist()}
                results.append({"image": batch["meta"][row]["id"], **asked, **best})
        return results

    def _run(
        self, task: str, source: Any, key: str, number: int, batch_size: int, seed: int, settings: dict[str, Any]
    ) -> list[dict[str, Any]]:
        how = choose("task of this checkpoint", task, self.tasks)
        write, style = {"caption": caption_said, "question": answer_said}[task], how.get("style", "plain")
        if number > 1 or settings.keys() & {"top_p", "top_k", "temperature"}:
            length = {k: v for k, v in how["decode"].items() if k in ("max_new", "min_new", "max_len", "min_len")}
            options = {"method": "sample", "num_samples": number, **length, **settings}
        else:
            options = {**how["decode"], **settings}
        options |= {"eos": self.tokenizer.eos, "pad": self.tokenizer.pad}
        results = []
        for step, (batch, arrays) in enumerate(self._batches(how, source, batch_size)):
            rng = jax.random.fold_in(jax.random.key(seed), step)
            tokens, scores = jax.device_get(decode.generate(self.model, self.variables, arrays, rng=rng, **options))
            for row in np.flatnonzero(batch["_mask"]):
                prompt = batch["text"][row][batch["mask_input"][row]].tolist()
                texts = [write(self.tokenizer, prompt, ids.tolist(), style) for ids in tokens[row]]
                results.append(
                    {"image": batch["meta"][row]["id"], key: texts, "scores": [float(s) for s in scores[row]]}
                )
        return results

    def _batches(self, how: Mapping[str, Any], source: Any, batch_size: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yields (batch, its arrays), all of one shape."""
        chain = pp.build(how["pp"], tokenizer=self.tokenizer)
        for batch in input.eval_batches(source, chain, batch_size=min(batch_size, len(source))):
            yield batch, {k: v for k, v in batch.items() if isinstance(v, np.ndarray)}


class _Asked:
    """A source of photos that asks the same question about each."""

    def __init__(self, source: Any, question: str) -> None:
        self.source, self.question = source, question

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.source[index], "question": self.question}


def _on_one_device(shapes: Any) -> Any:
    return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m prismer_jax.caption", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", required=True, type=storage.on_disk, help="a workdir, an export or a checkpoint"
    )
    parser.add_argument("--images", required=True, nargs="+", type=storage.on_disk, help="photos, or folders of them")
    parser.add_argument("--labels", type=storage.on_disk, help="folder of expert labels, labels/<expert>/<photo>.png")
    parser.add_argument("--question", help="answer this about each photo instead of captioning it")
    parser.add_argument("--choices", nargs="+", help="choose among these texts, or those of a JSON file")
    parser.add_argument("--num-captions", type=int, default=1, help="how many, sampled, of each photo")
    parser.add_argument("--top-p", type=float, help="sample from the smallest set of tokens of this probability")
    parser.add_argument("--temperature", type=float, help="of sampling")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=storage.on_disk, help="a JSON file for the results")
    args, overrides = parser.parse(argv)
    if overrides:
        raise UserError(f"Unknown argument --config.{overrides[0]}: a checkpoint carries its own config.")
    if args.choices is not None and (args.num_captions > 1 or args.top_p is not None or args.temperature is not None):
        raise UserError("--choices are ranked, not sampled: leave --num-captions, --top-p and --temperature out.")
    if args.num_captions < 1 or args.batch_size < 1:
        raise UserError("--num-captions and --batch-size must be at least 1.")
    runtime.use_compilation_cache()
    runtime.log_warnings()
    captioner = Captioner(args.checkpoint)
    settings = {k: v for k, v in (("top_p", args.top_p), ("temperature", args.temperature)) if v is not None}
    common = dict(labels=args.labels, batch_size=args.batch_size, seed=args.seed, **settings)
    if args.choices is not None:
        choices = args.choices[0] if len(args.choices) == 1 else args.choices
        results = captioner.choose(args.images, choices, args.question, labels=args.labels, batch_size=args.batch_size)
    elif args.question is None:
        results = captioner.caption(args.images, num_captions=args.num_captions, **common)
    else:
        results = captioner.answer(args.images, args.question, num_answers=args.num_captions, **common)
    for result in results:
        for text in result.get("captions") or result.get("answers") or result["choices"][:1]:
            print(f"{result['image']}: {text}")
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        storage.write(args.output, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run_main(main)
