import re

import jax
import jax.numpy as jnp
import pytest

from prismer_jax import config, sharding
from prismer_jax.planning import memory, plan, stand_ins
from prismer_jax.testing import ROOT

WIDTH, BATCH, LAYERS = 256, 4096, 8


def test_memory_is_told_apart():
    """A gradient of a chain of layers keeps the output of each, and the parameters' gradients."""
    kernels = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32)
    frozen = jax.ShapeDtypeStruct((WIDTH,), jnp.float32)
    state = {"params": {"kernels": kernels, "frozen": frozen}, "opt": (kernels, kernels)}
    batch = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32)

    def update(state, batch):
        def loss(kernels):
            out, _ = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), batch, kernels)
            return out.sum()

        gradient = jax.grad(loss)(state["params"]["kernels"])
        norm = jnp.sqrt((gradient**2).sum())  # every one of them is needed before the first update
        kernels = state["params"]["kernels"] - gradient / norm
        return {"params": state["params"] | {"kernels": kernels}, "opt": state["opt"]}

    compiled = jax.jit(update, donate_argnums=0).lower(state, batch).compile()
    lines = memory.lines(state, {"kernels": kernels}, batch, compiled)
    count = LAYERS * WIDTH * WIDTH
    numbers = {line.split("  ")[0].strip(): re.findall(r"[\d,]+(?= )", line) for line in lines}
    assert numbers["parameters"][0] == f"{count + WIDTH:,}"
    assert numbers["gradients"][0] == f"{count:,}"
    assert numbers["optimizer's state"][0] == f"{2 * count:,}"
    activations = float(lines[-2].split()[-2]) * 2**30
    kept = LAYERS * BATCH * WIDTH * 4
    assert 0.9 * kept < activations < 6 * kept
    assert re.match(r"a step takes 0\.\d\d GiB of each", lines[-1])


def test_an_estimate_needs_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path / "none"))
    memory.main(f"{ROOT}/configs/quickstart.py:z,smoke", ["batch_size=8"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("parameters ")
    assert lines[-1].startswith("a step takes ")
    assert not (tmp_path / "none").exists()


def measure(preset, remat):
    """Returns the bytes a device of state and gradients, and of a step's peak, of a PrismerZ of 16 M on 8 devices."""
    values = config.plain(config.load(f"{ROOT}/transfers/vqav2.py:smoke,experts=none"))
    decoder = dict(values["model"]["decoder"], width=256, layers=8, mlp_dim=1024)
    values["model"] |= dict(width=256, layers=8, decoder=decoder, remat=remat)
    cfg = config.strict(values | dict(batch_size=64, sharding=preset))
    step, batch = stand_ins.step(cfg, sharding.make_mesh())
    state = [step.state["params"], step.state["opt"], plan._gradients(cfg, step)]
    with jax.set_mesh(step.mesh):
        compiled = step.update.lower(step.state, batch).compile({"xla_backend_optimization_level": 0})
    return memory.share(state), memory.peak(compiled.memory_analysis())


@pytest.mark.slow
def test_zero3_holds_an_eighth_of_the_state_and_with_remat_less_than_half_of_the_peak():
    """The bounds are those of Prismer large at 480 pixels in docs/scaling.md, which takes longer to compile."""
    whole, default = measure("replicated", "dots")
    part, peak = measure("zero3", "full")
    assert part <= 0.14 * whole
    assert peak <= 0.5 * default
