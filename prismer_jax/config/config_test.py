import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Literal

import ml_collections
import numpy as np
import pytest

from prismer_jax import config, losses, optim, registry
from prismer_jax.config import values
from prismer_jax.datasets import DATASETS
from prismer_jax.decode.batch import METHODS
from prismer_jax.errors import UserError
from prismer_jax.evaluators import EVALUATORS
from prismer_jax.pp import ops
from prismer_jax.testing import ROOT

FILE = """
import ml_collections
from prismer_jax import config as cfg

def get_config(arg=None):
    arg = cfg.parse_arg(arg, smoke=False, steps=100)
    c = ml_collections.ConfigDict()
    c.steps = 3 if arg.smoke else arg.steps
    c.half = c.get_ref("steps") // 2
    c.limit = ml_collections.config_dict.placeholder(int)
    c.optim = dict(name="adamw", lr=1e-3, clip=None, nesterov=False, betas=(0.9, 0.999))
    c.data = [dict(source="a", weight=1.0), dict(source="b", weight=2.0)]
    return c
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some_config.py"
    path.write_text(FILE)
    return path


# --- arguments and files ---


def test_parse_arg_types_values_by_their_defaults():
    defaults = dict(z=False, steps=10, lr=0.1, experts="all", extra=None, other=True)
    arg = config.parse_arg("z, steps=1e3,lr=1,experts=depth+edge,extra=-2", **defaults)
    assert vars(arg) == dict(z=True, steps=1000, lr=1.0, experts="depth+edge", extra=-2, other=True)
    assert type(arg.steps) is int
    assert type(arg.lr) is float


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("smok", "Did you mean 'smoke'"),
        ("steps", "needs a value: steps=10"),
        ("steps=ten", "of type int, not 'ten'"),
        ("steps=1.5", "of type int"),
        ("smoke=maybe", "true or false"),
    ],
)
def test_parse_arg_refuses(arg, message):
    with pytest.raises(UserError, match=message):
        config.parse_arg(arg, smoke=False, steps=10)


def test_a_config_imports_its_helpers_from_any_folder(tmp_path):
    for folder, text in (("mine", "def get_config():\n    return dict(a=1)"), ("other", "SIDE = 5")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "helper.py").write_text(text)
    spec = tmp_path / "mine/some.py"
    spec.write_text(
        "from mine import helper\nfrom other.helper import SIDE\ndef get_config():\n"
        "    return dict(helper.get_config(), side=SIDE)"
    )
    (tmp_path / "elsewhere").mkdir()
    code = (
        "import sys; from prismer_jax import config; path = sys.path[:]\n"
        f"print(dict(config.load({str(spec)!r})), path == sys.path)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'a': 1, 'side': 5} True"


def test_load_runs_the_file_and_applies_typed_overrides(file):
    loaded = config.load(
        f"{file}:steps=50",
        [
            "optim.lr=1",
            "optim.clip=0.5",
            "optim.nesterov=true",
            "data.1.weight=3",
            "optim.betas=0.8,0.9",
            "optim.name=x",
        ],
    )
    assert loaded.steps == 50
    assert loaded.optim.lr == 1.0
    assert loaded.optim.clip == 0.5
    assert loaded.optim.nesterov is True
    assert loaded.optim.betas == (0.8, 0.9)
    assert loaded.optim.name == "x"
    assert [d.weight for d in loaded.data] == [1.0, 3.0]


@pytest.mark.parametrize("kind", ["dict", "ml_collections.ConfigDict"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("init_fresh=a/.*", {"init_fresh": ("a/.*",)}),
        ("init_fresh=a/.*,b", {"init_fresh": ("a/.*", "b")}),
        ("init_fresh='a',", {"init_fresh": ("a",)}),
        ("init=runs/mine", {"init": "runs/mine"}),
        ("max_bad_fraction=1", {"max_bad_fraction": 1.0}),
        ("num_workers=4", {"num_workers": 4}),
        ("sharding=zero3", {"sharding": "zero3"}),
        ("mesh.fsdp=8", {"mesh": {"data": -1, "fsdp": 8}}),
        ("checkpoint.keep=3", {"checkpoint": {"keep": 3}}),
        ("save_percent=10", {"save_percent": 10}),
        ("wandb.project=mine", {"wandb": {"project": "mine"}}),
    ],
)
def test_a_key_with_a_default_need_not_be_in_the_file(tmp_path, kind, given, expected):
    (tmp_path / "config.py").write_text(
        f"import ml_collections\ndef get_config(arg=None):\n    return {kind}(dict(wandb=None, model=dict(a=1)))\n"
    )
    for _ in range(2):  # the second is as the first
        loaded = config.load(str(tmp_path / "config.py"), [given])
        assert config.plain(loaded) == {"wandb": None, "model": {"a": 1}, **expected}


def test_a_key_that_is_not_in_the_file_is_of_its_defaults_type(tmp_path):
    (tmp_path / "config.py").write_text("def get_config(arg=None):\n    return dict(model=dict(a=1))\n")
    for given in ("num_workers=x", "max_bad_fraction=x", "accumulate=1.5"):
        with pytest.raises(UserError, match="is of type"):
            config.load(str(tmp_path / "config.py"), [given])
    assert config.load(str(tmp_path / "config.py"), ["wandb=None"]).wandb is None


@pytest.mark.parametrize("kind", ["ml_collections.ConfigDict", "dict"])
def test_a_key_of_a_section_need_not_be_in_the_config(tmp_path, kind):
    """As `remat`, which pages advise, in configs that leave it as it is; whoever reads a section refuses other keys."""
    (tmp_path / "config.py").write_text(
        "import ml_collections\n"
        "def get_config(arg=None):\n"
        f"    return {kind}(dict(model=dict(name='x', language=dict(width=8)), lr=1.0, loss=dict(name='y'),\n"
        "         data=dict(mine=dict(path='p')), evals=dict(vqa=dict(data=dict(path='p')))))\n"
    )
    given = ["model.remat=full", "model.language.dropout=0.1", "model.lora={'rank': 4}", "loss.chunk=8"]
    loaded = config.load(str(tmp_path / "config.py"), [*given, "data.mine.limit=3", "evals.vqa.data.limit=4"])
    assert (loaded.model.remat, loaded.model.language.dropout, loaded.model.lora.rank) == ("full", 0.1, 4)
    assert (loaded.loss.chunk, loaded.data.mine.limit, loaded.evals.vqa.data.limit) == (8, 3, 4)
    for key in ("remat=full", "modl.remat=full", "model.vision.width=8", "model.name.y=1", "data.other=1", "evals.b=1"):
        with pytest.raises(UserError, match="No config key"):
            config.load(str(tmp_path / "config.py"), [key])


@pytest.mark.parametrize("kind", ["ml_collections.ConfigDict", "dict"])
def test_a_duration_by_a_flag_is_in_place_of_that_of_the_file(tmp_path, kind):
    (tmp_path / "config.py").write_text(
        "import ml_collections\n"
        "def get_config(arg=None):\n"
        f"    return {kind}(dict(total_steps=9, optim=dict(warmup_percent=3.0), save_steps=2))\n"
    )
    loaded = config.load(str(tmp_path / "config.py"), ["total_epochs=1.5", "optim.warmup_steps=4", "save_epochs=None"])
    assert config.plain(loaded) == dict(total_epochs=1.5, optim=dict(warmup_steps=4), save_steps=2, save_epochs=None)


def test_values_that_refer_to_others_follow_an_override(file):
    assert config.load(str(file), ["steps=30"]).half == 15


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.l.x=1", r"No config key optim.'l' for --config.optim.l.x"),
        ("optm.lr=1", "Did you mean 'optim.lr'"),
        ("max_bad=0", r"All are in docs/config\.md"),
        ("steps=many", "--config.steps is of type int, not 'many'"),
        ("limit=many", "--config.limit is of another type than 'many'"),
        ("optim=1", "is a section; set one of its keys"),
        ("optim.lr.x=1", "No config key"),
        ("data.2.weight=1", "No config key data.'2'"),
        ("steps", "needs a value"),
    ],
)
def test_override_refuses(file, override, message):
    with pytest.raises(UserError, match=message):
        config.load(str(file), [override])


def test_broken_config_files_are_one_line(tmp_path):
    def load(text, arg=""):
        (tmp_path / "c.py").write_text(text)
        return config.load(f"{tmp_path}/c.py{arg}")

    with pytest.raises(UserError, match=r"c\.py has no function get_config"):
        load("x = 1")
    with pytest.raises(UserError, match=r"c\.py:2: .*(never closed|EOF)"):
        load("\nx = (")
    with pytest.raises(UserError, match=r"c\.py:2: ZeroDivisionError"):
        load("def get_config(arg):\n  1 / 0")
    with pytest.raises(UserError, match="takes no argument, but ':smoke'"):
        load("def get_config():\n  return {}", ":smoke")
    with pytest.raises(UserError, match="returned a int"):
        load("def get_config():\n  return 1")
    with pytest.raises(UserError, match=r"No config file .*d\.py\. Did you mean .*c\.py"):
        config.load(f"{tmp_path}/d.py")


def test_command_line_separates_flags_and_overrides():
    parser = config.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir")
    args, overrides = parser.parse(["--config", "f.py:z", "--config.optim.lr=3", "--workdir=w", "--config.a", "b c"])
    assert (args.config, args.workdir, overrides) == ("f.py:z", "w", ["optim.lr=3", "a=b c"])
    with pytest.raises(UserError, match=r"Unknown argument '--wordkir=w'. Did you mean '--workdir'"):
        parser.parse(["--config=f", "--wordkir=w"])
    with pytest.raises(UserError, match="required: --config"):
        parser.parse([])
    with pytest.raises(UserError, match=r"--config\.a needs a value"):
        parser.parse(["--config=f", "--config.a", "--workdir=x"])


# --- strictness ---


def test_reads_are_tracked_to_the_leaf_and_in_lists():
    section = config.strict(ml_collections.ConfigDict(dict(a=1, b=dict(c=2, d=3), e=[dict(f=4, g=5)], h=6)))
    with pytest.raises(UserError, match=r"'a' is never read \(and 5 more: b\.c, b\.d, e\.0\.f\)"):
        config.assert_read(section)
    assert section.a + section.b.c + section.e[0].f + section.get("h") == 13
    with pytest.raises(UserError, match=r"'b\.d' is never read \(and 1 more: e\.0\.g\)"):
        config.assert_read(section)
    assert dict(**section.b) == {"c": 2, "d": 3}
    assert config.plain(section.e) == [{"f": 4, "g": 5}]
    config.assert_read(section)


def test_an_unread_key_is_named_with_its_neighbour():
    section = config.strict({"optim": {"warmup_steps": 1, "warmup_stesp": 2}})
    assert section.optim.warmup_steps == 1
    with pytest.raises(UserError, match=r"'optim.warmup_stesp' is never read. Did you mean 'optim.warmup_steps'"):
        config.assert_read(section)


def test_a_missing_key_is_named_and_nothing_is_written():
    section = config.strict({"optim": {"lr": 1}})
    with pytest.raises(UserError, match=r"no key 'optim.l_r'. Did you mean 'lr'"):
        _ = section.optim.l_r
    assert section.get("other", 7) == 7
    assert "other" not in section
    with pytest.raises(TypeError, match="read-only"):
        section.optim.lr = 2


def test_looking_at_a_config_does_not_read_it():
    section = config.strict({"a": {"b": 1}})
    assert "'b': 1" in repr(section)
    assert json.loads(config.to_json(section)) == {"a": {"b": 1}}
    with pytest.raises(UserError, match=r"'a\.b' is never read"):
        config.assert_read(section)


def test_call_checks_keys_against_the_signature():
    def fn(lr, *, warmup=0, shape=None, total):
        return lr, warmup, shape, total

    section = config.strict({"lr": 1, "shape": {"x": (1, 2)}, "other": 5})
    assert config.call(fn, section, "config.optim", skip=("other",), total=9) == (1, 0, {"x": (1, 2)}, 9)
    assert type(config.call(fn, section, "s", skip=("other",), total=9)[2]) is dict
    with pytest.raises(UserError, match=r"config.optim: unknown key 'warmpu'. Did you mean 'warmup'"):
        config.call(fn, {"lr": 1, "warmpu": 2}, "config.optim", total=9)
    with pytest.raises(UserError, match="unknown key 'total'"):  # the program's own argument
        config.call(fn, {"lr": 1, "total": 2}, "config.optim", total=9)
    with pytest.raises(UserError, match=r"config.optim: key 'lr' is missing"):
        config.call(fn, {}, "config.optim", total=9)


def test_a_key_that_is_handed_on_is_blamed_only_where_the_function_does_not_take_it_itself():
    def inner():
        pass

    def fn(width=1, **options):
        return inner(**options) if options else inner(width=width)

    with pytest.raises(UserError, match=r"config\.model: unknown key 'widht'"):
        config.call(fn, {"widht": 2}, "config.model")
    with pytest.raises(TypeError, match="inner"):  # the user's key is right, the program is wrong
        config.call(fn, {"width": 2}, "config.model")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"x_steps": 7}, 7),
        ({"x_epochs": 1.5}, 150),
        ({"x_examples": 1000}, 100),
        ({"x_percent": 5}, 20),
        ({"x_percent": 0.01}, 1),
        ({"x_steps": 0}, 0),
        ({}, 3),
    ],
)
def test_durations(section, expected):
    assert config.steps(section, "x", batch_size=10, num_examples=1000, total_steps=400, default=3) == expected


def test_durations_are_given_once_and_make_sense():
    for section in ({}, {"x_steps": 1, "x_epochs": 1}):
        with pytest.raises(UserError, match="exactly one of x_steps, x_epochs"):
            config.steps(section, "x", batch_size=1)
    for section in ({"x_steps": -1}, {"x_steps": "3"}, {"x_steps": float("nan")}):
        with pytest.raises(UserError, match="must be a number"):
            config.steps(section, "x", batch_size=1)
    with pytest.raises(UserError, match="use x_steps"):
        config.steps({"x_percent": 1}, "x", batch_size=1)


@pytest.mark.parametrize(("section", "expected"), [({}, 400), ({"x_steps": None}, 400), ({"x_percent": 0.01}, 1)])
def test_intervals_are_at_least_a_step(section, expected):
    assert config.steps(section, "x", batch_size=10, total_steps=400, default=400, least=1) == expected
    with pytest.raises(UserError, match=r"'x_epochs' must be a number above 0, not 0\."):
        config.steps({"x_epochs": 0}, "x", batch_size=10, num_examples=1000, total_steps=400, default=400, least=1)


def test_none_is_as_if_a_key_were_left_out_or_an_error():
    def fn(lr: "float", clip: "float | None" = 1.0, warmup: "int" = 0, other=2):
        return lr, clip, warmup, other

    assert config.strict({"a": None}).get("a", 3) == 3
    given = dict(lr=1, clip=None, other=None)
    assert config.call(fn, given, "config.optim") == (1, None, 0, None)
    for key in ("lr", "warmup"):
        with pytest.raises(UserError, match=rf"config\.optim\.{key} is None; it must be a (whole )?number\."):
            config.call(fn, {**given, key: None}, "config.optim")


@pytest.mark.parametrize(
    ("kind", "good", "bad", "name"),
    [
        (int, (1, np.int64(2)), ("1", 1.5, True, None), "a whole number"),
        (float, (1, 1.5, np.float32(2)), ("x", True, [1.0]), "a number"),
        (str | None, ("", None), (1, ["x"]), "a text or None"),
        (Sequence[str] | str, ("x", ["x"], ("x", "y"), ()), (1, [1], {"x": 1}), "a list or a text"),
        (int | tuple[int, int], (1, [1, 2], (1, 2)), ((1, 2, 3), "12", (1, "2")), "a whole number or a list of 2"),
        (tuple[int, ...], ((), [1, 2, 3]), (1, ["1"]), "a list"),
        (dict[str, Any], ({}, config.Section({})), ("x", []), "a section"),
        (Literal["left", "right"], ("left", "right"), ("lef", 1, None), "'left' or 'right'"),
        (str | os.PathLike[str], ("x", pathlib.Path("x")), (1, ["x"]), "a text"),
        (Any, (1, None, "x"), (), ""),
    ],
)
def test_values_are_of_the_annotated_type(kind, good, bad, name):
    for value in good:
        values.check({"key": value}, {"key": kind}, "config.some")
    for value in bad:
        with pytest.raises(UserError, match=rf"config\.some\.key is .*; it must be {re.escape(name)}\."):
            values.check({"key": value}, {"key": kind}, "config.some")


def test_a_class_takes_what_its_parents_take():
    class Parent:
        def __init__(self, *, size: int, rate: float = 1.0) -> None:
            self.size = size

    class Child(Parent):
        def __init__(self, *, name: str = "", **options: Any) -> None:
            super().__init__(**options)

    assert config.call(Child, {"size": 2}, "config.some").size == 2
    with pytest.raises(UserError, match=r"config\.some: key 'size' is missing"):
        config.call(Child, {}, "config.some")
    for key in ("size", "rate", "name"):
        with pytest.raises(UserError, match=rf"config\.some\.{key} is \[\]; it must be a"):
            config.call(Child, {"size": 2, key: []}, "config.some")


def test_every_table_of_functions_has_annotations_that_can_be_read():
    functions = [registry.imported("loss", name, losses.LOSSES) for name in losses.LOSSES]
    functions += [registry.imported("evaluator", name, EVALUATORS) for name in EVALUATORS]
    functions += [registry.imported("method", name, METHODS) for name in METHODS]
    functions += [importlib.import_module(module).load for module in DATASETS.values()]
    for module in ops.FURTHER.values():
        importlib.import_module(module)
    for function in [*functions, *ops.OPS.values(), *optim.OPTIMIZERS.values()]:
        left = [name for name, p in values.parameters(function).items() if isinstance(p.annotation, str)]
        assert not left, function


# --- keeping ---


def test_a_workdir_belongs_to_one_config(tmp_path):
    first = config.strict({"a": (1, 2), "log": {"every": 5}, "fn": json.dumps})
    failed = config.strict({"a": (3,)})
    (tmp_path / "w").mkdir()
    workdir = config.Workdir(tmp_path / "w", tmp_path / "w")
    config.save_resolved(workdir, failed)
    config.save_resolved(workdir, first)  # nothing was saved by the other
    (tmp_path / "w/checkpoints/10").mkdir(parents=True)
    config.save_resolved(workdir, first)
    assert json.loads((tmp_path / "w/config.json").read_text())["a"] == [1, 2]
    assert json.loads((tmp_path / "w/versions.json").read_text())["packages"]["jax"]
    other = config.strict({"a": (1, 2), "log": {"every": 6}, "fn": json.dumps})
    with pytest.raises(UserError, match=r"another config \(log.every: 5 -> 6\)"):
        config.save_resolved(workdir, other)
    config.save_resolved(workdir, other, may_change=["log\\..*"])
    (tmp_path / "w/config.json").write_text('{"a": ')
    with pytest.raises(UserError, match="damaged"):
        config.save_resolved(workdir, first)


def test_provenance_never_fails(monkeypatch):
    assert {"packages", "python", "platform"} <= set(config.provenance())
    monkeypatch.setenv("PATH", "")  # no git
    assert "git" not in config.provenance()


def test_import_is_light():
    code = "import sys, prismer_jax.config; assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_none_means_none_for_every_key_and_quoted_it_is_a_text(tmp_path):
    (tmp_path / "c.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict(dict(init='runs/x', rate=1.0, on=True, steps=3, nothing=None, names=('a',)))\n"
    )
    keys = ("init", "rate", "on", "steps", "nothing", "names")
    cfg = config.load(str(tmp_path / "c.py"), [f"{key}=None" for key in keys])
    assert [cfg[key] for key in keys] == [None] * 6
    assert config.load(str(tmp_path / "c.py"), ["init='None'"]).init == "None"
    values = [
        config.load(str(tmp_path / "c.py"), [f"nothing={text}"]).nothing for text in ("True", "false", "1e-3", "x")
    ]
    assert values == [True, False, 1e-3, "x"]


def test_one_training_at_a_time_has_a_workdir(tmp_path):
    with config.locked_workdir(tmp_path / "w"):
        with config.locked_workdir(tmp_path / "w", first=False):
            pass  # another process of the same training
        with pytest.raises(UserError, match="w: another training is under way"), config.locked_workdir(tmp_path / "w"):
            pass
    with config.locked_workdir(tmp_path / "w"):
        pass
