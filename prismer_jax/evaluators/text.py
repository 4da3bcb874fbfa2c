"""What evaluators of generated text share: the references of examples, and what is said of a blank image."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prismer_jax import decode
from prismer_jax import input as loader
from prismer_jax.batch import prompts
from prismer_jax.decode.batch import check
from prismer_jax.errors import BadSample, UserError
from prismer_jax.evaluators.common import Batch, Evaluator, Journal, Record, gather, local_rows
from prismer_jax.pp.text import style_of

SCANNED = 5000  # examples of the training set that are looked at for the most frequent text
OPTIONS = ("batch_size", "num_workers", "blank", "max_unscored", "predict_only", "style")  # of all
FIRST = 500  # examples, neighbours, whose ids are compared before a model is asked


class TextEvaluator(Evaluator):
    """Base of evaluators of generated text: one prediction an example, and one a distinct prompt for blank images.

    Args:
      style: of pp.text.STYLES: 'plain', or 'reference' to write texts as the official code does.
      options: those of `Evaluator`; what is left are settings of the decoding.
    """

    id_key, text_key, method = "image_id", "caption", ""  # two of the official result format

    def __init__(self, *, style: str = "plain", **options: Any) -> None:
        super().__init__(**{key: options.pop(key) for key in inspect.signature(Evaluator).parameters if key in options})
        self.style, self.texts, self.settings = style, style_of(style), options
        self._rng = jax.random.key(0)
        self._frequent: str | None = None

    def say(self, variables: Any, batch: dict[str, jax.Array]) -> list[str]:
        """Returns the model's text for each row of this process."""
        raise NotImplementedError

    def texts_of(self, example: Mapping[str, Any]) -> Sequence[str]:
        """Returns the reference texts of an example."""
        raise NotImplementedError

    def check_source(self) -> None:
        if not self.predict_only and not any(self.texts_of(example) for example in scan(self.source)):
            raise UserError(
                f"{self.where}: no sample has a reference {self.text_key}, so nothing can be scored. Give a list, or "
                "annotations, that have them, or set predict_only=True (evaluate --predict-only) for predictions alone."
            )
        check_unique([self.key_of(example, i) for i, example in enumerate(scan(self.source, FIRST))], f"{self.where}: ")
        self.check_ops("text", "makes no prompt: end it with question_prompt or caption_prompt, and tokenize")

    @property
    def decoding(self) -> dict[str, Any]:
        return {"method": self.method, **self.settings, "style": self.style}

    def check_settings(self, *functions: Callable[..., Any], max_new: int = 0) -> None:
        """Raises a UserError for settings that these functions do not take; gives them `max_new`, if it is not 0."""
        if max_new and not self.settings.keys() & {"max_len", "max_new"}:
            self.settings["max_new"] = max_new
        check(self.settings, self.where, *functions, extra=OPTIONS)

    def generate(
        self, variables: Any, batch: dict[str, jax.Array], method: str, write: Callable[..., str]
    ) -> list[str]:
        """Returns the model's continuation of each row's prompt; `write`, a `..._said` of a style, decodes it."""
        rng = {"rng": self._rng} if method == "sample" else {}
        ids = {"eos": self.tokenizer.eos, "pad": self.tokenizer.pad}
        tokens, _ = decode.generate(self.model, variables, batch, method=method, **ids, **rng, **self.settings)
        rows = zip(local_rows(batch["text"]), local_rows(batch["mask_input"]), local_rows(tokens), strict=True)
        return [write(self.tokenizer, text[real].tolist(), row[0].tolist()) for text, real, row in rows]

    def measure(self, variables: Any, batch: Batch) -> list[Record]:
        said = self.say(variables, self.put(batch))
        # Pads may be ids of text too, where a tokenizer has none of its own: -1 tells them apart.
        prompts = np.where(batch["mask_input"], batch["text"], -1).tolist()
        if "image_mask" in batch:
            prompts = importlib.import_module(loader.BUCKETS).counted(prompts, batch["image_mask"])
        return [{"prediction": text, "prompt": prompt} for text, prompt in zip(said, prompts, strict=True)]

    def about(self, example: Mapping[str, Any], index: int) -> Record:
        return super().about(example, index) | {"references": [x for x in self.texts_of(example) if isinstance(x, str)]}

    def finish(self, variables: Any, records: list[Record], earlier: list[Record], journal: Journal | None) -> None:
        check_unique([record["id"] for record in records])
        self.predictions = [{self.id_key: record["id"], self.text_key: record["prediction"]} for record in records]
        asked = [tuple(record.pop("prompt")) for record in records]
        said = self._say_blank(variables, list(dict.fromkeys(asked)), earlier, journal) if self.with_blank else {}
        for record, prompt in zip(records, asked, strict=True):
            record["blank"] = said.get(prompt)

    def _say_blank(
        self, variables: Any, questions: list[tuple[int, ...]], earlier: list[Record], journal: Journal | None
    ) -> dict[tuple[int, ...], str]:
        """Returns the model's text for each distinct prompt on a blank image; the processes share each batch."""
        size, entries, template = self.batch_size, list(earlier), self.template()
        done_prompts = {tuple(entry["prompt"]) for entry in gather(entries)}
        chunks = [questions[start : start + size] for start in range(0, len(questions), size)]
        left = [chunk for chunk in chunks if not done_prompts.issuperset(chunk)]
        with self._progress(", blank image", len(questions), len(questions) - sum(map(len, left)), "prompts") as count:
            for chunk in left:
                mine, images = [(chunk + chunk[:1] * (size - len(chunk)))[row] for row in self._rows], {}
                if "image_mask" in template:
                    images, text = importlib.import_module(loader.BUCKETS).blank(template, mine, chunk)
                else:
                    text = np.array(mine, template["text"].dtype)
                draw = np.array([zlib.crc32(repr(prompt).encode()) for prompt in mine], np.uint32)
                asked = {**images, **prompts(np.where(text < 0, self.tokenizer.pad, text), text >= 0), "draw": draw}
                asked["mask_ar"] *= template["mask_ar"].max(initial=0)  # 0 of prompts that see themselves whole
                answers = self.say(variables, self.put({**template, **asked, "_mask": np.ones(len(mine), bool)}))
                new = [{"prompt": list(p), "blank": answer} for p, answer in zip(mine, answers, strict=True)]
                if journal is not None:
                    journal.write(new)
                entries += new
                count(len(chunk))
        return {tuple(entry["prompt"]): entry["blank"] for entry in gather(entries)}

    def train_texts(self) -> Counter[str]:
        """Returns how often each reference text occurs in the training source."""
        return Counter(text for example in scan(self.train_source) for text in self.texts_of(example))

    def most_frequent(self, records: Sequence[Mapping[str, Any]]) -> str:
        """Returns the most frequent text of the training source, or of the references."""
        if self._frequent is None:
            counts = self.train_texts() or Counter(text for record in records for text in record["references"])
            self._frequent = counts.most_common(1)[0][0]
        return self._frequent


def check_unique(keys: Sequence[Hashable], where: str = "") -> None:
    """Raises a UserError where an id occurs twice: an average would count it twice, a result file not at all."""
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        more = f"more than once in the data set to evaluate, such as {twice[0]!r}. Give each example its own."
        raise UserError(f"{where}{len(twice)} ids occur {more}")


def scan(source: Any, first: int | None = None) -> Iterator[Mapping[str, Any]]:
    """Yields evenly spaced good examples of a source, at most SCANNED, or the first ones; images stay encoded."""
    count = len(source or ())
    for index in range(0, count, max(1, -(-count // SCANNED))) if first is None else range(min(first, count)):
        with contextlib.suppress(BadSample):
            yield source[index]
