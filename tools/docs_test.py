"""Help fits a screen; commands in README, docs and heads of files are taken; Python in docs runs, and links lead on.

A command is parsed by the program's own parser, and its config is loaded with its arguments and overrides; what it does
then, other tests show. Blocks that are neither commands nor Python stand in OTHER, with what they are.
"""

import argparse
import ast
import builtins
import contextlib
import re
import shlex
import textwrap
from unittest import mock

import pytest

import prismer_jax
from prismer_jax import captioner, config
from prismer_jax.errors import UserError
from prismer_jax.testing import ROOT
from tools.paths_test import PROGRAMS, main_of

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = {  # how blocks of commands begin; those of this project are parsed, others are not run, for they
    "#": "are explained first",
    "git": "need a place to clone from",
    "img2dataset": "are of another program, and fetch millions of photos",
    "pip": "change the environment; .ci/run installs as the README says",
    "python": "are this project's, or the harness lmms-eval's",
}
HEADS = [  # of files, which say how they are used
    path
    for folder in ("configs", "transfers", "tools")
    for path in sorted((ROOT / folder).glob("*.py"))
    if not path.stem.endswith("_test")
]
OTHER = {  # how the blocks begin that no test can read
    "photos, captions, questions ─►": "a drawing",
    "@article": "BibTeX",
    "8 were left out:": "what a program prints",
    "expert         maps  missing": "what a program prints",
    "There are 2 x box": "what a program prints",
    "DATA/coco_karpathy_train.json": "a list of files",
    "shards/mine/mine-train.array_record": "a list of files",
    '{"image": "photos/1.jpg"': "lines of a list, in JSON",
    "labels_for('all')|decode": "a program of preprocessing",
    "... --beam --runner": "flags of Apache Beam's runners",
    "--config.accumulate=8": "flags, each with what it does",
    "command: [python": "a Kubernetes job",
}
COMPILED = {  # how the blocks of Python begin that read what is not there
    "from prismer_jax.experts import EXPERTS": "an expert's official weights",
    "variables = ocp.StandardCheckpointer()": "a checkpoint",
    "tfds.builder_from_directory": "a data set",
}
PROGRAM = re.compile(r"python -m (?:prismer_jax\.(?=tools\.))?((?:prismer_jax|tools)\.\w+)")  # a wheel's, too
READERS_OWN = ("mine.py", "configs/toy.py")  # configs
ABSENT = "does not exist: expected an exported model"  # what a config's init= names


def blocks(page):
    """Returns (language or '', text) of each block, fenced or indented by at least four."""
    text = page.read_text()
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    text = re.sub(r"(?sm)^```.*?^```\n", "", text)
    indented = re.findall(r"(?:(?<=\n)    .*\n)+", text)
    return fenced + [("", re.sub(rf"(?m)^ {{{len(b) - len(b.lstrip(' '))}}}", "", b)) for b in indented]


def commands(page):
    """Returns the commands of this project on a page, of blocks and of the text, with whether each is whole."""
    text = ast.get_docstring(ast.parse(page.read_text())) if page.suffix == ".py" else page.read_text()
    text = re.sub(r"\$\(.*?\)", "", (text or "").replace("\\\n", " "))
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    lines = [(part, True) for line in text.splitlines() if line.startswith("    ") for part in line.split("&&")]
    found = [(part[match.start() :], whole) for part, whole in lines if (match := PROGRAM.search(part))]
    found += [(span, False) for span in spans if PROGRAM.match(span)]
    rows = re.findall(r"\| (train|evaluate) `([^`]+)` \|", text)  # of docs/reproduce.md
    for command, whole in found:
        if "ARGUMENTS" not in command:
            yield command, whole and " ..." not in command
        for verb, arguments in rows:
            if "ARGUMENTS" in command and PROGRAM.match(command).group(1).endswith(verb):
                yield command.replace("ARGUMENTS", arguments), whole


