"""The wheel: every config, transfer and tool is in it, below prismer_jax alone, and it runs away from the checkout."""

import ast
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

from prismer_jax.testing import ROOT

FOLDERS = {"prismer_jax": "", "tools": "tools", "configs": "recipes/configs", "transfers": "recipes/transfers"}


@pytest.fixture
def checkout(tmp_path):
    """A copy, for setuptools leaves its work where it builds, and takes what an earlier build left."""
    copy = tmp_path / "checkout"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    return copy


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_it_holds_every_module_but_the_tests(checkout, tmp_path):
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(build, cwd=checkout, check=True, capture_output=True)
    expected = {
        os.path.join("prismer_jax", place, name)
        for folder, place in FOLDERS.items()
        for name in files(checkout / folder)
        if not name.endswith("_test.py")
    }
    assert files(tmp_path / "lib") == expected
    assert {"prismer_jax/recipes/configs/quickstart.py", "prismer_jax/py.typed"} <= expected  # PEP 561: its types count


TOOLS = [path for path in sorted((ROOT / "tools").rglob("*.py")) if not path.name.endswith("_test.py")]


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_tool_imports_others_relatively(path):
    """A wheel has them as prismer_jax.tools, and no package called `tools`."""
    nodes = tuple(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    assert not [name for name in names if name.partition(".")[0] == "tools"]


@pytest.mark.slow
def test_it_runs_the_quickstart_in_an_empty_folder(checkout, tmp_path):
    """In a fresh environment that sees this one's packages behind its own, as the wheel's."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(checkout)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.rmtree(checkout)
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    subprocess.run([*pip, "--python", str(python), "install", "-q", "--no-deps", str(wheel)], check=True)
    (site,) = (tmp_path / "venv").glob("lib/*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    home = tmp_path / "empty"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}

    def run(*command, status=0):
        flags = dict(cwd=home, env=environment, text=True, capture_output=True, timeout=600)
        done = subprocess.run([str(python), *map(str, command)], **flags)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    recipes = run("-c", "from prismer_jax import config; print(config.RECIPES)")
    assert (pathlib.Path(recipes.strip()) / "transfers/forkme.py").is_file()
    where = run("-c", "import prismer_jax; print(prismer_jax.__file__)")
    assert pathlib.Path(where.strip()) == site / "prismer_jax/__init__.py"
    run("-m", "prismer_jax.train", "--config", "configs/quickstart.py:smoke", "--workdir", "runs/quickstart")
    assert (home / "runs/quickstart/report.html").is_file()
    run("-m", "prismer_jax.train", "--config", "transfers/forkme.py:smoke", "--workdir", "runs/mine")
    sheet = home / "sheet.png"
    run("-m", "prismer_jax.tools.visualize", "--dataset", "scenes", "--num", "2", "--output", sheet)
    caption = ("-m", "prismer_jax.caption", "--checkpoint", "runs/quickstart", "--images", sheet)
    assert run(*caption).strip()
    assert "python -m prismer_jax.tools.make_labels" in run("-m", "prismer_jax.tools.make_labels", "--help")
    assert "python -m prismer_jax.tools.download" in run(*caption, "--experts", "weights", status=2)
    (home / "own/configs").mkdir(parents=True)
    own = "from configs import quickstart\n\ndef get_config(arg):\n    return quickstart.get_config('smoke')\n"
    (home / "own/configs/mine.py").write_text(own)
    estimate = ("--config", "own/configs/mine.py", "--estimate")
    assert "parameters" in run("-m", "prismer_jax.train", *estimate)
