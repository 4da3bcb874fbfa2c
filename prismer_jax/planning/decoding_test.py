"""Plans of writing: the program of a task is lowered from shapes alone; with libtpu, the lines that are printed."""

import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from prismer_jax import assembly, config, evaluate, pp
from prismer_jax.errors import UserError
from prismer_jax.planning import decoding, memory
from prismer_jax.testing import ROOT

SMOKE = f"{ROOT}/configs/blip2_stage2.py:smoke"


def parts(bits="bfloat16"):
    cfg = config.load(f"{SMOKE},bits={bits}", [])
    tokenizer = pp.tokenizer.load(cfg.tokenizer)
    return assembly.make_model(cfg, tokenizer), config.plain(cfg.tasks.caption), tokenizer


def test_weights_are_in_the_type_of_the_computation_or_packed():
    whole, packed = (decoding.kept(parts(bits)[0], "bfloat16") for bits in ("bfloat16", "int8"))
    assert {x.dtype for x in jax.tree.leaves(whole["params"])} == {jnp.dtype("bfloat16")}
    assert {x.dtype.name for x in jax.tree.leaves(packed["params"])} == {"bfloat16", "int8"}
    assert memory.share(packed) < memory.share(whole)


def test_the_program_holds_the_weights_and_grows_with_the_photos():
    model, task, tokenizer = parts()
    variables, device = decoding.kept(model, "float32"), jax.devices()[0]
    one, eight = (
        memory.peak(decoding.lower(model, variables, task, tokenizer, count, device).compile().memory_analysis())
        for count in (1, 8)
    )
    assert memory.share(variables) < one < eight


def test_a_task_that_draws_is_planned_as_well():
    model, task, tokenizer = parts()
    task["decode"] = dict(method="sample", max_new=4)
    assert decoding.lower(model, decoding.kept(model, "float32"), task, tokenizer, 1, jax.devices()[0]).as_text()


def test_a_task_without_settings_of_decoding_writes_nothing(monkeypatch):
    values = config.plain(config.load(SMOKE, []))
    values["tasks"]["caption"]["decode"] = None
    monkeypatch.setattr(config, "load", lambda spec, overrides: config.Section(values))
    monkeypatch.setattr(decoding.topologies, "describe", lambda name: name)
    with pytest.raises(UserError, match="none of its tasks generates text"):
        decoding.main(SMOKE, [], "v5e:2x2")


def test_what_writes_nothing_or_has_no_libtpu_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match="pip install"):
        evaluate.main(["--config", SMOKE, "--plan", "v5e:2x2"])
    monkeypatch.setattr(decoding.topologies, "describe", lambda name: name)
    with pytest.raises(UserError, match="none of its tasks generates text"):
        decoding.main(f"{ROOT}/configs/student.py:scenes,smoke", [], "v5e:2x2")


def test_a_program_refused_for_its_temporaries_alone_takes_the_weights_besides(monkeypatch, capsys):
    """XLA then says the temporaries' size and not the whole."""
    chip = types.SimpleNamespace(memory=2**34, devices=1)
    slice_ = types.SimpleNamespace(name="v5e:2x2", chip=chip, devices=jax.devices())
    beside = []

    def refused(program, arguments):
        beside.append(arguments)
        return {"fits": False, "peak": 2**34 + arguments, "usable": 2**34}, ""

    monkeypatch.setattr(decoding.topologies, "describe", lambda name: slice_)
    monkeypatch.setattr(decoding.plan, "compiled", refused)
    decoding.main(SMOKE, [], "v5e:2x2")
    assert set(beside) == {memory.share(decoding.kept(parts()[0], "float32"))}
    assert capsys.readouterr().out.count("does not fit") == len(decoding.BATCHES)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e .[plan]"
)
def test_a_small_model_fits_on_a_chip(capsys):
    evaluate.main(["--config", SMOKE, "--plan", "v5e:2x2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("v5e:2x2, one chip, weights 0.00 GiB")
    assert lines[1].startswith("  caption, 1 photo: ")
    assert lines[1].endswith(" of 16.00 GiB: fits")
