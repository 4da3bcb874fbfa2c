"""How near PrismerBASE comes to what this machine allows: a part of tools.bench, on the rows of `prismer`.

A matrix product or a convolution takes as long as its operations at the rate of a large square product, or as its
operands and its result at the rate that memory is read, whichever is more: a roofline (Williams, Waterman and
Patterson 2009, doi 10.1145/1498765.1498785). The sum of these over all of a row's is its limit; what lies between two
products, softmax, say, counts nothing, and neither does what XLA reads twice. Of a condition the branch with the fewest
operations counts. What stays in a cache, and a convolution by Winograd, can beat their part of a limit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prismer_jax import runtime
from prismer_jax.errors import UserError
from prismer_jax.planning import model_flops

from . import prismer
from .worker import as_users_have_it

SIDE, READ = 4096, 2**28  # of the square matrices; numbers that are read, 1 GiB: more than caches hold


def measure(rows: Sequence[str] = (), *, seconds: float = 10) -> list[dict[str, Any]]:
    """Prints the table, and returns it: what `row` says of each.

    Args:
      rows: names of prismer.ROWS, all by default; each is measured in a process of its own.
      seconds: that each is measured at least.

    Raises:
      UserError: a process ends early.
    """
    table = []
    print(f"{'PrismerBASE, 480 px, six experts, float32':<46}{'GFLOP':>8}{'GB':>7}{'limit':>8}{'s':>8}{'share':>7}")
    for name in rows or prismer.ROWS:
        command = [sys.executable, "-m", __spec__.name, name, str(seconds)]
        ran = subprocess.run(command, env=as_users_have_it(), stdout=subprocess.PIPE, text=True)
        if ran.returncode:
            raise UserError(f"{' '.join(command)}: ended with status {ran.returncode}; see above.")
        row = json.loads(ran.stdout)
        numbers = f"{row['flops'] / 1e9:>8.0f}{row['bytes'] / 1e9:>7.1f}{row['limit']:>8.2f}{row['seconds']:>8.2f}"
        rates = f"{row['flops_a_second'] / 1e9:.0f} GFLOP/s, {row['bytes_a_second'] / 1e9:.1f} GB/s"
        print(f"{prismer.ROWS[name].title:<46}{numbers}{row['share']:>7.2f}  at {rates}", flush=True)
        table.append(row)
    return table


def row(name: str, seconds: float) -> dict[str, Any]:
    """Returns operations and bytes of a round's products, its least and its measured seconds, and the machine's rates.

    A round and the two rates are measured in turn for `seconds`, three times at least; the fastest of each counts.
    """
    work = prismer.OURS[name]()
    products = model_flops.products(work.jaxpr(), turns=work.turns, branch=min)
    square, long = jnp.ones((SIDE, SIDE)), jnp.ones((READ // 2**16, 2**16))
    multiply, read = jax.jit(jnp.matmul), jax.jit(lambda x: x.max(1))
    does: list[Callable[[], Any]] = [work, lambda: multiply(square, square), lambda: read(long)]
    rounds = [[timed(one) for one in does]]  # compiles
    start = time.monotonic()
    while len(rounds) <= 3 or time.monotonic() - start < seconds:
        rounds.append([timed(one) for one in does])
    took, product, reading = map(min, zip(*rounds[1:], strict=True))
    flops, size = 2.0 * SIDE**3 / product, 4.0 * READ / reading
    limit = least(products, flops, size)
    row = dict(row=name, title=prismer.ROWS[name].title, seconds=took, limit=limit, share=limit / took)
    row |= dict(flops=sum(one.times * one.flops for one in products), flops_a_second=flops)
    return row | dict(bytes=sum(one.times * one.size for one in products), bytes_a_second=size)


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


def least(products: Iterable[model_flops.Product], flops: float, size: float) -> float:
    """Returns the seconds that products take at least at so many operations, and so many bytes, a second."""
    return sum(one.times * max(one.flops / flops, one.size / size) for one in products)


if __name__ == "__main__":
    runtime.use_compilation_cache()
    print(json.dumps(row(sys.argv[1], float(sys.argv[2]))))
