import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from prismer_jax import optim
from prismer_jax.errors import UserError

RNG = np.random.default_rng(0)
PARAMS = {
    "encoder": {"kernel": RNG.normal(size=(3, 4)).astype("f"), "bias": RNG.normal(size=4).astype("f")},
    "head": {"kernel": RNG.normal(size=(4, 2)).astype("f")},
}
FLAT, _ = optim.split(PARAMS)
GRADS = [{k: RNG.normal(size=v.shape).astype("f") for k, v in FLAT.items()} for _ in range(3)]


def run(optimizer, params, grads):
    state = optimizer.tx.init(params)
    for g in grads:
        updates, state = optimizer.tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


def adamw(p, grads, lrs, wd, b1=0.9, b2=0.999, eps=1e-8):
    """torch.optim.AdamW in float64."""
    p, m, v = p.astype(float), 0.0, 0.0
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        p = p * (1 - lr * wd)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g.astype(float) ** 2
        p = p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return p


def test_adamw_with_groups_equals_a_hand_written_one():
    optimizer = optim.make(
        FLAT,
        3,
        lr=0.1,
        end_lr=0.01,
        weight_decay=0.3,
        b1=0.8,
        lr_mults=[("encoder/.*", 0.5), (".*", 2.0)],
        wd_mults=[(".*/bias", 0.0)],
    )
    trained = run(optimizer, FLAT, GRADS)
    for name, mult, wd in [("encoder/kernel", 0.5, 0.3), ("encoder/bias", 0.5, 0.0), ("head/kernel", 2.0, 0.3)]:
        lrs = [mult * (0.01 + 0.09 * 0.5 * (1 + np.cos(np.pi * step / 3))) for step in range(3)]
        expected = adamw(FLAT[name], [g[name] for g in GRADS], lrs, wd, b1=0.8)
        # float32's 1 - 0.999**t is good to 6e-5, steps are about as large as the learning rate
        np.testing.assert_allclose(trained[name], expected, rtol=0, atol=4e-5 * sum(lrs))
    assert optimizer.schedules["lr/encoder/.*"](0) == pytest.approx(0.05)


def test_schedules_meet_at_the_end_of_the_warmup_and_run_on_host_and_device():
    rate = optim.make_schedule("cosine", lr=1.0, total_steps=110, warmup_steps=10, start_lr=0.5, end_lr=0.2)
    steps = np.array([0, 5, 10, 60, 110, 200])
    expected = [0.5, 0.75, 1.0, 0.6, 0.2, 0.2]
    np.testing.assert_allclose([rate(int(s)) for s in steps], expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.jit(rate))(steps), expected, rtol=1e-6)
    # Twenty epochs of 300 steps as train_pretrain.py does it: a cosine set once an epoch, overwritten by the warm-up.
    rate = optim.make_schedule(
        "cosine", lr=3e-4, total_steps=6000, warmup_steps=2000, start_lr=1e-6, end_lr=1e-6, stairs=20
    )
    for step in (0, 1999, 2000, 2099, 2100, 3000, 5999):
        epoch = step // 300
        expected = 1e-6 + (3e-4 - 1e-6) * 0.5 * (1 + np.cos(np.pi * epoch / 20))
        expected = 1e-6 + (3e-4 - 1e-6) * step / 2000 if step < 2000 else expected
        assert float(rate(step)) == pytest.approx(expected, rel=1e-12)
    linear = optim.make_schedule("linear", lr=1.0, total_steps=10)
    constant = optim.make_schedule("constant", lr=1.0, total_steps=10, warmup_steps=2)
    assert [float(linear(5)), float(constant(1)), float(constant(10))] == [0.5, 0.5, 1.0]


def test_a_factor_may_be_one_of_each_layer():
    params = {"vision/blocks/up/kernel": jnp.ones((3, 2)), "vision/patches": jnp.ones(2), "temperature": jnp.ones(())}
    mults = [("vision/blocks/.*", (0.125, 0.25, 0.5)), ("vision/.*", 0.0625)]
    options = dict(name="sgd", lr=1.0, momentum=0.0, schedule="constant", weight_decay=0.0)
    made = optim.make(params, 10, **options, lr_mults=mults)
    updates, _ = made.tx.update(params, made.tx.init(params), params)
    rates = {name: (-update).tolist() for name, update in updates.items()}
    layers = [[0.125] * 2, [0.25] * 2, [0.5] * 2]
    assert rates == dict(zip(params, (layers, [0.0625] * 2, 1.0), strict=True))
    assert made.schedules["lr/vision/blocks/.*"](0) == 0.5
    made = optim.make(params, 10, **options | dict(weight_decay=1.0), wd_mults=mults)
    updates, _ = made.tx.update(jax.tree.map(jnp.zeros_like, params), made.tx.init(params), params)
    assert {name: (-update).tolist() for name, update in updates.items()} == rates


