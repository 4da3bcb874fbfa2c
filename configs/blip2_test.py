"""The recipes of BLIP-2: the released rates, what trains, what counts in the loss."""

import jax
import numpy as np
import pytest

import prismer_jax
from prismer_jax import assembly, checkpoint, config, models, optim, pp, tree
from prismer_jax.errors import UserError
from prismer_jax.models import conversion, frozen
from prismer_jax.testing import ROOT


def load(name, arg=""):
    return config.load(f"{ROOT / 'configs' / name}.py:{arg}", [])


@pytest.mark.parametrize(("name", "warmup", "batch"), [("blip2_stage1", 5000, 100), ("blip2_stage2", 2000, 64)])
def test_rates_climb_and_are_then_set_once_an_epoch(name, warmup, batch):
    """By LAVIS's rule (lavis/common/optims.py): a cosine of the epoch."""
    cfg = load(name)
    section = {key: cfg.optim[key] for key in ("lr", "start_lr", "end_lr", "stairs", "warmup_steps")}
    assert (cfg.batch_size, cfg.total_epochs, section["warmup_steps"]) == (batch, 10, warmup)
    at = optim.make_schedule("cosine", total_steps=100_000, **section)
    assert [float(at(step)) for step in (0, warmup, 9999)] == pytest.approx([1e-6, 1e-4, 1e-4])
    later = [float(at(step)) for step in (10_000, 19_999, 50_000, 99_999)]
    assert later == pytest.approx([9.7798e-5, 9.7798e-5, 5.5e-5, 1.2202e-5], rel=1e-4)


def test_only_the_queries_and_what_is_behind_them_train():
    for name, arg, count in (("blip2_stage1", "", 186_705_470), ("blip2_stage2", "lm=opt2.7b", 107_133_696)):
        cfg = load(name, arg)
        model = models.build(**config.plain(cfg.model))
        shapes = jax.eval_shape(model.init_variables, jax.random.key(0))["params"]
        trained = optim.split(shapes, frozen("blip2", cfg.freeze))[0]
        assert sum(leaf.size for leaf in trained.values()) == count, name
        optim.make(trained, 10, lr=1.0, wd_mults=[tuple(pair) for pair in config.plain(cfg.optim.wd_mults)])


FINE_TUNED = [("caption", "lm=opt2.7b"), ("caption", "lm=flant5xl,lora,bits=nf4"), ("vqa", "lm=flant5xl,task=okvqa")]


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_what_stage_2_does_not_train_is_kept_in_few_bits(bits):
    cfg = load("blip2_stage2", f"lm=opt2.7b,bits={bits}")
    shapes = jax.eval_shape(models.build(**config.plain(cfg.model)).init_variables, jax.random.key(0))["params"]
    trained, fixed = optim.split(shapes, frozen("blip2", cfg.freeze))
    assert sum(leaf.size for leaf in trained.values()) == 107_133_696
    packed = [name for name in fixed if name.endswith("/codes")]
    assert len(packed) == 12  # query, key, value, out, up and down of both towers
    assert not [name for name in fixed if name.endswith("/kernel")]


def test_layers_of_the_vision_transformer_learn_at_the_rates_of_lavis_formula():
    """decay^(n + 1 - id), where the embeddings' id is 0 and that of block i (from 0) i + 1: get_optimizer_params."""
    cfg = config.load(f"{ROOT}/transfers/blip2_retrieval.py", [])
    assert (cfg.batch_size, cfg.total_epochs, cfg.freeze, cfg.evals.coco_test.k_test) == (14, 5, "none", 128)
    rate = {key: cfg.optim[key] for key in ("lr", "start_lr", "end_lr", "stairs", "warmup_steps")}
    assert rate == dict(lr=1e-5, start_lr=1e-8, end_lr=0.0, stairs=5, warmup_steps=1000)
    shapes = jax.eval_shape(models.build(**config.plain(cfg.model)).init_variables, jax.random.key(0))["params"]
    flat = tree.flatten(shapes)
    patterns, factors = zip(*config.plain(cfg.optim.lr_mults), strict=True)
    for name, at in tree.first_match(patterns, flat, "lr_mults").items():
        ids = range(1, 40) if name.startswith("vision/blocks/") else [0]
        assert np.atleast_1d(factors[at]).tolist() == pytest.approx([0.95 ** (39 + 1 - id) for id in ids]), name
        assert len(ids) == 1 or flat[name].shape[0] == len(ids)
    assert tree.first_match(patterns, flat, "lr_mults").keys() == {name for name in flat if name.startswith("vision/")}
    optim.make(flat, 10, lr=1.0, lr_mults=list(zip(patterns, factors, strict=True)))


