"""Measures speed: python -m tools.bench [--only NAME ...] [--config FILE[:arg]] [--seconds 10]

    scenes   scenes rendered, labelled and encoded a second, on one core
    loader   examples a second that the config's loader gives when nothing else runs
    step     images a second of the config's training step, fed from memory
    decode   captions a second, greedily and with beams
    experts  photos of 480x480 a second that each expert's network labels, and peak memory; only where it is asked for:
             python -m tools.bench --only experts [--experts depth edge ...] [--batch-size 4] [--dtype float32]
             [--reference CHECKOUT --reference-python PYTHON], a checkout of NVlabs/prismer to be compared with
    loader   with --reference: our loader beside the official Dataset, at 480 px with six labels, on one core; python -m
             tools.bench --only loader --reference CHECKOUT --reference-python PYTHON --list FILE --images DIR --labels
             DIR, or other flags that name photos (by default 64 rendered scenes)
    loader/step   how many times faster the loader is than what it feeds

All in one run, one after the other, so that ratios hold on a noisy machine. One line each, with the machine below.
"""

from __future__ import annotations

import functools
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from prismer_jax import assembly, config, decode, input, optim, pp, runtime, sharding
from prismer_jax.datasets import scenes
from prismer_jax.errors import UserError, choose, run_main
from prismer_jax.experts import EXPERTS
from prismer_jax.train import make_update
from tools import bench_experts, bench_loader, source_arguments


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
        self.mesh = sharding.make_mesh(config.plain(cfg.get("mesh")))
        jax.set_mesh(self.mesh)

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
        update = make_update(self.model, assembly.make_loss(self.cfg.loss), optimizer.tx, self.tokenizer.pad)
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
        batch = {**self.batch, "text": self.batch["text"][:, :1]}

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


def main(argv: list[str] | None = None) -> None:
    parser = config.ArgumentParser(prog="python -m tools.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.py", help="FILE.py or FILE.py:arg")
    parser.add_argument("--only", nargs="+", default=list(BENCHES), help=f"of {', '.join(BENCHES)}, experts")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each is measured")
    parser.add_argument("--experts", nargs="+", default=list(EXPERTS), help=f"of {', '.join(EXPERTS)}")
    parser.add_argument("--batch-size", type=int, default=4, help="of the experts")
    parser.add_argument("--dtype", default="float32", help="of the experts: float32 or bfloat16")
    parser.add_argument(
        "--reference", type=pathlib.Path, help="checkout of NVlabs/prismer, to compare experts or loader with"
    )
    parser.add_argument("--reference-python", default=sys.executable, help="a Python that has PyTorch, for it")
    source_arguments.add_arguments(parser)
    args, overrides = parser.parse(argv)
    chosen = [choose("benchmark", name, BENCHES | {"experts": None}) for name in args.only]
    runtime.use_compilation_cache()
    if args.only == ["experts"]:
        names = [name for name in args.experts if choose("expert", name, EXPERTS)]
        settings = dict(batch=args.batch_size, dtype=args.dtype, seconds=args.seconds)
        bench_experts.measure(names, args.reference, args.reference_python, **settings)
        print(_machine())
        return
    if args.only == ["loader"] and args.reference is not None:
        named = any(getattr(args, kind) is not None for kind in source_arguments.KINDS)
        source = source_arguments.open_source(args) if named else scenes.load(task="all", size=480, count=64)
        bench_loader.measure(source, args.reference, args.reference_python, seconds=args.seconds)
        print(_machine())
        return
    if "experts" in args.only:
        raise UserError("--only experts goes alone: what else is measured would be in memory beside it.")
    bench = Bench(config.load(args.config, overrides), args.seconds)
    results: dict[str, float] = {}
    for measure in chosen:
        for name, value in measure(bench).items():
            print(f"{name:<36}{value:10.1f}", flush=True)
            results[name] = value
    if "loader, examples a second" in results and "training step, images a second" in results:
        ratio = results["loader, examples a second"] / results["training step, images a second"]
        print(f"{'loader / step':<36}{ratio:10.1f}")
    print(_machine())


def _machine() -> str:
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    return f"{devices}, {os.cpu_count()} cores, {platform.machine()}, jax {jax.__version__}"


if __name__ == "__main__":
    run_main(main)
