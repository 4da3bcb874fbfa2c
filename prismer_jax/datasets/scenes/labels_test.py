import dataclasses

import numpy as np
import pytest

from prismer_jax.datasets import scenes
from prismer_jax.datasets.scenes import labels as scenes_labels
from prismer_jax.datasets.scenes import render
from prismer_jax.datasets.scenes.world import CLASSES, Camera, Scene, Sign, Solid

SIZE = 96
SETTINGS = scenes.Settings("train", SIZE, 100, 3)
CAMERA = Camera((0.0, 0.9, 8.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), 0.35)


def draw(index: int) -> Scene:
    return scenes.scene(SETTINGS, index)[0]


def label(scene: Scene) -> scenes_labels.Labels:
    return scenes_labels.label(scene, render.render(scene, SIZE)[1], SIZE)


def test_depth_and_normals_of_a_sphere_are_those_of_geometry():
    """Against the closed form, in float64, for a camera that looks along -z."""
    radius, z = 0.9, -1.0
    ball = Solid("sphere", "red", "plain", "large", (radius,), (0.3, z), 0.4)
    scene = Scene((ball,), (), "sand", 0.0, "day", (0.0, 1.0, 0.0), CAMERA)
    maps = label(scene).maps
    on = maps["obj_detection"][..., 0] == 0
    grid = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    rays = np.stack([*np.meshgrid(grid * 0.35, -grid * 0.35), -np.ones((SIZE, SIZE))])
    to_ball = np.array([0.3, radius - 0.9, z - 8])  # from the camera to the ball's centre
    a, b = (rays**2).sum(0), (rays * to_ball[:, None, None]).sum(0)
    square = b**2 - a * (to_ball @ to_ball - radius**2)
    np.testing.assert_array_equal(on, square > 0)
    t = (b - np.sqrt(np.maximum(square, 0))) / a
    normal = (rays * t - to_ball[:, None, None]) / radius
    seen = maps["normal"].transpose(2, 0, 1) / 127.5 - 1
    assert np.abs(seen - normal)[:, on].max() < 1.01 / 127.5
    # Depth is proportional to 1 / t: 0 for the sky, 255 at the nearest point, which is on the ground.
    inverse = np.where(on, 1 / t, np.maximum(-rays[1] / 0.9, 0))
    np.testing.assert_allclose(maps["depth"][..., 0], 255 * inverse / inverse.max(), atol=1.01)


def test_normals_have_documented_axes():
    """Red to the right, green up, blue to the viewer."""
    box = Solid("box", "red", "plain", "large", (0.8, 0.8, 0.8), (0.0, 0.0), np.pi / 4)
    maps = label(Scene((box,), (), "sand", 0.0, "day", (0.0, 1.0, 0.0), draw(0).camera)).maps
    on = maps["obj_detection"][..., 0] == 0
    normal = maps["normal"].astype(int) - 128
    columns = np.where(on)[1]
    left, right = (normal[on][columns == c].mean(0) for c in (columns.min() + 2, columns.max() - 2))
    assert left[0] < -50 < 50 < right[0]
    assert min(left[2], right[2]) > 30
    assert (normal[on][:, 1] > 90).any()  # the top
    ground = maps["seg_coco"][..., 0] == CLASSES.index("ground")
    assert (normal[ground][:, 1] > 90).all()


@pytest.mark.parametrize("index", range(6))
def test_the_instance_map_shows_what_is_nearest(index):
    """Against rendering every instance alone."""
    scene = draw(index)
    labels = label(scene)
    found = labels.maps["obj_detection"][..., 0].ravel()
    depths = []
    for thing in scene.instances:
        alone = dataclasses.replace(scene, solids=(thing,), signs=())
        if isinstance(thing, Sign):
            alone = dataclasses.replace(scene, solids=(), signs=(thing,))
        hits = render.trace(alone, render.pixel_centres(SIZE))
        depths.append(np.where(hits.part >= 0, hits.depth, np.inf))
    depths = np.array(depths)
    expected = np.where(np.isfinite(depths).any(0), depths.argmin(0), 255)
    np.testing.assert_array_equal(found, expected)
    assert set(found) == {*range(len(scene.instances)), 255}  # all can be seen
    # Class map and instance map agree.
    on = found != 255
    np.testing.assert_array_equal(labels.maps["seg_coco"].ravel()[on], labels.classes[found[on]])
    assert set(labels.maps["seg_coco"].ravel()[~on]) <= {CLASSES.index("sky"), CLASSES.index("ground")}


