"""Every config file: its arguments, its models at full size without weights, no key unread, and a whole :smoke run."""

import json
import math
import os
import subprocess
import sys

import jax
import pytest

from prismer_jax import assembly, checkpoint, config, models, train
from prismer_jax.datasets import miniature
from prismer_jax.errors import UserError
from prismer_jax.input import train_batches
from prismer_jax.labels import select
from prismer_jax.pp import tokenizer
from prismer_jax.testing import ROOT

FILES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("configs", "transfers")
    for path in (ROOT / folder).glob("*.py")
    if not path.name.endswith("_test.py") and path.name != "common.py"
)
PAPER = ["configs/pretrain.py", *(f"transfers/{n}.py" for n in ("coco_caption", "imagenet_fewshot", "nocaps", "vqav2"))]
EXPERTS = ("all", "none", "depth+edge", "seg_coco+seg_ade")


def load(file, arg="", *overrides):
    return config.load(f"{ROOT / file}:{arg}", overrides)


@pytest.mark.parametrize("file", PAPER)
def test_sizes_experts_and_resolutions_need_no_data(file, tmp_path):
    for size in ("base", "large", "huge"):
        for experts in EXPERTS:
            cfg = load(file, f"size={size},experts={experts},res=224,data={tmp_path / 'none'}")
            assert (cfg.model.variant, cfg.model.experts, cfg.model.image_size) == (size, experts, 224)
            for part in (*cfg.data.values(), *(part.data for part in cfg.evals.values())):
                assert ("labels" in part) == (experts != "none")


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize(("size", "patch", "least"), [("base", 16, 2.5e8), ("large", 14, 7e8), ("huge", 14, 1.2e9)])
def test_models_of_full_size_can_be_built(size, patch, least, experts):
    for file in ("configs/pretrain.py", "transfers/vqav2.py") if experts == "none" else ("configs/pretrain.py",):
        cfg = load(file, f"size={size},experts={experts}")
        model = models.build(**config.plain(cfg.model))
        params = jax.eval_shape(model.init_variables, jax.random.key(0))["params"]
        assert params["encoder"]["position_embedding"].shape[0] == (cfg.model.image_size // patch) ** 2
        stems = {name for name in params["encoder"] if name.startswith("stem_")}
        assert len(stems) == len({name.partition("_")[0] for name in select(experts)})
        assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) > least


class Stopped(Exception):
    pass


@pytest.fixture
def stop_before_the_first_step(monkeypatch):
    def stop(batches, *_):
        batches.close()
        raise Stopped

    monkeypatch.setattr(train.input, "to_device", stop)


@pytest.mark.parametrize("file", PAPER)
def test_every_key_of_full_size_is_read_before_the_first_step(file, stop_before_the_first_step, tmp_path):
    cfg = load(file, f"data={miniature.folder()},experts=none", "init=None", "tokenizer=scenes", "total_epochs=100000")
    with pytest.raises(Stopped):
        train.train(cfg, tmp_path)


@pytest.mark.parametrize("file", FILES)
def test_every_key_is_read_before_the_first_step(file, stop_before_the_first_step, tmp_path):
    cfg = config.plain(load(file, "smoke"))
    for part in (cfg, *cfg["evals"].values()):
        part["batch_size"] = max(part["batch_size"], jax.device_count() * cfg.get("accumulate", 1))
    with pytest.raises(Stopped):
        train.train(cfg, tmp_path)


def test_a_key_that_nobody_reads_is_an_error(stop_before_the_first_step, tmp_path):
    cfg = config.plain(load("configs/quickstart.py", "smoke"))
    with pytest.raises(UserError, match=r"Config key 'optimm\.lr' is never read"):
        train.train(cfg | {"optimm": {"lr": 1.0}}, tmp_path)


def test_a_misspelt_setting_of_the_loss_is_an_error(stop_before_the_first_step, tmp_path):
    cfg = config.plain(load("configs/quickstart.py", "smoke"))
    cfg["loss"]["lable_smoothing"] = 0.1
    with pytest.raises(UserError, match=r"config\.loss: unknown key 'lable_smoothing'. Did you mean 'label_smoothing'"):
        train.train(cfg, tmp_path)


