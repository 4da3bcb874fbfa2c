import numpy as np
import pytest

from tools import parity
from tools.parity.case import Case, Mismatch
from tools.parity.detection import PIXELS, check_keys, expert_of, matching


@pytest.mark.parametrize("case", ["expert_objdet_tiny", "objdet_labels"])
def test_agrees_with_the_reference(shared, case):
    error, reason = parity.run_case(Case(shared / "golden" / case))
    assert reason == ""
    assert error < 1e-3


@pytest.mark.slow
def test_the_official_sizes_agree_with_the_reference(shared):
    error, reason = parity.run_case(Case(shared / "golden" / "expert_objdet"))
    assert reason == ""
    assert error < 1e-3


def test_every_official_key_has_its_place(shared):
    case = Case(shared / "golden" / "expert_objdet")
    check_keys(case, expert_of(case))
    case.manifest["tensors"]["backbone.bottom_up.res4.36.conv1.weight"] = {"shape": [1], "dtype": "float32"}
    with pytest.raises(Mismatch, match=r"keys or shapes differ: backbone\.bottom_up\.res4\.36\.conv1\.weight"):
        check_keys(case, expert_of(case))


def test_sets_are_compared_as_sets_and_in_pixels():
    theirs = np.asarray([[0.0, 0, 5, 5], [1, 1, 9, 9], [3, 3, 4, 4]])
    order = matching(theirs[[2, 0, 1]] + 1e-4, theirs, "boxes")
    assert order.tolist() == [1, 2, 0]
    with pytest.raises(Mismatch, match="1 boxes have no counterpart"):
        matching(theirs[[0, 1, 1]], theirs, "boxes")
    assert PIXELS.measure(theirs + 0.01, theirs) > PIXELS.tolerance > PIXELS.measure(theirs + 1e-3, theirs)
    assert PIXELS.measure(theirs[:2], theirs) == np.inf
