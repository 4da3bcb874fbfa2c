"""A trained model in use, from Python; prismer_jax.caption is its command.

`loaded.py` loads a checkpoint, `requests.py` says what is asked about photos, `results.py` what the model says of them,
and `comparing.py` compares photos with texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from prismer_jax.captioner.loaded import Loaded
from prismer_jax.captioner.requests import to_answer, to_caption, to_choose, to_rank, to_write
from prismer_jax.captioner.results import results_of
from prismer_jax.datasets.photos import Examples, Photo
from prismer_jax.errors import BadSample, UserError, choose
from prismer_jax.files.storage import PathLike
from prismer_jax.pp.choices import read_choices


def load(checkpoint: PathLike, experts: PathLike | None = None) -> Captioner:
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


class Captioner(Loaded):
    """A loaded model that captions photos, answers questions about them, chooses, labels and compares."""

    def caption(
        self,
        images: Photo | Sequence[Photo] | None = None,
        *,
        prompt: str | None = None,
        labels: PathLike | None = None,
        num_captions: int = 1,
        batch_size: int = 16,
        seed: int = 0,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """Captions photos.

        Args:
          images: a folder (recursively), a file, or several of either; or photos in memory, the bytes of a file, an
            open file, an image of Pillow or an array uint8 [h, w, 3], or several, called '0', '1' ...; None for a
            prompt alone, whose result has the image "".
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
        request = to_caption(self, images, labels, num_captions, seed, settings, prompt)
        return list(results_of(self, request, batch_size))

    def answer(
        self,
        images: Photo | Sequence[Photo],
        question: str | Sequence[str],
        *,
        labels: PathLike | None = None,
        num_answers: int = 1,
        batch_size: int = 16,
        seed: int = 0,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """Answers a question about each photo, or several: as `caption`, with "question" and "answers" in the results.

        A photo is encoded once, whatever the number of questions; `batch_size` counts them. With padding='reference' an
        answer depends on the longest question of its batch, as in the original.
        """
        request = to_answer(self, images, question, labels, num_answers, seed, settings)
        return list(results_of(self, request, batch_size))

    def choose(
        self,
        images: Photo | Sequence[Photo],
        choices: PathLike | Sequence[str],
        question: str | Sequence[str] | None = None,
        *,
        labels: PathLike | None = None,
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
        return list(results_of(self, to_choose(self, images, choices, question, labels, k), batch_size))

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
            remedy = "Load it with their weights: experts=FOLDER" if self.model.experts else "This model has no experts"
            raise UserError(f"Photos are labelled by the model's experts. {remedy}.")
        source, self.left_out, labelled = self.photos(images, None), [], []
        for place in range(len(source)):
            try:
                labelled.append(self.experts.said(source[place]))
            except BadSample as error:
                self.leave_out(source, {place: {"error": str(error)}})
        if not labelled:
            raise UserError(f"None of the {len(source)} photos can be used. The first: {self.left_out[0]['error']}")
        return labelled

    def ask(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        task: Literal["question", "caption"] = "question",
        num_answers: int = 1,
        batch_size: int = 16,
        seed: int = 0,
        attention: bool = False,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """Answers a question of its own about each example, as `answer` does; or captions it, as `caption` does.

        Args:
          examples: {"id", "image", "question"}: the image is a path, a file's bytes or uint8 RGB, a list of these for a
            model that reads several, or None; where there are label maps, "labels/<expert>"; and "begun", what the
            answer begins with, for a model that is asked in words.
          task: 'caption' needs no "question".
          attention: tells of each example's first text where the model looked, if decode.attention says so.

        Returns:
          [{"image": the example's id, "answers" or "captions": [text, ...], "scores": [log-probability, ...]}], without
          those in `left_out`; with "attention": [(word, its share of each of the photo's patches, float32 [h, w])].
        """
        key = choose("task", task, {"question": "answers", "caption": "captions"})
        request = to_write(self, task, Examples(examples), key, num_answers, seed, settings, [{}], attention)
        return list(results_of(self, request, batch_size))

    def rank(
        self, examples: Sequence[Mapping[str, Any]], choices: Sequence[str], *, batch_size: int = 16
    ) -> list[dict[str, Any]]:
        """Ranks all of the choices as answers to the question of each example of `ask`, as `choose` does.

        The scores are the log-probabilities a token, without the label smoothing of `choose`.
        """
        how = self.task("question")
        settings = {"k": len(choices), "label_smoothing": 0.0}
        request = to_rank(self, Examples(examples), how, read_choices(choices), "answer", settings, [{}])
        return list(results_of(self, request, batch_size))

    def features(
        self,
        images: PathLike | Sequence[PathLike] | None = None,
        texts: str | Sequence[str] | None = None,
        *,
        labels: PathLike | None = None,
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
        source = None if images is None else self.photos(images, labels)
        texts = [texts] if isinstance(texts, str) else texts
        return self.comparer().features(source, texts, min(batch_size, len(source or ())))

    def match(
        self,
        images: PathLike | Sequence[PathLike],
        texts: str | Sequence[str],
        *,
        labels: PathLike | None = None,
        batch_size: int = 16,
    ) -> list[dict[str, Any]]:
        """Compares each photo with each text.

        Returns:
          [{"image": path, "texts": texts, "itc": cosine of each text and the photo's nearest query, "itm": probability
          that they match, "score": what LAVIS ranks by, the cosine and the logit of 'yes' in sum}], without those in
          `left_out`. Of a text that fits, "itm" is near 1, whereas "itc" of 0.3 to 0.4 is much.
        """
        source, texts = self.photos(images, labels), [texts] if isinstance(texts, str) else texts
        return list(self.comparer().match(source, texts, min(batch_size, len(source))))

    def comparer(self) -> Any:
        """Returns the comparing.Comparer of the model; raises UserError if it compares nothing."""
        from prismer_jax.captioner.comparing import Comparer, matching  # which captions need not

        self.left_out = []
        if "match" not in self.tasks:
            matching.check(self.model)
            example = f'"match": {{"pp": "decode|resize({self.model.image_size})", "style": "blip", "max_tokens": 32}}'
            raise UserError(
                f"{self.folder}: its config.json does not say how photos and texts are read to be compared. Write it "
                f"there, under tasks, with the style and the length that it was trained with: {example}."
            )
        return Comparer(self.model, self.variables, self.tokenizer, self.tasks["match"], self.leave_out)
