"""How a checkpoint's own settings of decoding and those that are asked for become one."""

import types

import pytest

from prismer_jax.captioner import requests
from prismer_jax.datasets.photos import Examples
from prismer_jax.errors import UserError


def settings_of(task, number=1, **settings):
    """Returns the settings with which a checkpoint with this task captions."""
    tokenizer = types.SimpleNamespace(eos=2, pad=1)
    loaded = types.SimpleNamespace(task={"caption": {"pp": "", **task}}.get, tokenizer=tokenizer, folder="model")
    source = Examples([{"id": "a", "image": None}])
    return requests.to_write(loaded, "caption", source, "captions", number, 0, settings, [{}]).settings


@pytest.mark.parametrize(("number", "returned"), [(1, 1), (3, 0)])
def test_a_checkpoint_that_draws_does_so_with_its_own_settings(number, returned):
    own = dict(method="sample", num_samples=8, num_return=1, top_p=0.5, temperature=0.3, max_len=9)
    found = settings_of({"decode": own}, number)
    assert [found[name] for name in ("method", "top_p", "temperature", "max_len")] == ["sample", 0.5, 0.3, 9]
    assert (found["num_samples"], found["num_return"]) == (8 if number == 1 else number, returned)
    assert settings_of({"decode": own}, number, top_p=0.9)["top_p"] == 0.9
    further = settings_of({"decode": own, "sample": dict(top_k=4, max_new=5)}, number)
    assert [further[name] for name in ("top_p", "top_k", "max_new")] == [0.5, 4, 5]
    assert "max_len" not in further
    assert not settings_of({"decode": own}, method="greedy").keys() & {"top_p", "temperature", "num_samples"}


def test_a_number_of_beams_leaves_the_checkpoint_its_own_rules_of_beams():
    own = dict(method="big_vision_beam", num_beams=2, max_new=9)
    found = settings_of({"decode": own}, num_beams=5)
    assert (found["method"], found["num_beams"]) == ("big_vision_beam", 5)
    for method in ("beam", "greedy", "sample"):
        assert settings_of({"decode": dict(method=method, max_new=9)}, num_beams=5)["method"] == "beam"


@pytest.mark.parametrize("task", [{}, {"decode": None, "sample": None}])
def test_a_task_without_settings_of_decoding_ranks_and_says_what_it_lacks_to_write(task):
    assert settings_of(task, max_new=4)["method"] == "beam"
    assert settings_of(task, number=2, max_len=4)["num_samples"] == 2
    tokenizer = types.SimpleNamespace(eos=2, pad=1, encode_after=lambda text: [3])
    loaded = types.SimpleNamespace(tokenizer=tokenizer)
    assert requests.to_rank(loaded, [], {"pp": "", **task}, ["a"], "class", {"k": 1}, [{}]).settings["padding"] == "own"
    with pytest.raises(UserError, match=r'^model: .*config\.json .* tasks\.caption, such as "decode": .*30}\.$'):
        settings_of(task)