def words(command):
    """Returns the arguments of a command, with something in the place of what a reader fills in."""
    command = command.rstrip('"') if command.count('"') % 2 else command  # of a command within quotes
    command = re.sub(r"\[\.\.\.\]|\[:arg\]|\[--config.key=value\]", "", command)
    command = re.sub(r"\$\w+|\$\{\w+\}", "1", command)
    command = re.sub(r"(--[\w-]+) \.\.\.", r"\1 FILE", command).replace(" ...", "")
    command = re.sub(r"[][]", "", command).replace("--config FILE", "--config configs/quickstart.py")
    lexer = shlex.shlex(command, posix=True, punctuation_chars="&;|")
    lexer.whitespace_split = True
    return [word for word in lexer if word not in ("&", "done", "--help")][3:]


class Parsed(Exception):
    """Carries the flags that a program has parsed, and what it does not know."""


@pytest.fixture
def parse(monkeypatch):
    original = argparse.ArgumentParser.parse_known_args

    def parse(program, argv, whole):
        def stop(parser, *args, **kwargs):
            for action in parser._actions:
                action.required &= whole
            raise Parsed(*original(parser, *args, **kwargs))

        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        with pytest.raises(Parsed) as parsed:
            main_of(program)(argv)
        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", original)
        return parsed.value.args

    return parse


@pytest.mark.parametrize("page", [*PAGES, *HEADS], ids=lambda page: page.stem)
def test_programs_take_the_commands(page, parse):
    for command, whole in commands(page):
        if command.startswith("python -m tools.convert toy"):  # the family that a reader of docs/adding.md adds
            continue
        name, argv = PROGRAM.match(command).group(1), words(command)
        program = next(p for p in PROGRAMS if p.partition(" ")[0].removesuffix(".__main__") == name)
        keys = [word for word in argv if word.startswith("--config.")]
        flags, unknown = parse(program, [word for word in argv if word not in keys], whole)
        assert not unknown
        spec = getattr(flags, "config", None)
        if spec and not spec.startswith(READERS_OWN):
            try:
                config.load(spec, keys)
            except UserError as error:
                if ABSENT not in str(error):
                    raise


@pytest.mark.parametrize("program", [*PROGRAMS, "tools.convert"])
def test_help_fits_a_screen(program, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with contextlib.suppress(SystemExit):
        main_of(program)([*PROGRAMS.get(program, ()), "--help"])
    lines = [part for line in capsys.readouterr().out.splitlines() for part in textwrap.wrap(line, 100) or [""]]
    assert 5 < len(lines) <= 45


class Names(dict):
    """What a block uses and the text around it explains."""

    def __missing__(self, name):
        if hasattr(builtins, name):
            raise KeyError(name)
        return mock.MagicMock()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_are_commands_or_run_as_python(page, monkeypatch):
    """With a model in the place of a checkpoint's that has the methods and arguments of one, and nothing else."""
    model = mock.create_autospec(captioner.Captioner, instance=True)
    monkeypatch.setattr(prismer_jax, "load", mock.create_autospec(captioner.load, return_value=model), raising=False)
    names = Names(tokenizer=None)
    for language, text in blocks(page):
        if language or text.startswith((*SHELL, *OTHER)):  # prismer_jax/models/family_test.py runs the former
            continue
        code = compile(text, page.name, "exec")  # or list it in OTHER
        if not text.startswith(tuple(COMPILED)):
            exec(code, {}, names)


def test_every_exception_is_needed():
    beginnings = [text for page in PAGES for _, text in blocks(page)]
    for start in (*OTHER, *COMPILED, *SHELL):
        assert any(text.startswith(start) for text in beginnings), start


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_diffs_fit_the_files(page):
    for language, text in blocks(page):
        file = re.match(r"--- a/(\S+)\n", text)
        if language == "diff" and file:
            lines = (ROOT / file.group(1)).read_text().splitlines()
            assert {line[1:] for line in text.splitlines()[2:] if line[0] in " -"} <= set(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page):
    for file, heading in re.findall(r"\]\((?!http)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name}: {file}"
        if heading:
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, heading
