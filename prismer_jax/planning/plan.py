"""A training step planned for TPUs that are not here: python -m prismer_jax.train --config FILE.py --plan v5e:4x4

The very step that `train` runs is compiled by libtpu for a described slice, from shapes alone. What it takes of memory
is the compiler's; how fast it is at most is an estimate from what the chips can do, as published, if everything
overlaps.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from prismer_jax import config, runtime, sharding
from prismer_jax.errors import UserError
from prismer_jax.files import storage
from prismer_jax.planning import model_flops, program, stand_ins, topologies
from prismer_jax.planning.report import Plan, table
from prismer_jax.training.step import Step, make_step

VERSION = 1  # of what is kept of a compilation
EXAMPLES = 10**9  # of a made-up data set: a schedule's length costs nothing


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
    step, batch = _step(cfg, mesh)
    with jax.set_mesh(mesh):
        lowered = step.update.lower(step.state, batch)
    facts = _cached(lowered, topology, mesh)
    return Plan(
        topology=topology,
        mesh=mesh,
        sharding=preset,
        batch_size=cfg.batch_size,
        parameters=_share(step.state["params"]),
        gradients=_share(step.trainable),
        optimizer=_share(step.state["opt"]),
        batch=_share(batch),
        others=_share({key: part for key, part in step.state.items() if key not in ("params", "opt")}),
        model_flops=_model_flops(cfg, mesh),
        facts=facts,
    )


def _step(cfg: config.Section, mesh: jax.sharding.Mesh) -> tuple[Step, Any]:
    tokenizer = stand_ins.tokenizer(cfg.tokenizer)
    durations: dict[str, int] = dict(batch_size=cfg.batch_size, num_examples=EXAMPLES)
    durations["total_steps"] = config.steps(cfg, "total", **durations)
    step = make_step(cfg, tokenizer, mesh, durations)
    place = sharding.batch_sharding(mesh)
    batch = {
        key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        for key, x in stand_ins.batch(cfg, tokenizer, step.model).items()
    }
    return step, batch


def _share(tree: Any) -> int:
    """Returns the bytes of a tree of shapes that one device holds."""
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))


def _model_flops(cfg: config.Section, mesh: jax.sharding.Mesh) -> float:
    """Returns the operations of the step without rematerialisation."""
    values = config.plain(cfg)
    if "remat" in values["model"]:
        values["model"]["remat"] = "none"
    step, batch = _step(config.strict(values), mesh)
    with jax.set_mesh(mesh):
        return model_flops.count(step.update.trace(step.state, batch).jaxpr.jaxpr)


def _cached(lowered: Any, topology: topologies.Topology, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns what `_compile` does, from the cache of programs that were compiled before, if it is there."""
    versions = [VERSION, jax.__version__, metadata.version("libtpu"), topology.name, [d.id for d in mesh.devices.flat]]
    digest = hashlib.sha256(json.dumps(versions).encode())
    digest.update(lowered.as_text().encode())
    file = runtime.cache_dir() / "plans" / f"{digest.hexdigest()[:32]}.json"
    if file.exists():
        return json.loads(file.read_text())
    facts = _compile(lowered, mesh)
    file.parent.mkdir(parents=True, exist_ok=True)
    storage.write_json(file, facts)
    return facts


def _compile(lowered: Any, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns the memory of the compiled program, and what `program.facts` reads in it; {'used'} if it does not fit."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", str(error))
        if used is None:
            raise
        return {"peak": _bytes(used[1], used[2]), "usable": _bytes(used[3], used[4]), "fits": False}
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    peak = arguments + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes
    own = program.facts(compiled.as_text(), mesh.size)
    return {"fits": True, "peak": peak, "arguments": arguments, "temporaries": temporaries, **own}


def _bytes(number: str, unit: str) -> float:
    return float(number) * 2.0 ** (10 * (1 + "KMGT".index(unit)))
