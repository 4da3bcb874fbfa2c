import pytest

from tools import parity


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("expert_ocr_post", 0),
        ("expert_ocr_small", 1e-5),
        ("clip_text", 1e-5),
        pytest.param("expert_ocr", 1e-5, marks=pytest.mark.slow),
    ],
)
def test_agrees_with_the_reference(shared, name, most):
    error, reason = parity.run_case(parity.Case(shared / "golden" / name))
    assert not reason
    assert error <= most


def test_a_pixel_of_another_word_is_a_fail(shared):
    case = parity.Case(shared / "golden" / "expert_ocr_post")
    case.arrays["out/mask"][100, 498] = 255
    assert "out/mask beyond" in parity.run_case(case)[1]
