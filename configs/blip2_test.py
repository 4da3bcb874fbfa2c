"""The recipes of BLIP-2: the released rates, what trains, what counts in the loss."""

import jax
import pytest

from prismer_jax import config, models, optim
from prismer_jax.models import frozen
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
