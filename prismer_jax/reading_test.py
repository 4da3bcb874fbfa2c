"""What a reader pays: the lines behind one run, the length of functions, the number of modules in a folder."""

import ast
import collections
import subprocess
import sys

import pytest

from prismer_jax.floors_test import PACKAGE, imported_modules, module_name
from prismer_jax.testing import ROOT

FOLDERS = ("prismer_jax", "configs", "transfers", "tools")
FILES = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if not path.name.endswith("_test.py")
)
# Rooms that a reader of a run can leave out: what makes the scenes, the report, the scores and the record files.
ASIDE = ("datasets.scenes", "report", "scores", "shards")
PROGRAM = ("prismer_jax.train", "configs.quickstart")  # and all that they import
# What the config names besides, which is imported by name.
RUN = (
    *PROGRAM,
    "prismer_jax.models.prismer",
    "prismer_jax.decode.beam",
    "prismer_jax.decode.greedy",
    "prismer_jax.evaluators.caption",
    "prismer_jax.evaluators.vqa",
)
LONGEST = 100  # lines of a function
EXEMPT: set[tuple[str, str]] = set()
MOST = 22  # modules in a folder


def lines_behind(*programs: str) -> dict[str, int]:
    """Returns {module: lines} of all modules of the repository that the programs import, directly or not."""
    paths = {module_name(path): path for path in FILES}
    todo, lines = list(programs), {}
    while todo:
        name = todo.pop()
        if name in lines or name not in paths:
            continue
        lines[name] = len(paths[name].read_text().splitlines())
        todo += [name.rpartition(".")[0], *imported_modules(paths[name], set(paths))]
    return lines


@pytest.mark.parametrize(
    ("programs", "left_out", "limit"),
    [
        (PROGRAM, (), 9_000),
        (PROGRAM, ASIDE, 6_000),
        (RUN, (), 11_020),
        (RUN, ASIDE, 7_860),
    ],
)
def test_a_run_of_the_quickstart_is_read_in_few_lines(programs, left_out, limit):
    """With what is imported by name, the limits are the measured numbers, rounded up to tens: lower them if you can."""
    lines = lines_behind(*programs)
    for room in left_out:
        inside = [name for name in lines if f"{name}.".startswith(f"prismer_jax.{room}.")]
        assert inside or programs == PROGRAM, f"{room} is left out, but a run does not read it"
        for name in inside:
            del lines[name]
    total = sum(lines.values())
    named = "with" if programs == RUN else "without"
    print(f"\nconfigs/quickstart.py, {named} what is imported by name, all but {', '.join(left_out) or 'nothing'}:")
    print(f"{total} lines in {len(lines)} files")
    assert total <= limit


@pytest.mark.slow
def test_what_a_run_imports_is_counted(tmp_path):
    """Also what is imported by name: a module that every run needs is not hidden from the count above."""
    code = (
        "import sys\nfrom prismer_jax import train\n"
        f"train.main(['--config', 'configs/quickstart.py:smoke', '--workdir', {str(tmp_path)!r}])\n"
        "print('MODULES', *(name for name in sys.modules if name.partition('.')[0] == 'prismer_jax'))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(run.stdout.partition("MODULES")[2].split())
    assert "prismer_jax.train" in modules
    assert modules <= lines_behind(*RUN).keys()


def test_functions_are_short():
    long = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > LONGEST and (str(path.relative_to(ROOT)), node.name) not in EXEMPT:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = length
    assert long == {}


def test_folders_hold_few_modules():
    modules = collections.Counter(str(path.parent.relative_to(ROOT)) for path in FILES)
    assert modules[PACKAGE.name] > 10
    assert {folder: number for folder, number in modules.items() if number > MOST} == {}
