import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import label_files, labels, sharding, tree
from prismer_jax.errors import BadSample, UserError
from prismer_jax.experts import EXPERTS
from prismer_jax.experts.detection import Detection
from prismer_jax.experts.expert import Label
from prismer_jax.weights import rules, write

SMALL = {
    "blocks": (1, 2, 1, 1),
    "stem": 4,
    "width": 4,
    "stage_features": 8,
    "features": 8,
    "box_convs": 1,
    "box_features": 8,
    "hidden": 16,
    "before": 30,
    "after": 20,
    "most": 10,
}


@pytest.fixture(scope="module")
def expert():
    return Detection(**SMALL)


@pytest.fixture(scope="module")
def variables(expert):
    return expert.random_variables()


@pytest.fixture(scope="module")
def state(expert, variables):
    return rules.to_torch(tree.flatten(variables), expert.table)


def test_the_official_sizes_are_those_of_the_official_file():
    shapes = Detection().shapes
    count = sum(int(np.prod(leaf.shape)) for name, leaf in shapes.items() if name.startswith("params/"))
    # PyTorch's count, and the norms of the stem and the first stage, which are no parameters there but buffers.
    assert count == 120_478_290 + 3_904
    keys = rules.key_shapes(Detection.table, shapes)
    assert len(keys) == 1960
    assert keys["backbone.bottom_up.res4.35.conv2.conv.weight"] == (512, 128, 3, 3)
    assert keys["roi_heads.box_predictor.2.cls_score.weight"] == (723, 1024)


def test_official_files_of_any_year_are_read(tmp_path, expert, variables, state):
    old = {k: v for k, v in state.items() if not (k.endswith("num_batches_tracked") and ("stem" in k or "res2" in k))}
    old["pixel_mean"] = np.zeros((3, 1, 1), np.float32)
    old["proposal_generator.anchor_generator.cell_anchors.4"] = np.zeros((9, 4), np.float32)
    write.torch_file(tmp_path / "old.pth", old)
    read = expert.init_from_official(tmp_path / "old.pth")
    jax.tree.map(np.testing.assert_array_equal, read, variables)
    old["pixel_means"] = old.pop("backbone.bottom_up.res3.1.conv2.fc1.bias")
    with pytest.raises(
        UserError, match=r"1 missing: backbone\.bottom_up\.res3\.1\.conv2\.fc1\.bias; 1 unexpected: pixel_means"
    ):
        expert.from_official(old)


def test_norms_of_repeated_blocks_start_as_ones(variables):
    assert (variables["batch_stats"]["backbone"]["stage_1_rest"]["split"]["norm"]["var"] == 1).all()
    assert np.std(variables["params"]["backbone"]["stage_1_rest"]["split"]["kernel"]) > 0.01


@pytest.fixture(scope="module")
def detected(expert, variables):
    """Photos, what is prepared of them, and what the network says, on one device."""
    photos = [np.random.default_rng(i).integers(0, 256, (60, 90, 3), np.uint8) for i in range(2)]
    prepared = [expert.prepare(photo) for photo in photos]
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    placed = jax.device_put(variables, sharding.replicated(mesh))
    return photos, prepared, jax.device_get(expert.run(placed, prepared, mesh))


def test_detections_are_sorted_inside_the_photo_and_surer_than_the_threshold(detected):
    _, prepared, output = detected
    assert prepared[0]["image"].shape == (320, 480, 3)
    assert prepared[0]["size"].tolist() == [320, 480]
    assert output["boxes"].shape == (2, 10, 4)
    assert output["valid"].all()
    assert (output["scores"] > 0.5).all()
    assert (np.diff(output["scores"]) <= 0).all()
    assert (output["boxes"][..., 2:] <= (480, 320)).all()
    assert (output["boxes"] >= 0).all()
    assert set(output["classes"].ravel()) <= set(range(722))
    assert (output["scores"][0] != output["scores"][1]).any()


def test_a_photos_detections_depend_neither_on_the_batch_nor_on_the_devices(expert, variables, detected):
    _, prepared, output = detected
    mesh = sharding.make_mesh()
    placed = jax.device_put(variables, sharding.replicated(mesh))
    many = jax.device_get(expert.run(placed, prepared[::-1], mesh))
    for name in ("classes", "valid", "proposals"):
        np.testing.assert_array_equal(many[name][:2][::-1], output[name])
    np.testing.assert_allclose(many["boxes"][:2][::-1], output["boxes"], atol=1e-2)


