"""Rows of several samples: what is in them, who sees whom, what is left out, and that a resumed run goes on exactly."""

import functools
import json
import logging
import shutil

import jax
import numpy as np
import pytest

from prismer_jax import datasets, input, losses, models, pp, registry
from prismer_jax.batch import prompts
from prismer_jax.datasets import data_seen, packing
from prismer_jax.errors import UserError
from prismer_jax.labels import CLASSES_KEY
from prismer_jax.pp.chat import EXTRA_TOKENS
from prismer_jax.pp.chat_test import letters
from prismer_jax.pp.location_tokens import PIECES

PP = "decode|tiles(32, 64, most=9, enlarge=False)|turns()|chat(400, 4)"


@pytest.fixture(scope="module", autouse=True)
def data_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRISMER_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters(tmp_path_factory.mktemp("tokenizer"))


def photo(path, height, width):
    from PIL import Image

    Image.fromarray(np.full((height, width, 3), 100, np.uint8)).save(path)
    return path.name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 good samples of 0 to 2 photos, and one of each kind that is left out."""
    root, rows = tmp_path_factory.mktemp("talks"), []
    for i in range(40):
        images = [photo(root / f"{i}_{j}.png", 20 + 10 * (i % 2), 64) for j in range(i % 3)]
        rows.append({"images": images, "texts": [{"user": f"{i}?", "assistant": "x" * (5 + 7 * i % 90)}]})
    said = [{"user": "a", "assistant": "b"}]
    rows += [
        {"images": [], "texts": [{"user": "long", "assistant": "x" * 390}]},
        {"images": [], "texts": [{"user": "longer than a row", "assistant": "x" * 270}]},
        {"images": ["0.png", "absent.png"], "texts": said},
        {"images": [photo(root / f"many{j}.png", 64, 64) for j in range(2)], "texts": said},
        {"images": [photo(root / f"four{j}.png", 2, 2) for j in range(4)], "texts": said},
        {"images": [], "texts": said, "relevance_ratings": [1]},
        {"images": [], "texts": [{"user": "and?", "assistant": ""}], "weight": 0},
    ]
    rows[0]["relevance_ratings"] = [5]
    (root / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def packed(folder, tokenizer, **options):
    source = datasets.load("conversations", path=folder / "talks.jsonl", relevance=2)
    settings = dict(length=300, most=9, photos=2) | options
    return source, *packing.rows(source, pp.build(PP, tokenizer=tokenizer), **settings)


def test_a_row_is_its_samples_one_after_the_other(folder, tokenizer):
    source, rows, _ = packed(folder, tokenizer)
    chain = pp.build(PP, tokenizer=tokenizer)
    assert rows.fullness > 0.8  # a last row is seldom full, and these are few
    assert sorted(np.concatenate([rows.members(i) for i in range(len(rows))])) == [*range(40), 46]
    for index in range(len(rows)):
        row, end, tiles = rows[index], 0, 0
        for number, member in enumerate(rows.members(index)):
            alone = chain(source[int(member)], np.random.default_rng(0))
            real = alone["mask_input"]
            start, end = end, end + int(real.sum())
            for key in ("text", "mask_input", "mask_ar", "mask_loss"):
                np.testing.assert_array_equal(row[key][start:end], alone[key][real])
            assert set(row["segment"][start:end]) == {number}
            count = int(alone["image_mask"].sum())
            np.testing.assert_array_equal(row["image"][tiles : tiles + count], alone["image"][:count])
            tiles += count
        assert not row["mask_input"][end:].any()
        assert row["image_mask"].tolist() == [True] * tiles + [False] * (9 - tiles)


def labelled(number, side, said):
    """An example with a photo of side x side tiles, its label maps and the classes of their instances; or a text."""
    rng, size = np.random.default_rng(number), 32 * side
    example = {"id": number, "image": None, "turns": [{"user": "?", "assistant": said}]}
    if side:
        image = rng.integers(0, 256, (size, size, 3), np.uint8)
        maps = {f"labels/{name}": rng.integers(0, 9, (size, size, 1), np.uint8) for name in ("depth", "obj_detection")}
        example |= {"image": image, CLASSES_KEY: np.full(256, number, np.int32), **maps}
    return example


LABELLED = (
    "labels_for('depth+obj_detection')|decode|tiles(32, 64, most=9, labels=16, enlarge=False)|turns()|chat(400, 4)"
)


def test_label_maps_and_their_classes_go_with_the_tiles_of_a_row(tokenizer):
    source = [labelled(0, 1, "a"), labelled(1, 0, "b"), labelled(2, 2, "c")]
    chain = pp.build(LABELLED, tokenizer=tokenizer)
    rows, _ = packing.rows(source, chain, length=256, most=7, how="filled")
    assert len(rows) == 1
    row, tiles = rows[0], 0
    for number in rows.members(0):
        alone = chain(source[int(number)], np.random.default_rng(0))
        count = int(alone["image_mask"].sum())
        for key in ("image", "labels/depth", "labels/obj_detection"):
            np.testing.assert_array_equal(row[key][tiles : tiles + count], alone[key][:count])
        assert (row[CLASSES_KEY][tiles : tiles + count] == number).all()
        tiles += count
    assert tiles == 6
    (batch,) = input.eval_batches([row], lambda example, rng: example, batch_size=1)
    assert batch["image"].shape[1] == batch["labels/depth"].shape[1] == batch[CLASSES_KEY].shape[1] == 7


def test_a_model_with_experts_reads_of_a_packed_row_what_it_reads_of_single_ones(tokenizer):
    from prismer_jax.models.nanovlm import build

    source = [labelled(0, 1, "a"), labelled(1, 0, "b"), labelled(2, 2, "c")]
    chain = pp.build(LABELLED, tokenizer=tokenizer)
    model = build("tiny", "depth+obj_detection", stem_width=16, image_token=tokenizer.id_of("<|image|>"))
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    kernel = variables["params"]["labels"]["out"]["kernel"]
    variables["params"]["labels"]["out"]["kernel"] = jax.random.normal(jax.random.key(1), kernel.shape)  # no longer 0
    read, logits = jax.jit(model.apply), {}
    for how in ("filled", "single"):
        rows, _ = packing.rows(source, chain, length=256, most=7, how=how)
        examples = [{k: v for k, v in rows[i].items() if isinstance(v, np.ndarray)} for i in range(len(rows))]
        batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
        out, real = np.asarray(read(variables, batch)), batch["mask_input"]
        order = np.concatenate([rows.members(i) for i in range(len(rows))])
        lengths = [int(packing.sizes_of(source, chain)[0][number, 0]) for number in order]
        parts = np.split(out[real], np.cumsum(lengths)[:-1])
        logits[how] = dict(zip(order.tolist(), parts, strict=True))
        changed = np.asarray(read(variables, batch | {"labels/depth": 255 - batch["labels/depth"]}))
        assert np.abs(changed - out).max() > 1e-3
    for number in range(3):
        np.testing.assert_allclose(logits["filled"][number], logits["single"][number], rtol=1e-3, atol=1e-4)


def test_what_is_left_out_is_counted_by_reason(folder, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        _, rows, _ = packed(folder, tokenizer)
    counts = {"too many tokens": 2, "missing photo": 1, "too many tiles": 1, "too many photos": 1, "low ratings": 1}
    assert rows.dropped.counts == counts
    assert "2 x too many tokens" in caplog.text


def test_a_prompt_without_answer_teaches_nothing(tokenizer):
    source = [{"turns": [{"user": "a"}]}, {"turns": [{"user": "a", "assistant": "b"}]}]
    rows, _ = packing.rows(source, pp.build("turns()|chat(90, 4)", tokenizer=tokenizer), length=90, most=1)
    assert rows.dropped.counts == {packing.SILENT: 1}
    assert "image" not in rows[0]


def test_the_references_rows_have_gaps_and_one_segment(folder, tokenizer):
    _, rows, _ = packed(folder, tokenizer, how="reference", seed=42)
    row = next(rows[i] for i in range(len(rows)) if len(rows.members(i)) > 1)
    first = np.flatnonzero(~row["mask_input"])[0]
    assert row["text"][first] == tokenizer.pad
    assert row["mask_input"][first + 1]
    assert not row["mask_loss"][first]
    assert not row["segment"].any()
    assert rows.fullness < packed(folder, tokenizer)[1].fullness


def test_single_rows_are_the_samples_that_fit(folder, tokenizer):
    _, rows, _ = packed(folder, tokenizer, how="single")
    assert len(rows) == 41
    assert all(len(rows.members(i)) == 1 for i in range(41))


def batches(folder, tokenizer, **options):
    _, rows, chain = packed(folder, tokenizer, seed=1)
    return input.train_batches([{"source": rows, "pp": chain}], batch_size=2, seed=0, **options)


def test_a_resumed_run_sees_the_rows_that_it_would_have_seen(folder, tokenizer):
    whole, resumed = batches(folder, tokenizer), batches(folder, tokenizer, first_step=9, num_threads=1)
    expected = [next(whole) for _ in range(12)][9:]  # beyond an epoch
    for theirs in expected:
        ours = next(resumed)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert theirs["text"].shape[1] in (256, 300)
    assert theirs["image"].shape[1:] in [(n, 32, 32, 3) for n in (1, 3, 5, 9)]
    whole.close()
    resumed.close()


def test_sizes_are_found_once_without_decoding_and_anew_for_other_files(folder, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("PRISMER_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(pp.image, "read_bytes", lambda *_: pytest.fail("a photo was decoded"))
    source, chain = datasets.load("conversations", path=folder, limit=40), pp.build(PP, tokenizer=tokenizer)
    sizes, _ = packing.sizes_of(source, chain)
    assert sizes[:3, 1:].tolist() == [[0, 0], [3, 1], [6, 2]]
    monkeypatch.setattr(input, "eval_batches", lambda *_, **__: pytest.fail("sizes were measured again"))
    np.testing.assert_array_equal(packing.sizes_of(source, chain)[0], sizes)
    other = pp.build(PP.replace("400", "399"), tokenizer=tokenizer)
    with pytest.raises(pytest.fail.Exception, match="again"):
        packing.sizes_of(source, other)


@pytest.mark.parametrize("ops", ["turns()|describe()", "label_objects(('cat', 'dog'))|detect()"])
def test_texts_that_are_made_of_labels_are_measured(ops, tmp_path):
    chain = pp.build(f"decode|{ops}|tiles(32)|chat(900, 4)", tokenizer=letters(tmp_path, (*EXTRA_TOKENS, *PIECES)))
    source = [labelled(1, 1, "a")]
    if "detect" in ops:
        del source[0]["turns"]
    tokens = int(input.eval_example(source, chain, 0)["mask_input"].sum())
    assert packing.sizes_of(source, chain)[0].tolist() == [[tokens, 1, 1]]


def test_sizes_of_a_list_are_those_of_its_photos_and_of_its_task(tokenizer, tmp_path):
    rows = [{"image": "a.png", "caption": "somebody", "question": "who?", "answer": "me"}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    for name, side in (("small", 32), ("large", 64)):
        (tmp_path / name).mkdir()
        photo(tmp_path / name / "a.png", side, side)
    chain, sizes = pp.build(PP, tokenizer=tokenizer), []
    for images, task in (("small", "caption"), ("small", "question"), ("large", "caption")):
        source = datasets.load("pairs", path=tmp_path / "list.json", images=tmp_path / images, task=task)
        tokens, tiles, _ = packing.sizes_of(source, chain)[0][0].tolist()
        assert tokens == input.eval_example(source, chain, 0)["mask_input"].sum()
        sizes.append(tiles)
    assert sizes == [1, 1, 5]


def test_sizes_of_a_table_are_those_of_its_task(tokenizer, tmp_path):
    import pyarrow
    from pyarrow import parquet

    photo(tmp_path / "a.png", 32, 32)
    row = {"image": (tmp_path / "a.png").read_bytes(), "caption": "somebody", "question": "who?", "answer": "me"}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    chain = pp.build(PP, tokenizer=tokenizer)
    for task in ("caption", "question"):
        source = datasets.load("parquet", path=tmp_path / "a.parquet", task=task)
        tokens = packing.sizes_of(source, chain)[0][0, 0]
        assert tokens == input.eval_example(source, chain, 0)["mask_input"].sum()


def test_a_sample_that_goes_bad_leaves_its_row_to_the_others(folder, tokenizer, tmp_path):
    for name in ("talks.jsonl", *(file.name for file in folder.glob("*.png"))):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    _, rows, chain = packed(tmp_path, tokenizer)
    (tmp_path / "1_0.png").write_bytes(b"")
    index = next(i for i in range(len(rows)) if 1 in rows.members(i))
    assert ["empty" in message for message in rows[index]["_bad"]] == [True]
    loader = input.train_batches([{"source": rows, "pp": chain}], batch_size=len(rows), seed=0)
    next(loader)
    assert (loader.bad, loader.seen) == (1, 41)
    loader.close()


def test_nothing_to_pack_says_why(folder, tokenizer):
    with pytest.raises(UserError, match=r"None of 47 samples can be used.*too many tokens"):
        packed(folder, tokenizer, length=20)
    with pytest.raises(UserError, match="Did you mean 'filled'"):
        packed(folder, tokenizer, how="filed")


def test_a_config_section_with_pack_makes_rows(folder, tokenizer):
    from prismer_jax import assembly, config

    section = dict(name="conversations", path=str(folder), relevance=2, pp=PP, pack=dict(length=300, most=9, photos=2))
    (part,) = assembly.load_mixture(config.strict({"talks": section}), tokenizer)
    assert part["size"] == len(part["source"]) < 41
    section["pack"]["lenth"] = 3
    with pytest.raises(UserError, match=r"config.data.talks.pack: .*lenth"):
        assembly.load_mixture(config.strict({"talks": section}), tokenizer)


def test_rows_of_several_photos_are_refused_to_a_model_that_reads_photos_in_front(tokenizer):
    """A second sample's text changes with the photo of the first."""
    model = models.build("paligemma", variant="tiny")
    rng, text = np.random.default_rng(0), np.ones((1, 4), np.int32)
    batch = {**prompts(text, text > 0), "image": rng.integers(0, 256, (1, 2, 56, 56, 3), np.uint8)}
    batch |= {"image_mask": np.ones((1, 2), bool), "segment": np.array([[0, 0, 1, 1]], np.int32)}
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    ours = model.apply(variables, batch)
    batch["image"][:, 0] = 0
    assert not np.allclose(ours[:, 2:], model.apply(variables, batch)[:, 2:])
    section = dict(pp="decode|tiles(56)|turns()|chat(40, 4)", pack=dict(length=40, most=2))
    with pytest.raises(UserError, match=r"config\.data\.talks\.pack: this model reads all photos .* how='single'"):
        packing.check({"talks": section}, model, losses.cross_entropy)
    single = {**section, "pack": dict(length=40, most=2, how="single")}
    packing.check({"talks": single, "other": dict(pp="")}, model, losses.cross_entropy)
    packing.check({"talks": section}, models.build("nanovlm", variant="tiny"), losses.cross_entropy)


