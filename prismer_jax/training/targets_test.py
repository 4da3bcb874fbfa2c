"""Experts as teachers: what a right map costs and a wrong one, that the tower learns it, that heads stay behind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from prismer_jax import checkpoint, losses, models, optim
from prismer_jax.batch import prompts
from prismer_jax.checkpoint.initial import load_into
from prismer_jax.errors import UserError
from prismer_jax.labels import BACKGROUND, CLASSES_KEY, EXPERTS, PAPER, WORDS_KEY, class_vectors, select
from prismer_jax.towers import label_costs
from prismer_jax.towers.label_lookup import label_tables
from prismer_jax.training import targets
from prismer_jax.training.step import make_update

SIDE = 4  # cells
CLASSES = ("sky", "cube", "ball")
NAMES = {"seg_coco": CLASSES, "obj_detection": CLASSES}
TABLES = label_tables(PAPER, NAMES)


def a_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Two photos of 32 px with maps in cells of 8 px, the second's words those of the first the other way round."""
    rng = np.random.default_rng(seed)
    text = np.tile(np.arange(3, 9, dtype=np.int32), (2, 1))
    batch = {"image": rng.integers(0, 256, (2, 32, 32, 3), np.uint8), **prompts(text, text > 0)}
    batch["mask_loss"] = np.ones(text.shape, np.float32)
    for name in PAPER:
        ids = EXPERTS[name].storage == "ids"
        cells = rng.integers(0, 2 if ids else 256, (2, SIDE, SIDE, EXPERTS[name].channels)).astype(np.uint8)
        if ids:
            cells[:, 0] = BACKGROUND
        batch[EXPERTS[name].key] = cells.repeat(8, 1).repeat(8, 2)
    batch[CLASSES_KEY] = np.full((2, 256), -1, np.int32)
    batch[CLASSES_KEY][:, :2] = [[1, 2], [2, 2]]
    words = class_vectors(["stop", "go"])
    batch[WORDS_KEY] = np.zeros((2, 256, 64), np.float16)
    batch[WORDS_KEY][:, :2] = words, words[::-1]
    return batch


def smaller(channel: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(channel).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def truth(name: str, batch) -> np.ndarray:
    """What a head would predict that is right: the vector of each cell's class or word, or the scaled number."""
    cells = batch[EXPERTS[name].key][:, ::8, ::8]
    if EXPERTS[name].storage != "ids":
        label = batch[EXPERTS[name].key].astype(np.float32)
        low, high = label.min((1, 2, 3), keepdims=True), label.max((1, 2, 3), keepdims=True)
        value = 2 * (label - low) / np.maximum(high - low, 1) - 1
        if name == "normal":
            length = np.linalg.norm(label / 127.5 - 1, axis=-1, keepdims=True)
            value = np.where(length > label_costs.SHORTEST, (label / 127.5 - 1) / length, 0).astype(np.float32)
        return np.stack([[smaller(channel) for channel in row] for row in value.transpose(0, 3, 1, 2)]).transpose(
            0, 2, 3, 1
        )
    ids, table = cells[..., 0], TABLES[name]
    if name == "ocr_detection":
        vectors = batch[WORDS_KEY].astype(np.float32)
    else:
        vectors = np.tile(table[-1], (2, 256, 1))
        vectors[:, :3] = table[:3]
        if name == "obj_detection":
            vectors[:, :2] = table[batch[CLASSES_KEY][:, :2]]
    vectors[:, BACKGROUND] = table[-1]
    return np.take_along_axis(vectors, ids.reshape(2, -1, 1).astype(int), 1).reshape(2, SIDE, SIDE, 64)


@functools.partial(jax.jit, static_argnums=0)
def cost(name, predicted, batch):
    return label_costs.map_costs(name, predicted, batch, TABLES)


@pytest.mark.parametrize("name", PAPER)
def test_a_right_map_costs_next_to_nothing_and_a_wrong_one_much(name):
    batch = a_batch()
    right, there = cost(name, truth(name, batch), batch)
    wrong, _ = cost(name, np.roll(truth(name, batch), 1, 1), batch)
    assert there.tolist() == [1, 1]
    assert right.max() < 0.02
    assert wrong.min() > max(0.2, 10 * right.max())


def test_the_cost_of_a_class_is_the_cross_entropy_of_cosines():
    batch = a_batch()
    predicted = np.random.default_rng(1).standard_normal((2, SIDE, SIDE, 64)).astype(np.float32)
    table = TABLES["seg_coco"] / np.linalg.norm(TABLES["seg_coco"], axis=1, keepdims=True)
    cosines = predicted / np.linalg.norm(predicted, axis=-1, keepdims=True) @ table.T
    logs = np.log(
        np.exp(cosines / label_costs.TEMPERATURE) / np.exp(cosines / label_costs.TEMPERATURE).sum(-1, keepdims=True)
    )
    ids = batch["labels/seg_coco"][:, ::8, ::8, 0].astype(int)
    each = -np.take_along_axis(logs, np.where(ids == BACKGROUND, len(CLASSES), ids)[..., None], -1)[..., 0]
    np.testing.assert_allclose(cost("seg_coco", predicted, batch)[0], each.mean((1, 2)), rtol=1e-5)


def test_a_sky_has_no_normal_and_is_taught_none():
    batch = a_batch()
    batch["labels/normal"][:] = 128  # as rendered scenes have it
    nothing, ones = np.zeros((2, SIDE, SIDE, 3), np.float32), np.full((2, SIDE, SIDE, 3), 3**-0.5, np.float32)
    np.testing.assert_allclose(cost("normal", nothing, batch)[0], 0, atol=1e-6)
    np.testing.assert_allclose(cost("normal", ones, batch)[0], 0.5, rtol=1e-5)


@pytest.mark.parametrize("name", PAPER)
def test_an_empty_map_teaches_nothing(name):
    batch = a_batch()
    batch[EXPERTS[name].key][1] = EXPERTS[name].fill
    predicted = np.ones((2, SIDE, SIDE, truth(name, batch).shape[-1]), np.float32)
    costs, there = cost(name, predicted, batch)
    assert there.tolist() == [1, 0]
    assert np.isfinite(costs).all()
    both = {key: value[:1] for key, value in batch.items()}
    if name != "ocr_detection":  # whose words are told from those of the whole batch
        np.testing.assert_allclose(costs[0], cost(name, predicted[:1], both)[0][0], rtol=1e-5)


def test_tiles_have_maps_of_their_own():
    batch = a_batch()
    one = {key: value[None] for key, value in batch.items()}  # a row of two tiles
    one |= {CLASSES_KEY: batch[CLASSES_KEY][None], WORDS_KEY: batch[WORDS_KEY][None]}
    for name in PAPER:
        predicted = np.random.default_rng(2).standard_normal(truth(name, batch).shape).astype(np.float32)
        apart, _ = cost(name, predicted, batch)
        np.testing.assert_allclose(cost(name, predicted, one)[0], [apart.mean()], rtol=1e-5)


@pytest.fixture(scope="module")
def trained():
    """A model without experts that was taught by all for some steps: (model, first state, last state, measured)."""
    decoder = dict(width=32, layers=1, heads=2, mlp_dim=64, vocab_size=50, max_positions=20, dropout=0.0)
    fields = dict(image_size=32, patch_size=16, width=32, layers=1, heads=2, decoder=decoder)
    model = models.build("prismer", variant="tiny", experts="none", classes=NAMES, **fields)
    teaching = targets.make(model, "all", weight=0.5)
    frozen = teaching.trained((r"(?!encoder/).*",))  # as a mode that freezes all else would
    loss = teaching.taught(functools.partial(losses.cross_entropy, label_smoothing=0.0))
    tx = optax.adam(1e-2)
    variables = jax.jit(teaching.init_variables)(jax.random.key(0))
    state = {**variables, "opt": tx.init(optim.split(variables["params"], frozen)[0]), "step": jnp.zeros((), int)}
    update, batch = jax.jit(make_update(model, loss, tx, frozen)), jax.tree.map(jnp.asarray, a_batch())
    first, measured = state, []
    for _ in range(40):
        state, values = update(state, batch)
        measured.append({key: float(value) for key, value in values.items()})
    return model, first, state, measured


def test_the_tower_learns_what_the_experts_know(trained):
    _, first, last, measured = trained
    for name in PAPER:
        assert measured[-1][f"train/targets/{name}"] < 0.6 * measured[0][f"train/targets/{name}"], name
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), first["params"], last["params"])
    assert all(jax.tree.leaves(changed["targets"]))
    assert changed["encoder"]["patch_embedding"]
    assert not any(jax.tree.leaves(changed["decoder"]))  # frozen


