from prismer_jax.evaluators.common import Evaluator


def test_ids_stand_in_results_as_the_list_has_them():
    def key_of(**example):
        return Evaluator.key_of(None, example, 0)

    assert [key_of(question_id=id, id="x") for id in (7, "07", "7")] == [7, "07", "7"]
    assert [key_of(id=id) for id in ("7", "07", "0", "a.jpg")] == [7, "07", 0, "a.jpg"]
