import json

import jax
import numpy as np
import pytest
from PIL import Image

from prismer_jax import datasets, pp
from prismer_jax.errors import UserError
from prismer_jax.objects import codec as codecs
from prismer_jax.training import mask_codec
from tools import train_mask_codec


def discs(number, seed=0):
    """Returns ellipses and their halves, as objects are inside their boxes."""
    rng, (y, x) = np.random.default_rng(seed), (np.mgrid[:64, :64] - 31.5) / 32
    inside = x**2 + y**2 < 1
    cuts = rng.uniform(-0.6, 0.6, (number, 2))
    return np.stack([inside & (x > a) & (y > b) for a, b in cuts]).astype(np.float32)


def test_layers_are_the_same_in_numpy_and_xla():
    rng = np.random.default_rng(0)
    weights = {key: rng.standard_normal(shape).astype(np.float32) / 4 for key, shape in codecs.shapes(8, 4).items()}
    masks = discs(2)
    for function, x in ((codecs.features, masks), (codecs.painted, rng.standard_normal((2, 4, 4, 4), np.float32))):
        xla = jax.jit(function, static_argnums=2)(weights, x, mask_codec._convolution)
        np.testing.assert_allclose(function(weights, x), xla, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_codec_learns_shapes():
    codec = mask_codec.train(discs(500), steps=400, quiet=True)
    test = discs(40, seed=1)
    whole = float(np.mean([(mask >= 0.5).mean() for mask in test]))  # of a codec that says: everything
    assert mask_codec.overlap(codec, test) > max(0.8, whole + 0.2)
    assert len(np.unique(codec.encode(test))) > 4


@pytest.mark.slow
def test_the_command_trains_on_a_list(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(75):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / f"{number}.png")
        polygons = rng.uniform(2, 30, (2, 8)).tolist()
        objects = [{"name": "a", "segmentation": [polygon]} for polygon in polygons]
        rows.append({"image": f"{number}.png", "height": 32, "width": 32, "objects": objects})
    (tmp_path / "list.json").write_text(json.dumps(rows))
    flags = ["--path", str(tmp_path / "list.json"), "--steps", "3", "--width", "8", "--dim", "4"]
    train_mask_codec.main(["--output", str(tmp_path / "codec.npz"), *flags])
    assert "of 15 masks" in capsys.readouterr().out
    assert codecs.load(str(tmp_path / "codec.npz")).decode(np.zeros((1, 16), int)).shape == (1, 64, 64)
    with pytest.raises(UserError, match="too few to train a codec of 128 codes"):
        train_mask_codec.main(["--output", str(tmp_path / "codec.npz"), *flags, "--masks", "20"])
    with pytest.raises(UserError, match="multiple of 8"):
        train_mask_codec.main(["--output", str(tmp_path / "codec.npz"), "--width", "9"])


def test_the_masks_of_scenes():
    source = datasets.load("scenes", count=64)
    whole = pp.build(mask_codec.chain_of_scenes("all"))(source[0], np.random.default_rng(0))
    assert whole["objects"]
    assert all(whole[f"labels/{expert}"].std() > 0 for expert in ("depth", "normal", "edge", "obj_detection"))
    masks = mask_codec.masks_in(source, pp.build(mask_codec.chain_of_scenes()), 130)
    assert masks.shape == (130, 64, 64)
    assert 0.3 < masks.mean() < 0.95
