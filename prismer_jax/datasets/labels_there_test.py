"""What a network is to learn from has labels of every kind, or one line says which are missing."""

import numpy as np
import pytest

from prismer_jax.datasets import labels_there
from prismer_jax.errors import BadSample, UserError


class Source:
    """Photos of which the last alone has edges; one is damaged, and one has a record's zero bytes."""

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        if index == 0:
            raise BadSample("damaged")
        example = {"labels/depth": b"png", "labels/normal": b"", "labels/seg_coco": np.zeros((2, 2, 1), np.uint8)}
        return example | ({"labels/edge": "edge.png"} if index == 999 else {})


def test_one_example_with_a_label_is_enough():
    labels_there.check([{"source": Source()}], ("depth", "edge", "seg_coco"))


def test_kinds_may_be_spread_over_data_sets():
    other = [{"image": b"", "labels/normal": b"png"}]
    labels_there.check([{"source": Source()}, {"source": other}], ("depth", "normal"))


def test_a_kind_that_no_example_has_is_named():
    with pytest.raises(UserError, match=r"^config\.data: no example has labels of normal, ocr_detection\. Make them"):
        labels_there.check([{"source": Source()}], ("depth", "normal", "ocr_detection"))
