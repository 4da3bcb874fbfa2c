"""transfers/forkme.py with a converted nanoVLM: it starts as that, reads one's own texts and trains a whole run."""

import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from configs import configs_test
from prismer_jax import assembly, checkpoint, config, evaluate, input, tree
from prismer_jax.batch import inputs
from prismer_jax.caption_prompt_test import converted
from prismer_jax.captioner import Captioner
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
        variables |= assembly.make_initial(cfg, made)(variables)
        row = {key: value[:1] for key, value in inputs(batch).items()}
        encoded.append(np.asarray(jax.jit(functools.partial(made.apply, method="encode"))(variables, row)))
    assert "labels/depth" in batch
    np.testing.assert_array_equal(*encoded)


def exported(folder, spec):
    """Exports the model of a smoke config on scenes, with new parameters, as a training would; returns the folder."""
    cfg = config.load(f"{ROOT}/configs/{spec}")
    words = tokenizer.load(cfg.tokenizer)
    variables = jax.jit(assembly.make_model(cfg, words).init_variables)(jax.random.key(1))
    checkpoint.export(folder, variables, assembly.description(cfg, words)["config"])
    return folder


@pytest.mark.parametrize(
    ("known", "asked", "fresh"),
    [
        ("z", "depth", {"stem_depth", "resampler"}),
        ("experts=depth", "depth+edge", {"stem_edge", "places"}),
        pytest.param(
            *("experts=depth+obj_detection", "depth", {"stem_obj_detection", "instance_embedding", "places"}),
            marks=pytest.mark.slow,
        ),
        pytest.param("experts=depth", "depth", set(), marks=pytest.mark.slow),
    ],
)
def test_a_prismer_is_shown_experts_that_it_has_not_seen(known, asked, fresh, mine, tmp_path):
    """What reads them starts from scratch, and nothing else: the checkpoint was refused."""
    folder = exported(tmp_path / "known", f"quickstart.py:smoke,{known}")
    cfg = config.load(f"{ROOT}/transfers/forkme.py:data={mine},init={folder},experts={asked}")
    words = tokenizer.load(cfg.tokenizer)
    model = assembly.make_model(cfg, words)
    start = jax.tree.map(
        lambda x: np.full(x.shape, 7, x.dtype), jax.eval_shape(model.init_variables, jax.random.key(0))
    )
    loaded = tree.flatten(assembly.make_initial(cfg, model)(start))
    names = {name.split("/")[2] for name, x in loaded.items() if name.startswith("params") and (x == 7).all()}
    assert names == fresh - {"stem_obj_detection", "instance_embedding"}
    assert "labels/depth" in first_batch(cfg, words)


@pytest.mark.parametrize("task", ["captions", "questions"])
def test_a_nanovlm_that_was_trained_here_learns_the_texts_of_the_lists(task, mine, tmp_path):
    """It is asked by the ops of the quickstart, in which no `ask` was found to be replaced: its loss was 0 / 0."""
    folder = exported(tmp_path / "own", "nanovlm.py:scenes,experts=none,smoke")
    cfg = load(folder, mine, f",task={task}")
    words = tokenizer.load(cfg.tokenizer)
    batch, rows = first_batch(cfg, words), read(mine / f"{task}_train.json")
    said = {row.get("caption", row.get("answer")).strip(".").lower() for row in rows}
    for text, loss in zip(batch["text"], batch["mask_loss"], strict=True):
        learnt = words.decode(text[loss > 0].tolist()).lower()
        assert any(one in learnt or learnt.startswith(one[:40]) for one in said), learnt
    assert cfg.tasks[task.removesuffix("s")].decode.max_new > 1


@pytest.mark.parametrize(("family", "other"), [("nanovlm", "paligemma"), ("prismer", "nanovlm"), ("blip2", "prismer")])
def test_a_checkpoint_of_another_family_is_refused(family, other, tmp_path):
    spec = "quickstart.py:smoke,z" if other == "prismer" else f"{other}.py:scenes,experts=none,smoke"
    folder = exported(tmp_path / "own", spec)
    with pytest.raises(UserError, match=f"own is of the family {other}, not {family}: say model={other}"):
        config.load(f"{ROOT}/transfers/forkme.py:model={family},init={folder},data={tmp_path}")


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


def test_a_paligemma_is_trained_as_big_visions_forkme_does_it(shared, tmp_path):
    published = json.loads((shared / "golden/paligemma_transfers.json").read_text())["transfers"]["forkme"]["default"]
    describe_paligemma(tmp_path)
    cfg = config.load(f"{ROOT}/transfers/forkme.py:model=paligemma,init={tmp_path}")
    assert (cfg.total_epochs, cfg.batch_size) == (published["total_epochs"], published["batch_size"])
    assert "total_steps" not in cfg
    assert tokenizer.load(cfg.tokenizer).files() == [tmp_path / "tokenizer.model"]
    assert cfg.optim.lr == published["lr"]
    assert cfg.optim.weight_decay * cfg.optim.lr == pytest.approx(published["wd"])
    assert (cfg.optim.clip_norm, cfg.loss.label_smoothing) == (
        published["grad_clip_norm"],
        published["label_smoothing"],
    )
    assert cfg.model.language.logit_cap == published["llm"]["final_logits_softcap"]
    assert f"affix({published['prefix_template']})".replace('"', "'") in cfg.data.mine.pp
    assert f"prefix_lm({published['text_len'] + 1})" in cfg.data.mine.pp
    assert "stretch(224, antialias=True" in cfg.data.mine.pp


