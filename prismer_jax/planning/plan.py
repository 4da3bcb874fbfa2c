"""A training step planned for TPUs that are not here: python -m prismer_jax.train --config FILE.py --plan v5e:4x4

The very step that `train` runs is compiled by libtpu for a described slice, from shapes alone. What it takes of memory
is the compiler's; how fast it is at most is an estimate from what the chips can do, as published, if everything
overlaps.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from prismer_jax import assembly, config, runtime, sharding
from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.planning import memory, model_flops, program, stand_ins, topologies
from prismer_jax.planning.report import Plan, table
from prismer_jax.training.step import Step

VERSION = 2  # of what is kept of a compilation


def main(spec: str, overrides: Sequence[str], wanted: str) -> None:
    """Plans a config's training step on each topology with each sharding, and prints what comes out.

    Args:
      spec, overrides: of `config.load`.
      wanted: topologies, 'v5e:4x4', and presets of config.sharding, 'zero3', with commas between them; without a preset
        the config's own sharding.

    Raises:
      UserError: an unknown topology or preset, a mesh or batch that does not fit, no libtpu.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing runs; an accelerator that is there is not taken
    words = [word.strip() for word in wanted.split(",") if word.strip()]
    presets = [word for word in words if ":" not in word] or [None]
    slices = [topologies.describe(word) for word in words if ":" in word]
    if not slices:
        raise UserError("--plan needs a topology, as in --plan v5e:4x4 or --plan v5e:4x4,v5e:16x16,zero3.")
    cases = []
    for topology, preset in itertools.product(slices, presets):
        cfg = config.strict(config.load(spec, [*overrides, *([f"sharding={preset}"] if preset else [])]))
        mesh = sharding.make_mesh(config.plain(cfg.get("mesh")), topology.devices)
        sharding.check_batch(cfg.batch_size, mesh, cfg.get("accumulate", 1))
        cases.append((cfg, topology, mesh, preset))
    plans = []
    for cfg, topology, mesh, preset in cases:
        plans.append(plan(cfg, topology, mesh, preset or "as configured"))
        print(*plans[-1].lines(), "", sep="\n", flush=True)
    if len(plans) > 1:
        print(*table(plans), sep="\n")


def plan(cfg: config.Section, topology: topologies.Topology, mesh: jax.sharding.Mesh, preset: str) -> Plan:
    """Returns the plan of a config's training step on a mesh of a topology's devices."""
    step, batch = stand_ins.step(cfg, mesh)
    with jax.set_mesh(mesh):
        lowered = step.update.lower(step.state, batch)
    facts = _facts(lowered, memory.share((step.state, batch)), topology, mesh)
    return Plan(
        topology=topology,
        mesh=mesh,
        sharding=preset,
        batch_size=cfg.batch_size,
        parameters=memory.share(step.state["params"]),
        gradients=memory.share(_gradients(cfg, step)),
        optimizer=memory.share(step.state["opt"]),
        batch=memory.share(batch),
        others=memory.share({key: part for key, part in step.state.items() if key not in ("params", "opt")}),
        model_flops=_model_flops(cfg),
        facts=facts,
    )


def _gradients(cfg: config.Section, step: Step) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the gradients, which lie as the parameters do unless the preset splits them."""
    spec, tensor = assembly.sharding_of(cfg, step.model)
    shardings = sharding.gradients(step.state["params"], step.trainable, spec, step.mesh, tensor)
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings.get(name, x.sharding))
        for name, x in step.trainable.items()
    }


def _model_flops(cfg: config.Section) -> float:
    """Returns the operations of the step without rematerialisation."""
    values = config.plain(cfg)
    if "remat" in values["model"]:
        values["model"]["remat"] = "none"
    mesh = sharding.make_mesh(devices=jax.devices("cpu")[:1])  # a TPU's kernels do not show their products
    step, batch = stand_ins.step(config.strict(values), mesh)
    with jax.set_mesh(mesh):
        return model_flops.count(step.update.trace(step.state, batch).jaxpr.jaxpr)


def _facts(lowered: Any, arguments: int, topology: topologies.Topology, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns {'fits', 'peak', ...} of the compiled program, see `Plan`; compiled if it is not in the cache."""
    versions = [VERSION, jax.__version__, metadata.version("libtpu"), topology.name, [d.id for d in mesh.devices.flat]]
    digest = hashlib.sha256(json.dumps(versions).encode())
    digest.update(lowered.as_text().encode())
    file = runtime.cache_dir() / "plans" / f"{digest.hexdigest()[:32]}.json"
    text = file.with_suffix(".hlo.gz")  # beside it, for a closer look
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        sizes, program_text = compiled(lowered, arguments)
        storage.write(text, gzip.compress(program_text.encode()))
        storage.write_json(file, sizes)
    facts = json.loads(file.read_text())
    if facts["fits"]:
        facts |= program.facts(gzip.decompress(text.read_bytes()).decode(), mesh.size)
    return facts


def compiled(lowered: Any, arguments: int) -> tuple[dict[str, Any], str]:
    """Returns the memory that a program takes, and its text; of one that does not fit, what it would take, and ''."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (refused := refusal(str(error), arguments)) is None:
            raise
        return refused, ""
    used = program.memory_analysis()
    sizes = {"arguments": used.argument_size_in_bytes, "temporaries": used.temp_size_in_bytes}
    return {"fits": True, "peak": memory.peak(used), **sizes}, program.as_text()


def refusal(message: str, arguments: int) -> dict[str, Any] | None:
    """Returns {'fits', 'peak', 'usable'} of a program that XLA refused as too large; of any other error, None.

    XLA says one of two things: what the whole program takes or, earlier, what its temporaries do, beside `arguments`.
    """
    size = r"([\d.]+)([KMGT])"
    if whole := re.search(rf"Used {size} of {size} hbm", message):
        return {"fits": False, "peak": _bytes(whole[1], whole[2]), "usable": _bytes(whole[3], whole[4])}
    if part := re.search(rf"HLO temporaries \({size}\) exceeds available HBM \({size}\)", message):
        return {"fits": False, "peak": _bytes(part[1], part[2]) + arguments, "usable": _bytes(part[3], part[4])}
    return None


def _bytes(number: str, unit: str) -> float:
    return float(number) * 2.0 ** (10 * (1 + "KMGT".index(unit)))
