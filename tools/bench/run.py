"""Speed of the parts of a config's run: its photos, loader, training step and decoding. A part of tools.bench."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from prismer_jax import assembly, config, decode, input, optim, pp, runtime, sharding
from prismer_jax.batch import TEXT
from prismer_jax.datasets import scenes
from prismer_jax.training.step import make_update


def rate(work: Callable[[], int], seconds: float) -> float:
    """Items a second of `work`, which returns how many it did; called once before the clock starts."""
    work()
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        done += work()
    return done / passed


class Bench:
    """What the measurements share: the config's data, model and first batch."""

    def __init__(self, cfg: config.Section, seconds: float) -> None:
        self.cfg, self.seconds = cfg, seconds
        self.tokenizer = pp.tokenizer.load(cfg.tokenizer)
        runtime.use_xla_sums()  # before any array, as `train` does
        self.mesh = sharding.make_mesh(config.plain(cfg.get("mesh")))

    @functools.cached_property
    def model(self) -> Any:
        return assembly.make_model(self.cfg, self.tokenizer)

    @functools.cached_property
    def variables(self) -> Any:
        return jax.jit(self.model.init_variables)(jax.random.key(0))

    def batches(self) -> input.TrainBatches:
        mixture = assembly.load_mixture(self.cfg.data, self.tokenizer)
        return input.train_batches(mixture, batch_size=self.cfg.batch_size, seed=0)

    @functools.cached_property
    def batch(self) -> Any:
        batches = self.batches()
        batch = next(batches)
        batches.close()
        return next(input.to_device(iter([batch]), sharding.batch_sharding(self.mesh)))

    def scenes(self) -> float:
        settings, numbers = scenes.Settings("train", 96, 1000, 0), iter(range(10**9))
        return rate(lambda: len([scenes.example(settings, next(numbers))]), self.seconds)

    def loader(self) -> float:
        batches = self.batches()
        try:
            return rate(lambda: len(next(batches)["_mask"]), self.seconds)
        finally:
            batches.close()

    def step(self) -> float:
        trainable, _ = optim.split(self.variables["params"])
        optimizer = config.call(
            optim.make,
            self.cfg.optim,
            "config.optim",
            skip=config.duration_keys("warmup"),
            params=trainable,
            total_steps=1000,
        )
        update = make_update(self.model, assembly.make_loss(self.cfg.loss), optimizer.tx)
        update = jax.jit(update, donate_argnums=0)
        state = {**self.variables, "opt": optimizer.tx.init(trainable), "step": np.int32(0)}
        # A copy, as the step donates it; where the step leaves it, or the second step would compile again.
        state = jax.device_put(jax.tree.map(np.array, state), sharding.replicated(self.mesh))

        def work() -> int:
            nonlocal state
            state, measured = update(state, self.batch)
            jax.block_until_ready(measured)
            return self.cfg.batch_size

        return rate(work, self.seconds)

    def decode(self, method: str, **settings: Any) -> float:
        batch = {**self.batch, **{key: self.batch[key][:, :1] for key in TEXT}}
        settings |= {"eos": self.tokenizer.eos, "pad": self.tokenizer.pad}

        def work() -> int:
            run = decode.generate(self.model, self.variables, batch, method=method, max_new=20, min_new=20, **settings)
            jax.block_until_ready(run)
            return len(np.asarray(run[1]))

        return rate(work, self.seconds)


BENCHES: dict[str, Callable[[Bench], dict[str, float]]] = {
    "scenes": lambda b: {"scenes a second on one core": b.scenes()},
    "loader": lambda b: {"loader, examples a second": b.loader()},
    "step": lambda b: {"training step, images a second": b.step()},
    "decode": lambda b: {
        "greedy captions a second": b.decode("greedy"),
        "beam-3 captions a second": b.decode("beam", num_beams=3),
    },
}
