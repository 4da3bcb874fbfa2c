"""The golden cases of the model agree; a case that should not agree does not pass."""

import json
import shutil

import numpy as np
import pytest

from prismer_jax.errors import UserError
from tools import parity


def run(folder, *flags):
    """Exit status of the tool."""
    try:
        parity.main([str(folder), *flags])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize("case", ["pos_embed_interp", "prismer_tiny_p14", "prismerz_tiny", "prismer_tiny_train"])
def test_agrees_with_the_reference(shared, capsys, case):
    assert run(shared / "golden", "--case", case) == 0
    name, error, verdict = capsys.readouterr().out.split()
    assert (name, verdict) == (case, "ok")
    assert float(error) < 1e-4


@pytest.mark.slow
def test_the_whole_tiny_model_agrees_with_the_reference(shared):
    assert run(shared / "golden", "--case", "prismer_tiny") == 0


@pytest.fixture
def copied(shared, tmp_path):
    shutil.copytree(shared / "golden" / "pos_embed_interp", tmp_path / "pos_embed_interp")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755)
    return tmp_path


def test_other_numbers_are_a_fail(copied, capsys):
    file = copied / "pos_embed_interp" / "io.npz"
    arrays = dict(np.load(file))
    name = next(name for name in arrays if name.startswith("out/"))
    arrays[name] = arrays[name] * 1.01
    np.savez(file, **arrays)
    assert run(copied) == 1
    assert "FAIL" in capsys.readouterr().out


def test_an_unknown_case_is_a_fail_and_never_skipped(copied, capsys):
    folder = copied / "unheard_of"
    shutil.copytree(copied / "pos_embed_interp", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "case": "unheard_of"}))
    assert run(copied) == 1
    assert "unheard_of" in capsys.readouterr().out


def test_a_glob_without_cases_says_so(copied, tmp_path_factory):
    with pytest.raises(UserError, match="Did you mean 'pos_embed_interp'"):
        run(copied, "--case", "pos_embed_intrp")
    with pytest.raises(UserError, match="no golden cases"):
        run(tmp_path_factory.mktemp("empty"))
