import pytest

from prismer_jax import registry
from prismer_jax.errors import UserError, choose


def test_parses_names_positional_and_keyword_literals():
    assert registry.parse("decode | resize(96, 'nearest')|caption(prefix='a|b', keys=('x', 1))") == [
        ("decode", (), {}),
        ("resize", (96, "nearest"), {}),
        ("caption", (), {"prefix": "a|b", "keys": ("x", 1)}),
    ]


@pytest.mark.parametrize(
    "spec", ["resize(", "a.b(1)", "f(g(1))", "f(**{})", "f(a=1, a=2)", "1|f", "__import__('os').system('x')"]
)
def test_refuses_what_is_not_a_literal_call(spec):
    with pytest.raises(UserError):
        registry.parse(spec)


def test_unknown_name_says_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'resize'"):
        choose("op", "rezise", {"resize": 1, "flip": 2})
    with pytest.raises(UserError, match="Valid names: flip, resize"):
        choose("op", "zzzzz", {"resize": 1, "flip": 2})


def test_chooses_among_names_alone():
    assert choose("pad", "left", ("left", "right")) == "left"
    with pytest.raises(UserError, match=r"Unknown pad 'lfet'\. Did you mean 'left'"):
        choose("pad", "lfet", ("left", "right"))
