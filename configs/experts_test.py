"""The studies' arms differ from the quickstart in what they say, and in nothing else that is learnt."""

import json

import pytest

from prismer_jax import config
from prismer_jax.errors import UserError
from prismer_jax.testing import ROOT


def load(name, arg=""):
    return json.loads(config.to_json(config.load(f"{ROOT / 'configs' / name}.py:{arg}")))


def chains(cfg):
    """The strings of ops of training, use and evaluation."""
    return [part["pp"] for section in ("data", "tasks", "evals") for part in cfg[section].values()]


@pytest.mark.parametrize("experts", ["all", "none", "depth+edge"])
def test_an_arm_is_the_quickstart_with_a_budget(experts):
    arm, whole = load("experts", f"experts={experts},steps=7"), load("quickstart", f"experts={experts},places=False")
    assert (arm.pop("batch_size"), arm.pop("total_steps")) == (16, 7)
    del whole["batch_size"], whole["total_steps"]
    for part in arm["evals"].values():
        assert part.pop("blank") is False
    assert arm == whole


def test_a_model_with_places_is_asked_with_other_labels_too():
    """Their size is that of its grid."""
    asked, whole = load("experts", "places"), load("quickstart", "places")
    assert asked["model"] == whole["model"] != load("experts")["model"]
    assert [part["pp"] for part in asked["evals"].values()] == [part["pp"] for part in whole["evals"].values()]


def test_noise_stands_behind_every_decode():
    clean, noisy = chains(load("experts")), chains(load("experts", "noise=depth+edge"))
    noise = "|noise_labels('depth+edge', num_classes=9)"
    assert len(noisy) == 6
    for before, after in zip(clean, noisy, strict=True):
        assert after.count(noise) == 1
        assert after.replace(noise, "") == before
        assert "|decode" + noise in after


@pytest.mark.parametrize(
    ("arg", "message"),
    [("experts=deph", "Did you mean 'depth'"), ("experts=depth,noise=edge", "edge is not in experts=depth")],
)
def test_an_arm_that_would_not_be_what_it_is_called_is_refused(arg, message):
    with pytest.raises(UserError, match=message):
        load("experts", arg)
