"""transfers/paligemma.py: the published settings, what becomes of rows, wrong arguments, and whole runs."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import configs_test
from configs.configs_test import load
from prismer_jax import assembly, config, input, models, optim, registry, sharding, tree
from prismer_jax.batch import inputs
from prismer_jax.errors import UserError
from prismer_jax.pp import tokenizer
from prismer_jax.training.step import make_step

FILE = "transfers/paligemma.py"
OTHER_NAMES = {"ansstr": "choices", "question_text": "question", "sentence": "question", "indexed_choices": "choices"}
TASKS = [
    *("activitynet_cap", "activitynet_qa", "ai2d", "aokvqa_da", "aokvqa_mc", "chartqa", "coco35l", "cococap"),
    *("docvqa", "gqa", "infovqa", "msrvtt_cap", "msrvtt_qa", "msvd_qa", "nlvr2", "ocrvqa", "okvqa", "refcoco_seg"),
    *("rsvqa_hr", "rsvqa_lr", "scicap", "science_qa", "screen2words", "stvqa", "tallyqa", "textcaps", "textvqa"),
    *("vatex_cap", "vizwizvqa", "vqav2", "widgetcap", "t4", "l4", "mmvp", "pope"),
]


@pytest.fixture(scope="module")
def published(shared):
    return json.loads((shared / "golden/paligemma_transfers.json").read_text())["transfers"]


def test_all_settings_are_the_published_ones(published):
    found = 0
    for task, entry in published.items():
        if task in ("forkme", "vertexai_l4"):
            continue
        sweep = entry["sweeps"][entry["active_sweep"]] if entry["active_sweep"] else [{"effective": entry["default"]}]
        for setting in sweep:
            wanted = setting["effective"]
            same(load(FILE, f"task={task},res={wanted['res']}"), wanted, entry["default"])
            found += 1
    assert found == 63 + 1  # pope trains nothing
    same(load(FILE, "l4"), published["vertexai_l4"]["default"], published["vertexai_l4"]["default"])


def same(cfg, wanted, default):
    """Compares a config with the effective values of one setting, and with the texts of its task."""
    for unit in ("total_epochs", "total_examples", "total_steps"):
        assert cfg.get(unit) == wanted[unit]
    assert (cfg.batch_size, cfg.optim.lr) == (wanted["batch_size"], wanted["lr"])
    assert cfg.optim.weight_decay * cfg.optim.lr == pytest.approx(wanted["wd"] or 0.0)
    assert cfg.loss.label_smoothing == pytest.approx(wanted["label_smoothing"] or 0.0, rel=1e-5)
    assert cfg.model.language.branch_dropout == wanted["llm_dropout"]
    assert cfg.model.vision.image_size == wanted["res"]
    assert cfg.freeze == ("freeze_vision" if wanted["frozen"] else "none")
    assert cfg.model.variant == wanted["model_init"]
    (data,) = cfg.data.values()
    ops = {name: (args, options) for name, args, options in registry.parse(data.pp)}
    assert ops["prefix_lm"][0] == (wanted["text_len"] + 1,)
    if "segment" in ops:
        assert ops["segment"][1] == dict(prompt="{name}", named=False)
        assert default["prefix_template"] is None
    (template,), options = ops.get("affix", ((None,), dict(lower=False)))
    if default["prefix_template"]:
        there = default["prefix_template"].strip('"').replace("\\n", "\n")
        for old, new in OTHER_NAMES.items():
            there = there.replace(f"{{{old}}}", f"{{{new}}}")
        assert template == there
    assert ops["stretch"][1]["antialias"] == ("antialias=True" in default["pp_train"])
    assert options["lower"] == ("lower(key=" in default["pp_train"])
    if default["schedule"]:
        schedules = default["schedule"] if isinstance(default["schedule"], list) else [["", default["schedule"]]]
        assert {s["warmup_percent"] * 100 for _, s in schedules if s} == {cfg.optim.warmup_percent}
        assert cfg.optim.schedule == "cosine"
        assert cfg.optim.clip_norm == default["grad_clip_norm"]
    assert cfg.optim.name == {"scale_by_adam": "adamw", "big_vision.sgd": "sgd"}.get(default["optax_name"], "adamw")


def test_the_decay_is_multiplied_by_the_schedule_and_only_kernels_of_the_image_encoder_have_it():
    cfg = load(FILE, "task=cococap,res=448")
    names = ["vision/blocks/mlp/up/kernel", "vision/patch_embedding", "projector/kernel"]
    others = ["vision/blocks/mlp/up/bias", "vision/position_embedding", "vision/norm/scale", "vision/patch_bias"]
    others += ["projector/bias", "language/blocks/query/kernel", "language/word_embedding", "language/norm/scale"]
    params = dict.fromkeys([*names, *others], jnp.full(3, 2.0))
    options = {key: value for key, value in config.plain(cfg.optim).items() if key != "warmup_percent"}
    made = optim.make(
        params, 100, **options, warmup_steps=config.steps(cfg.optim, "warmup", batch_size=1, total_steps=100)
    )
    state, zeros = made.tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for step in range(8):
        updates, state = made.tx.update(zeros, state, params)
        share = step / 5 if step < 5 else 0.5 * (1 + math.cos(math.pi * (step - 5) / 95))
        for name in params:
            wanted = -1e-6 * share * 2.0 if name in names else 0.0
            assert float(updates[name][0]) == pytest.approx(wanted, rel=1e-5), (step, name)


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("task=cocap", "Unknown task 'cocap'. Did you mean 'cococap'"),
        ("res=225", "res=225: patches of 14 pixels do not divide it"),
        ("task=refcoco_seg,experts=depth,labels=maps", "labels=maps: lists of objects have no label maps"),
        ("size=2b", "Unknown size '2b'. Did you mean '28b'"),
        ("taks=cococap", "Unknown config argument 'taks'"),
    ],
)
def test_wrong_arguments_are_one_clear_line(arg, message):
    with pytest.raises(UserError) as error:
        load(FILE, arg)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_and_resolutions_name_the_files_to_start_from():
    cfg = load(FILE, "task=docvqa,res=896,size=10b")
    assert (cfg.model.variant, cfg.init) == ("10b_pt_896", "models/10b_pt_896")
    assert cfg.model.language.logit_cap == 0.0
    between = load(FILE, "task=docvqa,res=672")
    assert (between.model.variant, between.model.vision.image_size) == ("pt_448", 672)


@pytest.mark.parametrize("data", ["gs://bucket/mine", "nowhere"])
def test_lists_that_are_not_on_a_disk_are_json_lines(data):
    """They are read where they are, or named as missing."""
    section = load(FILE, f"task=cococap,data={data}").data.cococap
    assert (section.path, "task" in section) == (f"{data}/cococap_train.jsonl", False)


@pytest.mark.parametrize("task", ["cococap", "ai2d", "science_qa"])
def test_texts_are_what_the_task_says(task):
    cfg = load(FILE, f"task={task},smoke")
    words = tokenizer.load(cfg.tokenizer)
    batches = input.train_batches(assembly.load_mixture(cfg.data, words), batch_size=8, seed=0)
    batch = next(batches)
    batches.close()
    for row in range(8):
        text, real, prefixed = (batch[key][row] for key in ("text", "mask_input", "mask_ar"))
        ids = text[real & (prefixed == 0)], text[batch["mask_loss"][row] > 0]
        prefix, suffix = (" ".join(words.decode(part.tolist()).split()) for part in ids)
        if task == "cococap":
            assert prefix == "caption en"
        if task == "ai2d":
            assert suffix in prefix.partition(" choose from: ")[2]
        if task == "science_qa":
            assert "Options: (A) " in prefix
            assert suffix in ("The answer is A.", "The answer is B.", "The answer is C.")


def test_the_t4_recipe_keeps_what_it_does_not_train_in_half_the_bytes():
    cfg = load(FILE, "t4,smoke")
    mesh = sharding.make_mesh({"data": -1})
    made = make_step(cfg, tokenizer.load(cfg.tokenizer), mesh, dict(batch_size=8, total_steps=2))
    attention = {f"language/blocks/{part}/kernel" for part in ("query", "key", "value", "out")}
    assert made.trainable.keys() == attention
    for name, leaf in tree.flatten(made.state["params"]).items():
        assert leaf.dtype == ("float32" if name in attention else "float16"), name
    assert all(leaf.size == 1 for leaf in jax.tree.leaves(made.state["opt"]))  # nothing but the step is remembered


@pytest.mark.parametrize("experts", ["none", "depth"])
def test_adapters_alone_are_trained_beside_kernels_in_four_bits(experts):
    cfg = load(FILE, f"qlora,smoke,experts={experts}")
    mesh = sharding.make_mesh({"data": -1})
    made = make_step(cfg, tokenizer.load(cfg.tokenizer), mesh, dict(batch_size=8, total_steps=2))
    assert any("/lora/" in name for name in made.trainable)
    assert any("labels/" in name for name in made.trainable) == (experts != "none")
    for name, leaf in tree.flatten(made.state["params"]).items():
        trained = "/lora/" in name or name.startswith("labels/")
        assert (name in made.trainable) == trained
        packed = name.endswith(("codes", "scales", "bases"))
        assert leaf.dtype == ("float32" if trained else "uint8" if packed else "bfloat16"), name


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_data_and_is_evaluated(task):
    cfg = load(FILE, f"task={task},smoke")
    words = tokenizer.load(cfg.tokenizer)
    (part,) = assembly.load_mixture(cfg.data, words)
    row = part["pp"](part["source"][0], np.random.default_rng(0))
    videos = ("activitynet_cap", "activitynet_qa", "msrvtt_cap", "msrvtt_qa", "vatex_cap")
    frames = {"nlvr2": (2,), "msvd_qa": (8,), **dict.fromkeys(videos, (16,))}.get(task, ())
    assert row["image"].shape == (*frames, 56, 56, 3)
    assert row["mask_loss"].sum() > 0
    evals = assembly.make_evaluators(cfg.evals, assembly.make_model(cfg, words), words, None, quiet=True)
    assert len(evals) == 2


def test_experts_are_trained_alone_and_their_labels_read(tmp_path):
    for folder in ("labels/depth", "photos"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/a.jpg")
    Image.new("L", (8, 8), 9).save(tmp_path / "labels/depth/a.png")
    for split in ("train", "val"):
        (tmp_path / f"photos/cococap_{split}.jsonl").write_text('{"image": "a.jpg", "suffix": "x"}')
    folders = f"data={tmp_path}/photos,labels={tmp_path}/labels"
    cfg = load(FILE, f"task=cococap,experts=depth+edge,freeze=experts_only,{folders}", "tokenizer=scenes")
    assert config.plain(cfg.init_fresh) == ("(params|batch_stats|tables)/labels/.*",)
    words = tokenizer.load(cfg.tokenizer)
    (part,) = assembly.load_mixture(cfg.data, words)
    row = part["pp"](part["source"][0], np.random.default_rng(0))
    assert row["labels/depth"].shape == (64, 64, 1)
    assert (row["labels/depth"] == 9).all()
    names = tree.flatten(jax.eval_shape(assembly.make_model(cfg, words).init_variables, jax.random.key(0))["params"])
    trained, _ = optim.split(names, models.frozen("paligemma", cfg.freeze))
    assert trained
    assert all(name.startswith("labels/") for name in trained)
    assert row["image"].shape == (224, 224, 3)


@pytest.mark.parametrize("experts", ["all", "none"])
def test_the_small_one_reads_the_texts_of_scenes(experts):
    cfg = load("configs/paligemma.py", f"scenes,smoke,experts={experts}")
    words = tokenizer.load(cfg.tokenizer)
    batches = input.train_batches(assembly.load_mixture(cfg.data, words), batch_size=4, seed=0)
    batch = inputs(next(batches))
    batches.close()
    assert ("labels/depth" in batch) == (experts == "all")
    model = assembly.make_model(cfg, words)
    variables = jax.eval_shape(model.init_variables, jax.random.key(0))
    logits = jax.eval_shape(model.apply, variables, batch)
    assert logits.shape == (*batch["text"].shape, 640)


def test_the_small_one_moves_to_negatives_by_a_fiftieth_of_its_parameters():
    cfg = load("configs/paligemma.py", "negative,experts=none,rank=1")
    for part in (*cfg.data.values(), *cfg.tasks.values(), *cfg.evals.values()):
        assert part.pp.count("|decode|negative()|") == 1
    model = assembly.make_model(cfg, tokenizer.load(cfg.tokenizer))
    params = jax.eval_shape(model.init_variables, jax.random.key(0))["params"]
    trained, fixed = optim.split(params, models.frozen("paligemma", config.plain(cfg.freeze)))
    few, rest = (sum(math.prod(x.shape) for x in part.values()) for part in (trained, fixed))
    assert 0.015 < few / rest < 0.02
    assert {"vision/patch_bias", "language/norm/scale"} < trained.keys()
    assert not [name for name in trained if name.endswith(("kernel", "embedding"))]


@pytest.mark.slow
def test_a_task_runs_whole(tmp_path):
    configs_test.check(FILE, tmp_path, "smoke,task=tallyqa")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_whole(task, tmp_path):
    configs_test.check(FILE, tmp_path, f"smoke,task={task}")
