import numpy as np
import pytest

from prismer_jax.files.offsets import Offsets


def test_rows_are_found_and_files_without_rows_are_passed_over():
    offsets = Offsets([2, 0, 3])
    assert len(offsets) == 5
    assert [offsets.find(row) for row in range(5)] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    assert offsets.find(np.int64(-1)) == (2, 2)
    with pytest.raises(IndexError):
        offsets.find(5)


def test_no_files_have_no_rows():
    assert len(Offsets([])) == 0
    with pytest.raises(IndexError):
        Offsets([]).find(0)
