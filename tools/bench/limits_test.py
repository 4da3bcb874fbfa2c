import json

import jax
import jax.numpy as jnp
import pytest

from prismer_jax.errors import UserError
from prismer_jax.planning import model_flops
from tools.bench import limits, prismer
from tools.bench.prismer_test import tiny  # noqa: F401


def test_products_are_counted_with_their_bytes_and_turns():
    x, kernels = jnp.ones((3, 8)), jnp.ones((5, 8, 8), jnp.bfloat16)

    def loop(x, kernels):
        x = jax.lax.scan(lambda x, kernel: (x @ kernel.astype(x.dtype), None), x, kernels)[0]
        x = jax.lax.while_loop(lambda x: x.max() < 9, lambda x: x @ kernels[0], x)
        return jax.lax.cond(x[0, 0] > 0, lambda x: (x @ x.T) @ x, lambda x: x * jnp.sum(x @ x.T), x)

    jaxpr = jax.make_jaxpr(loop)(x, kernels).jaxpr
    products = model_flops.products(jaxpr, turns=7, branch=min)
    assert [(one.times, one.flops) for one in products] == [(5, 2 * 3 * 64), (7, 2 * 3 * 64), (1, 2 * 9 * 8)]
    assert [one.size for one in products][::2] == [4 * (24 + 64 + 24), 4 * (24 + 24 + 9)]
    assert model_flops.count(jaxpr) == 6 * 2 * 3 * 64 + 2 * 2 * 9 * 8  # a turn, and the longer branch


def test_a_limit_is_of_operations_or_of_bytes_product_by_product():
    products = [model_flops.Product(2, 100.0, 10.0), model_flops.Product(1, 10.0, 100.0)]
    assert limits.least(products, flops=100.0, size=10.0) == 2 * 1.0 + 10.0


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("encoder", "vqa_rank16")]


@pytest.mark.parametrize("name", ["decode", *SLOW])
def test_a_row_is_measured_beside_its_limit(tiny, monkeypatch, name):  # noqa: F811
    monkeypatch.setattr(limits, "SIDE", 128)
    monkeypatch.setattr(limits, "READ", 2**17)
    found = limits.row(name, 0)
    assert found["share"] == found["limit"] / found["seconds"] > 0
    work = prismer.OURS[name]()
    once = model_flops.count(jax.make_jaxpr(work.function)(*work.arguments).jaxpr)
    more = found["flops"] / once
    assert more == pytest.approx(1) if name == "encoder" else (more > 2 if name == "decode" else more < 1)


def test_each_token_of_a_search_reads_the_kernels_again(tiny):  # noqa: F811
    work = prismer.decoding()
    products = [model_flops.products(work.jaxpr(), turns=turns) for turns in (1, 2, 15)]
    first, second, last = (sum(one.times * one.size for one in each) for each in products)
    layers = jax.tree_util.tree_leaves_with_path(work.arguments[0]["params"]["decoder"]["layers"])
    once = ("['cross_attention']['key']['kernel']", "['cross_attention']['value']['kernel']")  # of the image
    kernels = [x.nbytes for path, x in layers if x.ndim == 3 and not jax.tree_util.keystr(path).endswith(once)]
    assert last - first == 14 * (second - first)
    assert 1 < (second - first) / sum(kernels) < 3  # besides them the table of words, and keys and values
    assert work().shape == (2, 1, prismer.LENGTH - prismer.PREFIX)


def test_a_table_is_printed_and_a_process_that_fails_is_one_line(monkeypatch, capsys):
    said = dict(row="encoder", flops=2e12, bytes=3e9, limit=1.0, seconds=2.0, share=0.5)
    said |= dict(flops_a_second=4e11, bytes_a_second=1e10)

    class Ran:
        returncode, stdout = 0, json.dumps(said)

    monkeypatch.setattr(limits.subprocess, "run", lambda *_, **__: Ran)
    assert limits.measure(["encoder"], seconds=0) == [said]
    (_, line) = capsys.readouterr().out.splitlines()
    assert line.split()[-10:] == ["2000", "3.0", "1.00", "2.00", "0.50", "at", "400", "GFLOP/s,", "10.0", "GB/s"]
    Ran.returncode = 1
    with pytest.raises(UserError, match=r"encoder 0: ended with status 1; see above."):
        limits.measure(["encoder"], seconds=0)
