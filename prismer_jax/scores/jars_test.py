import shutil

import pytest

from prismer_jax.errors import UserError
from prismer_jax.evaluators import evaluators_test as toy
from prismer_jax.scores import jars
from prismer_jax.scores.caption import caption_metrics


@pytest.mark.parametrize(
    ("metrics", "message"),
    [(("metor",), "Did you mean 'meteor'"), (("meteor",), "METEOR needs Java"), (("spice",), "SPICE")],
)
def test_a_metric_that_cannot_be_computed_is_told_before_captions_are_made(monkeypatch, metrics, message):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=message):
        toy.made("caption", toy.captioned(), metrics=metrics)


def test_without_pycocoevalcap_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "java")
    monkeypatch.setattr(jars.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="METEOR needs the extra `eval`: pip install pycocoevalcap"):
        jars.meteor.check()


def test_a_program_that_fails_is_one_line(monkeypatch):
    def fails():
        raise OSError("no route to host")

    monkeypatch.setattr(jars.Jar, "check", lambda self: None)
    monkeypatch.setattr(jars.spice, "_make", fails)
    with pytest.raises(UserError, match=r"SPICE: the official program failed.*no route.*is there a network"):
        caption_metrics({1: "a"}, {1: ["a"]}, ["spice"])
