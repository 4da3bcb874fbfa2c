"""Remote paths in every flag of every program: they arrive as remote, or are refused before anything is done."""

import argparse
import importlib
import pathlib
import subprocess
import sys

import pytest
from etils import epath
from PIL import Image

from prismer_jax import checkpoint, config, datasets, label_files, labels, train
from prismer_jax.errors import UserError, run_main
from prismer_jax.files import storage
from prismer_jax.pp import tokenizer
from prismer_jax.testing import ROOT
from prismer_jax.weights import safe
from tools import convert, visualize

REMOTE = ("gs://bucket/x", "s3://bucket/x", "hf://datasets/a/x", "memory://bucket/x")
PROGRAMS = {
    **{name: [] for name in ("prismer_jax.train", "prismer_jax.evaluate", "prismer_jax.caption")},
    **{"prismer_jax.retrieve.__main__": [], "tools.audit": [], "tools.demo.__main__": []},
    **{
        f"tools.{name}": []
        for name in ("build_dataset", "download", "export", "make_labels", "parity", "push", "quantize")
    },
    **{f"tools.{name}": [] for name in ("bench.__main__", "sweep", "train_mask_codec", "train_tokenizer", "visualize")},
    **{f"tools.convert {name}": [name] for name in {**convert.family_commands(), **convert.COMMANDS}},
}
# What takes a text, and is no path. A new flag stands here, or has the type storage.on_disk, .folder or .plain.
TEXTS = {
    *("--arms", "--baselines", "--case", "--choices", "--dataset", "--dtype", "--experts", "--format", "--metrics"),
    *("--name", "--only", "--prefix", "--question", "--shard-size", "--source-name", "--split", "--tfds-name"),
    *(
        "--tfds-split",
        "--variant",
        "--allow",
        "--score",
        "--prompt",
        "--repo",
        "--plan",
        "--rows",
        "names",
        "what",
        "--query",
        "--host",
    ),
}
LATER = {"--config", "--tokenizer"}  # paths in a text of their own form: see the next test


class Caught(Exception):
    """Carries the parser of a program that was about to read its flags."""


def main_of(program):
    return importlib.import_module(program.partition(" ")[0]).main


@pytest.fixture
def parser_of(monkeypatch):
    def catch(parser, *args, **kwargs):
        raise Caught(parser)

    def parser_of(program):
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_known_args", catch)
            with pytest.raises(Caught) as caught:
                main_of(program)(PROGRAMS[program])
        return caught.value.args[0]

    return parser_of


def test_all_programs_are_looked_at():
    files = [*ROOT.glob("tools/**/*.py"), *ROOT.glob("prismer_jax/**/*.py")]
    programs = {path for path in files if "run_main(main)" in path.read_text() and not path.name.endswith("_test.py")}
    looked_at = {ROOT / (name.partition(" ")[0].replace(".", "/") + ".py") for name in PROGRAMS}
    assert {path for path in programs if path.name != "__main__.py"} <= looked_at | {ROOT / "tools/parity/__init__.py"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_flag_with_a_path_keeps_what_is_remote_or_refuses_it(program, parser_of, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parser = parser_of(program)
    assert isinstance(parser, config.ArgumentParser)
    checked = 0
    for action in parser._actions:
        name = (action.option_strings or [action.dest])[-1]
        if action.nargs == 0 or action.choices or action.type in (int, float) or name in TEXTS | LATER:
            continue
        assert callable(action.type), f"{program} {name}: a path has the type storage.on_disk or storage.plain"
        assert action.type is not pathlib.Path, f"{program} {name}: pathlib.Path makes gs:/ of gs://"
        for remote in REMOTE:
            checked += 1
            if action.type is storage.plain:
                assert parser._get_values(action, [remote]) in (remote, [remote])
                continue
            if action.type is storage.folder and remote.startswith("gs://"):
                assert parser._get_values(action, [remote]) == epath.Path(remote)
                continue
            flags = [*PROGRAMS[program], *([name] if action.option_strings else []), remote]
            with pytest.raises(SystemExit) as status:
                run_main(main_of(program), flags)
            assert status.value.code == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"{remote}: is remote" in line
    assert checked
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("remote", [*REMOTE, pathlib.Path("gs://bucket/x"), pathlib.Path("s3:/bucket/x")])
def test_values_of_configs_and_functions_refuse_what_is_remote(remote, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = str(remote).replace(":/", "://").replace(":///", "://")
    quickstart = config.load(str(ROOT / "configs/quickstart.py"))
    of_runs = (
        lambda: train.train(quickstart, remote),
        lambda: checkpoint.find(remote),  # of --checkpoint, and of config.init
        lambda: checkpoint.Checkpointer(remote),
        lambda: checkpoint.export(remote, {}, {}),
    )
    for use in (
        *(() if url.startswith("gs://") else of_runs),  # buckets_test.py has these
        lambda: config.load(f"{remote}.py:z"),
        lambda: safe.load(remote),
        lambda: tokenizer.load(f"roberta:{remote}"),
        lambda: datasets.load("lists", path=remote),
        lambda: datasets.load("lists", images=[remote]),
        lambda: datasets.load("tars", path=tmp_path, labels=remote),
    ):
        with pytest.raises(UserError, match=f"^{url}.*: is remote"):
            use()
    assert not list(tmp_path.iterdir())


def test_the_argument_of_a_config_may_be_remote(tmp_path):
    file = tmp_path / "config.py"
    file.write_text("from ml_collections import ConfigDict\ndef get_config(arg): return ConfigDict({'arg': arg})\n")
    assert config.load(f"{file}:data=gs://bucket//x/").arg == "data=gs://bucket//x/"


def test_a_path_on_a_disk_stays_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.on_disk("a/b:c.txt") == pathlib.Path("a/b:c.txt")
    assert storage.on_disk("C:/a") == pathlib.Path("C:/a")
    assert storage.on_disk(f"file://{tmp_path}/a") == storage.on_disk("~/a") == tmp_path / "a"


def test_label_files_are_never_written_to_a_folder_called_as_a_store(tmp_path):
    """As a user runs it: the exit status, one line, and no folder `gs:`."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (48, 32)).save(tmp_path / "photos/a.jpg")
    command = [sys.executable, "-m", "tools.make_labels", "--images", "photos", "--output", "gs://bucket/labels"]
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [*command, "--experts", "edge", "--random-weights"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 2
    assert done.stderr.decode().startswith("error: gs://bucket/labels: is remote")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_what_may_be_remote_is_written_there(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (48, 32)).save(tmp_path / "photos/a.jpg")
    label_files.write(tmp_path / "labels", "depth", "a.jpg", labels.blank("depth", 32, 48))
    where = f"memory://{tmp_path.name}/sheets/sheet.png"
    flags = ["--images", tmp_path / "photos", "--labels", tmp_path / "labels", "--output", where]
    visualize.main([*map(str, flags), "--processes", "1"])
    assert storage.read(where).startswith(b"\x89PNG")
