import pytest

from prismer_jax import evaluators
from prismer_jax.errors import UserError
from prismer_jax.evaluators.common import Evaluator


def test_a_mistake_inside_an_evaluator_is_no_wrong_option(monkeypatch):
    class Broken(Evaluator):
        def __init__(self, *, width: int = 1, **options):
            super().__init__(**options)
            self.length = len(width)

    monkeypatch.setitem(evaluators.EVALUATORS, "broken", f"{__name__}:Broken")
    monkeypatch.setitem(globals(), "Broken", Broken)
    given = dict(model=None, tokenizer=None, source=[], pp=None, batch_size=8)
    with pytest.raises(TypeError, match=r"has no len\(\)"):
        evaluators.build("broken", **given)
    with pytest.raises(UserError, match=r"config\.evals\.mine\.width is 'x'; it must be a whole number"):
        evaluators.build("broken", where="config.evals.mine", width="x", **given)
    with pytest.raises(UserError, match=r"broken: unknown key 'widht'"):
        evaluators.build("broken", widht=1, **given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_beems": 3}, r"setting of config\.evals\.mine: 'num_beems'"),
        ({"max_new": "x"}, r"^config\.evals\.mine\.max_new is 'x'"),
        ({"num_beams": 0}, r"^config\.evals\.mine: num_beams=0"),
    ],
)
def test_a_wrong_setting_of_decoding_names_the_section(wrong, message):
    given = dict(model=None, tokenizer=None, source=[], pp=None, batch_size=8)
    with pytest.raises(UserError, match=message):
        evaluators.build("caption", where="config.evals.mine", **given, **wrong)