def test_padding_is_no_part_of_the_photo(expert, variables):
    @jax.jit
    def pyramid(image):
        return expert.module.apply(variables, image, jnp.asarray([[40, 50]]), method="pyramid")

    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    other = image.copy()
    other[:, 40:], other[:, :, 50:] = 0, 255
    for a, b in zip(pyramid(image), pyramid(other), strict=True):
        np.testing.assert_array_equal(a, b)


def detections(expert, boxes, scores):
    made = expert.module.apply({}, jnp.asarray([boxes], jnp.float32), jnp.asarray([scores]), method="detections")
    return {name: np.asarray(array[0]) for name, array in made.items()}


def test_a_box_may_be_several_classes_and_classes_do_not_suppress_one_another(expert):
    scores = np.zeros((3, 722), np.float32)
    scores[0, 7], scores[0, 9], scores[1, 9], scores[2, 9] = 0.9, 0.6, 0.8, 0.5
    made = detections(expert, [(0, 0, 20, 20), (0, 0, 20, 18), (40, 40, 60, 60)], scores)
    assert made["valid"].tolist() == [True, True] + [False] * 8  # 0.6 is suppressed by 0.8; 0.5 is not more than 0.5
    assert made["classes"][:2].tolist() == [7, 9]
    assert made["proposals"][:2].tolist() == [0, 1]


def test_empty_boxes_and_what_is_no_number_are_no_detections(expert):
    scores = np.full((3, 722), -np.inf, np.float32)  # as of proposals that are missing
    assert not detections(expert, [(0, 0, 5, 5)] * 3, scores)["valid"].any()
    scores = np.zeros((3, 722), np.float32)
    scores[:, 1] = 0.9
    made = detections(expert, [(0, 0, np.nan, 5), (3, 3, 3, 9), (2, 2, 4, 4)], scores)
    assert made["valid"].sum() == 1
    np.testing.assert_array_equal(made["boxes"][made["valid"]], [[2, 2, 4, 4]])


def output_of(boxes, valid=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    valid = np.ones(len(boxes), bool) if valid is None else np.asarray(valid, bool)
    return {"boxes": boxes, "classes": np.arange(len(boxes), dtype=np.int32) + 3, "valid": valid}


def test_labels_have_the_photos_size_and_depth_says_what_is_in_front(expert, tmp_path):
    depth = np.zeros((960, 1440, 1), np.uint8)  # looked at as 320 x 480
    depth[:, 720:] = 250
    boxes = [(60, 60, 300, 180), (180, 90, 420, 240), (0, 0, 480, 320)]
    label = expert.finish(output_of(boxes, [True, True, False]), (960, 1440), {"depth": Label(depth)})
    assert label.map.shape == (960, 1440, 1)
    assert list(label.classes) == [3, 4]
    assert label.map[400, 700] == 1  # of both
    assert label.map[200, 200] == 0
    assert label.map[900, 1400] == labels.BACKGROUND
    assert (label.map == 1).sum() == 450 * 720
    png = label_files.write(tmp_path, "obj_detection", "a.jpg", label.map, classes=label.classes)
    assert label_files.read_classes(png.with_suffix(".json"))[:3].tolist() == [3, 4, -1]


def test_nothing_detected_is_an_empty_label(expert):
    label = expert.finish(output_of([], []), (50, 40), {"depth": Label(labels.blank("depth", 50, 40))})
    assert (label.map == labels.BACKGROUND).all()
    assert list(label.classes) == []


def test_without_a_depth_map_of_the_photo_there_is_no_label(expert):
    with pytest.raises(BadSample, match="label it with the expert depth first"):
        expert.finish(output_of([]), (50, 40), {})
    with pytest.raises(BadSample, match=r"measures 50x40 pixels, its photo 40x50: label the photo .* again"):
        expert.finish(output_of([]), (50, 40), {"depth": Label(labels.blank("depth", 40, 50))})


def test_depth_comes_before_detection():
    assert list(EXPERTS).index("depth") < list(EXPERTS).index("obj_detection")
