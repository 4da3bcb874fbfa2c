"""What a new family takes: the module that docs/adding.md shows, and nothing else."""

import importlib.util
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from prismer_jax import checkpoint, config, models
from prismer_jax.batch import Batch, prompts
from prismer_jax.captioner import Captioner
from prismer_jax.decode import generate
from prismer_jax.errors import UserError
from prismer_jax.testing import ROOT
from prismer_jax.train import train
from prismer_jax.weights import safe
from tools import convert, export


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The family of docs/adding.md, in a file of its own, named in FAMILIES."""
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/adding.md").read_text(), re.DOTALL)
    (tmp_path / "toy.py").write_text(source)
    spec = importlib.util.spec_from_file_location("toy", tmp_path / "toy.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(models.FAMILIES, "toy", "toy")
    return module


def test_a_new_family_trains_decodes_and_converts_both_ways(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "toy_config.py").write_text(
        "from configs import quickstart\n"
        "def get_config(arg=None):\n"
        "    config = quickstart.get_config('z,smoke')\n"
        "    config.model = dict(name='toy', variant='nano')\n"
        "    config.total_steps, config.freeze, config.batch_size = 2, 'freeze_image', 16\n"
        "    return config\n"
    )
    monkeypatch.syspath_prepend(str(ROOT))
    scores = train(config.load(str(tmp_path / "toy_config.py"), []), tmp_path / "run")
    assert {"caption/cider", "vqa/accuracy"} <= scores.keys()  # by beams, and greedily

    flags = ["--checkpoint", str(tmp_path / "run"), "--format", "safetensors"]
    export.main([*flags, "--output", str(tmp_path / "toy.safetensors")])
    state = safe.load(tmp_path / "toy.safetensors")
    assert state["patches.weight"].shape == (32, 16 * 16 * 3)
    flags = ["--input", str(tmp_path / "toy.safetensors"), "--variant", "nano", "--tokenizer", "scenes"]
    convert.main(["toy", *flags, "--output", str(tmp_path / "converted")])
    trained, converted = (checkpoint.load_export(tmp_path / name)[0] for name in ("run", "converted"))
    jax.tree.map(np.testing.assert_array_equal, converted["params"], trained["params"])
    assert Captioner(tmp_path / "converted").model == Captioner(tmp_path / "run").model


def test_beams_of_a_new_family_share_its_prompt_and_equal_full_passes(toy):
    model = models.build("toy", vocab_size=40)
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    variables = jax.tree.map(lambda x: 3 * x, variables)
    rng = np.random.default_rng(0)
    text = rng.integers(3, 40, (2, 6)).astype(np.int32)
    batch = {"image": rng.integers(0, 256, (2, 96, 96, 3), np.uint8), **prompts(text, text > 0)}
    tokens, scores = generate(
        model, variables, batch, eos=2, pad=1, method="beam", num_beams=3, max_new=5, min_new=5, prompt_length=0
    )
    whole = np.concatenate([text, tokens[:, 0]], axis=1)
    logits = model.apply(variables, {**batch, **prompts(whole, whole > -1)})
    log_probs = jax.nn.log_softmax(logits)[:, 5:-1]
    sums = jnp.take_along_axis(log_probs, whole[:, 6:, None], axis=2).sum((1, 2))
    np.testing.assert_allclose(scores[:, 0], sums / 5, rtol=1e-4, atol=1e-6)  # float32: sums near 0
    _, cache = model.apply(variables, model.apply(variables, batch, method="encode"), batch, 4, method="prefill")
    assert jax.tree.leaves(cache["own"])[0].shape[3] == 4  # generated columns only: the prompt's six are shared


def test_a_family_that_lacks_a_part_of_the_interface_is_told_so(toy, monkeypatch):
    class Half(nn.Module):
        experts = ()

        def encode(self, batch, train=False):
            return batch["image"]

    monkeypatch.setattr(toy, "build", lambda tokenizer=None, **fields: Half())
    monkeypatch.delattr(toy, "RESIZE")
    with pytest.raises(UserError, match=r"lacks toy\.RESIZE, Half\.__call__, Half\.prefill, Half\.extend, Half\.init_"):
        models.build("toy")


def test_a_batch_without_a_key_that_the_model_reads_is_a_user_error(toy):
    model = models.build("toy", vocab_size=40)
    text = np.ones((1, 3), np.int32)
    batch = Batch({"image": np.zeros((1, 96, 96, 3), np.uint8), **prompts(text, text > 0)})
    del batch["segment"]
    with pytest.raises(UserError, match=r"The batch has no 'segment', .* it has image, mask_ar, mask_input, text"):
        jax.eval_shape(lambda variables: model.apply(variables, batch), model.init_variables(jax.random.key(0)))


def test_a_tokenizer_that_does_not_fit_the_model_is_a_user_error():
    class Gemma:
        pad, vocab_size, spec = 0, 256_000, "sentencepiece:gemma.model"

    with pytest.raises(UserError, match=r"has embeddings for 50265 ids, the tokenizer '.*gemma\.model' has 256000"):
        models.build("prismer", tokenizer=Gemma)
