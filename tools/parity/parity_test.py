"""The golden cases of the model agree; a case that should not agree does not pass."""

import json
import shutil

import numpy as np
import pytest

from prismer_jax.errors import UserError
from tools import parity
from tools.parity import prismer


def run(folder, *flags):
    """Exit status of the tool."""
    try:
        parity.main([str(folder), *flags])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize(
    "case",
    [
        "pos_embed_interp",
        "post_label_process",
        "prismer_tiny_p14",
        "prismerz_tiny",
        "prismer_tiny_train",
        "nanovlm_v01_tiny",
        "nanovlm_preprocess",
        "nanovlm_backbone_tiny",
        "nanovlm_222m_manifest",
        "nanovlm_backbone_smollm2_135m_manifest",
        "blip2_preprocess",
        "blip2_pos_embed_interp",
        "blip2_hf_opt2_7b_manifest",
        "eva_vit_g_manifest",
        "paligemma_mha_tiny",
        "paligemma_pp_text",
        "paligemma_pt_3b_224_manifest",
        "paligemma_segmentation",
    ],
)
def test_agrees_with_the_reference(shared, capsys, case):
    assert run(shared / "golden", "--case", case) == 0
    name, error, verdict = capsys.readouterr().out.split()
    assert (name, verdict) == (case, "ok")
    assert float(error) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["prismer_tiny", "nanovlm_tiny", "nanovlm_*manifest", "paligemma*_tiny", "paligemma_p*", "blip2_[ost]*"]
)
def test_the_whole_tiny_model_agrees_with_the_reference(shared, case):
    assert run(shared / "golden", "--case", case) == 0


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


def test_an_array_that_nobody_compares_is_a_fail(copied, capsys):
    file = copied / "pos_embed_interp" / "io.npz"
    np.savez(file, **dict(np.load(file)), **{"out/more": np.zeros(1, np.float32)})
    assert run(copied) == 1
    assert "not computed: out/more" in capsys.readouterr().out


def test_a_perturbed_weight_is_a_fail(shared, tmp_path, capsys):
    """The weights follow from the manifest: one more entry of `gain` makes one of them a hundredth larger."""
    case = tmp_path / "prismer_tiny_p14"
    shutil.copytree(shared / "golden" / case.name, case, copy_function=shutil.copyfile)
    manifest = json.loads((case / "manifest.json").read_text())
    gain = {r"resblocks\.1\.1\.adaptor\.down_proj\.weight": 1.01, **manifest["gain"]}
    case.chmod(0o755)
    (case / "manifest.json").chmod(0o644)
    (case / "manifest.json").write_text(json.dumps({**manifest, "gain": gain}))
    assert run(tmp_path) == 1
    assert "FAIL  out/encoder" in capsys.readouterr().out


Z = [f"prismerz_{size}_manifest" for size in ("base", "large", "huge")]


@pytest.mark.parametrize("name", ["prismer_base", "prismer_large_manifest", "prismer_huge_manifest", *Z])
def test_full_sizes_have_the_official_keys(shared, name):
    case = parity.Case(shared / "golden" / name)
    prismer.check_keys(case, prismer.model_of(case))
    case.manifest["tensors"].popitem()
    with pytest.raises(parity.Mismatch, match="keys or shapes differ"):
        prismer.check_keys(case, prismer.model_of(case))


def test_freezing_is_the_references(shared):
    case = parity.Case(shared / "golden" / "prismer_tiny_train")
    prismer.check_keys(case, prismer.model_of(case))
    case.config["frozen"]["freeze_vision"].append("expert_encoder.ln_pre.weight")
    with pytest.raises(parity.Mismatch, match=r"freeze_vision freezes other parameters: expert_encoder\.ln_pre"):
        prismer.check_keys(case, prismer.model_of(case))
