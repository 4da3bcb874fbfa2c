import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from prismer_jax import checkpoint, sharding, tree
from prismer_jax.checkpoint import Checkpointer
from prismer_jax.checkpoint.initial import load_into
from prismer_jax.errors import UserError
from prismer_jax.sharding import presets


def make_state(seed=0, size=64):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "encoder": {"kernel": jax.random.normal(keys[0], (size, 32)), "bias": jnp.full(8, 0.1, jnp.bfloat16)},
        "head": jax.random.normal(keys[1], (16, size)),
    }
    opt = optax.adam(1e-3).init(params)
    return {"params": params, "stats": {}, "opt": opt, "table": jnp.arange(5, dtype=jnp.uint8), "step": jnp.int32(seed)}


def assert_bitwise(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def complete(folder):
    return sorted(p.name for p in folder.iterdir() if p.is_dir())


# --- saving and restoring ---


def test_restores_bit_by_bit_with_the_classes_of_the_optimiser(tmp_path):
    state = make_state()
    with Checkpointer(tmp_path) as saver:
        assert saver.latest_step() is None
        saver.save(7, state)
    loader = Checkpointer(tmp_path)
    assert loader.latest_step() == 7
    assert_bitwise(loader.restore(state), state)
    as_numpy = loader.restore(jax.eval_shape(lambda: state))
    assert isinstance(as_numpy["params"]["head"], np.ndarray)
    assert_bitwise(as_numpy, state)


def test_numbers_are_saved_as_arrays(tmp_path):
    state = {"count": np.int32(3), "rate": 0.5, "bias": np.ones(2, np.float32)}
    with Checkpointer(tmp_path / "checkpoints") as saver:
        saver.save(1, state)
    checkpoint.export(tmp_path / "export", state, {})
    as_arrays = jax.tree.map(np.asarray, state)
    assert_bitwise(Checkpointer(tmp_path / "checkpoints").restore(as_arrays), as_arrays)
    assert_bitwise(checkpoint.load_export(tmp_path / "export")[0], as_arrays)


def test_a_state_that_is_donated_right_after_the_save_is_saved_as_it_was(tmp_path):
    """On a CPU the background thread could see the very buffers that the next step overwrites."""
    increment = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = increment({f"w{i}": jnp.zeros((300, 1000)) for i in range(8)})
    with Checkpointer(tmp_path, keep=3) as saver:
        for step in range(3):
            saver.save(step, state)
            for _ in range(10):
                state = increment(state)
        saver.wait()
        for step in range(3):
            restored = saver.restore(jax.eval_shape(lambda: state), step)
            assert {float(x) for w in restored.values() for x in np.unique(w)} == {1.0 + 10 * step}


def test_restores_on_any_mesh(tmp_path):
    state = make_state(size=64)["params"]

    def place(mesh, rule):
        return presets.placed({"params": jax.eval_shape(lambda: state)}, [(".*", rule)], mesh)["params"]

    mesh8 = sharding.make_mesh({"data": 1, "fsdp": 8})
    abstract = place(mesh8, "fsdp(min_size=1)")
    split = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), state, abstract)
    assert split["head"].addressable_shards[0].data.shape == (2, 64)
    with Checkpointer(tmp_path) as saver:
        saver.save(1, split)
    one = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    for mesh, rule, shape in [
        (one, "replicate", (16, 64)),
        (sharding.make_mesh({"data": 2, "fsdp": 4}), "fsdp(min_size=1)", (4, 64)),
        (mesh8, "fsdp(min_size=1)", (2, 64)),
    ]:
        with jax.transfer_guard("disallow"):
            restored = Checkpointer(tmp_path).restore(place(mesh, rule))
        assert restored["head"].sharding.mesh.shape == mesh.shape
        assert restored["head"].addressable_shards[0].data.shape == shape
        assert_bitwise(restored, state)


