"""docs/config.md names what a config may say, with its defaults: all of it, and nothing else."""

import ast
import dataclasses
import importlib
import inspect
import re

import pytest

from prismer_jax import assembly, checkpoint, config, datasets, evaluators, losses, models, optim, pp, registry
from prismer_jax.config import command_line
from prismer_jax.datasets import packing
from prismer_jax.decode import batch, lengths, ranking, sampling
from prismer_jax.evaluators.common import Evaluator
from prismer_jax.labels import EXPERTS
from prismer_jax.models import lora
from prismer_jax.pp import ops, text
from prismer_jax.report import results
from prismer_jax.runtime import profiled
from prismer_jax.scores.answers import SCORES
from prismer_jax.sharding import AXES, presets
from prismer_jax.testing import ROOT
from prismer_jax.towers import layers, quantized
from prismer_jax.training import step, targets

PAGE = (ROOT / "docs/config.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")}
FILES = [
    p
    for folder in ("configs", "transfers")
    for p in (ROOT / folder).glob("*.py")
    if not p.stem.endswith(("_test", "common"))
]
READERS = ("train", "assembly", "training/step", "sharding/processes")  # of top-level keys
VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def settings(*functions, given=""):
    """Returns {name: default} of what a config gives functions, without what the program does; `...` is none."""
    parameters = [p for function in functions for p in inspect.signature(function).parameters.values()]
    kept = [p for p in parameters if p.kind not in VARIABLE and p.name not in given.split()]
    return normal({p.name: ... if p.default is p.empty else p.default for p in kept})


def normal(defaults):
    return {name: tuple(EXPERTS) if default == "all" else default for name, default in defaults.items()}


def keys(heading, first="key"):
    """Returns {key: default} of the tables of a section whose first column is called so and the second one default."""
    rows = {}
    for table in re.findall(r"(?m)(?:^\|.*\n)+", SECTIONS[heading]):
        head, _, *lines = table.splitlines()
        if head.startswith(f"| {first} | default |"):
            for line in lines:
                names, default = re.match(r"\| (.*?) \| (.*?) ?\|", line).groups()
                rows |= {name: default.strip("`") for name in re.findall(r"`(.*?)`", names)}
    return rows


def calls(heading):
    """Returns {name: {argument: default}} of a section's rows that begin with a call, as `resize(size)`."""
    found = {}
    for source in re.findall(r"(?m)^\| `(\w+\(.*?\))` \|", SECTIONS[heading]):
        call = ast.parse(source, mode="eval").body
        named = {k.arg: eval(ast.unparse(k.value)) for k in call.keywords if k.arg}  # (3/4, 4/3) is no literal
        assert call.func.id not in found
        found[call.func.id] = normal({**{argument.id: ... for argument in call.args}, **named})
    return found


KEPT = "Checkpoint, report, profile"
KEYS = [
    ("Data", "key of `pack`", settings(packing.rows, given="source chain")),
    ("Optim", "key", settings(optim.make_schedule, optim.make, given="params total_steps frozen")),
    ("Targets", "key", settings(targets.make, given="model")),
    ("Evals", "key", settings(Evaluator, given="model tokenizer source mesh train_source quiet where")),
    ("Tasks", "key", settings(assembly.check_task, given="where tokenizer")),
    ("Decoding", "key", settings(batch.generate, given="model variables batch eos pad rng")),
    (KEPT, "key of `checkpoint`", settings(checkpoint.Checkpointer, given="directory config files")),
    (KEPT, "key of `report`", settings(results.write, given="folder evaluators scores cfg")),
    (KEPT, "key of `profile`", settings(profiled, given="folder")),
]
OTHERS = {"Evals": {"type": ..., "data": ..., "train_data": None}}  # which assembly reads


@pytest.mark.parametrize(("heading", "first", "arguments"), KEYS)
def test_keys_of_a_section_are_the_arguments_of_its_function(heading, first, arguments):
    listed = {name: eval(default) if default else ... for name, default in keys(heading, first).items()}
    assert normal(listed) == {**arguments, **OTHERS.get(heading, {})}


def of(kind, table):
    return {name: registry.imported(kind, name, table) for name in table}


for module in set(ops.FURTHER.values()):
    importlib.import_module(module)
