"""Evaluation of checkpoints, stopped and gone on; slow: kill -9, several processes."""

import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from prismer_jax import (
    assembly,
    checkpoint,
    compare,
    config,
    evaluate,
    evaluators,
    label_files,
    labels,
    models,
    pp,
    sharding,
)
from prismer_jax.errors import BadSample, UserError
from prismer_jax.evaluators.vqa import VQAEvaluator
from prismer_jax.testing import ROOT
from prismer_jax.training.start import load

PP = "labels_for('all')|decode|resize(96, 64)|question_prompt()|tokenize(length=24)"  # as before, in other words
SPEC = f"{ROOT / 'configs/quickstart.py'}:smoke"


class Stop(Exception):
    pass


@pytest.fixture(scope="module", autouse=True)
def data_dir(tmp_path_factory):
    os.environ["PRISMER_DATA_DIR"] = str(tmp_path_factory.mktemp("data"))
    yield
    del os.environ["PRISMER_DATA_DIR"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An export of the quickstart's model, with weights of chance that need no compilation, and the variables in it."""
    cfg = config.load(SPEC)
    tokenizer = pp.tokenizer.load(cfg.tokenizer)
    shapes = jax.eval_shape(assembly.make_model(cfg, tokenizer).init_variables, jax.random.key(0))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: np.abs(rng.normal(0.0, 0.1, x.shape)).astype(x.dtype), shapes)
    folder = tmp_path_factory.mktemp("model") / "export"
    checkpoint.export(folder, variables, **assembly.description(cfg, tokenizer, step=7))
    return folder, variables


FIELDS = dict(name="prismer", variant="tiny", experts="none")


def run(checkpoint_path, folder, *overrides, only=("vqa",)):
    cfg = config.load(SPEC, overrides)
    return evaluate.evaluate(cfg, checkpoint_path, folder, only=only, asked={"config": "quickstart"})


def count_calls(monkeypatch, limit=10**9):
    """Counts how often the model is asked, and stops the program, as it were, at the limit."""
    calls = []

    def say(self, variables, batch, say=VQAEvaluator.say):
        if len(calls) == limit:
            raise Stop
        calls.append(1)
        return say(self, variables, batch)

    monkeypatch.setattr(VQAEvaluator, "say", say)
    return calls


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, run(model[0], folder)


def test_writes_what_was_evaluated_and_what_came_out(finished, model):
    folder, scores = finished
    record = json.loads((folder / "metrics.json").read_text())
    assert record["metrics"] == scores
    assert record["config"] == "quickstart"
    assert record["checkpoint"]["step"] == 7
    assert record["checkpoint"]["path"] == str(model[0])
    vqa = record["evaluators"]["vqa"]
    samples = [json.loads(line) for line in (folder / "samples" / "vqa.jsonl").open()]
    assert len(samples) == vqa["samples"] > 16  # several batches
    assert vqa["decoding"] == {"method": "greedy", "max_new": 8, "style": "plain"}
    assert {"packages", "python", "date", "devices"} <= record.keys()
    predictions = json.loads((folder / "predictions" / "vqa.json").read_text())
    assert [p["answer"] for p in predictions] == [sample["prediction"] for sample in samples]
    page = (folder / "report.html").read_text()
    assert ">Worst<" in page
    assert ">Best<" in page
    assert not (folder / "partial").exists()


def test_gives_the_numbers_of_the_training_loop(finished, model):
    cfg, mesh = config.load(SPEC), sharding.make_mesh()
    tokenizer = pp.tokenizer.load(cfg.tokenizer)
    made = assembly.make_evaluators(
        {"vqa": cfg.evals.vqa}, assembly.make_model(cfg, tokenizer), tokenizer, mesh, quiet=True
    )
    with jax.set_mesh(mesh):
        assert evaluators.run(made, jax.device_put(model[1], sharding.replicated(mesh))) == finished[1]


