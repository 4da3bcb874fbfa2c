import sys

import numpy as np
import pytest

from prismer_jax.errors import UserError
from tools.bench import paligemma, worker
from tools.bench.experts_test import fake


def lines(monkeypatch, capsys, ours, theirs, *rows):
    monkeypatch.setattr(worker, "our_command", lambda *_: ours)
    monkeypatch.setattr(worker, "their_command", lambda *_: theirs)
    paligemma.measure("python", seconds=0, rows=rows)
    return [line.split()[-5:] for line in capsys.readouterr().out.splitlines()]


def test_the_fastest_round_of_each_counts_but_not_the_first(monkeypatch, capsys):
    ours, theirs = fake([0.1, 4, 2, 3], 2_000_000_000), fake([0.1, 9, 8, 16], 4_000_000_000)
    _, speed, memory = lines(monkeypatch, capsys, ours, theirs, "decode")
    assert speed == ["64.00", "16.00", "4.00", ">", "1.3"]
    assert memory == ["2.00", "4.00", "0.50", "<", "1.0"]


def test_a_worker_that_ends_is_one_line(monkeypatch, capsys):
    with pytest.raises(UserError, match="ended before its first round"):
        lines(monkeypatch, capsys, [sys.executable, "-c", "raise SystemExit('no torch')"], fake([1, 1, 1, 1]), "decode")


def test_both_sides_have_the_sizes_of_paligemma():
    """Those of transformers 5.23.0's conversion of pt_224 (convert_paligemma_weights_to_hf.py), but for the layers."""
    told = paligemma.settings()
    assert told["vision"] == dict(
        hidden_size=1152,
        intermediate_size=4304,
        num_attention_heads=16,
        num_hidden_layers=27,
        image_size=224,
        patch_size=14,
        projection_dim=2048,
    )
    assert told["language"] == dict(
        hidden_size=2048,
        intermediate_size=16384,
        num_attention_heads=8,
        num_hidden_layers=4,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=257152,
    )


def test_prompts_see_all_of_themselves():
    batch = paligemma.photos_and(np.ones((2, 5), np.int32), np.ones((2, 5), bool), 28)
    assert batch["image"].shape == (2, 28, 28, 3)
    assert not batch["mask_ar"].any()
