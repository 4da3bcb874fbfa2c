import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from prismer_jax.errors import UserError
from tools.bench import nanovlm
from tools.bench.experts_test import fake
from tools.bench.worker import one_core


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench")
    nanovlm.write(path)
    return path


def lines(monkeypatch, capsys, ours, theirs, *rows):
    monkeypatch.setattr(nanovlm, "_source", lambda *_: pathlib.Path("source"))
    monkeypatch.setattr(nanovlm, "our_command", lambda *_: ours)
    monkeypatch.setattr(nanovlm, "their_command", lambda *_: theirs)
    nanovlm.measure(pathlib.Path("clone"), "python", seconds=0, rows=rows)
    return [line.split()[-5:] for line in capsys.readouterr().out.splitlines()]


def test_the_fastest_round_of_each_counts_but_not_the_first(monkeypatch, capsys):
    ours, theirs = fake([0.1, 4, 2, 3], 2_000_000_000), fake([0.1, 9, 8, 16], 4_000_000_000)
    _, speed, memory = lines(monkeypatch, capsys, ours, theirs, "training")
    assert speed == ["4.00", "1.00", "4.00", ">", "1.1"]
    assert memory == ["2.00", "4.00", "0.50", "<", "1.0"]


def test_a_worker_that_ends_is_one_line(monkeypatch, capsys):
    with pytest.raises(UserError, match="ended before its first round"):
        lines(
            monkeypatch, capsys, fake([1, 1, 1, 1]), [sys.executable, "-c", "raise SystemExit('no torch')"], "training"
        )


def test_a_checkout_without_the_tags_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no clone of huggingface/nanoVLM with its tags; git archive 6ba9082 fails"):
        nanovlm._source(tmp_path, tmp_path, head=False)


def test_both_sides_read_the_sizes_of_222m(folder):
    sizes = json.loads((folder / "settings.json").read_text())["sizes"]
    # models/config.py of huggingface/nanoVLM at v0.1
    expected = dict(vit_hidden_dim=768, vit_inter_dim=3072, vit_patch_size=16, vit_img_size=224, vit_n_heads=12)
    expected |= dict(vit_n_blocks=12, lm_hidden_dim=576, lm_inter_dim=1536, lm_n_heads=9, lm_n_kv_heads=3)
    expected |= dict(lm_n_blocks=30, lm_vocab_size=49152, mp_pixel_shuffle_factor=2, mp_image_token_length=49)
    assert sizes == expected
    photos = sorted(folder.glob("*.jpg"))
    assert {Image.open(path).size for path in photos} == {(640, 480)}
    assert len(photos) == nanovlm.ROWS["images_v01"].count == nanovlm.ROWS["images_head"].count


def test_our_rows_are_full(folder):
    assert 0.9 < nanovlm.packing(folder) <= 1
    for tokens, tiles, photos in nanovlm.samples():
        assert 0 < tokens < nanovlm.ROW
        assert tiles <= 2 * 17
        assert photos <= nanovlm.PHOTOS


def test_an_answer_ends_with_its_last_new_token():
    assert nanovlm._ending(np.array([5, 7, 5, 9, 7])) == 9


def test_our_worker_prepares_photos_on_one_core(folder):
    command = one_core(nanovlm.our_command("images_v01", folder))
    ran = subprocess.run(command, input="\n\n", capture_output=True, text=True, check=True)
    ready, *seconds, memory = ran.stdout.split()
    assert ready == "ready"
    assert len(seconds) == 2
    assert all(0 < float(second) < 60 for second in seconds)
    assert int(memory) > 10**7