EVALUATOR = dict(type="loss", pp="decode", data=dict(name="scenes", split="val", size=96, count=64), batch_size=8)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("data", "captions", {"weight": "sized"}, r"data\.captions\.weight='sized': a number above 0, or 'size'"),
        ("data", "captions", {"count": "x"}, r"data\.captions\.count is 'x'; it must be a whole number"),
        ("data", "captions", {"countt": 1}, r"data\.captions: unknown key 'countt'. Did you mean 'count'"),
        ("data", "captions", {"pack": dict(length=9)}, r"data\.captions\.pack: key 'most' is missing"),
        ("data", "captions", {"pp": "resize('x')"}, r"resize .* is 'x'; it must be a whole number or a list of 2"),
        ("evals", "loss", {**EVALUATOR, "bs": 3}, r"config\.evals\.loss: unknown key 'bs'"),
        ("evals", "loss", {**EVALUATOR, "batch_size": "x"}, r"evals\.loss\.batch_size is 'x'; it must be a whole n"),
        ("evals", "loss", {**EVALUATOR, "data": None}, r"config\.evals\.loss\.data is None; it must be a section"),
        ("evals", "loss", {**EVALUATOR, "type": "refcoco"}, r"evals\.loss: key 'codec' is missing"),
        (
            "evals",
            "vqa",
            {"num_beams": "x", "method": "beam"},
            r"config\.evals\.vqa\.num_beams is 'x'; it must be a whole",
        ),
        (
            "tasks",
            "caption",
            {"decode": {"max_new": "x"}},
            r"caption\.decode\.max_new is 'x'; it must be a whole number",
        ),
        ("evals", "loss", {**EVALUATOR, "loss_options": {"chunkk": 2}}, "loss_options .*: unknown key 'chunkk'"),
        ("tasks", "caption", {"decode": {"max_new": 0}}, r"caption\.decode: give one of max_len and max_new, above 0"),
        ("tasks", "caption", {"decode": {"num_beams": 0}}, r"caption\.decode: num_beams=0: must be from 1"),
        ("evals", "caption", {"max_new": 0}, r"config.evals.caption: give one of max_len and max_new, above 0"),
        ("evals", "ranked", {**EVALUATOR, "type": "vqa", "method": "rank", "answers": 3}, "a number and train_data"),
        ("tasks", "caption", {"decod": {}}, r"config\.tasks\.caption: unknown key 'decod'\. Did you mean 'decode'"),
        ("tasks", "caption", {"pp": "decod"}, "Unknown preprocessing op 'decod'"),
        ("tasks", "caption", {"decode": {"method": "beem"}}, r"tasks\.caption\.decode.*Did you mean 'beam'"),
        ("tasks", "caption", {"decode": {"num_beam": 3}}, r"tasks\.caption\.decode.*Did you mean 'num_beams'"),
        ("tasks", "caption", {"sample": {"top": 3}}, r"tasks\.caption\.sample.*Did you mean 'top_"),
    ],
)
def test_a_section_is_checked_before_the_first_step(section, key, value, message, stop_before_the_first_step, tmp_path):
    cfg = config.plain(load("configs/quickstart.py", "smoke,z"))
    cfg[section][key] = {**cfg[section].get(key, {}), **value}
    with pytest.raises(UserError, match=message) as error:
        train.train(cfg, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tasks.caption", None, r"config\.tasks\.caption is None; it must be a section"),
        ("evals.vqa", 3, r"config\.evals\.vqa is 3; it must be a section"),
        ("data", {}, r"config\.data is empty"),
        ("data.captions", None, r"config\.data\.captions is None; it must be a section"),
        ("optim.lr", "x", r"config\.optim\.lr is 'x'; it must be a number"),
        ("optim.schedule", 1, r"config\.optim\.schedule is 1; it must be a text"),
        ("optim.start_lr", "x", r"start_lr is 'x'; it must be a number"),
        ("optim.ns_steps", "x", r"ns_steps is 'x'; it must be a whole number"),
        ("optim.lr_mults", [["a", "x"]], r"lr_mults"),
        ("profile.first", "a", r"config\.profile\.first is 'a'; it must be a whole number"),
        ("report.samples", "x", r"config\.report\.samples is 'x'; it must be a whole number"),
        ("checkpoint.keep", "x", r"config\.checkpoint\.keep is 'x'; it must be a whole number"),
        ("checkpoint", "x", r"config\.checkpoint is 'x'; it must be a section"),
        ("batch_size", "x", r"config\.batch_size is 'x'; it must be a whole number"),
        ("accumulate", "x", r"config\.accumulate is 'x'; it must be a whole number"),
        ("num_workers", "x", r"config\.num_workers is 'x'; it must be a whole number"),
        ("max_bad_fraction", "x", r"config\.max_bad_fraction is 'x'; it must be a number"),
        ("seed", "x", r"seed=x: must be a whole number"),
        ("tokenizer", 3, r"config\.tokenizer is 3; it must be a text"),
        ("freeze", 3, r"config\.freeze is 3; it must be a text or a list"),
        ("init", 3, r"config\.init is 3; it must be a text"),
        ("model", "prismer", r"config\.model is 'prismer'; it must be a section"),
        ("model.variant", 3, r"Unknown variant 3"),
        ("model.width", "x", r"config\.model\.width is 'x'; it must be a whole number"),
        ("model.image_size", "x", r"config\.model\.image_size is 'x'; it must be a whole number"),
        ("model.decoder", "x", r"config\.model\.decoder is 'x'; it must be a section"),
        ("model.classes", "x", r"config\.model\.classes is 'x'; it must be a section"),
        ("model.experts", 3, r"Unknown expert 3\. Valid names"),
        ("mesh", "x", r"config\.mesh is 'x'; it must be a section"),
        ("wandb", "x", r"config\.wandb is 'x'; it must be a section"),
        ("loss", None, r"config\.loss is None; it must be a section"),
        ("sharding", 3, r"config\.sharding is 3; it must be a text or a list"),
    ],
)
def test_a_value_of_another_type_is_named_before_the_first_step(
    key, value, message, stop_before_the_first_step, tmp_path
):
    cfg = config.plain(load("configs/quickstart.py", "smoke,z"))
    *parents, last = key.split(".")
    section = cfg
    for parent in parents:
        section = section.setdefault(parent, {})
    section[last] = value
    with pytest.raises(UserError, match=message) as error:
        train.train(cfg, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("files", ["no_such_codec.npz", ["no_such_codec.npz"]])
def test_a_file_that_checkpoints_carry_must_be_there(files, stop_before_the_first_step, tmp_path):
    cfg = config.plain(load("configs/quickstart.py", "smoke,z")) | {"files": files}
    with pytest.raises(UserError, match=r"config\.files: .*no_such_codec\.npz does not exist"):
        train.train(cfg, tmp_path)


def test_none_of_an_optional_key_is_as_if_it_were_left_out(stop_before_the_first_step, tmp_path):
    cfg = config.plain(load("configs/quickstart.py", "smoke,z"))
    optional = ("accumulate", "num_workers", "sharding", "freeze", "report", "profile", "max_bad_fraction", "prng")
    with pytest.raises(Stopped):
        train.train(cfg | dict.fromkeys(optional), tmp_path)


def test_hyperparameters_are_the_published_ones():
    """NVlabs/prismer at 4f27ab3, configs/*.yaml."""
    base, large = load("configs/pretrain.py"), load("configs/pretrain.py", "size=large")
    assert (base.batch_size, base.total_epochs, base.model.image_size) == (1024, 20, 224)
    assert (base.optim.lr, large.optim.lr, base.optim.weight_decay) == (3e-4, 1e-4, 0.05)
    assert (base.optim.start_lr, base.optim.end_lr, base.optim.warmup_steps) == (1e-6, 1e-6, 2000)
    assert (base.freeze, list(base.data)) == ("freeze_lang_vision", ["cc12m", "cc3m_sgu", "coco", "vg"])
    for file, resolution, batch, epochs in [
        ("coco_caption", 480, 256, 3),
        ("nocaps", 480, 256, 3),
        ("vqav2", 480, 512, 10),
        ("imagenet_fewshot", 384, 64, 20),
    ]:
        cfg = load(f"transfers/{file}.py")
        assert (cfg.model.image_size, cfg.batch_size, cfg.total_epochs) == (resolution, batch, epochs)
        assert (cfg.optim.lr, cfg.optim.weight_decay, cfg.optim.end_lr) == (5e-5, 0.05, 0.0)
        assert (cfg.freeze, cfg.loss.label_smoothing, cfg.loss.normalize) == ("freeze_vision", 0.1, "none")
    vqa, shots = load("transfers/vqav2.py").evals.vqa, load("transfers/imagenet_fewshot.py", "shots=4")
    assert (vqa.method, vqa.k, vqa.answers) == ("rank", 16, "datasets/answer_list.json")
    assert (shots.evals.imagenet.k, shots.data.imagenet.shots) == (32, 4)
    captions = load("transfers/coco_caption.py").evals.test
    assert (captions.num_beams, captions.max_new + 4, captions.min_new + 4) == (3, 20, 8)


def test_prefixes_have_as_many_tokens_as_their_prompts_have_columns(shared):
    encode = tokenizer.load(f"roberta:{shared / 'data/roberta'}").encode
    for text, file in [("A picture of", "coco_caption"), ("A photo of a", "imagenet_fewshot")]:
        pp = load(f"transfers/{file}.py", "experts=none").tasks.caption.pp
        assert f"caption_prompt('{text}')|tokenize({1 + len(encode(text))})" in pp


def test_sets_that_are_absent_are_named_with_the_remedy(tmp_path):
    (tmp_path / "vg_caption.json").write_text("[]")
    with pytest.raises(UserError, match=r"has no cc12m \(.*/cc12m\), cc3m_sgu .*, coco .*: sets=vg\."):
        load("configs/pretrain.py", f"experts=none,data={tmp_path}")
    assert list(load("configs/pretrain.py", f"experts=none,data={tmp_path},sets=vg").data) == ["vg"]
    with pytest.raises(UserError, match=r"no labels of depth, normal.*make_labels.*experts=none"):
        load("configs/pretrain.py", f"data={tmp_path},sets=vg")
    with pytest.raises(UserError, match="Unknown data set for pretraining 'vgg'"):
        load("configs/pretrain.py", "sets=vgg")


def test_the_sets_of_pretraining_are_mixed_by_their_captions():
    cfg = load("configs/pretrain.py", "smoke,experts=depth")
    mixture = assembly.load_mixture(cfg.data, tokenizer.load("scenes"))
    assert [(part["weight"], part["size"]) for part in mixture] == [(n, n) for n in (4, 4, 60, 12)]
    batches = train_batches(mixture, batch_size=80, seed=0)  # as many as there are captions
    batch = next(batches)
    batches.close()
    assert batch["labels/depth"].shape == (80, 64, 64, 1)
    texts = {row.tobytes() for row in batch["text"]}
    assert len(texts) > 30  # captions are drawn: not the same one of a photo again and again


def run(workdir, file, arg="smoke", *overrides):
    """Trains as a user does, on one device; returns the config and the metrics."""
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    spec = f"{file}:{arg}"
    flags = [f"--config.{override}" for override in overrides]
    command = [sys.executable, "-m", "prismer_jax.train", "--config", spec, "--workdir", str(workdir), *flags]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load(file, arg, *overrides), json.loads((workdir / "metrics.json").read_text())


def check(file, workdir, arg="smoke"):
    """Runs all of it and looks at what it leaves behind."""
    cfg, results = run(workdir, file, arg)
    assert all(math.isfinite(value) for value in results.values())
    assert [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    assert (workdir / "export" / "config.json").exists()
    assert (workdir / "report.html").stat().st_size > 0
    for name, part in cfg.evals.items():
        if part.type in ("fidelity", "perplexity"):
            continue  # these predict nothing that a file is written of
        assert len(json.loads((workdir / "predictions" / f"{name}.json").read_text())) > 0
        scored = any(key.startswith(f"{name}/") for key in results)
        assert scored != part.data.get("path", "").endswith(("vqav2_test.json", "nocaps_test_image_info.json"))


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_config_runs_whole(file, tmp_path):
    check(file, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "arg"),
    [
        ("transfers/vqav2.py", "split=val"),
        ("transfers/vqav2.py", "inference=generate,experts=none"),
        ("transfers/nocaps.py", "split=test,experts=depth+edge"),
        ("transfers/forkme.py", "task=questions"),
        ("transfers/forkme.py", "model=nanovlm"),
        ("transfers/forkme.py", "model=paligemma"),
        ("transfers/forkme.py", "model=blip2"),
        ("configs/blip2_stage2.py", "bits=int8"),
        ("transfers/blip2_caption.py", "lm=flant5xl,lora,bits=nf4"),
        ("transfers/blip2_vqa.py", "task=okvqa,lemmas=none"),
        ("configs/paligemma.py", "experts=none"),
        ("configs/paligemma.py", "objects"),
        ("configs/paligemma.py", "negative,rank=1"),
        ("configs/pretrain.py", "sets=coco,experts=none"),
    ],
)
def test_variants_run_whole(file, arg, tmp_path):
    check(file, tmp_path, f"smoke,{arg}")


@pytest.mark.slow
def test_a_run_starts_from_one_of_another_resolution(tmp_path):
    """As fine-tuning at 480 pixels does from pretraining at 224."""
    run(tmp_path / "pretrained", "configs/pretrain.py", "smoke,sets=coco,experts=none")
    cfg = load("transfers/coco_caption.py", "smoke,experts=none")
    larger = [f"{key}={value}".replace("(64", "(96") for key, value in leaves(cfg) if key.endswith("pp")]
    init = f"init={tmp_path / 'pretrained'}"
    run(tmp_path / "tuned", "transfers/coco_caption.py", "smoke,experts=none", init, "model.image_size=96", *larger)
    shapes = checkpoint.saved_shapes(tmp_path / "tuned/export/weights")
    assert shapes["params/encoder/position_embedding"].shape == (36, 64)


def leaves(section, prefix=""):
    for key, value in section.items():
        yield from (
            leaves(value, f"{prefix}{key}.") if isinstance(value, config.Section) else [(f"{prefix}{key}", value)]
        )