def test_a_rate_may_be_that_of_frozen_parameters_alone():
    """As in a published recipe of which one freezes a part: the projector alone is trained, say."""
    mults = dict(lr_mults=[("encoder/.*", 0.5)], wd_mults=[("encoder/bias", 0.0)])
    made = optim.make({"head/kernel": jnp.ones(2)}, 10, lr=0.1, frozen=("encoder/kernel", "encoder/bias"), **mults)
    assert made.schedules["lr"](5) == 2 * made.schedules["lr/encoder/.*"](5)
    with pytest.raises(UserError, match="matches no parameter"):
        optim.make({"head/kernel": jnp.ones(2)}, 10, lr=0.1, **mults)


def test_clipping_bounds_the_step_and_spares_small_gradients():
    optimizer = optim.make(FLAT, 1, name="sgd", momentum=0.0, lr=1.0, weight_decay=0.0, clip_norm=1.0)
    moved = run(optimizer, FLAT, GRADS[:1])
    assert float(optax.global_norm(jax.tree.map(jnp.subtract, moved, FLAT))) == pytest.approx(1.0, rel=1e-5)
    small = jax.tree.map(lambda g: g * 1e-3, GRADS[0])
    moved = run(optimizer, FLAT, [small])
    np.testing.assert_allclose(moved["head/kernel"], FLAT["head/kernel"] - small["head/kernel"], rtol=1e-6)


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_every_optimizer_descends(name):
    params = {"kernel": jnp.array([[1.0, -2.0, 3.0]])}
    optimizer = optim.make(params, 40, name=name, lr=0.1, schedule="constant")
    state = optimizer.tx.init(params)
    for _ in range(40):
        updates, state = optimizer.tx.update(jax.tree.map(lambda w: 2 * w, params), state, params)
        params = optax.apply_updates(params, updates)
    assert float(jnp.sum(params["kernel"] ** 2)) < 0.3 * (1 + 4 + 9)


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_what_optimizers_keep_is_float32_also_for_gradients_of_bfloat16(name):
    """Second moments of bfloat16 stop where the gradient's square is below 1/256 of them: Adam's steps are too long."""
    params = {"layer/kernel": jnp.ones((256, 256)), "layer/bias": jnp.ones(256)}
    optimizer = optim.make(params, 2, name=name, lr=0.1)
    gradient = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    state = optimizer.tx.init(params)
    for _ in range(2):
        types = {x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)}
        assert types <= {jnp.dtype(jnp.float32)}
        _, state = optimizer.tx.update(gradient, state, params)


def test_unknown_names_options_and_patterns_say_the_nearest():
    for kwargs, message in [
        (dict(name="adam"), "Unknown optimizer 'adam'. Did you mean 'adamw'"),
        (dict(stairs=-1), "stairs=-1"),
        (dict(schedule="cosin"), "Unknown schedule 'cosin'. Did you mean 'cosine'"),
        (dict(beta1=0.8), "optimizer 'adamw': unknown key 'beta1'"),
        (dict(name="sgd", momentun=0.8), "unknown key 'momentun'. Did you mean 'momentum'"),
        (dict(lr_mults=[("decoder/.*", 1.0)]), "lr_mults: 'decoder/.*' matches no parameter"),
        (dict(lr_mults={"encoder/.*": 0.5}), "lr_mults={'encoder/.*': 0.5}: a list of (regex of names, factor)"),
        (dict(wd_mults=[("bias", 1.0)]), "wd_mults: 'bias' matches no parameter"),
        (dict(warmup_steps=11), "warm-up of 11 steps does not fit into 10"),
    ]:
        with pytest.raises(UserError) as error:
            optim.make(FLAT, 10, lr=0.1, **kwargs)
        assert message in str(error.value)


def test_frozen_parameters_have_no_gradient_and_no_optimizer_state():
    trainable, frozen = optim.split(PARAMS, ["encoder/.*"])
    assert (set(trainable), set(frozen)) == ({"head/kernel"}, {"encoder/kernel", "encoder/bias"})
    jax.tree.map(np.testing.assert_array_equal, optim.merge(trainable, frozen), PARAMS)
    state = optim.make(trainable, 3, lr=0.1).tx.init(trainable)
    assert [x.shape for x in jax.tree.leaves(state) if x.ndim] == [(4, 2), (4, 2)]  # the two moments of the head
    with pytest.raises(UserError, match=r"freeze: 'encodr/\.\*' matches no parameter"):
        optim.split(PARAMS, ["encodr/.*"])
    with pytest.raises(UserError, match="nothing is left to train"):
        optim.split(PARAMS, [".*"])


