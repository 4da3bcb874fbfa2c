"""The page: what is on it, and what happens when a visitor does something."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from prismer_jax.errors import UserError
from prismer_jax.report.draw import title

from . import panels
from .limits import Limits, Rate, read_photo
from .model import Example, Model, Said

Update = dict[Any, Any]  # component of the page -> what it shows from now on


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Tells the visitor of a UserError, in its one line."""
    try:
        yield
    except UserError as error:
        raise gr.Error(str(error), print_exception=False) from None


class Page:
    """The page of a model, `blocks`.

    Args:
      model: that is asked.
      examples: photos to begin with.
      limits: of what visitors may do.
      title: what the model is called.
    """

    def __init__(self, model: Model, examples: Sequence[Example], limits: Limits, title: str) -> None:
        self.model, self.examples, self.limits, self.rate = model, examples, limits, Rate(limits.per_minute)
        with gr.Blocks(title=f"prismer_jax: {title}", analytics_enabled=False, fill_width=True) as self.blocks:
            kept = dict(time_to_live=60 * limits.minutes)
            self.chosen = gr.State(None, **kept)  # a photo as it came
            self.photo = gr.State(None, **kept)  # with its labels
            self.asked = gr.State("", **kept)  # the question that was answered last
            gr.HTML(panels.header(title))
            self.notice = gr.HTML("", elem_id="notice")
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=280):
                    self._lay_out_photos()
                with gr.Column(scale=5, min_width=420):
                    self.maps = gr.HTML(panels.EMPTY, elem_id="maps")
                    self.switches = gr.CheckboxGroup(
                        [], label="Experts that the model listens to", visible=False, elem_id="experts"
                    )
            with gr.Row(equal_height=False):
                with gr.Column(min_width=380, visible=model.captions):
                    gr.HTML(panels.heading("Caption"))
                    self.caption = gr.HTML("", elem_id="caption")
                with gr.Column(min_width=380, visible=model.answers):
                    gr.HTML(panels.heading("Question"))
                    self._lay_out_question()
            self._connect()
        self.blocks.queue(max_size=limits.waiting, api_open=False)

    def _lay_out_photos(self) -> None:
        limits = self.limits
        self.upload = gr.File(label="Your photo", height=140, elem_id="upload")
        gr.HTML(
            panels.hint(f"At most {limits.megabytes} MB and {limits.megapixels} megapixels. No file of it is kept.")
        )
        self.gallery = gr.Gallery(
            [(example["image"], f"{number}") for number, example in enumerate(self.examples, 1)],
            label="Or one of these",
            columns=4,
            allow_preview=False,
            interactive=False,
            buttons=[],
            format="png",
            visible=bool(self.examples),
            elem_id="examples",
        )

    def _lay_out_question(self) -> None:
        with gr.Row(equal_height=True):
            self.question = gr.Textbox(
                label="Question about the photo",
                show_label=False,
                placeholder="Ask about the photo",
                max_length=self.limits.letters,
                max_lines=1,
                scale=5,
                min_width=180,
                elem_id="question",
            )
            self.ask = gr.Button("Ask", variant="primary", scale=1, min_width=80, elem_id="ask")
        self.suggested = gr.Dataset(
            components=[gr.Textbox(visible=False)], samples=[], label="Such as", visible=False, elem_id="suggested"
        )
        self.answer = gr.HTML("", elem_id="answer")
        self.each = gr.Button("Answer without each expert", size="sm", visible=False, elem_id="each")
        self.table = gr.HTML("", elem_id="table")

    def _connect(self) -> None:
        """Says which method answers what a visitor does. The model is asked by one thread at a time."""
        quick = dict(concurrency_limit=4, show_progress="hidden", api_visibility="private")
        model = dict(concurrency_limit=1, concurrency_id="model", show_progress="minimal", api_visibility="private")
        everything = [self.photo, self.asked, self.notice, self.maps, self.switches, self.caption, self.question]
        everything += [self.suggested, self.answer, self.each, self.table]
        first = [self.chosen, self.notice]
        took = self.upload.upload(self.take, self.upload, [*first, self.upload], preprocess=False, **quick)
        for event in (took, self.gallery.select(self.pick, None, first, **quick)):
            event.success(self.look, self.chosen, everything, show_progress_on=self.maps, **model)
        asked, said = (
            [self.photo, self.question, self.switches],
            [self.asked, self.notice, self.answer, self.each, self.table],
        )
        gr.on([self.ask.click, self.question.submit], self.reply, asked, said, show_progress_on=self.answer, **model)
        fill = self.suggested.click(lambda chosen: chosen[0], self.suggested, self.question, **quick)
        fill.success(self.reply, asked, said, show_progress_on=self.answer, **model)
        self.switches.input(
            self.switch,
            [self.photo, self.asked, self.switches],
            [self.notice, self.caption, self.answer, self.table],
            trigger_mode="always_last",
            show_progress_on=[self.caption, self.answer],
            **model,
        )
        self.each.click(self.compare, [self.photo, self.asked], [self.notice, self.table], **model)

    # What happens.

    @contextlib.contextmanager
    def _counted(self, request: gr.Request) -> Iterator[None]:
        """Counts a request of an address, for which no more than the limit are served."""
        if seconds := self.rate.wait(request.client.host if request.client else ""):
            limit = f"More than {self.limits.per_minute} requests within a minute."
            raise gr.Error(f"{limit} Try again in {seconds} s.", print_exception=False)
        with _told():
            yield

    def take(self, upload: dict[str, Any] | None, request: gr.Request) -> Update:
        """Reads an uploaded file, and removes it whatever is in it."""
        if upload is None:
            return {self.chosen: None}
        path = pathlib.Path(upload["path"])
        name = os.path.basename(upload.get("orig_name") or path.name)
        try:
            with self._counted(request):
                photo = read_photo(path.read_bytes(), name, self.limits)
        except FileNotFoundError:
            return self._refused(f"{name} did not arrive. Choose it again.")
        except gr.Error as error:
            return self._refused(error.message)
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another visitor has just sent the same
                path.parent.rmdir()
        return {self.chosen: {"id": name, "image": photo}, self.upload: None, self.notice: ""}

    def _refused(self, text: str) -> Update:
        return {self.chosen: None, self.upload: None, self.notice: panels.notice(text)}

    def pick(self, event: gr.SelectData, request: gr.Request) -> Update:
        """Takes one of the examples."""
        with self._counted(request):
            return {self.chosen: self.examples[event.index], self.notice: ""}

    def look(self, chosen: Example | None) -> Iterator[Update]:
        """Shows a photo's label maps as they are made, then its caption."""
        if chosen is None:
            yield {self.asked: gr.skip()}
            return
        has_labels = any(key.startswith("labels/") for key in chosen)
        steps = [("", chosen)] if has_labels else self.model.label(chosen["image"])
        awaited = [] if has_labels else self.model.labelling()
        with _told():
            yield self._begun(chosen, "" if has_labels else self.model.note())
            for done, photo in steps:
                awaited = [name for name in awaited if name != done]
                yield {self.photo: photo, self.maps: panels.maps(self.model.sample(photo), awaited)}
            there = self.model.labelled(photo)
            switches = gr.update(choices=[(title(name), name) for name in there], value=there, visible=bool(there))
            yield {self.switches: switches, self.caption: self._caption(photo, there)}

    def _begun(self, chosen: Example, note: str) -> Update:
        """Clears what was said of the photo before."""
        questions = [[question["question"]] for question in chosen.get("questions", ())][:4]
        return {
            self.photo: chosen,
            self.asked: "",
            self.notice: panels.notice(note, "note"),
            self.switches: gr.update(visible=False),
            self.caption: panels.hint("…"),
            self.question: "",
            self.suggested: gr.update(samples=questions, visible=bool(questions)),
            self.answer: "",
            self.each: gr.update(visible=False),
            self.table: "",
        }

    def reply(self, photo: Example | None, question: str, experts: Sequence[str], request: gr.Request) -> Update:
        """Answers a question."""
        question = " ".join((question or "").split())[: self.limits.letters]
        if photo is None or not question:
            what = "Choose a photo first." if photo is None else "Write a question first."
            return {self.notice: panels.notice(what)}
        with self._counted(request):
            there = len(self.model.labelled(photo)) > 0
            said = self._said(self.model.answer(photo, question, experts), photo, f"Answer to “{question}”")
            each = gr.update(visible=there)
            return {self.asked: question, self.notice: "", self.answer: said, self.each: each, self.table: ""}

    def switch(self, photo: Example | None, asked: str, experts: Sequence[str], request: gr.Request) -> Update:
        """Captions and answers again, with the experts that are left."""
        if photo is None:
            return {self.notice: panels.notice("Choose a photo first.")}
        with self._counted(request):
            update = {self.notice: "", self.caption: self._caption(photo, experts)}
            if asked:
                said = self.model.answer(photo, asked, experts)
                update[self.answer] = self._said(said, photo, f"Answer to “{asked}”")
            return update

    def compare(self, photo: Example | None, asked: str, request: gr.Request) -> Update:
        """Answers again without each of the experts."""
        if photo is None or not asked:
            return {self.notice: panels.notice("Ask a question first.")}
        with self._counted(request):
            return {self.notice: "", self.table: panels.comparison(self.model.without_each(photo, asked))}

    def _caption(self, photo: Example, experts: Sequence[str]) -> str:
        return self._said(self.model.caption(photo, experts), photo, "Captions") if self.model.captions else ""

    def _said(self, said: Said, photo: Example, title: str) -> str:
        return panels.texts(said, title) + panels.attention(said, photo["image"])
