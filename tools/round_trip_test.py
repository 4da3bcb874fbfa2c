"""What was trained here with sizes of its own goes into every official format and comes back to the bit."""

import jax
import numpy as np
import pytest

from prismer_jax import checkpoint, models, tree
from prismer_jax.errors import UserError
from prismer_jax.models import conversion
from prismer_jax.weights import rules, write
from tools import convert, export

VIT = dict(image_size=32, patch_size=8, width=24, layers=3, heads=3, mlp_dim=40)
LLAMA = dict(width=32, layers=3, heads=4, kv_heads=2, mlp_dim=48, vocab_size=70)
GEMMA = dict(LLAMA, head_dim=16)
READER = dict(width=28, layers=6, heads=7, mlp_dim=36, queries=5, cross_every=3, dropout=0.0)
OPT = dict(tower="opt", width=20, layers=3, heads=5, mlp_dim=44, vocab_size=70, max_positions=60)
T5 = dict(tower="t5", width=20, layers=3, decoder_layers=2, heads=5, head_dim=6, mlp_dim=44, vocab_size=70)
DECODER = dict(width=36, layers=2, heads=3, mlp_dim=44, vocab_size=70, max_positions=50)
# Of each model: its fields, and those of them that no shape of its arrays says.
PRISMERZ = dict(name="prismer", variant="tiny", image_size=64, patch_size=16, width=48, heads=3, decoder=DECODER)
MODELS = {
    "prismerz": (PRISMERZ | dict(experts="none"), ["heads=3", "decoder.heads=3"]),
    "prismer": (
        PRISMERZ | dict(experts="depth+edge", latents=9, resampler_layers=2),
        ["heads=3", "decoder.heads=3"],
    ),
    "nanovlm": (
        dict(name="nanovlm", variant="tiny", vision=VIT, language=LLAMA, shuffle=2, image_token=5),
        ["vision.heads=3", "language.heads=4", "image_token=5"],
    ),
    "nanovlm_in_front": (
        dict(name="nanovlm", variant="tiny", vision=VIT, language=LLAMA, shuffle=1, image_token=None),
        ["vision.heads=3", "language.heads=4", "image_token=None"],
    ),
    "paligemma": (
        dict(name="paligemma", variant="tiny", vision=VIT, language=GEMMA),
        ["vision.heads=3", "language.heads=4"],
    ),
    "paligemma2": (
        dict(
            name="paligemma",
            variant="tiny",
            vision=VIT,
            language=GEMMA | dict(kv_heads=4, post_norms=True, attention_cap=50.0, logit_cap=30.0),
        ),
        ["vision.heads=3", "language.heads=4"],
    ),
    "blip2_stage1": (
        dict(
            name="blip2",
            variant="tiny_stage1",
            vision=VIT,
            qformer=READER | dict(vocab_size=61, max_positions=30),
            embed_dim=10,
        ),
        ["vision.heads=3", "qformer.heads=7"],
    ),
    "blip2_vitL": (
        dict(name="blip2", variant="tiny_vitL", vision=VIT, qformer=READER | dict(vocab_size=61), embed_dim=10),
        ["vision.heads=3", "qformer.heads=7"],
    ),
    "blip2_opt": (
        dict(name="blip2", variant="tiny", vision=VIT, qformer=READER, language=OPT),
        ["vision.heads=3", "qformer.heads=7", "language.heads=5"],
    ),
    "blip2_opt_narrow_words": (
        dict(
            name="blip2",
            variant="tiny",
            vision=VIT,
            qformer=READER,
            language=OPT | dict(word_width=12, pre_norm=False),
        ),
        ["vision.heads=3", "qformer.heads=7", "language.heads=5"],
    ),
    "blip2_t5": (
        dict(name="blip2", variant="tiny_t5", vision=VIT, qformer=READER, language=T5),
        ["vision.heads=3", "qformer.heads=7"],
    ),
    "blip2_llama": (
        dict(name="blip2", variant="tiny", vision=VIT, qformer=READER, language=LLAMA | dict(tower="llama")),
        ["vision.heads=3", "qformer.heads=7", "language.heads=4"],
    ),
}
FILES = {"torch": "file.pth", "safetensors": "file.safetensors"}  # of formats that are one file, without config.json
HUB = ("blip2_opt", "blip2_t5", "blip2_llama")  # transformers misreads narrow words
CASES = [(name, kind) for name in MODELS for kind in FILES]
CASES += [(name, kind) for name in ("paligemma", "paligemma2") for kind in ("big_vision", "paligemma_hf")]
CASES += [(name, "nanovlm") for name in ("nanovlm", "nanovlm_in_front")] + [(name, "blip2_hf") for name in HUB]
FAST = [("prismer", "torch"), ("nanovlm", "safetensors"), ("paligemma", "big_vision"), ("paligemma2", "paligemma_hf")]
FAST += [("blip2_opt", "blip2_hf"), ("blip2_t5", "torch")]


def variables_of(model):
    shapes = tree.flatten(jax.eval_shape(model.init_variables, jax.random.key(0)))
    rng = np.random.default_rng(0)
    draw = {name: rng.normal(0, 0.3, x.shape).astype(x.dtype) for name, x in shapes.items()}
    return tree.unflatten({name: abs(x) if name.endswith("/var") else x for name, x in draw.items()})