def test_the_loss_is_that_of_the_text_and_what_the_maps_cost(trained):
    *_, measured = trained
    parts = sum(value for key, value in measured[0].items() if key.startswith("train/targets/"))
    assert measured[0]["train/loss"] == pytest.approx(measured[0]["train/text"] + 0.5 * parts, rel=1e-5)


def test_a_model_in_use_has_no_heads(trained, tmp_path):
    model, first, last, _ = trained
    with checkpoint.Checkpointer(tmp_path / "run", config={"model": {}}) as checkpoints:
        checkpoints.save(40, last)
    variables, _ = checkpoint.load_export(tmp_path / "run")
    assert variables["params"].keys() == {"encoder", "decoder"}
    again = load_into(first, tmp_path / "run")  # another training begins with it, and with heads of its own
    np.testing.assert_array_equal(
        again["params"]["encoder"]["patch_embedding"], last["params"]["encoder"]["patch_embedding"]
    )
    assert jax.eval_shape(model.init_variables, jax.random.key(0)).keys() == variables.keys() | {
        "batch_stats",
        "tables",
    }


@pytest.mark.parametrize("family", ["blip2", "nanovlm", "paligemma", "prismer"])
def test_every_family_has_a_tower_that_can_be_taught(family):
    model = models.build(family, variant="tiny")
    teaching = targets.make(model, "depth+seg_coco", {"depth": 1.0, "seg_coco": 0.1})
    shapes = jax.eval_shape(teaching.init_variables, jax.random.key(0))
    assert shapes["params"]["targets"]["seg_coco"]["kernel"].shape == (teaching.width, 64 * targets.CELLS**2)
    assert "patches" not in shapes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(experts="none"), "teaches nothing"),
        (dict(experts="dept"), "depth"),
        (dict(experts="depth", weight={"edge": 1.0}), "weight has edge"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        targets.make(models.build("prismer", variant="tiny", experts="none"), **settings)
    assert "\n" not in str(error.value)


def test_a_batch_without_the_maps_is_named(trained):
    model, first, *_ = trained
    batch = {key: jnp.asarray(value) for key, value in a_batch().items() if key != "labels/edge"}
    loss = targets.make(model, select("edge")).taught(losses.cross_entropy)
    with pytest.raises(UserError, match="no 'labels/edge'"):
        jax.eval_shape(make_update(model, loss, optax.adam(1e-2)), first, batch)