@pytest.mark.parametrize("index", range(4))
def test_the_mirrored_scene_has_the_mirrored_labels(index):
    scene = draw(index)
    (x, y, z), rotation = scene.camera.position, np.array(scene.camera.rotation)
    flip = np.diag([-1.0, 1.0, 1.0])
    mirrored = dataclasses.replace(
        scene,
        camera=Camera((-x, y, z), tuple(map(tuple, (flip @ rotation @ flip).tolist())), scene.camera.tangent),
        solids=tuple(
            dataclasses.replace(s, position=(-s.position[0], s.position[1]), yaw=-s.yaw) for s in scene.solids
        ),
        signs=tuple(dataclasses.replace(s, position=(-s.position[0], s.position[1]), yaw=-s.yaw) for s in scene.signs),
    )
    one, other = label(scene).maps, label(mirrored).maps
    for name in one:
        flipped = other[name][:, ::-1].astype(int)
        if name == "normal":
            flipped[..., 0] = 255 - flipped[..., 0]
        same = np.abs(flipped - one[name].astype(int)) <= 1
        assert same.mean() > 0.998, name  # rounding decides a pixel on an outline now and then


def test_edges_are_dark_lines_where_surfaces_meet():
    scene = draw(1)
    maps = label(scene).maps
    edge, found = maps["edge"][..., 0], maps["obj_detection"][..., 0]
    outline = found[:, 1:] != found[:, :-1]
    assert (edge[:, 1:][outline] < 100).all()
    assert (edge[:, :-1][outline] < 100).all()
    assert (edge == 255).mean() > 0.5


def test_words_lie_on_their_boards_and_carry_their_features():
    scene = next(s for s in map(draw, range(50)) if len(s.signs) == 2)
    labels = label(scene)
    words, found = labels.maps["ocr_detection"][..., 0], labels.maps["obj_detection"][..., 0]
    assert labels.words == [s.word for s in scene.signs]
    for i, sign in enumerate(scene.signs):
        on = words == i
        assert on.sum() > 20
        assert (found[on] == scene.instances.index(sign)).all()
        np.testing.assert_allclose(labels.features[i], scenes_labels.word_features(sign.word), atol=2e-3)


def test_the_word_is_painted_where_the_word_map_says():
    """Ink is where the word is: the picture is darker and has more contrast there than on an empty board."""
    scene = next(s for s in map(draw, range(50)) if len(s.signs) == 1)
    image, hits = render.render(scene, 224)
    on = scenes_labels.label(scene, hits, 224).maps["ocr_detection"][..., 0] == 0
    grey = image.mean(2)[on]
    assert grey.std() > 40
    assert grey.min() < 60 < 150 < grey.max()


def test_word_features_are_fixed_and_tell_words_apart():
    cafe, cake = scenes_labels.word_features("cafe"), scenes_labels.word_features("cake")
    np.testing.assert_array_equal(cafe, scenes_labels.word_features("CAFE"))
    np.testing.assert_allclose([cafe.mean(), cafe.std()], [0, 1], atol=1e-5)
    assert cafe @ cake / 64 > 0.4  # three letters in common
    assert abs(cafe @ scenes_labels.word_features("stop") / 64) < 0.4
    np.testing.assert_allclose(cafe[:3], scenes_labels.word_features("cafe")[:3])


def test_a_scene_is_seen_alike_at_every_size():
    """Instances cover the same share of the picture at 64 and at 160 pixels."""
    scene = draw(2)
    shares = []
    for size in (64, 160):
        hits = render.trace(scene, render.pixel_centres(size))
        found = scenes_labels.label(scene, hits, size).maps["obj_detection"]
        shares.append(np.bincount(found.ravel(), minlength=256) / size**2)
    np.testing.assert_allclose(*shares, atol=0.012)


def test_pixels_at_outlines_are_mixed():
    """Anti-aliasing: a large ball before the sky has pixels between both colours along its rim."""
    ball = Solid("sphere", "red", "plain", "large", (0.9,), (0.0, 0.0), 0.4)
    image, hits = render.render(Scene((ball,), (), "sand", 0.0, "day", (0.0, 1.0, 0.0), CAMERA), SIZE)
    rows = slice(SIZE // 3, SIZE // 2)  # above the horizon
    blue, on = image[rows, :, 2].astype(int), (hits.part.reshape(SIZE, SIZE) == 0)[rows]
    sky, ball_blue = blue[~on].max(), blue[on].min()
    mixed = (blue > ball_blue + 25) & (blue < sky - 25)
    assert mixed.any(1).mean() > 0.8
    assert not mixed[:, : SIZE // 8].any()