@pytest.mark.parametrize(
    ("variant", "loss", "refused"),
    [
        ("tiny", "blip2_stage2", False),
        ("tiny_t5", "blip2_stage2", True),
        ("tiny_stage1", "blip2_stage1", True),
        ("tiny_stage1", "cross_entropy", False),
    ],
)
def test_texts_of_one_photo_are_packed_only_for_who_tells_them_apart(variant, loss, refused):
    """Where it is not refused, two texts in a row cost what they cost alone; where it is, something else."""
    model, loss = models.build("blip2", variant=variant), registry.imported("loss", loss, losses.LOSSES)
    rng = np.random.default_rng(0)
    texts, image = rng.integers(5, 50, (2, 4), np.int32), rng.integers(0, 256, (1, 42, 42, 3), np.uint8)
    variables = jax.jit(model.init_variables)(jax.random.key(0))
    rngs = {"negatives": jax.random.key(1)}  # and no dropout
    costs = jax.jit(lambda batch: loss(functools.partial(losses.apply, model, variables, rngs=rngs), batch)["loss"][0])

    def cost(ids, segment):
        weights = np.float32(np.arange(ids.shape[1]) % 4 > 0)[None]
        segment = np.asarray([segment], np.int32)
        return float(costs({**prompts(ids, ids > 0), "image": image, "segment": segment, "mask_loss": weights}).sum())

    together, apart = cost(texts.reshape(1, 8), [0] * 4 + [1] * 4), sum(cost(text[None], [0] * 4) for text in texts)
    assert (abs(together - apart) > 1e-3) == refused
    section = {"mine": dict(pp="decode|pack(8, of='captions')")}
    if not refused:
        return packing.check(section, model, loss)
    with pytest.raises(
        UserError, match=r"config\.data\.mine\.pp: this model with this loss reads .* as one text: use cap"
    ):
        packing.check(section, model, loss)


def test_the_golden_producer_and_knapsack(shared):
    from tools.parity import nanovlm_data
    from tools.parity.case import Case

    case = Case(shared / "golden/nanovlm_train")
    nanovlm_data.check_knapsack(case)
    for name, array in nanovlm_data.producer(case):
        np.testing.assert_array_equal(array, case.arrays[name])


def test_a_run_tells_changed_rows_without_reading_photos(folder, tokenizer, tmp_path, monkeypatch):
    def fingerprint(where):
        _, rows, _ = packed(where, tokenizer)
        with monkeypatch.context() as patch:
            patch.setattr(packing.Rows, "__getitem__", None)
            return data_seen.fingerprint(rows)

    shutil.copytree(folder, tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == fingerprint(folder)
    talks = tmp_path / "moved" / "talks.jsonl"
    talks.write_text(talks.read_text().replace("11?", "!!?"))  # as many tokens, and no other plan
    assert fingerprint(tmp_path / "moved") != fingerprint(folder)
