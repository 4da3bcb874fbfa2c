"""What is asked about photos: to caption them, to answer questions about them, or to choose among texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from prismer_jax import config, decode
from prismer_jax.captioner.loaded import Loaded, Result
from prismer_jax.datasets.photos import NO_PHOTO, Asked, check_text
from prismer_jax.decode.ranking import rank_answers
from prismer_jax.errors import UserError
from prismer_jax.files.storage import PathLike
from prismer_jax.pp.chat import takes_prompt
from prismer_jax.pp.choices import choice_tokens, read_choices
from prismer_jax.pp.text import style_of

# A checkpoint's settings of decoding that stand for whatever method one asks for.
OF_ALL = ("max_new", "min_new", "max_len", "min_len", "prompt_length", "length", "padding")
# Of each of these lengths, which one takes its place.
COUNTED_OTHERWISE = {"max_new": "max_len", "max_len": "max_new", "min_new": "min_len", "min_len": "min_new"}
WITH_BEAMS = ("beam", "big_vision_beam")  # methods that num_beams is a setting of; of other checkpoints it is the first


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


def to_caption(
    loaded: Loaded,
    images: Any,
    labels: PathLike | None,
    number: int,
    seed: int,
    settings: Mapping[str, Any],
    prompt: str | None = None,
) -> Request:
    """Returns what Captioner.caption asks, of whose arguments these are; see there for the errors."""
    if images is None and prompt is None:
        raise UserError("Give photos to caption, or a prompt.")
    if prompt is not None and not takes_prompt(loaded.task("caption")["pp"]):
        raise UserError(
            f"prompt={prompt!r}: this checkpoint takes no text prompt for captions. Leave the prompt out, or "
            "ask it as a question."
        )
    if images is None and loaded.model.experts:
        raise UserError("This checkpoint sees its photos through experts too: give photos beside the prompt.")
    source = NO_PHOTO if images is None else loaded.photos(images, labels)
    asked = [{}] if prompt is None else [{"prompt": prompt}]
    return to_write(loaded, "caption", source, "captions", number, seed, settings, asked)


def to_answer(
    loaded: Loaded,
    images: Any,
    question: str | Sequence[str],
    labels: PathLike | None,
    number: int,
    seed: int,
    settings: Mapping[str, Any],
) -> Request:
    """Returns what Captioner.answer asks; raises UserError if there is no question."""
    asked = _questions(question)
    return to_write(loaded, "question", loaded.photos(images, labels), "answers", number, seed, settings, asked)


def to_choose(
    loaded: Loaded,
    images: Any,
    choices: PathLike | Sequence[str],
    question: str | Sequence[str] | None,
    labels: PathLike | None,
    k: int | None,
) -> Request:
    """Returns what Captioner.choose asks; raises UserError if the checkpoint lacks the task."""
    task, kind = ("caption", "class") if question is None else ("question", "answer")
    how = loaded.task(task)
    k = {"class": 32, "answer": 16}[kind] if k is None else k
    check_counts(k=k)
    asked = [{}] if question is None else _questions(question)
    return to_rank(loaded, loaded.photos(images, labels), how, read_choices(choices), kind, {"k": k}, asked)


def to_rank(
    loaded: Loaded,
    source: Any,
    how: Mapping[str, Any],
    texts: Sequence[str],
    kind: Literal["answer", "class"],
    settings: dict[str, Any],
    asked: Sequence[Result],
) -> Request:
    """Returns a request that ranks texts, answers or names of classes, for each row of a source."""
    for text in (*texts, *(text for ask in asked for text in ask.values())):
        check_text(text)
    tokens = choice_tokens(loaded.tokenizer, texts, kind, how.get("style", "plain"))
    settings = {**settings, "padding": (how.get("decode") or {}).get("padding", "own")}

    def say(batch: Mapping[str, Any], arrays: dict[str, Any]) -> list[Result]:
        ranked = rank_answers(loaded.model, loaded.variables, arrays, *tokens, **settings)
        _, candidates, scores = jax.device_get(ranked)
        orders = np.argsort(-scores, kind="stable")
        return [
            {"choices": [texts[i] for i in row[order]], "scores": score[order].tolist()}
            for row, score, order in zip(candidates, scores, orders, strict=True)
        ]

    described = {**settings, "asked": asked, "choices": texts}
    return Request(Asked(source, asked), how, described, say, asked)


def to_write(
    loaded: Loaded,
    task: str,
    source: Any,
    key: str,
    number: int,
    seed: int,
    settings: Mapping[str, Any],
    asked: Sequence[Result],
    attention: bool = False,
) -> Request:
    """Returns a request that decodes the likeliest text of each row, or draws several, as `key` of its result.

    With `attention` the result also has where the model looked for each word of the first, see Captioner.ask.
    """
    config.check_seed(seed)
    check_counts(number=number)
    for text in (text for ask in asked for text in ask.values()):
        check_text(text)
    how = loaded.task(task)
    texts = style_of(how.get("style", "plain"))
    write = {"caption": texts.caption_said, "question": texts.answer_said}[task]
    own = (how.get("decode") or {}).get("method", "beam")
    drawn = number > 1 or settings.keys() & {"top_p", "top_k", "temperature"}
    by_beams = "num_beams" in settings and own not in WITH_BEAMS
    method = settings.get("method", "sample" if drawn else WITH_BEAMS[0] if by_beams else own)
    if drawn and (method != "sample" or "num_beams" in settings):
        raise UserError(
            "Several texts, top_p, top_k and temperature need method='sample': leave method and num_beams out."
        )
    decoding, drawing = (
        {k: v for k, v in (how.get(key) or {}).items() if COUNTED_OTHERWISE.get(k) not in settings}
        for key in ("decode", "sample")
    )
    if method != own:
        decoding = {k: v for k, v in decoding.items() if k in OF_ALL}
    if method == "sample":
        decoding = {k: v for k, v in decoding.items() if COUNTED_OTHERWISE.get(k) not in drawing} | drawing
        decoding |= {"num_samples": number, "num_return": 0} if number > 1 else {}
    options = {**decoding, **settings, "method": method}
    if not options.keys() & {"max_new", "max_len"}:
        remedy = f'Write it there, under tasks.{task}, such as "decode": {{"max_new": 30}}'
        raise UserError(f"{loaded.folder}: its config.json does not say how long a text of {task!r} may be. {remedy}.")
    options |= {"eos": loaded.tokenizer.eos, "pad": loaded.tokenizer.pad}

    def say(batch: Mapping[str, Any], arrays: dict[str, Any]) -> list[Result]:
        rng = jax.random.key(seed)
        tokens, scores = jax.device_get(decode.generate(loaded.model, loaded.variables, arrays, rng=rng, **options))
        prompts = [text[mask].tolist() for text, mask in zip(batch["text"], batch["mask_input"], strict=True)]
        looked = _looked(loaded, arrays, tokens[:, 0]) if attention else [{}] * len(prompts)
        return [
            {key: [write(loaded.tokenizer, prompt, ids.tolist()) for ids in row], "scores": score.tolist(), **more}
            for prompt, row, score, more in zip(prompts, tokens, scores, looked, strict=True)
        ]

    described = {**options, "asked": asked, "task": task, "seed": seed}
    return Request(Asked(source, asked), how, described, say, asked)


def _looked(loaded: Loaded, arrays: Mapping[str, Any], tokens: np.ndarray) -> Sequence[Result]:
    """Returns {"attention": [(word, [h, w])]} of each row's tokens; {} of a model that does not look at patches."""
    from prismer_jax.decode.attention import photo_attention, words_of  # which few ask for

    maps = photo_attention(loaded.model, loaded.variables, arrays, tokens)
    if maps is None:
        return [{}] * len(tokens)
    return [
        {"attention": [(word, seen[places].mean(0)) for word, places in words_of(loaded.tokenizer, row.tolist())]}
        for row, seen in zip(tokens, np.asarray(maps), strict=True)
    ]


def check_counts(**counts: Any) -> None:
    """Raises a UserError for what is no whole number of at least 1."""
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < 1:
            raise UserError(f"{name}={count!r}: must be a whole number, at least 1.")


def _questions(question: str | Sequence[str]) -> list[Result]:
    """Returns what is asked about each photo.

    Raises:
      UserError: there is no question.
    """
    several = not isinstance(question, str) and isinstance(question, Iterable)
    asked = [{"question": text} for text in (question if several else [question])]
    if not asked or not all(isinstance(ask["question"], str) for ask in asked):
        raise UserError("There is no question to answer: give one, or several, as text.")
    return asked