@pytest.mark.parametrize(("file", "arg"), FINE_TUNED)
def test_fine_tunings_train_what_they_say_and_ask_as_the_released_evaluations(file, arg):
    cfg = config.load(f"{ROOT}/transfers/blip2_{file}.py:{arg}", [])
    assert (cfg.optim.lr, cfg.optim.stairs, cfg.optim.lr_mults, cfg.total_epochs) == (1e-5, 5, (), 5)
    model = models.build(**config.plain(cfg.model))
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))["params"]
    trained = optim.split(shapes, frozen("blip2", config.plain(cfg.freeze)))[0]
    assert any(name.startswith("vision/") for name in trained) == ("lora" not in arg)
    assert {name.rpartition("/")[0].endswith("/lora") for name in trained if name.startswith("language/")} <= {True}
    assert any("/lora/" in name for name in trained) == ("lora" in arg)
    ((name, evaluator),) = cfg.evals.items()
    length = "lavis_4.26" if "opt" in arg else "start"
    assert (evaluator.num_beams, evaluator.length) == (5, length)
    if file == "caption":
        assert (name, evaluator.max_new, evaluator.min_new) == ("coco_test", 30, 8)
    else:
        assert (name, evaluator.max_new, evaluator.length_penalty) == ("okvqa", 10, -1.0)
        assert evaluator.style == "blip_spacy"


@pytest.mark.parametrize(
    "spec",
    [
        "configs/blip2.py:scenes,stage=1",
        "configs/blip2_stage1.py",
        "configs/blip2_stage1.py:smoke",
        "transfers/blip2_retrieval.py",
        "transfers/blip2_retrieval.py:smoke",
    ],
)
def test_a_stage_1_is_asked_to_compare_as_its_evaluator_does(spec):
    cfg = config.load(str(ROOT / spec), [])
    assert cfg.tasks.keys() == {"caption", "match"}
    for evaluator in cfg.evals.values():
        assert (cfg.tasks.match.pp, cfg.tasks.match.style) == (evaluator.pp, evaluator.style)


@pytest.mark.slow
def test_a_stage_1_that_was_trained_here_matches(tmp_path):
    cfg = load("blip2", "scenes,stage=1,smoke")
    tokenizer = pp.tokenizer.load(cfg.tokenizer)
    variables = assembly.make_model(cfg, tokenizer).init_variables(jax.random.key(0))
    checkpoint.export(tmp_path / "whole", variables, **assembly.description(cfg, tokenizer))
    photo = np.zeros((96, 96, 3), np.uint8)
    captioner = prismer_jax.load(tmp_path / "whole")
    ((row,),) = (captioner.match(photo, ["a red ball"]),)
    assert 0 < row["itm"][0] < 1
    del captioner.tasks["match"]
    with pytest.raises(UserError, match=r'under tasks, .*: "match": {"pp": "decode\|resize\(96\)"'):
        captioner.match(photo, ["a red ball"])


def test_what_is_decayed_is_what_lavis_decays():
    """All but vectors and biases, so the temperature, too, whose shape is []: blip2.py, get_optimizer_params."""
    cfg, model = load("blip2_stage1"), models.build("blip2", variant="tiny_stage1")
    shapes = tree.flatten(jax.eval_shape(model.init_variables, jax.random.key(0))["params"])
    exempt = tree.first_match([pattern for pattern, _ in config.plain(cfg.optim.wd_mults)], shapes, "wd_mults")
    marked = {name: np.full(leaf.shape, name not in exempt, np.float32) for name, leaf in shapes.items()}
    state = conversion.to_torch({"params": tree.unflatten(marked)}, conversion.table_of("blip2", model))
    state = {key: x for key, x in state.items() if not key.endswith("position_ids")}
    decayed = {key for key, x in state.items() if x.any()}
    assert decayed == {key for key, x in state.items() if x.ndim != 1 and not key.endswith(".bias")}
