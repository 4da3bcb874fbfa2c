"""transfers/forkme.py with a converted nanoVLM: it starts as that, reads one's own texts and trains a whole run."""

import functools
import json

import jax
import numpy as np
import pytest

from configs import configs_test
from prismer_jax import assembly, config, evaluate, input
from prismer_jax.batch import inputs
from prismer_jax.caption import Captioner
from prismer_jax.caption_prompt_test import converted
from prismer_jax.datasets import miniature
from prismer_jax.errors import UserError
from prismer_jax.pp import tokenizer
from prismer_jax.testing import ROOT


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("nanovlm"))


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A folder as the config describes it."""
    root = tmp_path_factory.mktemp("mine")
    for task in ("captions", "questions"):
        for part, path in zip(("train", "val"), miniature.own(task), strict=True):
            rows = [{**row, "image": f"{miniature.folder()}/{place(row, task, part)}"} for row in read(path)]
            (root / f"{task}_{part}.json").write_text(json.dumps(rows))
    return root


def place(row, task, part):
    return f"{'vg' if (task, part) == ('questions', 'val') else 'vqav2'}/{row['image']}"


def read(path):
    with open(path) as file:
        return json.load(file)


def load(model, mine, more="", *overrides):
    return config.load(f"{ROOT}/transfers/forkme.py:model=nanovlm,init={model},data={mine}{more}", overrides)


def first_batch(cfg, words):
    batches = input.train_batches(assembly.load_mixture(cfg.data, words), batch_size=4, seed=0)
    batch = next(batches)
    batches.close()
    return batch


@pytest.mark.parametrize("task", ["captions", "questions"])
def test_it_asks_and_answers_in_the_words_of_the_lists(model, mine, task):
    cfg = load(model, mine, f",task={task}")
    words = tokenizer.load(cfg.tokenizer)
    batch, rows = first_batch(cfg, words), read(mine / f"{task}_train.json")
    said = {row.get("caption", row.get("answer")).strip(".") for row in rows}
    asked = {"Describe the image."} | {row["question"] for row in rows if "question" in row}
    for text, mask, loss in zip(batch["text"], batch["mask_input"], batch["mask_loss"], strict=True):
        learnt, whole = words.decode(text[loss > 0].tolist()), words.decode(text[mask].tolist())
        assert any(one.lower() in learnt.lower() for one in said), learnt
        assert any(one in whole for one in asked), whole
    assert batch["image"].shape[1] > 1


def test_new_experts_say_nothing_at_first(model, mine):
    encoded = []
    for experts in ("", "depth"):
        cfg = load(model, mine, f",experts={experts}" if experts else "")
        words = tokenizer.load(cfg.tokenizer)
        batch, made = first_batch(cfg, words), assembly.make_model(cfg, words)
        variables = jax.jit(made.init_variables)(jax.random.key(0))
        variables |= assembly.make_initial(cfg)(variables)
        row = {key: value[:1] for key, value in inputs(batch).items()}
        encoded.append(np.asarray(jax.jit(functools.partial(made.apply, method="encode"))(variables, row)))
    assert "labels/depth" in batch
    np.testing.assert_array_equal(*encoded)


def test_what_is_no_converted_model_is_named(tmp_path, mine):
    (tmp_path / "weights").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="Convert it again"):
        load(tmp_path, mine)
    with pytest.raises(UserError, match="nowhere"):
        load("nowhere", mine)


@pytest.mark.slow
def test_it_runs_whole_and_its_result_is_used(model, mine, tmp_path):
    more = ["batch_size=4", "total_steps=2", "tasks.caption.decode.max_new=3", "evals.caption.max_new=3"]
    spec = f"model=nanovlm,init={model},data={mine},experts=depth"
    cfg, scores = configs_test.run(tmp_path / "run", "transfers/forkme.py", spec, *more)
    again = evaluate.evaluate(cfg, tmp_path / "run", tmp_path / "again")
    assert again["caption/cider"] == scores["caption/cider"]
    photo = read(mine / "captions_val.json")[0]["image"]
    assert len(Captioner(tmp_path / "run").caption(photo)[0]["captions"]) == 1
