"""What a student's edges cost: nothing where they are the label's, and a decision less than a grey."""

import jax.numpy as jnp
import numpy as np
import pytest

from prismer_jax.towers.label_costs import edge_costs


def logits(dark):
    """Returns the logits of white where a share of the pixel is dark."""
    dark = np.asarray(dark, np.float32).clip(1e-6, 1 - 1e-6)
    return jnp.asarray(np.log(1 - dark) - np.log(dark))


def of_white(dark):
    return jnp.asarray(np.rint(255 * (1 - np.asarray(dark))), jnp.uint8)


def lines(*columns):
    """Returns for each column a map [n 16 16 1] with a dark line there."""
    dark = np.zeros((len(columns), 16, 16, 1))
    dark[np.arange(len(columns)), :, list(columns)] = 1
    return dark


def test_edges_that_are_right_cost_nothing_and_none_at_all_cost_their_cross_entropy_and_all_of_the_overlap():
    exact = lines(3)
    assert edge_costs(logits(exact), of_white(exact))[0] == pytest.approx(0, abs=1e-4)
    blank = logits(np.zeros_like(exact))
    assert edge_costs(blank, of_white(exact))[0] == pytest.approx(np.log(1e6) / 16 + 1, rel=1e-3)
    assert edge_costs(blank, of_white(np.zeros_like(exact)))[0] == pytest.approx(0, abs=1e-3)  # a wall


def test_where_a_line_may_be_in_two_places_a_decision_costs_less_than_the_mean():
    labels = lines(*[3] * 7, *[4] * 3)
    mean = labels.mean(0, keepdims=True)  # 0.7 and 0.3
    decided = np.where(mean > 0.5, 0.9, np.where(mean > 0, 0.1, 0))
    wrong = np.where(mean > 0.5, 0.1, np.where(mean > 0, 0.9, 0))
    grey, dark, other = (
        float(edge_costs(logits(np.repeat(said, 10, 0)), of_white(labels)).mean()) for said in (mean, decided, wrong)
    )
    assert dark < grey - 0.03
    assert other > grey


def test_a_grey_label_is_learnt_as_grey():
    label = 0.4 * lines(3)
    costs = [float(edge_costs(logits(said * lines(3)), of_white(label))[0]) for said in (0.1, 0.4, 0.9)]
    assert costs[1] == min(costs)


def test_labels_of_another_size_are_resized():
    label = of_white(lines(3).repeat(2, 1).repeat(2, 2))
    right, wrong = (edge_costs(logits(lines(column)), label)[0] for column in (3, 8))
    assert right < 0.8  # resizing blurs
    assert wrong > 1.2
