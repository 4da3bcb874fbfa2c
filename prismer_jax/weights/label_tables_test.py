import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from prismer_jax import checkpoint
from prismer_jax.errors import UserError
from prismer_jax.labels import EXPERTS
from prismer_jax.models.prismer import build
from prismer_jax.towers import label_lookup
from prismer_jax.weights import label_tables


@pytest.fixture(scope="module")
def official(shared):
    return shared / "data/label_embeddings"


@pytest.fixture
def folder(official, tmp_path):
    """A copy of the official files, to spoil."""
    copied = tmp_path / "official"
    shutil.copytree(official, copied)
    for path in (copied, *copied.iterdir()):
        path.chmod(0o755)
    return copied


def test_the_official_files_become_one_npz(official, tmp_path):
    label_tables.convert(official, tmp_path / "new/tables.npz")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tables.npz"]
    with np.load(tmp_path / "new/tables.npz", allow_pickle=False) as file:
        arrays = dict(file)
    for expert, count in (("seg_coco", 133), ("seg_ade", 150), ("obj_detection", 722)):
        assert arrays[f"{expert}/names"].shape == (count,)
        assert (arrays[f"{expert}/features"].shape, arrays[f"{expert}/features"].dtype) == ((count, 64), np.float32)
    assert arrays["seg_coco/names"][:3].tolist() == ["person", "bicycle", "car"]
    names = json.loads((official / "obj_detection_label_map.json").read_text())
    assert arrays["obj_detection/names"].tolist() == list(names.values() if isinstance(names, dict) else names)
    assert arrays["background"].shape == (64,)
    # The rows of a PCA are orthonormal; that nothing was transposed or shuffled, a product of shapes would not show.
    components = arrays["pca/components"]
    np.testing.assert_allclose(components @ components.T, np.eye(64), atol=1e-12)
    assert arrays["pca/mean"].shape == (768,)


def test_tables_end_with_the_background_and_are_carried_by_a_checkpoint(official, tmp_path):
    label_tables.convert(official, tmp_path / "tables.npz")
    model = build("tiny", list(EXPERTS))
    tables = label_tables.load(tmp_path / "tables.npz", model.experts)
    variables = jax.eval_shape(model.init_variables, jax.random.key(0))
    assert {k: v.shape for k, v in tables.items()} == {k: v.shape for k, v in variables["tables"].items()}
    for table in tables.values():
        np.testing.assert_array_equal(table[-1], tables["ocr_detection"][0])
    checkpoint.export(tmp_path / "export", {"params": {"any": np.ones(1)}, "tables": tables}, {})
    carried, _ = checkpoint.load_export(tmp_path / "export")
    jax.tree.map(np.testing.assert_array_equal, carried["tables"], tables)
    # They are what the model looks up, and not the vectors that a new model makes of the classes' names.
    label = jnp.full((1, 4, 4, 1), 7, jnp.uint8)
    _, vectors = label_lookup.features("seg_coco", label, {}, carried["tables"])
    np.testing.assert_array_equal(vectors[0, 7], tables["seg_coco"][7])


def test_only_the_experts_of_a_model_have_tables(official, tmp_path):
    label_tables.convert(official, tmp_path / "tables.npz")
    assert list(label_tables.load(tmp_path / "tables.npz", ["depth", "seg_ade"])) == ["seg_ade"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("coco_features.pt", None, r"lacks coco_features\.pt.*tools\.download label-tables"),
        ("coco_features.pt", "ade_features.pt", r"coco_features\.pt: does not name the 133 classes of seg_coco"),
        ("background_features.pt", "ade_features.pt", r"background_features\.pt: holds dict instead of float32 \[64\]"),
        ("clip_pca.pkl", "background_features.pt", r"clip_pca\.pkl: holds NoneType instead of float64 \[768\]"),
        ("ade_features.pt", b"<html>", r"ade_features\.pt: is a web page"),
    ],
)
def test_wrong_files_are_named_and_nothing_is_written(folder, tmp_path, name, content, message):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if isinstance(content, bytes) else (folder / content).read_bytes())
    with pytest.raises(UserError, match=message):
        label_tables.convert(folder, tmp_path / "tables.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["official"]


@pytest.mark.parametrize("content", [None, b"", b"nonsense", "empty", "bfloat16", "bfloat16 background"])
def test_a_damaged_npz_is_one_line(tmp_path, content):
    """NumPy stores bfloat16 as two bytes without a type."""
    path = tmp_path / "tables.npz"
    if content == "empty":
        np.savez(path, other=np.zeros(3))
    elif isinstance(content, str):
        rows = {f"{name}/features": np.ones((EXPERTS[name].num_classes, 64), "f") for name in label_tables.CLASSES}
        arrays = {**rows, "background": np.ones(64, ml_dtypes.bfloat16)}
        np.savez(
            path, **(jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), arrays) if "ba" not in content else arrays)
        )
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"tables\.npz: cannot be read.*tools\.convert label-tables") as raised:
        label_tables.load(path)
    assert "\n" not in str(raised.value)
