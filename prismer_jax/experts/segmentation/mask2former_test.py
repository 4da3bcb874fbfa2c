import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import tree
from prismer_jax.errors import UserError
from prismer_jax.experts.segmentation import SegAde, SegCoco, mask2former, mask_decoder, pixel_decoder
from prismer_jax.weights import rules
from tools import parity
from tools.parity import segmentation as runner


@pytest.fixture(scope="module")
def golden(shared):
    return parity.Case(shared / "golden" / "expert_seg_tiny")


@pytest.fixture(scope="module")
def state(golden):
    return golden.state()


def test_agrees_with_the_reference(golden):
    error, reason = parity.run_case(golden)
    assert not reason
    assert error < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", ["expert_seg_coco", "expert_seg_ade"])
def test_full_sizes_agree_with_the_reference(shared, case):
    error, reason = parity.run_case(parity.Case(shared / "golden" / case))
    assert not reason
    assert error < 1e-5


@pytest.mark.parametrize(("expert", "case"), [(SegCoco, "expert_seg_coco"), (SegAde, "expert_seg_ade")])
def test_every_official_key_is_read_or_known_to_be_of_no_use(shared, expert, case):
    case, expert = parity.Case(shared / "golden" / case), expert()
    runner.check_keys(case, expert)
    unused = case.config["unused_keys"]
    assert all(any(re.fullmatch(pattern, key) for pattern in expert.table.ignored) for key in unused)
    floats = [x for name, x in expert.shapes.items() if jnp.issubdtype(x.dtype, jnp.floating)]
    weights = case.config["num_classes"] + 1 if "parameters" not in case.manifest else 0
    assert sum(x.size for x in floats) + weights == case.manifest["parameters"]


def save(path, state):
    """Writes a file as the published ones are: a pickle of detectron2's model zoo, with its older names."""
    old = {key.replace("query_feat", "static_query"): array for key, array in state.items()}
    extra = {"__author__": "third_party", "matching_heuristics": True, "iteration": 7}
    path.write_bytes(pickle.dumps({"model": old, **extra}))
    return path


def test_published_pickles_are_read_with_both_spellings(golden, state, tmp_path):
    expert = runner.expert_of(golden)
    made = expert.init_from_official(save(tmp_path / "model_final_f07440.pkl", state))
    new = expert.from_official({f"module.{key}": array for key, array in state.items()})
    older = {key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): array for key, array in state.items()}
    without_buffers = {key: array for key, array in older.items() if not key.endswith("relative_position_index")}
    for other in (new, expert.from_official(without_buffers)):
        jax.tree.map(np.testing.assert_array_equal, made, other)
    query = made["params"]["decoder"]["queries"]
    np.testing.assert_array_equal(query, state["sem_seg_head.predictor.query_feat.weight"])


def test_converts_back_to_the_same_file_with_its_int64_buffers(golden, state):
    expert = runner.expert_of(golden)
    back = rules.to_torch(tree.flatten(expert.from_official(state)), expert.table)
    assert back.keys() == state.keys() - {"criterion.empty_weight"}
    for key, array in back.items():
        assert array.dtype == golden.manifest["tensors"][key]["dtype"]
        if array.dtype == np.float32:
            np.testing.assert_array_equal(array, state[key])


def test_what_does_not_fit_is_named(golden, state, tmp_path):
    expert = runner.expert_of(golden)
    path = save(tmp_path / "bad.pkl", {k: a for k, a in state.items() if "mask_embed.layers.1" not in k})
    with pytest.raises(UserError, match=r"bad\.pkl does not fit the model. Of its keys 2 missing: .*mask_embed"):
        expert.init_from_official(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"bad\.pkl"):
        expert.init_from_official(path)
    both = {**state, "sem_seg_head.predictor.static_query.weight": state["sem_seg_head.predictor.query_feat.weight"]}
    with pytest.raises(UserError, match="twice"):
        expert.from_official(both)


def test_sides_must_be_multiples_of_32(golden):
    module = runner.expert_of(golden).module
    with pytest.raises(ValueError, match="multiples of 32"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 48, 64, 3)), jnp.full((1, 2), 48))


def test_semantic_scores_weigh_masks_with_classes():
    rng = np.random.default_rng(0)
    logits, masks = rng.standard_normal((1, 3, 5)), rng.standard_normal((1, 2, 2, 3))
    scores = mask2former.semantic(jnp.asarray(logits, jnp.float32), jnp.asarray(masks, jnp.float32), (2, 2))
    classes = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = sum((1 / (1 + np.exp(-masks[..., q, None]))) * classes[:, None, None, q, :4] for q in range(3))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_resize_has_half_pixel_centres_clamped_borders_and_no_antialiasing():
    x = jnp.asarray([1.0, 2, 4, 8, 16, 32, 64, 128]).reshape(1, 1, 8, 1)
    np.testing.assert_allclose(pixel_decoder.resize(x, (1, 4))[0, 0, :, 0], [1.5, 6, 24, 96])
    np.testing.assert_allclose(pixel_decoder.resize(x, (1, 2))[0, 0, :, 0], [3, 48])  # between the two in the middle
    np.testing.assert_allclose(pixel_decoder.resize(x[:, :, :2], (1, 4))[0, 0, :, 0], [1, 1.25, 1.75, 2])


def test_sine_positions_count_from_one_and_end_at_two_pi():
    made, half = pixel_decoder.sine_positions(3, 5, 8), 4
    for y, x, channel in np.ndindex(made.shape):
        at, n = ((y + 1) / 3, channel) if channel < half else ((x + 1) / 5, channel - half)
        angle = 2 * np.pi * at / 10000 ** (n // 2 * 2 / half)
        np.testing.assert_allclose(made[y, x, channel], (np.cos if n % 2 else np.sin)(angle), atol=1e-5)


def test_a_query_sees_only_its_mask_and_without_one_everything():
    rng = np.random.default_rng(2)
    decoder = mask_decoder.MaskDecoder(classes=3, width=8, queries=30, depth=1, heads=2, hidden=4)
    features = jnp.asarray(rng.standard_normal((1, 4, 4, 5)), jnp.float32)
    level = jnp.asarray(rng.standard_normal((1, 2, 2, 8)), jnp.float32)
    variables = jax.jit(decoder.init)(jax.random.key(3), features, [level])

    @jax.jit
    def run(level):
        made, kept = decoder.apply(
            variables, features, [level], capture_intermediates=lambda m, _: m.name == "norm_cross", mutable=True
        )
        kept = kept["intermediates"]
        return made, kept["blocked"][0][0], kept["layer_0"]["norm_cross"]["__call__"][0][0]

    (_, masks), blocked, before = jax.device_get(run(level))
    assert masks.shape == (1, 4, 4, 30)
    # The last pixel changes: only those queries see it, before they talk to each other, that look there.
    _, _, after = jax.device_get(run(level.at[0, 1, 1].add(5)))
    changed = np.abs(before - after).max(-1) > 1e-6
    sees = ~blocked[:, 3] | blocked.all(-1)
    assert blocked.all(-1).any()
    assert sees.any()
    assert not sees.all()
    np.testing.assert_array_equal(changed, sees)