def test_a_stopped_run_goes_on_and_another_checkpoint_begins_anew(finished, model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        count_calls(patch, limit=2)
        with pytest.raises(Stop):
            run(model[0], tmp_path / "out")
    assert (tmp_path / "out" / "partial" / "vqa.0.jsonl").exists()
    assert not (tmp_path / "out" / "metrics.json").exists()

    with monkeypatch.context() as patch:  # other weights, then another setting of the decoding: nothing is taken over
        calls = count_calls(patch, limit=1)
        other = {**model[1], "params": jax.tree.map(lambda x: x * 1.5, model[1]["params"])}
        checkpoint.export(tmp_path / "other", other, **{"config": checkpoint.description(model[0])})
        for arguments in ((tmp_path / "other",), (model[0],)):
            overrides = [f"evals.vqa.pp={PP}"] if arguments[0] == model[0] else []
            calls.clear()
            with pytest.raises(Stop):
                run(*arguments, tmp_path / "out", *overrides)
            assert len(calls) == 1

    with monkeypatch.context() as patch:
        count_calls(patch, limit=2)
        with pytest.raises(Stop):
            run(model[0], tmp_path / "out")
    calls = count_calls(monkeypatch)
    assert run(model[0], tmp_path / "out") == finished[1]
    samples = [(folder / "samples" / "vqa.jsonl").read_text() for folder in (finished[0], tmp_path / "out")]
    assert samples[0] == samples[1]
    questions = [json.loads(line)["question"] for line in samples[0].splitlines()]
    assert len(calls) == math.ceil(len(questions) / 16) - 2 + math.ceil(len(set(questions)) / 16)


class Corrected:
    """A source with other answers."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return {**self.source[index], "answers": ["mauve"]}


@pytest.mark.parametrize("replaced", ["data", "train_data"])
def test_a_stopped_run_whose_data_were_replaced_begins_anew(model, tmp_path, monkeypatch, replaced):
    """Of the other answers there are as many as before, and the config is the same."""
    overrides = ("evals.vqa.data.count=8",)  # the model is asked twice: about all photos, and about blank ones
    with monkeypatch.context() as patch:
        count_calls(patch, limit=1)
        with pytest.raises(Stop):
            run(model[0], tmp_path, *overrides)

    def load(part, where, *options, load=assembly.load_source):
        source = load(part, where, *options)
        return Corrected(source) if where.endswith(f".{replaced}") else source

    monkeypatch.setattr(assembly, "load_source", load)
    calls = count_calls(monkeypatch)
    run(model[0], tmp_path, *overrides)
    assert len(calls) == 2
    assert all((sample["references"] == ["mauve"]) == (replaced == "data") for sample in read_samples(tmp_path))


class InFiles:
    """A source whose labels of depth lie in a folder; of what a list says nothing tells that they changed."""

    fingerprint = "a list"

    def __init__(self, source, folder):
        self.source, self.folder = source, folder

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        example = {key: value for key, value in self.source[index].items() if key != "labels/depth"}
        return example | label_files.locate(self.folder, ["depth"], str(index))


@pytest.mark.parametrize("changed", [True, False])
def test_a_stopped_run_whose_labels_were_made_since_begins_anew(model, tmp_path, monkeypatch, changed):
    def load(part, where, *options, load=assembly.load_source):
        return InFiles(load(part, where, *options), tmp_path / "labels")

    monkeypatch.setattr(assembly, "load_source", load)
    overrides = ("evals.vqa.data.count=8",)
    with monkeypatch.context() as patch:
        count_calls(patch, limit=1)
        with pytest.raises(Stop):
            run(model[0], tmp_path, *overrides)
    if changed:
        label_files.write(tmp_path / "labels", "depth", "7", labels.blank("depth", 96, 96))
    calls = count_calls(monkeypatch)
    run(model[0], tmp_path, *overrides)
    assert len(calls) == (2 if changed else 1)


def test_a_step_of_a_run_is_a_checkpoint_too(finished, model, tmp_path):
    with checkpoint.Checkpointer(tmp_path / "checkpoints", keep=2) as saved:
        saved.save(3, model[1])
    assert run(tmp_path / "checkpoints" / "3", tmp_path / "out") == finished[1]
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["checkpoint"]["step"] == 3
    fingerprints = {
        json.loads((folder / "metrics.json").read_text())["checkpoint"]["fingerprint"]
        for folder in (finished[0], tmp_path / "out")
    }
    assert len(fingerprints) == 1


@pytest.mark.parametrize("name", ["checkpoints/3", "export"])
def test_what_a_training_deletes_does_not_take_its_results_along(model, tmp_path, monkeypatch, name):
    def train():
        with checkpoint.Checkpointer(tmp_path / "checkpoints") as saved:
            for step in (3, 4) if (tmp_path / "checkpoints").exists() else (3,):
                saved.save(step, model[1])
        checkpoint.export(tmp_path / "export", model[1], checkpoint.description(model[0]))

    def write(cfg, path, folder, **settings):
        (folder / "samples").mkdir(parents=True)
        (folder / "metrics.json").write_text('{"metrics": {}, "evaluators": {}, "checkpoint": {}}')
        return {}

    train()
    monkeypatch.setattr(evaluate, "evaluate", write)
    evaluate.main(["--config", SPEC, "--checkpoint", str(tmp_path / name)])
    train()
    assert compare.read(tmp_path / name).metrics == {}


def test_scores_are_of_the_step_that_was_read_although_the_run_saves_another(model, tmp_path, monkeypatch):
    def save(step):
        with checkpoint.Checkpointer(tmp_path / "checkpoints", keep=2) as saved:
            saved.save(step, model[1])

    def load(*args, load=evaluate.load_variables):
        variables = load(*args)
        save(6)
        return variables

    save(3)
    monkeypatch.setattr(evaluate, "load_variables", load)
    run(tmp_path, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["checkpoint"]["step"] == 3


def test_a_checkpoint_of_another_model_is_told_by_its_settings(model, tmp_path):
    cfg = config.load(SPEC.replace("smoke", "smoke,experts=depth"))
    with pytest.raises(UserError, match=r"of another model than the config's: experts is 'all' there, 'depth' here"):
        evaluate.evaluate(cfg, model[0], tmp_path)


def test_a_checkpoint_with_other_heads_is_refused_although_its_shapes_are_the_same(model, tmp_path):
    with pytest.raises(UserError, match=r"another model than the config's: heads is 4 there, 2 here\.$"):
        run(model[0], tmp_path, "model.heads=2")


def test_heads_are_compared_before_weights_are_read(model, tmp_path, monkeypatch):
    monkeypatch.setattr("prismer_jax.training.start.load_into", lambda *_, **__: pytest.fail("reads them first"))
    with pytest.raises(UserError, match="heads is 4 there, 2 here"):
        run(model[0], tmp_path, "model.heads=2")


def test_weights_are_read_of_a_model_whose_description_has_a_field_of_another_version(tmp_path, caplog):
    made = models.build(**FIELDS)
    shapes = jax.eval_shape(made.init_variables, jax.random.key(0))
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    checkpoint.export(tmp_path, variables, {"model": {**FIELDS, "dropped": 3}})
    read = load(variables, tmp_path, config.Section(FIELDS), made)
    assert jax.tree.all(jax.tree.map(np.array_equal, read, variables))
    assert "Unknown field of the model 'dropped'" in caplog.text


def test_adapters_are_refused_where_another_alpha_would_scale_them(tmp_path, caplog):
    """With init_fresh, which may name the part that they are in, that is a warning."""
    lora = dict(match="decoder/.*", rank=1)
    cfg, new = (config.Section({"model": {**FIELDS, "lora": lora | dict(alpha=alpha)}}) for alpha in (1.0, 4.0))
    shapes = jax.eval_shape(models.build(**config.plain(cfg.model)).init_variables, jax.random.key(0))
    variables = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), shapes)
    checkpoint.export(tmp_path, variables, {"model": config.plain(cfg.model)})
    with pytest.raises(UserError, match=r"lora\.alpha / lora\.rank is 1\.0 there, 4\.0 here\.$"):
        load(variables, tmp_path, new.model, models.build(**config.plain(new.model)))
    load(variables, tmp_path, new.model, models.build(**config.plain(new.model)), fresh=".*/lora/.*")
    caplog.clear()
    load(variables, tmp_path, new.model, models.build(**config.plain(new.model)), fresh="params/encoder/.*")
    assert "rank is 1.0 there, 4.0 here. That is right only for a part that config.init_fresh names" in caplog.text


def test_a_training_from_another_model_is_told_its_settings_too(model):
    cfg = config.load(SPEC.replace("smoke", "smoke,experts=depth"))
    cfg = config.Section({**config.plain(cfg), "init": str(model[0])})
    made = assembly.make_model(cfg, pp.tokenizer.load(cfg.tokenizer))
    shapes = jax.eval_shape(made.init_variables, jax.random.key(0))
    with pytest.raises(
        UserError, match=r"not expected: .*init_fresh=REGEX\. .* experts is 'all' there, 'depth' here\.$"
    ):
        assembly.make_initial(cfg, made)(shapes)


@pytest.mark.parametrize("fresh", ["params/heads", ("params/heads",)])
def test_what_starts_from_scratch_is_one_regex_or_several(model, fresh):
    cfg = config.Section({**config.plain(config.load(SPEC)), "init": str(model[0]), "init_fresh": fresh})
    made = assembly.make_model(cfg, pp.tokenizer.load(cfg.tokenizer))
    shapes = jax.eval_shape(made.init_variables, jax.random.key(0))
    with pytest.raises(UserError, match="init_fresh: 'params/heads' matches no parameter"):
        assembly.make_initial(cfg, made)(shapes)


def test_init_fresh_without_init_is_refused():
    with pytest.raises(UserError, match=r"what is not taken from config\.init, which is missing"):
        assembly.make_initial(config.Section({"init": None, "init_fresh": ("params/head",)}), None)


@pytest.mark.parametrize(
    ("path", "only", "message"),
    [("nowhere", ("vqa",), "nowhere does not exist"), ("", ("vqaa",), "Did you mean 'vqa'")],
)
def test_bad_input_is_one_line(model, tmp_path, path, only, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path / path if path else model[0], tmp_path / "out", only=only)


class Spoilt:
    """A source of which one sample is damaged, or none has an answer."""

    def __init__(self, source, bad=None):
        self.source, self.bad = source, bad

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index == self.bad:
            raise BadSample(f"scene {index} is damaged")
        return self.source[index] if self.bad is not None else {**self.source[index], "answers": []}


def spoil(monkeypatch, **options):
    load = assembly.load_source
    monkeypatch.setattr(assembly, "load_source", lambda *args: Spoilt(load(*args), **options))


def test_a_bad_photo_is_named_and_the_status_is_1(finished, model, tmp_path, monkeypatch, capsys, caplog):
    spoil(monkeypatch, bad=3)
    flags = ["--config", SPEC, "--checkpoint", str(model[0]), "--output", str(tmp_path), "--only", "vqa"]
    with pytest.raises(SystemExit) as stop:
        evaluate.main(flags)
    assert stop.value.code == 1
    assert "vqa/left_out" in capsys.readouterr().out
    assert "Left out: scene 3 is damaged" in caplog.text
    record, samples = json.loads((tmp_path / "metrics.json").read_text()), read_samples(tmp_path)
    assert record["metrics"]["vqa/left_out"] == 1
    assert record["evaluators"]["vqa"]["left_out"] == ["scene 3 is damaged"]
    whole = read_samples(finished[0])
    assert [s["id"] for s in samples] == [s["id"] for s in whole if s["index"] != 3]
    mean = np.mean([s["scores"]["accuracy"] for s in whole if s["index"] != 3])
    assert record["metrics"]["vqa/accuracy"] == pytest.approx(mean)
    assert record["evaluators"]["vqa"]["samples"] == len(samples)


def read_samples(folder):
    return [json.loads(line) for line in (folder / "samples" / "vqa.jsonl").open()]


def test_a_test_set_is_refused_before_the_weights_are_read_unless_only_predictions_are_wanted(
    model, tmp_path, monkeypatch
):
    spoil(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "load_variables", None)
        with pytest.raises(UserError, match=r"config\.evals\.vqa: no sample has a reference answer.*predict_only=True"):
            run(model[0], tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    flags = ["--config", SPEC, "--checkpoint", str(model[0]), "--output", str(tmp_path), "--only", "vqa"]
    evaluate.main([*flags, "--predict-only", "--max-unscored", "0.5"])
    assert json.loads((tmp_path / "predictions/vqa.json").read_text())
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == {}


# -------------------------------------------------------------------------------------- slow: processes that are killed


def start(checkpoint_path, output, index=0, count=1, port=0):
    command = [sys.executable, "-m", "prismer_jax.evaluate", "--config", SPEC, "--checkpoint", str(checkpoint_path)]
    command += ["--output", str(output), "--only", "vqa", "--config.evals.vqa.batch_size=4"]
    command += ["--config.evals.vqa.data.count=300"]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    if count > 1:
        environment |= {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def start_all(checkpoint_path, output, count):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [start(checkpoint_path, output, index, count, port) for index in range(count)]


def lines(output: pathlib.Path) -> int:
    return sum(len(path.read_bytes().splitlines()) - 1 for path in output.glob("partial/*.jsonl"))


def finish(processes):
    outputs = [process.communicate(timeout=900) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]


def kill_when(processes, output, count):
    """Kills all processes as soon as so many samples are there; returns how many there were then."""
    deadline = time.monotonic() + 900
    while lines(output) < count:
        for process in processes:
            assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()
    return lines(output)


def results(output):
    return json.loads((output / "metrics.json").read_text())["metrics"], (output / "samples/vqa.jsonl").read_text()


@pytest.mark.slow
def test_kill_9_at_any_time_and_other_numbers_of_processes_change_nothing(model, tmp_path):
    finish(start_all(model[0], tmp_path / "whole", 1))
    killed = tmp_path / "killed"
    seen = 0
    for count in (1, 2, 1):
        there = kill_when(start_all(model[0], killed, count), killed, seen + 9)
        assert there >= seen + 9
        seen = there
    assert not (killed / "metrics.json").exists()
    finish(start_all(model[0], killed, 2))
    assert results(killed) == results(tmp_path / "whole")
    assert not (killed / "partial").exists()
    assert "processes: 2" in json.loads((killed / "metrics.json").read_text())["devices"]
