"""The page in a headless Chromium, on the quickstart's checkpoint: what a visitor sees, and what goes wrong."""

import contextlib
import io
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from prismer_jax.experts import testing, weights
from prismer_jax.testing import ROOT
from tools.demo.limits_test import header_of
from tools.demo.model_test import write

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="the extra `demo` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="the page is looked at with Playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("there is no Chromium on the path, nor in $CHROMIUM", allow_module_level=True)

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync"
PATIENCE = 60_000  # milliseconds
PHOTO = "(document.querySelector('#maps img') || {}).src"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The quickstart's, trained: $PRISMER_TEST_QUICKSTART, or else its smallest form."""
    if trained := os.environ.get("PRISMER_TEST_QUICKSTART"):
        return trained
    folder = tmp_path_factory.mktemp("quickstart")
    train = ["prismer_jax.train", "--config", "configs/quickstart.py:smoke", "--workdir", str(folder)]
    subprocess.run([sys.executable, "-m", *train], cwd=ROOT, check=True, capture_output=True)
    return folder


@contextlib.contextmanager
def serving(checkpoint, folder, *flags, program=("-m", "tools.demo")):
    """Gives the page's address; when it has ended nothing may be left in its folder for temporary files."""
    command = [sys.executable, *program, "--checkpoint", checkpoint, "--port", "0", *flags]
    folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"TMPDIR": str(folder)}
    program = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = program.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), program.communicate(timeout=60)[1]
    try:
        yield line.split()[0]
    finally:
        program.send_signal(signal.SIGTERM)
        _, errors = program.communicate(timeout=60)
    assert program.returncode == 0
    assert "Traceback" not in errors
    assert list(folder.glob("prismer_jax_demo_*")) == []


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "temporary"
    with serving(checkpoint, folder, "--per-minute", "1000") as url:
        yield url, folder


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, server):
    """Opens the page as a new visitor; in the end no visitor's browser has asked, or wished to ask, another host."""
    contexts, asked, problems = [], [], []

    def visitor(url=server[0]):
        contexts.append(chromium.new_context(viewport={"width": 1280, "height": 1000}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: "Content Security Policy" in line.text and problems.append(line.text))
        page.goto(url)
        page.wait_for_selector("#upload")
        return page

    yield visitor
    for context in contexts:
        context.close()
    assert {url.split("/")[2].rpartition(":")[0] for url in asked if url.startswith("http")} == {"127.0.0.1"}
    assert {url.partition(":")[0] for url in asked} <= {"http", "data", "blob"}
    assert problems == []


def jpeg(seed=0, size=(90, 120)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def upload(page, name, data, kind="image/jpeg"):
    page.set_input_files("#upload input[type=file]", {"name": name, "mimeType": kind, "buffer": data})


def choose_scene(page, number):
    page.locator("#examples button").nth(number).click()
    page.wait_for_selector("#caption ol.texts")
    page.wait_for_selector("#experts input")


def captions(page):
    return page.locator("#caption .text").all_inner_texts()


def test_a_scene_is_labelled_captioned_and_asked_about(visit):
    page = visit()
    choose_scene(page, 1)
    titles = page.locator("#maps figcaption").all_inner_texts()
    assert titles == ["Photo", "Depth", "Normals", "Edges", "Segmentation", "Objects", "Words"]
    scores = [float(score) for score in page.locator("#caption .score").all_inner_texts()]
    assert len(captions(page)) == len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    words = page.locator("#caption .words figcaption").all_inner_texts()
    assert (" ".join(words) or "(nothing)") == captions(page)[0]  # the smallest form of the quickstart says nothing yet
    page.fill("#question textarea, #question input", "what color is the sign")
    page.click("#ask")
    page.wait_for_selector("#answer ol.texts")
    page.click("#each")
    page.wait_for_selector("#table table")
    rows = page.locator("#table th").all_inner_texts()
    assert rows == ["all experts", *(f"without {title.lower()}" for title in titles[1:])]
    # Experts are taken away one by one: what is said of all of them at once is what is said of a photo without labels.
    before = page.locator("#caption").inner_html()
    for box in page.locator("#experts input[type=checkbox]").all():
        box.uncheck()
    page.wait_for_function("before => document.querySelector('#caption').innerHTML != before", arg=before)
    page.locator("#suggested button").first.click()
    page.wait_for_function("document.querySelector('#question textarea, #question input').value.endsWith('?')")


def test_an_upload_is_captioned_and_no_file_is_left(visit, server):
    page = visit()
    upload(page, "holiday.jpg", jpeg())
    page.wait_for_selector("#caption ol.texts")
    assert page.locator("#maps figcaption").all_inner_texts() == ["Photo"]
    assert "started without their weights (--experts)" in page.locator("#notice").inner_text()
    assert [path.name for path in server[1].rglob("*.jpg")] == []
    assert page.locator("#experts").is_hidden()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("notes.txt", b"no photo", "notes.txt: not a readable image"),
        ("empty.jpg", b"", "empty.jpg is empty: it has 0 bytes."),
        ("huge.png", header_of(20_000, 10_000), "huge.png has more than 50 million pixels."),
        ("new.heic", b"\0\0\0\x18ftypheic" + bytes(20), "HEIC, AVIF or JPEG XL"),
        ("${1 + 1} {{value}} <b>.jpg", b"", "${1 + 1} {{value}} <b>.jpg is empty"),
    ],
    ids=["wrong type", "0 bytes", "200 megapixels", "heic", "a name like a template"],
)
def test_a_bad_upload_is_a_message_and_the_page_goes_on(visit, server, name, data, message):
    page = visit()
    choose_scene(page, 0)
    before = captions(page)
    upload(page, name, data, "application/octet-stream")
    page.wait_for_selector("#notice [role=alert]")
    assert message in page.locator("#notice").inner_text()
    assert captions(page) == before
    assert list(server[1].rglob(name)) == []
    upload(page, "good.jpg", jpeg())
    page.wait_for_function("document.querySelectorAll('#maps figure').length == 1")
    page.wait_for_selector("#caption ol.texts")