CALLS = {
    "Data": {name: importlib.import_module(module).load for name, module in datasets.DATASETS.items()},
    "Preprocessing ops": pp.OPS,
    "Loss": of("loss", losses.LOSSES),
    "Optim": optim.OPTIMIZERS,
    "Evals": of("evaluator", evaluators.EVALUATORS),
    "Decoding": of("method", batch.METHODS) | {"rank": ranking.rank},
}
GIVEN = {  # by the program, or by keys of another table
    "Data": "kind",
    "Preprocessing ops": "tokenizer",
    "Loss": "forward batch",
    "Decoding": " ".join((*batch._GIVEN, "max_new", "min_new")),
}


@pytest.mark.parametrize("heading", CALLS)
def test_calls_have_the_arguments_and_defaults_of_the_code(heading):
    listed = calls(heading)
    assert listed.keys() == CALLS[heading].keys()
    for name, function in CALLS[heading].items():
        expected = settings(function, given=GIVEN.get(heading, ""))
        if function.__module__.startswith("optax"):  # newer versions take more
            expected = {key: default for key, default in expected.items() if key in listed[name]}
        assert listed[name] == expected, name


def test_data_sections_have_the_keys_that_are_read():
    others = {key for key in assembly.DATA_KEYS if not key.startswith("start_")} | {"start_steps"}
    assert keys("Data").keys() == others


@pytest.mark.parametrize("family", models.FAMILIES)
def test_families_have_their_modes_and_fields(family):
    module = models.family(family)
    (row,) = re.findall(rf"(?m)^\| \[?`{family}`.*", SECTIONS["Model"])
    _, _, variants, modes, fields, _ = row.split("|")
    named = {field.name for field in dataclasses.fields(module.build(variant="tiny"))} - {"parent", "name"}
    assert set(re.findall(r"`(\w+)`", fields)) == named
    assert set(re.findall(r"`(\w+)`", modes)) == set(module.FREEZE)
    listed = set(re.findall(r"`([\w.]+)`", variants)) - {"3b_", "10b_", "28b_"}
    assert listed <= set(module.VARIANTS)
    assert family in ("blip2", "paligemma") or listed == set(module.VARIANTS)


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("Top-level keys", [*AXES, *presets.STAGES, presets.TENSOR, *step.PRNGS, *step.KEPT_AS]),
        ("Tokenizer", pp.tokenizer.KINDS),
        ("Preprocessing ops", text.STYLES),
        ("Model", [*layers.REMAT, *quantized.BLOCK]),
        ("Model", {field.name for cls in (lora.Lora, lora.Quantize) for field in dataclasses.fields(cls)}),
        ("Optim", optim.DECAYS),
        ("Evals", SCORES),
        ("Decoding", [*batch.PADDINGS, *lengths.LENGTHS, *sampling.FILTERINGS]),
    ],
)
def test_names_of_tables_are_listed(heading, names):
    for name in names:
        assert re.search(rf"[`'\"]{re.escape(name)}[`'\":]", SECTIONS[heading]), name


def by_steps(key):
    return re.sub(r"_(epochs|examples|percent)$", "_steps", key)


def test_top_level_keys_are_those_that_are_read():
    code = "".join((ROOT / f"prismer_jax/{name}.py").read_text() for name in READERS)
    every = re.findall(r'for n in \((".*?")\)', code)[0]
    read = {*re.findall(r"\bcfg\.(?!get\b|items\b)(\w+)", code), *re.findall(r'\bcfg\.get\("(\w+)"', code)}
    read |= {f"{name}_steps" for name in ["total", *re.findall(r'"(\w+)"', every)]}
    assert keys("Top-level keys").keys() == read


def test_keys_with_a_default_may_be_given_by_a_flag():
    """In a config that leaves them out; a section's keys need one that says what they mean."""
    named = {name: default for name, default in keys("Top-level keys").items() if default}
    given = {by_steps(key) for key in command_line.DEFAULTS} - {"total_steps"}
    assert named.keys() - given == {"targets", "files"}
    for name in named.keys() & command_line.DEFAULTS.keys():
        default = command_line.DEFAULTS[name]
        assert name == "wandb" or name.endswith("_steps") or eval(named[name]) == default, name


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_key_of_a_config_is_listed(file):
    cfg = config.load(f"{file}:smoke")
    assert {by_steps(key) for key in cfg} <= keys("Top-level keys").keys()
