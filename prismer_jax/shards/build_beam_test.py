"""With Beam's own local runner: threads, and processes as a cluster has them."""

import functools
import sys

import pytest

from prismer_jax.errors import UserError
from prismer_jax.shards import build, build_beam, manifest
from prismer_jax.shards.build_test import WANTED, Photos, ids, plan_for

RUNNERS = {
    "threads": ["--runner", "DirectRunner"],
    "processes": ["--runner", "DirectRunner", "--direct_running_mode", "multi_processing", "--direct_num_workers", "2"],
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_beam_makes_the_same_shards(tmp_path, runner):
    pytest.importorskip(
        "apache_beam", reason="needs the extra `beam`, which has its own versions of Pillow and protobuf"
    )
    plan = plan_for(tmp_path / "beam")
    made = build_beam.build(plan, functools.partial(Photos, 10), RUNNERS[runner])
    assert made == build.build(plan_for(tmp_path / "here"), Photos(10))
    assert ids(tmp_path / "beam") == WANTED
    (tmp_path / "beam" / plan.file(1)).unlink()
    before = (tmp_path / "beam" / plan.file(0)).stat().st_mtime_ns
    build_beam.build(plan, functools.partial(Photos, 10), RUNNERS[runner])
    assert ids(tmp_path / "beam") == WANTED
    assert (tmp_path / "beam" / plan.file(0)).stat().st_mtime_ns == before


def test_a_worker_leaves_whole_shards_alone_and_opens_its_source_once(tmp_path):
    """What Beam runs, without Beam: runners try an element again, and may do so while another worker has it."""
    opened = []

    def open_source():
        opened.append(1)
        return Photos(10)

    plan = plan_for(tmp_path / "set")
    build.claim(plan)
    for shard in (2, 0, 1, 0, 1):
        assert build_beam.write(plan, open_source, shard) == shard
    assert len(opened) == 1
    assert build.finish(plan).records == 9
    assert manifest.read(plan.folder).records == 9


def test_without_beam_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"--beam needs Apache Beam .*pip install prismer_jax\[beam\]"):
        build_beam.build(plan_for(tmp_path), functools.partial(Photos, 10), [])
