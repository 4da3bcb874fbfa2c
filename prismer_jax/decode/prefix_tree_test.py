import jax.numpy as jnp
import numpy as np

from prismer_jax.decode.prefix_tree import lay_out, number_prefixes

TOKENS = jnp.asarray([[7, 8, 9], [7, 8, 0], [5, 0, 0], [0, 0, 0], [7, 6, 9], [7, 8, 9]])
REAL = TOKENS > 0


def test_prefixes_that_are_alike_have_one_node_and_padding_has_none():
    nodes, number = number_prefixes(TOKENS, REAL)
    assert int(number) == 6
    assert np.where(REAL, nodes, -1).tolist() == [[0, 1, 2], [0, 1, -1], [3, -1, -1], [-1] * 3, [0, 4, 5], [0, 1, 2]]


def test_a_node_sees_what_leads_to_it():
    nodes, _ = number_prefixes(TOKENS, REAL)
    tree, seen = lay_out(TOKENS, REAL, nodes, 8)
    assert tree.tolist() == [7, 8, 9, 5, 6, 9, 0, 0]
    assert [np.flatnonzero(row).tolist() for row in seen] == [[0], [0, 1], [0, 1, 2], [3], [0, 4], [0, 4, 5], [], []]


def test_a_token_with_the_id_of_padding_is_no_padding():
    tokens, real = jnp.asarray([[3, 0], [3, 0]]), jnp.asarray([[True, False], [True, True]])
    nodes, number = number_prefixes(tokens, real)
    assert (int(number), nodes[1].tolist()) == (2, [0, 1])
