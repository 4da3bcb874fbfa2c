"""What a model takes of a TPU's memory while it writes: python -m prismer_jax.evaluate --config FILE.py --plan v5e:2x2

The very program that captions or answers is compiled by libtpu for one chip, from shapes alone, as `train --plan` does
with a step. Weights are of the type that `config.model.dtype` computes in, or packed as `config.model.quantize` says.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prismer_jax import assembly, config, decode, pp
from prismer_jax.batch import inputs
from prismer_jax.errors import UserError
from prismer_jax.planning import memory, plan, stand_ins, topologies

BATCHES = (1, 8)  # photos


def main(spec: str, overrides: Sequence[str], wanted: str) -> None:
    """Prints what each task of a config takes of a chip of each topology.

    Args:
      spec, overrides: of `config.load`.
      wanted: topologies, 'v5e:2x2', with commas between them.

    Raises:
      UserError: an unknown topology, no libtpu, or a config none of whose tasks writes.
    """
    jax.config.update("jax_platforms", "cpu")  # nothing runs
    slices = [topologies.describe(word.strip()) for word in wanted.split(",")]
    cfg = config.strict(config.load(spec, list(overrides)))
    tokenizer = stand_ins.tokenizer(cfg.tokenizer)
    model = assembly.make_model(cfg, tokenizer)
    tasks = {name: task for name, task in config.plain(cfg.get("tasks", {})).items() if task.get("decode")}
    if not tasks:
        raise UserError(f"{spec}: none of its tasks generates text; evaluate --plan needs config.tasks.NAME.decode.")
    variables = kept(model, cfg.model.get("dtype", "float32"))
    for topology in slices:
        print(f"{topology.name}, one chip, weights {memory.share(variables) / 2**30:.2f} GiB")
        for name, task in tasks.items():
            for count in BATCHES:
                program = lower(model, variables, task, tokenizer, count, topology.devices[0])
                sizes, _ = plan.compiled(program, memory.share(variables))
                room = sizes.get("usable", topology.chip.memory)
                fits = "fits" if sizes["fits"] else "does not fit"
                many = f"{count} photo{'s' * (count > 1)}"
                print(f"  {name}, {many}: {sizes['peak'] / 2**30:.2f} of {room / 2**30:.2f} GiB: {fits}", flush=True)


def kept(model: Any, dtype: str) -> dict[str, Any]:
    """Returns the shapes of a model's variables, all that are no codes and no ids in one type."""

    def cast(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)

    return jax.tree.map(cast, jax.eval_shape(model.init_variables, jax.random.key(0)))


def lower(
    model: Any, variables: Mapping[str, Any], task: Mapping[str, Any], tokenizer: Any, count: int, device: Any
) -> jax.stages.Lowered:
    """Returns the program that writes for a batch of so many photos, lowered for a device.

    Args:
      task: {'pp', 'decode'} of a config's `tasks`.
    """
    chain = pp.build(task["pp"], tokenizer=tokenizer)
    row = chain(stand_ins.example(model.experts), np.random.default_rng(0))
    batch = {key: np.broadcast_to(x, (count, *np.shape(x))) for key, x in inputs(row).items()}
    place = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (variables, batch))
    ids = {"eos": tokenizer.eos, "pad": tokenizer.pad}
    say = functools.partial(decode.generate, model, rng=jax.random.key(0), **ids, **task["decode"])
    return jax.jit(lambda variables, batch: say(variables=variables, batch=batch)).lower(*shapes)
