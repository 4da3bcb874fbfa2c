"""Batches of tiles are cut to a few sizes: nothing real is cut, like sizes come together, and few programs compile."""

import numpy as np
import pytest

from prismer_jax import input, pp
from prismer_jax.pp import buckets
from prismer_jax.pp.chat_test import letters

PP = "tiles(32, 256, enlarge=False)|{}|chat(600, 4)"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters(tmp_path_factory.mktemp("tokenizer"))


def source(*sides, words="a"):
    """Examples with photos of so many tiles on each side."""
    texts = [{"user": "?", "assistant": words * (1 + i)} for i in range(len(sides))]
    photos = [np.full((32 * side, 32 * side, 3), side, np.uint8) for side in sides]
    return [
        {"id": i, "image": photo, "turns": [text]} for i, (photo, text) in enumerate(zip(photos, texts, strict=True))
    ]


def batches(examples, tokenizer, size, op="turns()", **options):
    return list(input.eval_batches(examples, pp.build(PP.format(op), tokenizer=tokenizer), batch_size=size, **options))


def test_there_are_few_sizes_and_each_holds_what_it_is_for():
    assert {buckets.tiles_for(n, 65) for n in range(66)} == {1, 3, 5, 9, 17, 33, 65}
    assert {buckets.columns_for(n, 1556) for n in range(1557)} == {32, 64, 128, 256, 512, 1024, 1556}
    assert all(buckets.tiles_for(n, 65) >= n for n in range(66))
    assert all(buckets.columns_for(n, 1556) >= n for n in range(1557))
    assert (buckets.tiles_for(4, 4), buckets.columns_for(20, 20)) == (4, 20)


@pytest.mark.parametrize("op", ["turns()", "ask('what?')"])
def test_what_is_cut_is_padding_on_either_side(tokenizer, op):
    examples = source(1, 1, 2, 4)
    chain = pp.build(PP.format(op), tokenizer=tokenizer)
    alone = [chain(example, np.random.default_rng(0)) for example in examples]
    first, second = batches(examples, tokenizer, 2, op)
    assert (first["image"].shape[1], second["image"].shape[1]) == (1, 17)
    assert first["text"].shape[1] < second["text"].shape[1] < alone[0]["text"].shape[0]
    for batch, rows in ((first, alone[:2]), (second, alone[2:])):
        for number, row in enumerate(rows):
            mask, there = batch["mask_input"][number], batch["image_mask"][number]
            for key in buckets.COLUMNS:
                np.testing.assert_array_equal(batch[key][number][mask], row[key][row["mask_input"]])
            np.testing.assert_array_equal(batch["image"][number][there], row["image"][row["image_mask"]])
            assert mask[-1] == (op != "turns()") or mask[0]  # prompts still end with the row


def test_rows_that_fill_a_batch_up_are_no_reason_for_more_tiles(tokenizer):
    bad = {"id": 9, "image": np.zeros((1, 99, 3), np.uint8), "turns": [{"user": "?"}]}
    last = batches([*source(8, 1), bad], tokenizer, 2)[1:]
    assert [batch["image"].shape[1] for batch in last] == [65]  # nothing is real: as it was
    last = batches(source(8, 1, 1), tokenizer, 2)[1:]
    assert [batch["image"].shape[1] for batch in last] == [1]


def test_other_processes_see_the_same_shapes(tokenizer):
    examples = source(1, 1, 2, 4)
    shapes = [[batch["image"].shape[1] for batch in batches(examples, tokenizer, 2, rows=[row])] for row in range(2)]
    assert shapes == [[65, 65], [65, 65]]


def test_like_sizes_come_together_and_each_once_an_epoch():
    import grain.python as grain

    sizes = np.stack([np.resize([1, 5, 17, 1], 1000), np.arange(1000) % 90], 1)
    order = grain.MapDataset.range(1000).seed(3).shuffle().repeat(None)
    made = buckets.Neighbours(order, sizes, 4, 0)
    places = [made(place) for place in range(4000)]
    window = buckets.WINDOW * 4
    for start in range(0, 3 * window, window):
        assert sorted(places[start : start + window]) == sorted(order[i] for i in range(start, start + window))
    tiles = sizes[places[: 4 * window], 0].reshape(-1, 4)
    mixed = (tiles != tiles[:, :1]).any(1).mean()
    plain = sizes[[order[i] for i in range(4 * window)], 0].reshape(-1, 4)
    assert mixed < 0.05 < 0.8 < (plain != plain[:, :1]).any(1).mean()
    assert len(set(tiles[:20, 0])) == 3  # and the batches are mixed
    again = buckets.Neighbours(order, sizes, 4, 0)
    assert [again(place) for place in (2500, 7, 1300)] == [places[2500], places[7], places[1300]]
