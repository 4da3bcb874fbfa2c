"""The architecture as a test: a module imports only from lower floors, and the data side never imports jax."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent
FLOORS = [
    {"errors", "typing", "registry", "labels", "programs", "runtime", "testing"},
    {"batch"},
    {"config", "files", "label_files", "label_png", "label_rows", "metrics", "objects", "pp", "scores"},
    {"tree", "sharding", "optim", "checkpoint", "losses", "input", "weights", "shards"},
    {"towers", "datasets"},
    {"models", "decode"},
    {"experts", "evaluators", "report"},
    {"captioner", "labelling", "sentences"},
    {"train", "evaluate", "caption", "retrieve", "lmms", "assembly", "compare", "scoring", "training", "planning"},
]
WORKER_SIDE = ["errors", "registry", "config", "labels", "label_files", "label_png", "label_rows", "files"]
WORKER_SIDE += ["metrics", "objects", "pp", "shards", "datasets"]
WITHOUT_JAX = [*WORKER_SIDE, "scores", "report", "compare", "scoring"]
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if not p.name.endswith("_test.py") and p != PACKAGE / "__init__.py")


def floor_of(name: str) -> int:
    for number, names in enumerate(FLOORS):
        if name in names:
            return number
    raise AssertionError(f"prismer_jax.{name} stands on no floor: add it to FLOORS and to CONTRIBUTING.md")


def imported_rooms(path: pathlib.Path) -> set[str]:
    """Returns the first component below prismer_jax of every import in the file, lazy ones included."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "prismer_jax":
            names = [f"prismer_jax.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("prismer_jax.")}
    return rooms


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_from_lower_floors(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for room in imported_rooms(path):
        assert floor_of(room) <= floor_of(own), f"{own} imports {room}, which stands above it"


def test_worker_side_modules_import_neither_jax_nor_tensorflow():
    code = (
        "import sys, pkgutil, importlib\n"
        f"for room in {WITHOUT_JAX}:\n"
        "    module = importlib.import_module('prismer_jax.' + room)\n"
        "    for m in pkgutil.iter_modules(getattr(module, '__path__', [])):\n"
        "        m.name.endswith('_test') or importlib.import_module(module.__name__ + '.' + m.name)\n"
        "print([m for m in ('jax', 'tensorflow', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_rooms_import_each_other_in_a_circle():
    imports: dict[str, set[str]] = {}
    for path in MODULES:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        imports.setdefault(own, set()).update(imported_rooms(path) - {own})
    refuse_circles(imports)


def module_name(path: pathlib.Path) -> str:
    """Returns the dotted name by which a file of the repository is imported."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: pathlib.Path, names: set[str]) -> set[str]:
    """Returns those of the modules `names` that a file imports, lazily too, or takes something from."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            of_package = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= of_package & names
            if of_package - names:
                modules.add(node.module)
    return modules & names


def test_no_modules_import_each_other_in_a_circle():
    """Neither between rooms nor within one. That Python also imports the package of a module does not count."""
    paths = {module_name(path): path for path in MODULES}
    imports = {name: imported_modules(path, set(paths)) - {name} for name, path in paths.items()}
    assert len(imports["prismer_jax.train"]) > 10
    refuse_circles(imports)


def refuse_circles(imports: dict[str, set[str]]) -> None:
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"These import each other: {' <- '.join(error.args[1])}. Move what both need to a lower floor.")


def test_tools_are_commands():
    for path in (PACKAGE.parent / "tools").glob("*.py"):
        if path.stem != "__init__" and not path.stem.endswith("_test"):
            assert 'if __name__ == "__main__":' in path.read_text(), f"{path.name} is no command"
