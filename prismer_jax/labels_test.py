import json
import subprocess
import sys

import numpy as np
import pytest

from prismer_jax import labels
from prismer_jax.errors import UserError


def test_select_keeps_the_tables_order_and_names_the_nearest_expert():
    assert labels.select("edge+depth") == ("depth", "edge")
    assert labels.select(["seg_ade"]) == ("seg_ade",)
    assert len(labels.select("all")) == 6
    assert labels.select("none") == labels.select(None) == ()
    with pytest.raises(UserError, match="'ocr_detection'"):
        labels.select("depth+ocr_detecton")


def test_class_vectors_depend_on_the_name_alone():
    table = labels.class_vectors(["sphere", "box", "cone"])
    assert table.shape == (3, labels.FEATURES)
    np.testing.assert_array_equal(table[2], labels.class_vectors(["cone"])[0])
    assert 0.8 < labels.class_vectors([f"class {i}" for i in range(100)]).std() < 1.2
    assert not np.allclose(labels.class_vectors([labels.BACKGROUND_NAME])[0], labels.class_vectors(["background"])[0])
    # The numbers are part of every checkpoint trained with them.
    np.testing.assert_allclose(table[0, :2], [-0.02229127, 1.5272936], rtol=1e-6)


def test_the_official_class_list_fits_the_table(shared):
    names = json.loads((shared / "data/label_embeddings/obj_detection_label_map.json").read_text())
    assert len(names) == labels.EXPERTS["obj_detection"].num_classes


def test_models_are_imported_without_opencv():
    code = (
        "import sys, pkgutil, importlib, prismer_jax.models as models\n"
        "for module in pkgutil.iter_modules(models.__path__):\n"
        "    module.name.endswith('_test') or importlib.import_module(f'prismer_jax.models.{module.name}')\n"
        "print('prismer_jax.models.prismer' in sys.modules, 'cv2' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "False"]