def describe_paligemma(folder):
    """Writes what tools.convert says of a model, without its weights."""
    model = {"name": "paligemma", "variant": "3b_pt_224"}
    task = {"pp": "decode|stretch(224)|ask()|prefix_lm(64)", "decode": {"method": "greedy"}}
    description = {"model": model, "tokenizer": "sentencepiece:tokenizer.model", "tasks": {"caption": task}}
    (folder / "weights").mkdir()
    (folder / "config.json").write_text(json.dumps(description))
    shutil.copy(tokenizer.SCENES, folder / "tokenizer.model")


def test_a_paligemma_reads_lines_of_image_prefix_and_suffix(tmp_path):
    describe_paligemma(tmp_path)
    photo = next(row["image"] for row in read(miniature.own("captions")[0]))
    for part in ("train", "val"):
        row = {"image": f"{miniature.folder()}/vqav2/{photo}", "prefix": "detect cat", "suffix": ["a", "b"]}
        (tmp_path / f"captions_{part}.jsonl").write_text(json.dumps(row))
    cfg = config.load(
        f"{ROOT}/transfers/forkme.py:model=paligemma,init={tmp_path},data={tmp_path}", ["tokenizer=scenes"]
    )
    words = tokenizer.load(cfg.tokenizer)
    batch = first_batch(cfg, words)
    said = {words.decode(text[loss > 0].tolist()) for text, loss in zip(batch["text"], batch["mask_loss"], strict=True)}
    assert said <= {"a", "b"}
    prefix = batch["text"][0][batch["mask_input"][0] & (batch["mask_ar"][0] == 0)]
    assert words.decode(prefix.tolist()).strip() == "detect cat"


@pytest.mark.parametrize(
    ("look", "crop"),
    [
        ("resize(64)", "random_resized_crop(64)|flip()"),
        ("resize(96, 64)", "random_resized_crop(96, 64)|flip()"),
        ("resize(size=96, label_size=64)", "random_resized_crop(size=96, label_size=64)|flip()"),
    ],
)
def test_a_prismer_of_ones_own_is_augmented_however_its_task_looks(look, crop, mine, tmp_path):
    tasks = {"caption": {"pp": f"decode|{look}|caption_prompt(prefix='a photo of')|tokenize(3)", "decode": {}}}
    described = {"model": {"variant": "small", "experts": "none"}, "tokenizer": "scenes", "tasks": tasks}
    checkpoint.export(tmp_path / "own", {"params": {"w": np.zeros(1)}}, described)
    cfg = config.load(f"{ROOT}/transfers/forkme.py:init={tmp_path}/own,data={mine}")
    assert cfg.data.mine.pp == f"decode()|{crop}|caption('a photo of', style='plain')|tokenize(48)"


def test_what_a_checkpoint_is_not_asked_for_is_said(tmp_path):
    described = {"model": {"variant": "small", "experts": "none"}, "tokenizer": "scenes", "tasks": {"question": {}}}
    checkpoint.export(tmp_path / "own", {"params": {"w": np.zeros(1)}}, described)
    with pytest.raises(UserError, match="own: its tasks are question, not caption: say another task=, or init="):
        config.load(f"{ROOT}/transfers/forkme.py:init={tmp_path}/own")


def test_lists_may_have_any_ending(tmp_path):
    def paths():
        cfg = config.load(f"{ROOT}/transfers/forkme.py:data={tmp_path},init={tmp_path}/none")
        return [pathlib.Path(part.path).name for part in (cfg.data.mine, cfg.evals.caption.data)]

    assert paths() == ["captions_train.json", "captions_val.json"]  # which are named as missing
    for name in ("captions_train.csv", "captions_train.bak", "captions_val.jsonl", "captions_val.json.bak"):
        (tmp_path / name).touch()
    assert paths() == ["captions_train.csv", "captions_val.jsonl"]
    (tmp_path / "captions_train.tsv").touch()
    with pytest.raises(UserError, match=r"holds captions_train\.csv and captions_train\.tsv: leave one list"):
        paths()
    (tmp_path / "captions_train.json").touch()
    assert paths() == ["captions_train.json", "captions_val.jsonl"]


def test_a_prismer_whose_task_does_not_resize_is_refused(mine, tmp_path):
    tasks = {"caption": {"pp": "decode|stretch(96)|caption_prompt()|tokenize(3)", "decode": {}}}
    described = {"model": {"variant": "small", "experts": "none"}, "tokenizer": "scenes", "tasks": tasks}
    checkpoint.export(tmp_path / "own", {"params": {"w": np.zeros(1)}}, described)
    with pytest.raises(UserError, match="without `resize`: say in of_prismer how to crop"):
        config.load(f"{ROOT}/transfers/forkme.py:init={tmp_path}/own,data={mine}")
