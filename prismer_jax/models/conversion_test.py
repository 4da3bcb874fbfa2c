"""Fields of a model on top of others."""

from prismer_jax.models import conversion


def test_fields_go_on_top_of_others_part_by_part():
    fields = {"variant": "tiny", "vision": {"width": 4, "heads": 1}}
    own = {"vision": {"heads": 2}, "decoder": {"heads": 3}, "shuffle": 2}
    assert conversion.merged(fields, own) == {
        "variant": "tiny",
        "vision": {"width": 4, "heads": 2},
        "decoder": {"heads": 3},
        "shuffle": 2,
    }
    assert conversion.merged(fields, {}) == fields
