"""Gradio as the server of the page: nothing from other hosts, no files that stay, no history."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from prismer_jax.errors import UserError

from .limits import Limits, Rate, sweep
from .model import Example, Model
from .page import Page

STYLE = pathlib.Path(__file__).with_name("page.css")
UNREAD = 600  # seconds after which an upload is removed that no visitor's request has read: one that was broken off
# The browser itself refuses whatever the page, or what is in it, would ask another host for.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:"
)


@contextlib.contextmanager
def serve(model: Model, examples: Sequence[Example], limits: Limits, title: str, host: str, port: int) -> Iterator[str]:
    """Serves the page while the context lasts; gives its address.

    Raises:
      UserError: the port was taken meanwhile.
    """
    page, folder = Page(model, examples, limits, title), os.environ["GRADIO_TEMP_DIR"]
    guard = Middleware(Guard, rate=Rate(limits.per_minute))
    fonts = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # of the visitor's system
    try:
        _, url, _ = page.blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            inline=False,
            share=False,
            show_error=True,
            ssr_mode=False,
            pwa=False,
            run_history=False,
            footer_links=[],
            max_file_size=limits.megabytes << 20,
            state_session_capacity=limits.visitors,
            app_kwargs={"middleware": [guard]},
            theme=gr.themes.Default(primary_hue="blue", **fonts),
            css_paths=STYLE,
        )
    except OSError as error:
        raise UserError(f"Port {port} of {host}: {error}. Give another --port.") from None
    ended, examples_files = threading.Event(), set(pathlib.Path(folder).rglob("*"))
    sweeper = threading.Thread(target=_sweep, args=(folder, examples_files, ended), daemon=True)
    sweeper.start()
    try:
        yield url
    finally:
        ended.set()
        page.blocks.close(verbose=False)
        sweeper.join()


def _sweep(folder: str, keep: set[pathlib.Path], ended: threading.Event) -> None:
    while not ended.wait(60):
        sweep(folder, keep, UNREAD)


class Guard:
    """Says what the browser may do for the page, and counts uploads, which Gradio takes before anybody is asked."""

    def __init__(self, app: Any, rate: Rate) -> None:
        self.app, self.rate = app, rate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        uploads = scope["method"] == "POST" and scope["path"].endswith("/upload")
        if uploads and (seconds := self.rate.wait(scope["client"][0] if scope.get("client") else "")):
            refusal = PlainTextResponse(f"Too many uploads. Try again in {seconds} s.", 429)
            await refusal(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = {"content-security-policy": POLICY, "referrer-policy": "no-referrer"}
                more["x-content-type-options"] = "nosniff"
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in more.items())]
            await send(message)

        await self.app(scope, receive, guarded)