def test_an_upload_of_too_many_bytes_is_refused_while_it_is_sent(visit, server):
    page = visit()
    upload(page, "long.jpg", bytes(21 << 20))
    page.wait_for_function("/exceed the maximum|more than 20 MB/i.test(document.body.innerText)")
    assert list(server[1].rglob("long.jpg")) == []


def test_maps_appear_as_experts_make_them(visit, tmp_path):
    """With experts of a few parameters, of which the second waits for a file."""
    for kind in testing.TOYS.values():
        weights.export(tmp_path / "experts" / kind.name, kind(), kind().random_variables(0))
    ready = tmp_path / "ready"
    code = f"""if True:
        import pathlib, time
        from prismer_jax.experts import testing, weights
        from prismer_jax.labelling import cached
        from tools.demo.__main__ import main

        load = weights.load

        def slow(expert, folder):
            while expert.name == "obj_detection" and not pathlib.Path({str(ready)!r}).exists():
                time.sleep(0.1)
            return load(expert, folder)

        cached.EXPERTS = weights.EXPERTS = testing.TOYS
        weights.load = slow
        main()
    """
    flags = ("--examples", "none", "--experts", str(tmp_path / "experts"))
    with serving(write(tmp_path / "model"), tmp_path / "temporary", *flags, program=("-c", code)) as url:
        page = visit(url)
        upload(page, "a.jpg", jpeg())
        page.wait_for_function("document.querySelectorAll('#maps img').length == 2")
        assert page.locator("#maps figcaption").all_inner_texts() == ["Photo", "Depth", "Objects …"]
        assert not page.locator("#caption ol.texts").count()
        ready.touch()
        page.wait_for_selector("#caption ol.texts")
        assert page.locator("#maps figcaption").all_inner_texts() == ["Photo", "Depth", "Objects"]
        page.wait_for_selector("#experts input")
        assert page.locator("#experts input").count() == 2


def test_two_visitors_at_once_see_their_own(visit):
    pages = [visit(), visit()]
    for number, page in enumerate(pages):
        page.locator("#examples button").nth(number).click()
    for page in pages:
        page.wait_for_selector("#caption ol.texts")
    for page in pages:
        page.fill("#question textarea, #question input", "how many shapes are there")
        page.press("#question textarea, #question input", "Enter")
    for page in pages:
        page.wait_for_selector("#answer ol.texts")
    alone = visit()
    for number, page in enumerate(pages):
        choose_scene(alone, number)
        alone.wait_for_function(
            "photo => document.querySelector('#maps img').src == photo",
            arg=page.locator("#maps img").first.get_attribute("src"),
        )
        alone.wait_for_selector("#caption ol.texts")
        assert captions(alone) == captions(page)


def test_a_visitor_who_goes_away_keeps_nobody_waiting(visit):
    gone = visit()
    gone.locator("#examples button").nth(2).click()
    gone.close()
    choose_scene(visit(), 3)


def test_the_keyboard_is_enough(visit):
    page = visit()

    def tab_to(selector):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        pytest.fail(f"no Tab leads to {selector}")

    tab_to("#upload button")
    tab_to("#examples button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#caption ol.texts")
    page.wait_for_selector("#experts input")
    before = page.locator("#caption").inner_html()
    tab_to("#experts input")
    page.keyboard.press("Space")
    page.wait_for_function("before => document.querySelector('#caption').innerHTML != before", arg=before)
    tab_to("#question textarea, #question input")
    page.keyboard.type("what is on the left")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer ol.texts")
    tab_to("#each, #each button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#table table")


def test_what_cannot_be_asked_is_a_message(visit):
    page = visit()
    page.fill("#question textarea, #question input", "what is it")
    page.click("#ask")
    page.wait_for_selector("#notice [role=alert]")
    assert page.locator("#notice").inner_text() == "Choose a photo first."
    choose_scene(page, 0)
    page.click("#ask")
    page.wait_for_function("document.querySelector('#notice').innerText == 'Write a question first.'")


def test_too_many_requests_are_told_to_wait(visit, checkpoint, tmp_path):
    with serving(checkpoint, tmp_path / "temporary", "--examples", "none", "--per-minute", "2") as url:
        page = visit(url)
        for number in range(2):
            before = page.evaluate(PHOTO)
            upload(page, f"{number}.jpg", jpeg(number))
            page.wait_for_function(f"before => {PHOTO} != before", arg=before)  # then what was said before is gone
            page.wait_for_selector("#caption ol.texts")
        page.fill("#question textarea, #question input", "what is it")
        page.click("#ask")
        page.wait_for_function("/More than 2 requests within a minute. Try again in/.test(document.body.innerText)")


def test_the_page_is_for_this_machine_alone(server):
    port = int(server[0].rstrip("/").rpartition(":")[2])
    listening = pathlib.Path("/proc/net/tcp")
    if not listening.exists():
        pytest.skip("what listens where is read from /proc")
    lines = [line.split() for line in listening.read_text().splitlines()[1:]]
    at = {line[1].split(":")[0] for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "0A"}
    assert at == {"0100007F"}