def test_what_does_not_fit_is_listed_in_one_line(tmp_path):
    with Checkpointer(tmp_path) as saver:
        saver.save(1, {"a": jnp.zeros(3), "b": {"c": jnp.zeros((2, 2)), "d": jnp.zeros(1)}, "e": jnp.zeros(2)})
    like = {"a": jnp.zeros(4), "b": {"c": jnp.zeros((2, 2), jnp.bfloat16)}, **{f"n{i}": jnp.zeros(1) for i in range(5)}}
    with pytest.raises(UserError) as error:
        Checkpointer(tmp_path).restore(like)
    message = str(error.value)
    assert "5 missing in it: n0, n1, n2 and 2 more" in message
    assert "2 not expected: b/d, e" in message
    assert "a (float32[3] instead of float32[4]), b/c (float32[2, 2] instead of bfloat16[2, 2])" in message
    assert "\n" not in message
    with pytest.raises(UserError, match=r"No checkpoint of step 5 in .*; complete ones: \[1\]"):
        Checkpointer(tmp_path).restore(like, 5)
    with pytest.raises(UserError, match="No checkpoint in"):
        Checkpointer(tmp_path / "nothing").restore(like)
    assert not (tmp_path / "nothing").exists()


# --- which ones are kept ---


@pytest.mark.parametrize(("mode", "kept"), [("max", [2, 4, 5]), ("min", [3, 4, 5])])
def test_keeps_the_newest_and_the_best(tmp_path, mode, kept):
    scores = {1: 0.5, 2: 0.9, 3: 0.1, 4: float("nan"), 5: None}
    for step, score in scores.items():  # each in a new process, so to say
        with Checkpointer(tmp_path, keep=2, best_metric="cider", best_mode=mode) as saver:
            saver.save(step, {"x": jnp.full(3, step)}, None if score is None else {"cider": score, "loss": 1.0})
    assert saver.all_steps() == kept
    assert complete(tmp_path) == [str(step) for step in kept]
    assert saver.best_step() == kept[0]
    assert float(saver.restore({"x": jnp.zeros(3, jnp.int32)}, saver.best_step())["x"][0]) == kept[0]


def test_a_restart_that_chooses_by_another_metric_compares_none_with_the_earlier_one(tmp_path):
    for metric, scores in (("cider", {1: 90.0}), ("accuracy", {2: 60.0, 3: 50.0})):
        with Checkpointer(tmp_path, best_metric=metric) as saver:
            for step, score in scores.items():
                saver.save(step, {"x": jnp.full(3, step)}, {metric: score})
    assert (saver.best_step(), saver.all_steps()) == (2, [2, 3])


def test_a_saved_step_is_not_written_again_but_its_metric_is_noted(tmp_path):
    with Checkpointer(tmp_path, best_metric="m", keep=3) as saver:
        saver.save(1, {"x": jnp.zeros(3)})
        saver.save(2, {"x": jnp.zeros(3)}, {"m": 1.0})
        saver.save(1, {"x": jnp.ones(3)}, {"m": 2.0})
        saver.wait()
        assert saver.best_step() == 1
        assert float(saver.restore({"x": jnp.zeros(3)}, 1)["x"][0]) == 0.0
        with pytest.raises(UserError, match=r"No metric 'm' to choose by. Did you mean 'mm'"):
            saver.save(3, {"x": jnp.ones(3)}, {"mm": 2.0})
    for options, message in [({"keep": 0}, "keep must be"), ({"best_mode": "best"}, "'max' or 'min'")]:
        with pytest.raises(UserError, match=message):
            Checkpointer(tmp_path, **options)


# --- when things go wrong ---


def run(code, *arguments, **kwargs):
    code = "import sys, jax, jax.numpy as jnp, numpy as np\nfrom prismer_jax.checkpoint import *\n" + code
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **kwargs)


