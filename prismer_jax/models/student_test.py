"""The student's network: shapes, that it learns every kind of label, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prismer_jax import models, optim
from prismer_jax.errors import UserError
from prismer_jax.labels import BACKGROUND, CLASSES_KEY, EXPERTS, PAPER, WORDS_KEY, class_vectors
from prismer_jax.models import conversion, student
from prismer_jax.training.step import Forward, make_update

CLASSES = ("sky", "cube", "ball")
NAMES = {"seg_coco": CLASSES, "obj_detection": CLASSES}


def a_batch():
    """Two photos of 32 px, red on the left or on the right, where a cube says 'stop' in front of the sky."""
    image, red = np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 32, 32, 1), bool)
    red[0, 8:24, :16] = red[1, 8:24, 16:] = True
    image[..., :1][red] = 250
    ids = {"seg_coco": np.where(red, 1, 0), "obj_detection": np.where(red, 0, BACKGROUND)}
    maps = {"depth": np.where(red, 255, 0), "edge": np.where(red, 255, 0), **ids}
    maps["ocr_detection"] = maps["obj_detection"]
    maps["normal"] = np.where(red, [128, 255, 128], [128, 128, 255])
    batch = {"image": image, **{EXPERTS[name].key: x.astype(np.uint8) for name, x in maps.items()}}
    batch[CLASSES_KEY] = np.full((2, 256), -1, np.int32)
    batch[CLASSES_KEY][:, 0] = 1
    batch[WORDS_KEY] = np.zeros((2, 256, 64), np.float16)
    batch[WORDS_KEY][:, 0] = class_vectors(["stop"])
    return batch, red[..., 0]


@pytest.fixture(scope="module")
def trained():
    model = models.build("student", variant="tiny", classes=NAMES)
    state = jax.jit(model.init_variables)(jax.random.key(0))
    tx = optax.adam(1e-2)
    state |= {"opt": tx.init(optim.split(state["params"], ())[0]), "step": jnp.zeros((), int)}
    update = jax.jit(make_update(model, student.label_maps, tx))
    batch, measured = jax.tree.map(jnp.asarray, a_batch()[0]), []
    for _ in range(80):
        state, values = update(state, batch)
        measured.append({key: float(value) for key, value in values.items()})
    return model, state, measured


def test_every_kind_is_learnt_and_their_costs_are_the_loss(trained):
    _, _, measured = trained
    for kind in PAPER:
        assert measured[-1][f"train/{kind}"] < 0.3 * measured[0][f"train/{kind}"], kind
    assert measured[0]["train/loss"] == pytest.approx(sum(measured[0][f"train/{kind}"] for kind in PAPER), rel=1e-5)
    assert measured[0]["tokens"] == 0


def test_what_it_reads_off_is_what_it_was_taught(trained):
    model, state, _ = trained
    batch, red = a_batch()
    read = jax.jit(lambda image: model.apply({"params": state["params"]}, {"image": image}, method="read"))(
        batch["image"]
    )
    cells = red[:, 2::4, 2::4]  # four pixels wide
    assert read["seg_coco"].dtype == jnp.int16
    np.testing.assert_array_equal(read["seg_coco"], np.where(cells, 1, 0))
    np.testing.assert_array_equal(read["obj_detection"][..., 0], np.where(cells, 1, -1))
    middles = np.stack([np.full((2, 8, 8), 4), np.broadcast_to([[[2]], [[6]]], (2, 8, 8))], -1)  # rows 2..5, half
    assert np.abs(read["obj_detection"][..., 1:] - middles)[cells].max() <= 1
    np.testing.assert_array_equal((read["ocr_detection"] != 0).any(-1), cells)
    stop = class_vectors(["stop"])[0] / np.linalg.norm(class_vectors(["stop"])[0])
    assert (np.asarray(read["ocr_detection"], np.float32)[cells] @ stop).min() > 0.8
    for kind in ("depth", "edge"):
        assert np.abs(read[kind][..., 0] - np.where(red, 1, -1)).mean() < 0.2, kind


def test_the_default_has_cells_of_four_pixels_and_numbers_of_each_pixel():
    model = models.build("student")
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))["params"]
    assert shapes["maps"]["kernel"].shape == (64, 64 + 64 + 2 + 64)
    assert shapes["pixel_maps"]["kernel"].shape == (3, 3, 16, 1 + 3 + 1)
    image = {"image": jax.ShapeDtypeStruct((2, 480, 480, 3), jnp.uint8)}
    maps = jax.eval_shape(lambda v, b: model.apply(v, b), {"params": shapes}, image)
    assert {kind: x.shape[1:3] for kind, x in maps.items()} == {
        kind: (120, 120) if EXPERTS[kind].storage == "ids" else (480, 480) for kind in PAPER
    }
    assert (model.experts, model.kinds) == ((), PAPER)


def test_weights_are_of_kinds_and_a_photo_without_a_label_costs_nothing():
    model = models.build("student", variant="tiny", kinds="depth+edge")
    batch, _ = a_batch()
    batch["labels/depth"][1] = 0
    variables = model.init_variables(jax.random.key(0))

    def costs(**settings):
        return student.label_maps(Forward(model, variables, jax.random.key(0)), batch, **settings)

    plain, weighted = costs(), costs(weight={"depth": 3.0})
    assert plain["depth"][1].tolist() == [1, 0]
    np.testing.assert_allclose(plain["loss"][0][1], plain["edge"][0][1], rtol=1e-5)
    np.testing.assert_allclose(weighted["loss"][0] - plain["loss"][0], 2 * plain["depth"][0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kinds", ["depth+edge", "seg_coco"])
def test_a_student_has_no_layers_for_kinds_that_it_does_not_make(kinds):
    model = models.build("student", variant="tiny", kinds=kinds)
    shapes = jax.eval_shape(model.init_variables, jax.random.key(0))["params"]
    assert ("maps" in shapes, "pixel_maps" in shapes) == (kinds == "seg_coco", kinds == "depth+edge")


def test_photos_of_another_size_are_refused():
    model = models.build("student", variant="tiny")
    with pytest.raises(UserError, match=r"The student sees 32x32 pixels, not 48x40: resize\(32\) in pp"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), {"image": jnp.zeros((1, 40, 48, 3), jnp.uint8)}))


def test_it_has_no_names_in_other_frameworks_files():
    with pytest.raises(UserError, match="A student has no names in the files of other frameworks"):
        conversion.table_of("student", models.build("student", variant="tiny"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(kinds="none"), "nothing to learn"),
        (dict(kinds="dept"), "Did you mean 'depth'"),
        (dict(variant="bas"), "Did you mean 'base'"),
        (dict(widht=3), "Did you mean 'width'"),
        (dict(image_size=100), "image_size=100 must be a multiple of patch_size=16"),
        (dict(image_size=0), "image_size=0 must be a multiple of patch_size=16.*, all above 0"),
        (dict(image_size=-16), "image_size=-16 must be a multiple"),
        (dict(doublings=5), r"and that one of 2\^doublings=32"),
        (dict(classes={"depth": ("a",)}), "depth has no classes"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        models.build("student", **settings)
    assert "\n" not in str(error.value)
