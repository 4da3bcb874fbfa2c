"""The table of a student's fidelity, with a network that sees right or wrong, as a parameter says."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax import assembly, evaluators
from prismer_jax.errors import UserError
from prismer_jax.labels import CLASSES_KEY, no_classes

SIDE = 16


class Seer(nn.Module):
    """Reads a photo's red channel as depth, and its green one as objects of class 1; `wrong` mirrors what it sees."""

    kinds = ("depth", "obj_detection")

    def read(self, batch):
        image = batch["image"]
        image = jnp.where(self.variables["params"]["wrong"] > 0, image[:, :, ::-1], image)
        classes = jnp.where(image[..., 1:2] > 0, 1, -1)
        return {
            "depth": image[..., :1].astype(jnp.float32) / 127.5 - 1,
            "obj_detection": jnp.pad(classes, [(0, 0)] * 3 + [(0, 2)]).astype(jnp.int16),  # one middle, (0, 0)
        }


def examples(count=5):
    """Photos with an object at the left, nearer than the rest; the last has no label of objects."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[..., 0], image[:, :6, 0], image[2:9, :6, 1] = 60, 200, 255
    ids = np.where(image[..., 1:2] > 0, 0, 255).astype(np.uint8)
    classes = no_classes()
    classes[0] = 1
    one = {"image": image, "labels/depth": image[..., :1], "labels/obj_detection": ids, CLASSES_KEY: classes}
    rows = [{"id": str(i), **one} for i in range(count)]
    return [*rows[:-1], {**rows[-1], "labels/obj_detection": np.full_like(ids, 255)}]


def evaluator(source, batch_size=2, where=""):
    return evaluators.build(
        "fidelity",
        model=Seer(),
        tokenizer=None,
        source=source,
        pp=lambda example, rng: example,
        batch_size=batch_size,
        quiet=True,
        where=where,
    )


def scores(wrong, **options):
    return dict(evaluator(examples(), **options).run({"params": {"wrong": np.float32(wrong)}}))


def test_a_student_that_is_right_has_a_perfect_table():
    assert scores(0) == {"depth/abs_rel": 0, "obj_detection/pq": 1, "obj_detection/rq": 1, "obj_detection/sq": 1}


def test_one_that_mirrors_what_it_sees_has_not():
    found = scores(1)
    # Six columns of 16 are 200, as are six others of what it says; all else is 60.
    assert found["depth/abs_rel"] == pytest.approx((6 * 140 / 200 + 6 * 140 / 60) / SIDE)
    assert (found["obj_detection/pq"], found["obj_detection/sq"]) == (0, 0)


def test_the_table_does_not_depend_on_batches_and_records_say_of_each_photo():
    assert scores(1, batch_size=5) == pytest.approx(scores(1, batch_size=2))
    table = evaluator(examples())
    dict(table.run({"params": {"wrong": np.float32(0)}}))
    assert set(table.records[0]["scores"]) >= {"depth/abs_rel", "obj_detection/pq"}
    assert set(table.records[-1]["scores"]) == {"depth/abs_rel"}  # an empty map is none


def test_the_best_checkpoint_may_be_that_of_a_kind_of_label():
    table = {"fidelity": evaluator(examples())}
    for name in ("depth/abs_rel", "obj_detection/pq", "obj_detection/sq"):
        assembly.check_metric(f"fidelity/{name}", table)
    with pytest.raises(UserError, match="No metric 'fidelity/depth/pq'"):
        assembly.check_metric("fidelity/depth/pq", table)


def test_labels_that_no_example_has_are_named_before_the_network_runs():
    source = [{key: value for key, value in row.items() if key != "labels/depth"} for row in examples()]
    with pytest.raises(UserError, match=r"^config\.evals\.fidelity: no example has labels of depth"):
        evaluator(source, where="config.evals.fidelity").check_source()