def test_kill_while_writing_leaves_the_older_checkpoint_only(tmp_path):
    code = """
saver = Checkpointer(sys.argv[1])
saver.save(1, {"x": jnp.ones(3)})
saver.wait()
for step in range(2, 10_000):  # of random numbers, which do not compress, so that it takes a while
    saver.save(step, {f"x{i}": np.random.normal(size=(1000, 1000)) for i in range(8)})
"""
    process = run(code, tmp_path)
    deadline = time.time() + 60
    while not list(tmp_path.glob("2.orbax-checkpoint-tmp*/*")) and time.time() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any("tmp" in name for name in complete(tmp_path)), "the kill came too late to prove anything"
    resumed = Checkpointer(tmp_path)
    assert resumed.latest_step() == 1
    assert any("tmp" in name for name in complete(tmp_path))  # looking does not clean: somebody could be writing
    np.testing.assert_array_equal(resumed.restore({"x": jnp.zeros(3)})["x"], np.ones(3))
    with resumed:
        resumed.save(2, {"x": jnp.zeros(3)})
    assert complete(tmp_path) == ["2"]


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path):
    code = """
import os, resource
from prismer_jax.errors import UserError, run_main
def main():
    saver = Checkpointer(sys.argv[1])
    saver.save(1, {"x": jnp.ones(3)})
    saver.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))  # no file may grow larger
    saver.save(2, {"x": np.random.normal(size=(1000, 1000))})  # in the background
    try:
        export(sys.argv[1] + "/export", {"x": np.random.normal(size=(1000, 1000))}, {})
    except UserError as error:
        print(error)
    print(sorted(os.listdir(sys.argv[1])))
    saver.save(3, {"x": jnp.ones(3)})
run_main(main)
"""
    process = run(code, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.startswith(f"error: Cannot write a checkpoint to {tmp_path}: File too large.")
    assert len(err.splitlines()) == 1
    assert out.startswith(f"Cannot write {tmp_path}/export: File too large.")
    assert complete(tmp_path) == ["1"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write a checkpoint to .*file/here: Not a directory"):
        Checkpointer(tmp_path / "file" / "here").save(1, {"x": jnp.zeros(2)})
    with pytest.raises(UserError, match=r"Cannot write .*file/here: Not a directory"):
        checkpoint.export(tmp_path / "file" / "here", {"x": jnp.zeros(2)}, {})


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    with Checkpointer(tmp_path) as saver:
        saver.save(1, {"x": jnp.zeros(2)})
    (tmp_path / "sizes.json").unlink()  # as of a version that did not note sizes
    data = [path for path in (tmp_path / "1").rglob("d/*") if path.is_file()]
    for damaged in (data, [tmp_path / "1" / "default" / "_METADATA"]):
        for path in damaged:
            path.write_bytes(b"")
        with pytest.raises(UserError, match=r"Cannot read .*/1: .*damaged"):
            Checkpointer(tmp_path).restore({"x": jnp.zeros(2)})


def test_an_export_that_was_copied_in_part_is_one_line(tmp_path):
    checkpoint.export(tmp_path, {"params": {"x": jnp.arange(10_000.0)}}, {})
    data = max((path for path in tmp_path.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(data, 1000)
    with pytest.raises(UserError, match=r"^Cannot read [^\n]+Copy it again, or delete it[^\n]+$"):
        checkpoint.load_export(tmp_path)
    data.unlink()
    with pytest.raises(UserError, match=r"^Cannot read [^\n]+Copy it again, or delete it[^\n]+$"):
        checkpoint.load_export(tmp_path)


def test_a_torn_checkpoint_is_named_and_the_previous_one_used(tmp_path, caplog):
    with Checkpointer(tmp_path, keep=2) as saver:
        for step in (1, 2):
            saver.save(step, {"x": jnp.full(1000, step)})
    data = max((path for path in (tmp_path / "2").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1])
    with Checkpointer(tmp_path, keep=2) as resumed:
        assert resumed.latest_step() == 1
        assert f"{tmp_path / '2'} is torn and left out: {data.relative_to(tmp_path / '2')} has" in caplog.text
        np.testing.assert_array_equal(resumed.restore({"x": jnp.zeros(1000, int)})["x"], np.full(1000, 1))
        resumed.save(2, {"x": jnp.full(1000, 3)})
    assert Checkpointer(tmp_path).restore({"x": jnp.zeros(1000, int)})["x"][0] == 3
    for path in tmp_path.rglob("d/*"):
        path.unlink()
    with pytest.raises(UserError, match=r"All checkpoints in .* are torn: .* is missing\. Delete them to begin anew"):
        Checkpointer(tmp_path).latest_step()


def test_what_others_put_into_a_checkpoint_and_take_away_does_not_tear_it(tmp_path):
    with Checkpointer(tmp_path, keep=2, async_=False) as saver:
        saver.save(1, make_state())
    (tmp_path / "sizes.json").unlink()
    (tmp_path / "1" / "evaluation").mkdir()
    (tmp_path / "1" / "evaluation" / "partial.json").write_text("{}")
    with Checkpointer(tmp_path, keep=2, async_=False) as saver:
        saver.save(2, make_state())  # notes the sizes of the first, too
    shutil.rmtree(tmp_path / "1" / "evaluation")
    assert Checkpointer(tmp_path).all_steps() == [1, 2]


def test_the_best_survives_retention_a_restart_and_a_damaged_list_of_metrics(tmp_path):
    options = dict(keep=1, best_metric="m")
    for steps in (range(1, 4), range(4, 7)):
        with Checkpointer(tmp_path, **options) as saver:
            for step in steps:
                saver.save(step, {"x": jnp.full(3, step)}, {"m": 9.0 if step == 2 else 1.0})
    assert Checkpointer(tmp_path, **options).all_steps() == [2, 6]
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json is damaged"), Checkpointer(tmp_path, **options) as saver:
        saver.save(7, {"x": jnp.full(3, 7)}, {"m": 1.0})
    assert 2 in Checkpointer(tmp_path, **options).all_steps()


@pytest.mark.slow
def test_two_processes_write_one_checkpoint(tmp_path):
    code = """
import os
from prismer_jax import sharding
from prismer_jax.sharding import presets
os.environ.update(JAX_COORDINATOR_ADDRESS="localhost:" + sys.argv[2], JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=sys.argv[3])
sharding.initialize_distributed()
mesh = sharding.make_mesh({"fsdp": 4})
expected = np.arange(64.0).reshape(8, 8)
init = lambda: {"w": jnp.arange(64.0).reshape(8, 8), "n": jnp.int32(3)}
with jax.set_mesh(mesh):
    like = presets.placed({"params": jax.eval_shape(init)}, [("w", "fsdp(min_size=1)")], mesh)["params"]
    state = jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, like))()
    with Checkpointer(sys.argv[1] + "/checkpoints", keep=2) as saver:
        for step in range(4):
            saver.save(step, state)
    state = saver.restore(like, 3)
    for shard in state["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, expected[shard.index])
    for _ in range(2):
        export(sys.argv[1] + "/export", state, {})
    np.testing.assert_array_equal(load_export(sys.argv[1])[0]["w"], expected)
"""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [run(code, tmp_path, port, rank, env=env, stderr=subprocess.PIPE) for rank in (0, 1)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert complete(tmp_path / "checkpoints") == ["2", "3"]
    assert complete(tmp_path) == ["checkpoints", "export"]
    np.testing.assert_array_equal(checkpoint.load_export(tmp_path)[0]["w"], np.arange(64.0).reshape(8, 8))


# --- exports ---


def test_export_is_self_contained_and_replaced_whole(tmp_path):
    (tmp_path / "vocabulary.txt").write_text("a b")
    variables = make_state()["params"]
    target, files = tmp_path / "run" / "export", {"tokens.model": tmp_path / "vocabulary.txt"}
    checkpoint.export(target, variables, {"model": {"width": 3}}, files)
    (tmp_path / "run").rename(tmp_path / "moved")
    loaded, config = checkpoint.load_export(tmp_path / "moved")
    assert_bitwise(loaded, variables)
    assert config["model"] == {"width": 3}
    assert config["versions"]["jax"] == jax.__version__
    assert config["folder"] == str(tmp_path / "moved/export")
    assert (tmp_path / "moved/export/tokens.model").read_text() == "a b"

    checkpoint.export(tmp_path / "moved/export", {"x": jnp.zeros(2)}, {})
    loaded, config = checkpoint.load_export(tmp_path / "moved/export")
    assert list(loaded) == ["x"]
    assert sorted(os.listdir(tmp_path / "moved")) == ["export"]
    assert sorted(os.listdir(tmp_path / "moved/export")) == ["config.json", "weights"]


def test_an_export_through_a_link_lies_where_the_link_leads(tmp_path):
    (tmp_path / "large_disk").mkdir()
    for name in ("there", "new"):
        (tmp_path / name).symlink_to(tmp_path / "large_disk" / name)
    (tmp_path / "large_disk" / "there").mkdir()
    for name in ("there", "there", "new"):
        checkpoint.export(tmp_path / name, {"x": jnp.zeros(2)}, {})
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "large_disk" / name / "config.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large_disk", "new", "there"]
    assert sorted(path.name for path in (tmp_path / "large_disk").iterdir()) == ["new", "there"]


def test_export_survives_a_kill_between_its_renames_and_spares_other_folders(tmp_path, monkeypatch):
    checkpoint.export(tmp_path / "export", {"x": jnp.zeros(2)}, {"version": 1})
    rename, calls = os.rename, []

    def killed(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.export(tmp_path / "export", {"x": jnp.ones(2)}, {"version": 2})
    monkeypatch.undo()
    assert checkpoint.load_export(tmp_path)[1]["version"] == 1
    checkpoint.export(tmp_path / "export", {"x": jnp.ones(2)}, {"version": 3})
    assert checkpoint.load_export(tmp_path / "export")[1]["version"] == 3
    assert os.listdir(tmp_path) == ["export"]

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_text("")
    with pytest.raises(UserError, match="exists and is no exported model"):
        checkpoint.export(tmp_path / "photos", {"x": jnp.ones(2)}, {})
    assert (tmp_path / "photos/a.jpg").exists()


def test_export_onto_a_mesh(tmp_path):
    checkpoint.export(tmp_path / "e", {"w": jnp.arange(64.0).reshape(8, 8)}, {})
    mesh = sharding.make_mesh({"fsdp": 8})
    places = lambda shapes: jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec(None, "fsdp")), shapes)  # noqa: E731
    loaded, _ = checkpoint.load_export(tmp_path / "e", places)
    assert loaded["w"].addressable_shards[0].data.shape == (8, 1)
    np.testing.assert_array_equal(loaded["w"], np.arange(64.0).reshape(8, 8))


def test_an_unfinished_run_can_be_loaded_too(tmp_path):
    state = make_state(3)
    (tmp_path / "t.model").write_text("tokens")
    options = dict(config={"model": "tiny"}, files={"t.model": tmp_path / "t.model"})
    with Checkpointer(tmp_path / "run/checkpoints", keep=2, **options) as saver:
        saver.save(1, make_state(1))
        saver.save(2, state)
    for path in (tmp_path / "run", tmp_path / "run/checkpoints", tmp_path / "run/checkpoints/2"):
        variables, config = checkpoint.load_export(path)
        assert set(variables) == {"params", "table"}
        assert_bitwise(variables["params"], state["params"])
        assert config["model"] == "tiny"
        assert (pathlib.Path(config["folder"]) / "t.model").read_text() == "tokens"
    checkpoint.export(tmp_path / "run/export", variables, {"model": "exported"})
    assert checkpoint.load_export(tmp_path / "run")[1]["model"] == "exported"


def test_a_new_run_starts_from_another_ones_variables(tmp_path):
    source, state = make_state(1), make_state(2)
    for path, saved in [("export", {k: source[k] for k in ("params", "stats", "table")}), ("checkpoints/9", source)]:
        if path == "export":
            checkpoint.export(tmp_path / path, saved, {})
        else:
            with Checkpointer(tmp_path / "checkpoints") as saver:
                saver.save(9, saved)
        loaded = load_into(state, tmp_path / path)
        assert_bitwise(loaded, {k: source[k] for k in ("params", "stats", "table")})
        assert loaded["params"]["head"].sharding == state["params"]["head"].sharding
        fresh = load_into(state, tmp_path / path, fresh=["params/head"])
        assert_bitwise(fresh["params"], {**source["params"], "head": state["params"]["head"]})

    other = {**state, "params": {"encoder": state["params"]["encoder"], "stems": {"depth": jnp.zeros(3)}}}
    with pytest.raises(
        UserError, match=r"1 missing in it: params/stems/depth; 1 not expected: params/head\. .*init_fresh="
    ):
        load_into(other, tmp_path / "export")
    loaded = load_into(other, tmp_path / "export", fresh=["params/stems/.*", "params/head"])
    assert_bitwise(loaded["params"]["stems"], other["params"]["stems"])
    assert_bitwise(loaded["params"]["encoder"], source["params"]["encoder"])
    with pytest.raises(UserError, match="init_fresh: 'params/heads' matches no parameter"):
        load_into(state, tmp_path / "export", fresh=["params/heads"])

    wider = {**state, "params": {**state["params"], "head": jnp.zeros((2, *source["params"]["head"].shape))}}
    with pytest.raises(UserError, match="1 of another shape or type: params/head"):
        load_into(wider, tmp_path / "export", resize={"params/encoder": lambda x, shape: x})
    loaded = load_into(wider, tmp_path / "export", resize={"params/head": np.broadcast_to})
    assert_bitwise(loaded["params"]["head"], np.broadcast_to(source["params"]["head"], wider["params"]["head"].shape))
    assert_bitwise(loaded["params"]["encoder"], source["params"]["encoder"])
    wider["params"]["head"] = wider["params"]["head"].astype(jnp.bfloat16)  # as of frozen parameters
    loaded = load_into(wider, tmp_path / "export", resize={"params/head": np.broadcast_to})
    assert loaded["params"]["head"].dtype == jnp.bfloat16


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist: expected an exported model"):
        checkpoint.find(tmp_path / "x")
    with pytest.raises(UserError, match="is no folder of that kind"):
        checkpoint.find(tmp_path)
    checkpoint.export(tmp_path / "e", {"x": jnp.zeros(2)}, {})
    (tmp_path / "e/config.json").write_text('{"model": ')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        checkpoint.load_export(tmp_path / "e")


# --- what Orbax alone reads ---

WRITE = """
mesh = jax.make_mesh((jax.device_count(),), ("data",))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
params = {"w": jax.device_put(np.arange(64, dtype=np.float32).reshape(8, 8), split), "h": jnp.ones(3, jnp.bfloat16)}
state = {"params": params, "count": np.arange(2) + 2**40}
export(sys.argv[1] + "/export", state, {})
with Checkpointer(sys.argv[1] + "/run", keep=2) as saver:
    saver.save(3, {**state, "step": jnp.int32(3)})
    saver.save(4, {**state, "step": jnp.int32(4)})
"""
READ = """
import orbax.checkpoint as ocp
from orbax.checkpoint.experimental import v1

def check(tree):
    assert str(tree["params"]["h"].dtype) == "bfloat16"
    np.testing.assert_array_equal(tree["params"]["w"], np.arange(64).reshape(8, 8))
    np.testing.assert_array_equal(tree["count"], np.arange(2) + 2**40)
    return tree

weights, run = sys.argv[1] + "/export/weights", sys.argv[1] + "/run"
check(ocp.StandardCheckpointer().restore(weights))
check(ocp.PyTreeCheckpointer().restore(weights))
check(v1.load_pytree(weights))
with ocp.CheckpointManager(run) as manager:
    assert list(manager.all_steps()) == [3, 4]
    assert check(manager.restore(3))["step"] == 3
    assert check(manager.restore(manager.latest_step(), args=ocp.args.PyTreeRestore()))["step"] == 4
check(ocp.StandardCheckpointer().restore(run + "/4/default"))
check(v1.load_pytree(run + "/4"))
with v1.training.Checkpointer(run) as steps:
    assert steps.latest.step == 4
    check(steps.load_checkpointables(4)["default"])
"""


@pytest.mark.parametrize(("written", "read"), [(8, 1), (1, 8)])
def test_orbax_reads_on_other_devices_without_a_target(tmp_path, written, read):
    for code, devices in ((WRITE, written), (READ, read)):
        env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        process = run(code, tmp_path, env=env, stderr=subprocess.PIPE)
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors
    assert not list(tmp_path.rglob("_sharding"))


def test_what_version_0_1_wrote_is_read(tmp_path):
    """Its steps were flat, and its arrays knew their devices."""
    import orbax.checkpoint as ocp

    state = make_state()
    nested = {**state, "opt": {"mu": jnp.ones(2)}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(tmp_path / "checkpoints" / "7", args=ocp.args.PyTreeSave(nested))
    assert_bitwise(Checkpointer(tmp_path / "checkpoints").restore(nested), nested)
    assert_bitwise(checkpoint.load_export(tmp_path)[0]["params"], state["params"])


def test_saved_shapes_need_no_arrays(tmp_path):
    checkpoint.export(tmp_path / "e", make_state()["params"], {})
    shapes = checkpoint.saved_shapes(tmp_path / "e" / checkpoint.WEIGHTS)
    assert shapes == jax.eval_shape(lambda: tree.flatten(make_state()["params"]))
    assert json.loads((tmp_path / "e/config.json").read_text())["versions"]


def test_import_leaves_orbax_for_later():
    code = "import sys, prismer_jax.checkpoint; assert not any(m.startswith('orbax') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
