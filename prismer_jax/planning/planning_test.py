"""Plans: what is read in a program, the batch without data, the messages of bad input; with libtpu, a small model's."""

import importlib.util
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from prismer_jax import assembly, config, input, sharding
from prismer_jax.batch import KEYS
from prismer_jax.errors import UserError
from prismer_jax.models import build
from prismer_jax.planning import model_flops, program, report, stand_ins, topologies
from prismer_jax.planning import plan as plans
from prismer_jax.testing import ROOT
from prismer_jax.towers import layers

LAYERS, WIDTH, ROWS = 3, 64, 32


def loss(stack, x):
    def layer(x, kernel):
        return jnp.tanh(x @ kernel), None

    return jnp.sum(jax.lax.scan(layer, x, stack)[0])


@pytest.fixture(scope="module")
def compiled():
    """The gradient of scanned layers, whose rows are split over 8 devices and whose kernels are gathered."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def shape(*dims, axes):
        return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    arguments = shape(LAYERS, WIDTH, WIDTH, axes=(None, "data")), shape(ROWS, WIDTH, axes=("data",))
    step = jax.jit(jax.grad(loss), out_shardings=arguments[0].sharding)
    with jax.set_mesh(mesh):
        return step.lower(*arguments).compile(), step.trace(*arguments).jaxpr.jaxpr


def test_operations_are_counted_as_often_as_a_loop_runs(compiled):
    forward = 2 * ROWS * WIDTH * WIDTH * LAYERS
    assert model_flops.count(compiled[1]) == 3 * forward
    facts = program.facts(compiled[0].as_text(), 8)
    assert facts["flops"] * 8 == 3 * forward
    assert facts["flops_float32"] == facts["flops"]
    assert compiled[0].cost_analysis()["flops"] < 0.6 * facts["flops"]  # XLA's own takes a loop's body once


def test_gradients_of_frozen_kernels_are_not_counted():
    """Their product is traced by its own derivative, and dropped by the compiler."""
    x, kernel = jnp.zeros((ROWS, WIDTH)), jnp.zeros((WIDTH, WIDTH))

    def loss(trained, frozen):
        return layers.product(layers.product(x, trained), frozen).sum()

    forward = 2 * ROWS * WIDTH * WIDTH
    assert model_flops.count(jax.make_jaxpr(jax.value_and_grad(loss))(kernel, kernel).jaxpr) == 4 * forward
    both = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)))(kernel, kernel).jaxpr
    assert model_flops.count(both) == 5 * forward


def test_messages_are_found_with_their_bytes_and_groups(compiled):
    found = program.collectives(*_read(compiled[0].as_text()), 8)
    assert found
    assert all(one.group == tuple(range(8)) for one in found)
    gathered = sum(one.bytes * one.count for one in found if one.kind == "all-gather")
    assert gathered >= 4 * LAYERS * WIDTH * WIDTH
    assert gathered % (4 * WIDTH * WIDTH) == 0


def _read(text):
    parts, entry = program.parse(text)
    return parts, program.runs(parts, entry)


TPU = """HloModule jit_f
%all-reduce-scatter.1 (input: f32[256,64]) -> f32[64,64] {
  %input = f32[256,64]{1,0:T(8,128)S(1)} parameter(0)
  %all-reduce.3 = f32[256,64]{1,0:T(8,128)} all-reduce(%input), channel_id=4, replica_groups={{0,1,2,3}}, to_apply=%add
  %at = s32[] constant(64)
  ROOT %part = f32[64,64]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.3, %at, %at), dynamic_slice_sizes={64,64}
}
%read (stack: f32[5,256,64], at: s32[]) -> f32[1,256,64] {
  %stack = f32[5,256,64]{2,1,0:T(8,128)} parameter(0)
  %at.1 = s32[] parameter(1)
  ROOT %one = f32[1,256,64]{2,1,0:T(8,128)} dynamic-slice(%stack, %at.1, %at.1, %at.1), dynamic_slice_sizes={1,256,64}
}
%body (carry: (s32[], f32[5,256,64])) -> (s32[], f32[5,256,64]) {
  %carry = (s32[]{:T(128)}, f32[5,256,64]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %all = f32[5,256,64]{2,1,0:T(8,128)} get-tuple-element(%carry), index=1
  %layer = f32[1,256,64]{2,1,0:T(8,128)} fusion(%all, %i), kind=kLoop, calls=%read
  %flat = f32[256,64]{1,0:T(8,128)} bitcast(%layer)
  %sum = f32[64,64]{1,0:T(8,128)S(1)} fusion(%flat), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="up"}
  ROOT %next = (s32[]{:T(128)}, f32[5,256,64]{2,1,0:T(8,128)}) tuple(%i, %all)
}
%condition (carry.1: (s32[], f32[5,256,64])) -> pred[] {
  %carry.1 = (s32[]{:T(128)}, f32[5,256,64]{2,1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  %bound = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}
ENTRY %main (stack.1: f32[5,256,64]) -> (s32[], f32[5,256,64]) {
  %stack.1 = f32[5,256,64]{2,1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[5,256,64]{2,1,0:T(8,128)}) tuple(%zero, %stack.1)
  ROOT %loop = (s32[]{:T(128)}, f32[5,256,64]{2,1,0:T(8,128)}) while(%start), condition=%condition, body=%body
}
"""


def test_a_tpus_reduce_scatter_in_a_loop_is_read_as_one_and_slices_as_slices():
    facts = program.facts(TPU, 4)
    (one,) = facts["collectives"]
    assert one == {
        "kind": "reduce-scatter",
        "bytes": 4 * 256 * 64,
        "group": (0, 1, 2, 3),
        "count": 5,
        "op_name": "up",
    }
    assert program.Collective(**one).sent == 5 * 4 * 256 * 64 * 3 / 4
    # Each of five layers is read and written as a slice, at a number; a message and what is on the chip are no traffic.
    assert facts["traffic"] == 5 * (2 * 4 * 256 * 64 + 4)


HIDDEN = """HloModule jit_f
%async_collective_fusion.1 (mine: f32[64,64], whole: f32[256,64], kept: f32[9,8,8], x: f32[8,8]) -> (f32[9,8,8], f32[8,8], f32[256,64]) {
  %mine = f32[64,64]{1,0:T(8,128)} parameter(0)
  %whole = f32[256,64]{1,0:T(8,128)} parameter(1)
  %kept = f32[9,8,8]{2,1,0:T(8,128)} parameter(2)
  %x = f32[8,8]{1,0:T(8,128)} parameter(3)
  %at = s32[] constant(0)
  %product = f32[8,8]{1,0:T(8,128)} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %one = f32[1,8,8]{2,1,0:T(8,128)} bitcast(%product)
  %stack = f32[9,8,8]{2,1,0:T(8,128)} dynamic-update-slice(%kept, %one, %at, %at, %at)
  %gathered = f32[256,64]{1,0:T(8,128)} all-gather(%mine), channel_id=5, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %all = (f32[9,8,8]{2,1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)}, f32[256,64]{1,0:T(8,128)}) tuple(%stack, %product, %gathered)
}
ENTRY %main (a: f32[64,64], b: f32[256,64], c: f32[9,8,8], d: f32[8,8]) -> f32[8,8] {
  %a = f32[64,64]{1,0:T(8,128)} parameter(0)
  %b = f32[256,64]{1,0:T(8,128)} parameter(1)
  %c = f32[9,8,8]{2,1,0:T(8,128)} parameter(2)
  %d = f32[8,8]{1,0:T(8,128)} parameter(3)
  %first = (f32[9,8,8]{2,1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)}, f32[256,64]{1,0:T(8,128)}) fusion(%a, %b, %c, %d), kind=kOutput, calls=%async_collective_fusion.1
  ROOT %second = (f32[9,8,8]{2,1,0:T(8,128)}, f32[8,8]{1,0:T(8,128)}, f32[256,64]{1,0:T(8,128)}) fusion(%a, %b, %c, %d), kind=kOutput, calls=%async_collective_fusion.1
}
"""  # noqa: E501


def test_a_message_that_hides_behind_products_moves_its_bytes_once():
    """XLA cuts a gather into parts that several fusions carry, each with the whole arrays as operands and results."""
    second = HIDDEN[: HIDDEN.index("ENTRY")].removeprefix("HloModule jit_f\n").replace("fusion.1 ", "fusion.2 ")
    text = HIDDEN.replace("ENTRY", second + "ENTRY").replace("fusion.1\n}", "fusion.2\n}")
    facts = program.facts(text, 4)
    (gather,) = facts["collectives"]
    assert (gather["kind"], gather["bytes"], gather["count"]) == ("all-gather", 4 * 256 * 64, 1)
    product = 4 * 8 * 8 * 3  # read, written by itself and into its place among nine
    assert facts["traffic"] == 2 * product + 4 * (64 + 256) * 64


def test_a_loop_that_does_two_parts_at_once_runs_half_as_often():
    step = "%two = s32[]{:T(128)} constant(2)\n  %after = s32[]{:T(128)} add(%i, %two)"
    two = TPU.replace("ROOT %next", f"{step}\n  ROOT %next").replace("tuple(%i, %all)", "tuple(%after, %all)")
    (one,) = program.facts(two, 4)["collectives"]
    assert one["count"] == 3  # a counter below 5 that goes up by 2


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("replica_groups={{0,1},{2,3}}", (0, 1)),
        ("replica_groups=[2,2]<=[4]", (0, 1)),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", (0, 2)),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", (0, 2)),
        ("replica_groups={}", (0, 1, 2, 3)),
        ("source_target_pairs={{0,3},{3,0}}", (0, 3)),
    ],
)
def test_groups_are_read_as_xla_writes_them(written, group):
    assert program._group(f", channel_id=1, {written}, dimensions={{0}}", 4) == group


BETWEEN_SLICES = """HloModule jit_f
ENTRY %main (part: f32[6,8,128]) -> f32[6,8,128] {
  %part = f32[6,8,128]{2,1,0:T(8,128)} parameter(0)
  %after = token[] after-all()
  %send = (f32[6,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%part, %after), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_reduce_operation="SUM",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[6,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after), channel_id=1, is_host_transfer=true
  %done = (f32[6,8,128]{2,1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %sum = f32[6,8,128]{2,1,0:T(8,128)} get-tuple-element(%done), index=0
}
"""


def test_what_goes_through_the_hosts_is_a_message_between_slices():
    (one,) = program.facts(BETWEEN_SLICES, 8)["collectives"]
    assert one == {"kind": "all-reduce", "bytes": 4 * 6 * 8 * 128, "group": (0, 4), "count": 1, "op_name": "send"}


def test_a_convolutions_operations_are_those_that_meet_a_value():
    x, kernel = jnp.zeros((2, 9, 9, 3)), jnp.zeros((3, 3, 3, 5))

    def convolve(x):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    forward = 2 * 2 * 4 * 4 * 9 * 3 * 5
    assert model_flops.count(jax.make_jaxpr(convolve)(x).jaxpr) == forward
    backward = jax.make_jaxpr(jax.value_and_grad(lambda x: convolve(x).sum()))(x).jaxpr
    assert model_flops.count(backward) == 2 * forward  # zeros between the steps of the stride are not counted


def test_messages_along_more_axes_of_a_torus_use_more_links():
    topology = topologies.Topology("v5e:4x4", topologies.CHIPS["v5e"], ())
    place = {(x, y): SimpleNamespace(coords=(x, y, 0), slice_index=y // 2) for x in range(4) for y in range(4)}
    row = [place[x, 0] for x in range(4)]
    assert topology.links(row) == 2
    assert topology.links(row[:2]) == 1
    assert topology.links(list(place.values())) == 4
    assert not topologies.crosses_slices(row)
    assert topologies.crosses_slices(list(place.values()))


@pytest.mark.parametrize("name", ["v5x:4x4", "h100", "v5e", "v5e:4by4"])
def test_an_unknown_topology_is_refused_with_those_that_are_known(name):
    with pytest.raises(UserError, match=r"Unknown topology.*v4:2x2x1.*v5e:2x2.*v5p:2x2x1.*v6e:2x2"):
        topologies.describe(name)


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=re.escape("pip install prismer_jax[plan]")):
        topologies.describe("v5e:2x2")


@pytest.mark.parametrize(
    "file",
    [
        "pretrain.py:smoke",
        "pretrain.py:smoke,experts=none",
        "nanovlm.py:variant=222m,smoke",
        "nanovlm.py:variant=460m_8k,smoke",
    ],
)
def test_a_batch_is_planned_in_the_shapes_of_the_real_one(file):
    cfg = config.strict(config.load(f"{ROOT}/configs/{file}"))
    tokenizer = stand_ins.tokenizer(cfg.tokenizer)
    batches = input.train_batches(assembly.load_mixture(cfg.data, tokenizer), batch_size=cfg.batch_size, seed=0)
    real = next(batches)
    batches.close()
    model = build(**config.plain(cfg.model), tokenizer=tokenizer)
    planned = {key: (x.shape, x.dtype) for key, x in stand_ins.batch(cfg, tokenizer, model).items()}
    arrays = {key: (x.shape, x.dtype) for key, x in real.items() if key in KEYS or key.startswith("labels/")}
    if any(
        "pack" in part for part in cfg.data.values()
    ):  # rows are cut to what the batch needs; planned are whole ones
        assert planned.keys() == arrays.keys()
        for key, (shape, kind) in arrays.items():
            assert planned[key][1] == kind
            assert len(planned[key][0]) == len(shape)
            assert all(full >= cut for full, cut in zip(planned[key][0], shape, strict=True)), key
        return
    assert planned == arrays


def test_a_tokenizer_that_is_not_here_is_stood_in_for(tmp_path):
    words = stand_ins.tokenizer(f"roberta:{tmp_path}")
    assert words.encode("any text at all")
    assert words.id_of("<|image|>") is not None


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e .[plan]"
)


@needs_libtpu
def test_slices_share_the_axis_data_and_hold_the_others_whole():
    topology = topologies.describe("2xv5e:2x2")
    mesh = sharding.make_mesh({"data": -1, "fsdp": 4}, topology.devices)
    assert mesh.devices.shape == (2, 4, 1)
    assert [{device.slice_index for device in row.flat} for row in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match="2 slices must share the mesh's axis data, of size 1"):
        sharding.make_mesh({"data": 1, "fsdp": -1}, topology.devices)
    with pytest.raises(UserError, match=r"No slice 'v5e:3x3' .* Of v5e there are 2x2, 2x4"):
        topologies.describe("v5e:3x3")


@needs_libtpu
@pytest.mark.parametrize("kind", topologies.CHIPS)
def test_the_smallest_slice_of_each_kind_makes_a_mesh_of_its_chips(kind):
    """Also of v4, whose two cores are one device on the machines, and two unless libtpu is told so."""
    topology = topologies.describe(f"{kind}:{topologies.CHIPS[kind].examples[0]}")
    assert sharding.make_mesh(None, topology.devices).size == topology.chips == 4


@needs_libtpu
def test_between_slices_gradients_are_summed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_CACHE_DIR", str(tmp_path))
    topology = topologies.describe("2xv5e:2x2")
    values = config.plain(config.load(f"{ROOT}/configs/pretrain.py:smoke,experts=none"))
    cfg = config.strict(values | dict(sharding="zero3", batch_size=16, mesh=dict(data=2, fsdp=4, tensor=1)))
    mesh = sharding.make_mesh(config.plain(cfg.mesh), topology.devices)
    planned = plans.plan(cfg, topology, mesh, "zero3")
    between, within = [], []
    for one in planned.collectives:
        crosses = topologies.crosses_slices([mesh.devices.flat[place] for place in one.group])
        (between if crosses else within).append(one)
    assert {(one.kind, one.group) for one in between} == {("all-reduce", (0, 4))}  # the axis data alone
    assert {"all-gather", "reduce-scatter"} <= {one.kind for one in within}
    assert planned.gradients < sum(one.bytes for one in between) < 4 * planned.gradients  # each chip its part, but for
    assert planned.times["network"] > 0  # the words', whose two gradients XLA sums whole


@needs_libtpu
def test_a_kernel_of_parts_is_gathered_before_it_is_used():
    """Left to itself, XLA multiplies by one part at a time here, and moves three times the bytes."""
    mesh = sharding.make_mesh(None, topologies.describe("v5e:2x2").devices)

    def split(*shape, kind):
        return jax.ShapeDtypeStruct(shape, kind, sharding=NamedSharding(mesh, PartitionSpec("data")))

    x, kernel = split(256, 320, 1280, kind=jnp.bfloat16), split(1280, 5120, kind=jnp.float32)
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda x, kernel: sharding.constrain(layers.product(x, kernel))).lower(x, kernel).compile()
    facts = program.facts(compiled.as_text(), mesh.size)
    assert [(one["kind"], one["bytes"]) for one in facts["collectives"]] == [("all-gather", 2 * 1280 * 5120)]
    assert facts["traffic"] < 1.3 * 2 * (x.size // 4 + x.size + kernel.size)  # what goes in, once, and comes out


@pytest.mark.parametrize(("fits", "expected"), [(True, 16), (False, 19)])
def test_a_program_that_fits_takes_no_more_than_the_device_has(fits, expected):
    """XLA's temporaries have the memory on the chip in them: of a plan that it accepted, 16.25 GiB for a chip of 16."""
    topology = SimpleNamespace(chip=SimpleNamespace(memory=16))
    none = dict.fromkeys(set(report.Plan.__dataclass_fields__) - {"topology", "facts"})
    assert report.Plan(topology=topology, facts={"fits": fits, "peak": 19}, **none).peak == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [  # as libtpu 0.0.42 said them
        ("Ran out of memory in memory space hbm. Used 19.50G of 15.75G hbm.", (19.5, 15.75)),
        ("the total memory required for HLO temporaries (23.24G) exceeds available HBM (15.75G).", (24.24, 15.75)),
        ("RESOURCE_EXHAUSTED: of another kind", None),
    ],
)
def test_both_refusals_of_a_program_that_is_too_large_are_read(message, expected):
    refused = plans.refusal(message, arguments=2**30)
    assert expected == (refused and (refused["peak"] / 2**30, refused["usable"] / 2**30))
    assert not (refused and refused["fits"])


@needs_libtpu
def test_a_small_model_is_planned_for_a_slice_of_four_chips(tmp_path):
    flags = ("--config", f"{ROOT}/configs/pretrain.py:smoke,experts=none", "--plan")
    done = plan(*flags, "v5e:2x2,zero3")
    assert done.returncode == 0, done.stderr
    size = {name: float(value) for name, value in re.findall(r"^  ([\w' ]+?)  +([\d.]+) MiB", done.stdout, re.M)}
    assert 0 < size["gradients"] <= size["parameters"] < size["parameters"] + size["optimizer's state"] < size["peak"]
    assert "fits" in done.stdout
    kinds = set(re.findall(r"^  (\S+) .* received$", done.stdout, re.M))
    # Weights are gathered and gradients scattered; activations stay where they are (see sharding.constrain).
    assert {"all-gather", "reduce-scatter"} <= kinds <= {"all-gather", "reduce-scatter", "all-reduce"}
    again = float(re.search(r"\(([\d.]+) of the model's", done.stdout)[1])
    assert again == pytest.approx(1, abs=0.05)  # two counts by two ways, of a model that computes nothing twice
    assert re.search(r"at most [\d,]+ examples a second, MFU 0\.\d+", done.stdout)
    wrong = plan(*flags, "v5e:2x2", "--config.mesh.data=3")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "does not fit 4 devices" in wrong.stderr


def plan(*flags):
    code = "from prismer_jax.errors import run_main; from prismer_jax.train import main; run_main(main)"
    return subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, timeout=900)


def test_numbers_of_a_shape_are_read_without_its_padding():
    assert program.size("(bf16[4,8]{1,0:T(8,128)(2,1)}, u8[3]{0:T(128)}, pred[]{:T(512)})") == 4 * 8 * 2 + 3 + 1
    assert program.size("f32[2,2]{1,0:T(8,128)S(1)}", hbm=True) == 0
    assert np.prod(program.arrays("s4[10]{0}")[0][1]) == 10