def answer(description, variables):
    """Returns the logits of a text behind a photo, or what a Q-Former makes of the photo."""
    model, rng = models.build(**description["model"]), np.random.default_rng(1)
    side = getattr(model, "image_size", None) or model.vision["image_size"]
    photos = rng.integers(0, 256, (2, side, side, 3), np.uint8)
    text = np.asarray([[2, 7, 9, 11], [2, 8, 3, 1]], np.int32)
    batch = {"image": photos, "text": text, "mask_input": np.ones_like(text, bool), "mask_ar": np.ones_like(text)}
    batch |= {"segment": np.zeros_like(text)}
    if description["model"]["name"] == "nanovlm" and model.image_token is not None:
        rows = np.full((2, model.image_tokens), model.image_token, np.int32)
        text = np.concatenate([rows, text], 1)
        batch |= {"text": text, "mask_input": np.ones_like(text, bool), "mask_ar": np.ones_like(text)}
        batch |= {"image": photos[:, None], "image_mask": np.ones((2, 1), bool), "segment": np.zeros_like(text)}
    given = {key: x for key, x in variables.items() if x}
    return np.asarray(jax.jit(lambda v, b: model.apply(v, b))(given, batch))


@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in CASES]
)
def test_a_model_of_sizes_of_its_own_comes_back_and_answers_the_same(tmp_path, name, kind):
    fields, unsaid = MODELS[name]
    variables = variables_of(models.build(**fields))
    checkpoint.export(tmp_path / "in", variables, {"model": fields, "tokenizer": "scenes", "tasks": {}})
    file = tmp_path / "out" / FILES.get(kind, "")
    export.main(["--checkpoint", str(tmp_path / "in"), "--format", kind, "--output", str(file)])
    told = [f"--config.model.{field}" for field in unsaid if kind in FILES]
    file = file / "model.npz" if kind == "big_vision" else file
    convert.main([fields["name"], "--input", str(file), *told, "--output", str(tmp_path / "back")])
    back, description = checkpoint.load_export(tmp_path / "back")
    before, after = tree.flatten(variables), tree.flatten(back)
    assert after.keys() == before.keys()
    for key, array in before.items():
        assert after[key].dtype == array.dtype, key
        np.testing.assert_array_equal(after[key], array, err_msg=key)
    np.testing.assert_array_equal(answer(description, back), answer({"model": fields}, variables))


@pytest.mark.parametrize("name", ["prismerz", "nanovlm", "paligemma", "blip2_opt"])
def test_what_no_shape_says_is_asked_for_in_one_line(tmp_path, name):
    fields, unsaid = MODELS[name]
    family = fields["name"]
    model = models.build(**fields)
    shapes = conversion.shapes_of(model)
    state = {
        k: np.zeros(x, np.float32) for k, x in rules.key_shapes(conversion.table_of(family, model), shapes).items()
    }
    write.safetensors_file(tmp_path / "model.safetensors", state)
    given = ["--input", str(tmp_path / "model.safetensors"), "--output", str(tmp_path / "out")]
    for number, field in enumerate(unsaid):
        flags = [f"--config.model.{known}" for known in unsaid[:number]]
        with pytest.raises(
            UserError, match=f"model.safetensors: does not say .* --config.model.{field.split('=')[0]}"
        ) as e:
            convert.main([family, *given, *flags])
        assert "\n" not in str(e.value)
    heads = f"--config.model.{unsaid[0].split('=')[0]}"
    for wrong in ("0", "many", "True"):
        with pytest.raises(UserError, match=rf"has not '?{wrong}'? heads"):
            convert.main([family, *given, f"{heads}={wrong}"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "flag", "message"),
    [
        ("paligemma", "--config.seed=1", r"--config\.model\.KEY alone is taken, a field of the model"),
        ("renumber", "--config.model.heads=3", "nothing here has a config"),
        ("renumber", "--config.model.name=blip2", "nothing here has a config"),
        ("prismer", "--config.data.name=x", r"--config\.model\.KEY alone is taken"),
        ("prismer", "--config.model.name=blip2", r"--config\.model\.name: is said by the command"),
        ("prismer", "--config.model.decoder.heads=3 --config.model.decoder=3", r"model\.decoder: is given twice"),
        ("prismer", "--config.model.decoder=3 --config.model.decoder.heads=3", r"decoder\.heads: is given twice"),
        ("prismer", "--config.model.decoder=3", r"--config\.model\.decoder=3: it has fields"),
        ("prismer", "--config.model.hedas=3", "Unknown field of the model 'hedas'"),
    ],
)
def test_fields_that_nothing_reads_are_refused(tmp_path, command, flag, message):
    model = models.build(**MODELS["prismerz"][0])
    shapes = rules.key_shapes(conversion.table_of("prismer", model), conversion.shapes_of(model))
    write.safetensors_file(tmp_path / "file", {key: np.zeros(shape, np.float32) for key, shape in shapes.items()})
    given = ["--variant", "prismerz_tiny"] if command == "prismer" else []
    with pytest.raises(UserError, match=message):
        convert.main(
            [command, "--input", str(tmp_path / "file"), *given, "--output", str(tmp_path / "out"), *flag.split()]
        )