def test_muon_takes_orthogonal_steps_in_kernels_and_adam_steps_elsewhere():
    shapes = {"a/kernel": (3, 8, 24), "stem/kernel": (3, 3, 4, 6), "a/bias": (24,), "word_embedding": (5, 8)}
    params = {name: np.zeros(shape, "f") for name, shape in shapes.items()}
    gradient = {name: RNG.normal(size=shape).astype("f") for name, shape in shapes.items()}
    optimizer = optim.make(params, 10, name="muon", lr=0.1, schedule="constant", weight_decay=0.0, adam_ratio=0.5)
    moved = run(optimizer, params, [gradient])
    for matrices, scale in ((moved["a/kernel"], 3**0.5), (moved["stem/kernel"].reshape(1, 36, 6), 1.0)):
        values = np.linalg.svd(matrices, compute_uv=False) / (0.1 * scale)
        assert ((values > 0.6) & (values < 1.3)).all()  # Newton-Schulz' steps end near 1, not at 1
    for name in ("a/bias", "word_embedding"):
        np.testing.assert_allclose(moved[name], -0.05 * np.sign(gradient[name]), rtol=1e-3)


def test_muon_treats_a_matrix_as_it_would_alone():
    shapes = {f"{i}/kernel": shape for i, shape in enumerate([(2, 8, 24), (8, 24), (24, 8), (3, 24, 8), (300, 300)])}
    params = {name: np.zeros(shape, "f") for name, shape in shapes.items()}
    gradient = {name: RNG.normal(size=shape).astype("f") for name, shape in shapes.items()}

    def moved(names):
        ours, theirs = ({name: tree[name] for name in names} for tree in (params, gradient))
        return run(optim.make(ours, 10, name="muon", lr=0.1, weight_decay=0.0), ours, [theirs, theirs])

    together = moved(shapes)
    for name in shapes:
        np.testing.assert_allclose(together[name], moved([name])[name], rtol=1e-4, atol=1e-5)


def test_muon_has_the_steps_and_the_state_of_optax():
    shapes = {"a/kernel": (2, 8, 24), "b/kernel": (24, 8), "c/kernel": (24, 8)}
    params = {name: np.zeros(shape, "f") for name, shape in shapes.items()}
    gradients = [{name: RNG.normal(size=shape).astype("f") for name, shape in shapes.items()} for _ in range(4)]
    ours = optim.make(params, 10, name="muon", lr=1.0, schedule="constant", weight_decay=0.0).tx
    axes = {name: optax.contrib.MuonDimensionNumbers(len(shape) - 2, len(shape) - 1) for name, shape in shapes.items()}
    theirs = optax.contrib.scale_by_muon(weight_dimension_numbers=axes)
    state, expected = ours.init(params), theirs.init(params)
    for gradient in gradients:
        steps, state = ours.update(gradient, state, params)
        others, expected = theirs.update(gradient, expected)
        for name, (*_, fan_in, fan_out) in shapes.items():
            scaled = -others[name] * max(1.0, fan_out / fan_in) ** 0.5
            np.testing.assert_allclose(steps[name], scaled, rtol=1e-3, atol=1e-4)
    kept = state[0].inner_states["kernel"].inner_state[0]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), kept, expected)


def test_clipping_sees_small_and_large_tensors_of_any_type():
    params = {
        "large": np.ones((30, 50), "f"),
        "a": np.ones(7, "f"),
        "b": jnp.ones(5, jnp.bfloat16),
        "c": np.ones((), "f"),
    }
    norm = optax.global_norm(jax.tree.map(lambda x: np.asarray(x, "f"), params))
    np.testing.assert_allclose(optim.global_norm(params), norm, rtol=1e-6)
    assert float(optim.global_norm({})) == 0
    still = {name: np.zeros(x.shape, "f") for name, x in params.items()}
    for clip, length in ((2.0, 2.0), (1e4, float(norm))):
        optimizer = optim.make(
            still, 9, name="sgd", momentum=0.0, lr=1.0, schedule="constant", weight_decay=0.0, clip_norm=clip
        )
        steps = run(optimizer, still, [{name: np.asarray(x, "f") for name, x in params.items()}])
        np.testing.assert_allclose(optax.global_norm(steps), length, rtol=1e-5)


def test_a_warmup_is_given_once():
    with pytest.raises(UserError, match="as steps or as a share"):
        optim.make({"a/kernel": np.ones(2, np.float32)}, 10, lr=1.0, warmup_steps=2, warmup_share=0.1)
