"""What the page asks of a model: labels, captions and answers, with all of its experts or with some."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prismer_jax import datasets, pp
from prismer_jax.captioner import Captioner
from prismer_jax.datasets import scenes
from prismer_jax.datasets.photos import Photos
from prismer_jax.errors import BadSample, UserError
from prismer_jax.labels import EXPERTS
from prismer_jax.objects.class_names import class_names
from prismer_jax.report.photos import sample

Example = dict[str, Any]
EXAMPLES = 8  # photos that the page shows to begin with


@dataclasses.dataclass
class Said:
    """What a model says of a photo.

    Attributes:
      texts: the best first.
      scores: log-probabilities, divided by the length as the checkpoint's decoding does.
      attention: (word, its share of each of the photo's patches [h, w]) of the first text; () if that cannot be told.
    """

    texts: Sequence[str]
    scores: Sequence[float]
    attention: Sequence[tuple[str, np.ndarray]] = ()


class Model:
    """A loaded model as the page asks it, about one photo at a time.

    Attributes:
      experts: whose labels it reads, in the order in which they are made.
      captions, answers: whether it was exported with this task.
    """

    def __init__(self, captioner: Captioner, num_beams: int | None = None) -> None:
        """Args:
        captioner: the model.
        num_beams: search with so many beams, whatever the checkpoint's own decoding is.

        Raises:
          UserError: the checkpoint neither captions nor answers.
        """
        self.captioner, self._beams = captioner, num_beams
        self.captions, self.answers = ("caption" in captioner.tasks, "question" in captioner.tasks)
        if not (self.captions or self.answers):
            raise UserError(
                f"{captioner.folder}: the page captions photos and answers questions; this checkpoint was exported for "
                f"{', '.join(captioner.tasks) or 'nothing'}."
            )
        named = captioner.model.experts
        self.experts = tuple(name for name in EXPERTS if name in named)
        self._names = {name: captioner.model.classes.get(name) or class_names(name) for name in self.experts}

    def note(self) -> str:
        """Says, of photos that are no scenes, without which experts' labels the model sees them; '' for none."""
        if not self.experts:
            return ""
        if self.captioner.experts is None:
            return (
                "The model sees this photo without its experts' label maps: the page was started without their "
                "weights (--experts)."
            )
        return self.captioner.experts.line()

    def label(self, photo: np.ndarray) -> Iterator[tuple[str, Example]]:
        """Yields '' and the photo; then each expert that has labelled it, and the photo with the labels so far.

        No file is left of it.
        """
        if self.captioner.experts is None:
            yield "", {"id": "photo", "image": photo}
            return
        with tempfile.TemporaryDirectory() as folder:
            self.captioner.experts.folder = pathlib.Path(folder)
            for name, labelled in self.captioner.experts.one_by_one(Photos(photo)):
                yield name, _decoded(labelled[0])

    def labelling(self) -> list[str]:
        """Returns the experts that label new photos, in this order."""
        cached = self.captioner.experts
        return [] if cached is None else [one.name for one in cached.experts if one.name in self.experts]

    def labelled(self, example: Mapping[str, Any]) -> list[str]:
        """Returns the experts whose maps an example has."""
        return [name for name in self.experts if EXPERTS[name].key in example]

    def examples(self, source: str | os.PathLike) -> list[Example]:
        """Returns photos to begin with: 'scenes', with those of their labels that the model can read, or of a folder.

        Photos that cannot be read are passed over and named on stderr.

        Raises:
          UserError: the folder is not there, or has no photos that can be read.
        """
        if os.fspath(source) != "scenes":
            photos, examples = datasets.load("photos", images=source, experts=()), []
            for index in range(len(photos)):
                try:
                    examples.append(_decoded(photos[index]))
                except BadSample as error:
                    print(f"Left out: {error}", file=sys.stderr)
                if len(examples) == EXAMPLES:
                    break
            if not examples:
                raise UserError(f"{source}: none of its photos can be read. Give another folder, or --examples none.")
            return examples
        size = min(max(self.captioner.model.image_size, 32), 2048)
        count = 10 * EXAMPLES  # of which 'val' is a tenth
        drawn = datasets.load("scenes", split="val", task="all", size=size, count=count)
        shared_experts = [name for name in self.experts if self._knows(name)]
        return [self.seen(_decoded(drawn[index]), shared_experts) for index in range(len(drawn))]

    def _knows(self, expert: str) -> bool:
        """Whether an expert's ids mean to the model what they mean in the scenes."""
        named = EXPERTS[expert].embed in ("classes", "instances")
        return not named or tuple(self.captioner.model.classes.get(expert, ())) == tuple(scenes.CLASSES)

    def seen(self, example: Mapping[str, Any], experts: Sequence[str]) -> Example:
        """Returns an example with the labels of these experts alone."""
        off = tuple(EXPERTS[name].key for name in EXPERTS if name not in experts)
        return {key: value for key, value in example.items() if not key.startswith(off)}

    def sample(self, example: Example) -> dict[str, Any]:
        """Returns an example as report.draw has it, with names for what its maps show."""
        return sample(example, self.experts, self._names)

    def caption(self, example: Example, experts: Sequence[str]) -> Said:
        """Captions a photo with the labels of these experts alone; all beams, best first."""
        return self._say("caption", [self.seen(example, experts)])[0]

    def answer(self, example: Example, question: str, experts: Sequence[str]) -> Said:
        """Answers a question about a photo with the labels of these experts alone."""
        return self._say("question", [self.seen(example, experts) | {"question": question}])[0]

    def without_each(self, example: Example, question: str) -> dict[str, str]:
        """Returns the answers with all labels that there are, as '', and without those of each of their experts."""
        there = self.labelled(example)
        arms = {"": there, **{name: [other for other in there if other != name] for name in there}}
        asked = [self.seen(example, experts) | {"question": question} for experts in arms.values()]
        said = self._say("question", asked, attention=False)
        return {name: one.texts[0] for name, one in zip(arms, said, strict=True)}

    def warm_up(self) -> None:
        """Compiles what the first visitor would wait for."""
        grey = {"id": "grey", "image": np.full((64, 64, 3), 127, np.uint8)}
        if self.captions:
            self.caption(grey, ())
        if self.answers:
            self.answer(grey, "what is it?", ())

    def _say(self, task: str, examples: Sequence[Example], attention: bool = True) -> list[Said]:
        settings: dict[str, Any] = {} if self._beams is None else {"method": "beam", "num_beams": self._beams}
        decoding = {**(self.captioner.tasks[task].get("decode") or {}), **settings}
        if decoding.get("method", "beam") == "beam" and attention:
            settings["num_return"] = decoding.get("num_beams", 3)
        # One at a time, so that the first visitor's program is all that is ever compiled.
        rows = self.captioner.ask(examples, task=task, attention=attention, batch_size=1, **settings)
        if len(rows) < len(examples):
            raise UserError(self.captioner.left_out[0]["error"])
        key = {"caption": "captions", "question": "answers"}[task]
        return [Said(row[key], row["scores"], row.get("attention", ())) for row in rows]


def _decoded(example: Example) -> Example:
    return pp.build("decode")(example, np.random.default_rng(0))
