import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from prismer_jax import evaluators, labels, sharding
from prismer_jax.batch import prompts
from prismer_jax.errors import BadSample, UserError
from prismer_jax.evaluators import common
from prismer_jax.evaluators.journal import Journal
from prismer_jax.scores.caption import caption_metrics

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "red", "green", "blue", "grey", "what", "where"]
GREY = WORDS.index("grey")
TRACES: list[tuple[int, ...]] = []  # one entry each time the model is traced


class Tokenizer:
    bos, pad, eos = 0, 1, 2

    def encode(self, text):
        return [WORDS.index(word) for word in text.split()]

    encode_after = encode

    def decode(self, ids):
        ended = itertools.takewhile(lambda i: i != self.eos, ids)
        return " ".join(WORDS[i] for i in ended if i > 3)


class Parrot(nn.Module):
    """Says the word whose number is the image's value times a parameter, then ends; a blank image is 'grey'."""

    experts, classes = (), {}

    def encode(self, batch, train=False):
        image = batch["image"]
        TRACES.append(image.shape)
        value = image[:, 0, 0, 0].astype(jnp.int32)
        scale = self.variables["params"]["scale"].astype(jnp.int32)
        return jnp.where(value == common.GREY, GREY, value * scale)

    def prefill(self, encoded, batch, room):
        cache = {"shared": {}, "own": {}, "rows": {}, "index": jnp.int32(0)}
        return 9.0 * jax.nn.one_hot(encoded, len(WORDS))[:, None], cache

    def extend(self, cache, tokens, seen=None):
        return jnp.broadcast_to(9.0 * jax.nn.one_hot(2, len(WORDS)), (*tokens.shape, len(WORDS))), cache

    def __call__(self, batch, train=False):
        encoded = self.encode(batch)
        return jnp.broadcast_to(9.0 * jax.nn.one_hot(encoded, len(WORDS))[:, None], (*batch["text"].shape, len(WORDS)))


VARIABLES = {"params": {"scale": np.float32(1.0)}}


def pp(example, rng):
    text = np.array([1, 0, *([WORDS.index(example["question"])] if example.get("question") else [0])], np.int32)
    return dict(
        example,
        image=np.full((2, 2, 3), example["value"], np.uint8),
        **prompts(text, text != 1),
        mask_loss=np.array([0, 0, 1], np.float32),
        **{"labels/depth": np.full((2, 2, 1), 9, np.uint8)},
    )


def made(kind, source, **options):
    options = {"batch_size": 4, "quiet": True, "pp": pp} | options
    return evaluators.build(kind, model=Parrot(), tokenizer=Tokenizer(), source=source, **options)


def captioned(count=10):
    return [{"id": f"{i + 1}", "value": 4 + i % 3, "captions": [WORDS[4 + i % 3], "a red thing"]} for i in range(count)]


def asked(count=10):
    return [
        {
            "id": f"image{i % 2}",
            "question_id": 100 + i,
            "question": WORDS[8 + i % 2],
            "value": 4 + i % 3,
            "answers": ["red"] * 10,
            "question_type": WORDS[8 + i % 2],
        }
        for i in range(count)
    ]


COLORS = ["red", "green", "blue"]
UNKNOWN = {"id": "9", "value": 4, "question": "what"}  # without caption, answers and class


def classified(count=10):
    return [{"id": f"{i + 1}", "value": 4 + i % 3, "class_name": COLORS[i % 3]} for i in range(count)]


@pytest.mark.parametrize("mesh", [None, {"data": 4, "tensor": 2}], ids=["one device", "mesh"])
@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_captions_are_scored_beside_blank_and_most_frequent(mesh, method):
    source = captioned()
    train = [{"captions": ["blue"]}, {"captions": ["blue"]}, {"captions": ["red"]}]
    mesh = sharding.make_mesh(mesh) if mesh else None
    evaluator = made("caption", source, method=method, max_new=4, mesh=mesh, train_source=train)
    values = dict(evaluator.run(VARIABLES))
    references = {i + 1: example["captions"] for i, example in enumerate(source)}
    said = {i + 1: WORDS[4 + i % 3] for i in range(10)}
    assert evaluator.predictions == [{"image_id": key, "caption": text} for key, text in said.items()]
    for suffix, captions in (
        ("", said),
        ("_blank", dict.fromkeys(said, "grey")),
        ("_most_frequent", dict.fromkeys(said, "blue")),
    ):
        for name, value in caption_metrics(captions, references).items():
            assert values[name + suffix] == pytest.approx(value)
    assert values["cider"] > values["cider_most_frequent"] > values["cider_blank"]


def test_vqa_by_hand_overall_and_by_question_type():
    # Of ten questions, numbers 0, 3, 6, 9 show red: two of each type.
    evaluator = made("vqa", asked(), train_source=[{"answers": ["green"] * 10}])
    values = dict(evaluator.run(VARIABLES))
    assert values["accuracy"] == pytest.approx(40.0)
    assert values["accuracy/what"] == values["accuracy/where"] == pytest.approx(40.0)
    assert values["accuracy_blank"] == values["accuracy_most_frequent"] == values["accuracy_blank/what"] == 0.0
    assert evaluator.predictions[3] == {"question_id": 103, "answer": "red"}
    # Without a training source the constant answer is that of the references.
    assert dict(made("vqa", asked()).run(VARIABLES))["accuracy_most_frequent"] == 100.0


def test_vqa_by_rank_chooses_from_the_list():
    evaluator = made("vqa", asked(), method="rank", answers=["green", "red", "grey"], k=3)
    values = dict(evaluator.run(VARIABLES))
    assert values["accuracy"] == pytest.approx(40.0)
    assert {p["answer"] for p in evaluator.predictions} <= {"red", "green", "grey"}
    counted = made("vqa", asked(), method="rank", answers=1, train_source=asked(), k=2)
    assert dict(counted.run(VARIABLES))["accuracy"] == 100.0  # the only choice is the most frequent answer


def test_classes_are_ranked_by_name():
    source = [*classified(9), {"id": "10", "value": 4, "class_name": "blue"}]  # which is red
    evaluator = made("classification", source, classes=COLORS, k=2)
    values = dict(evaluator.run(VARIABLES))
    assert values["accuracy"] == pytest.approx(90.0)
    # The blank image says 'grey', which is no class: all tie, and the first one is the answer.
    assert values["accuracy_blank"] == pytest.approx(30.0)
    assert values["accuracy_most_frequent"] == pytest.approx(40.0)
    assert evaluator.predictions[1] == {"image_id": 2, "class": "green"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vqa", {"method": "rank", "answers": ["green", "red", "grey"], "k": 2}),
        ("vqa", {"method": "rank", "answers": ["green", "red", "grey"], "k": 2, "padding": "reference"}),
        ("classification", {"classes": COLORS, "k": 2}),
    ],
)
def test_ranking_is_traced_once_for_all_batches_and_variables(kind, options):
    source = classified(11) if kind == "classification" else asked(11)
    evaluator = made(kind, source, **options)
    jax.clear_caches()
    traced = len(TRACES)
    list(evaluator.run(VARIABLES))  # three batches, the last one filled up, and the blank image
    assert len(TRACES) == traced + 1
    list(evaluator.run({"params": {"scale": np.float32(0.0)}}))
    assert len(TRACES) == traced + 1


@pytest.mark.parametrize(("style", "written"), [("plain", ["New York", "yes"]), ("reference", ["New york", "Yes"])])
def test_answers_are_ranked_as_they_are_written_in_training(monkeypatch, style, written):
    seen = []
    monkeypatch.setattr(Tokenizer, "encode_after", lambda self, text: seen.append(text) or [4])
    made("vqa", asked(), method="rank", answers=["New York", "yes"], style=style)
    assert seen == written
    seen.clear()
    made("classification", asked(), classes=["Great Auk"], style=style)
    assert seen == (["Great Auk"] if style == "plain" else ["great auk"])


def test_reference_style_writes_captions_as_the_official_results_do():
    evaluator = made("caption", captioned(2), style="reference", max_new=4)
    list(evaluator.run(VARIABLES))
    # The prompt of one token decodes to nothing here, so nothing is cut off.
    assert [p["caption"] for p in evaluator.predictions] == ["Red.", "Green."]


def test_a_blank_image_is_decoded_once_a_distinct_question():
    evaluator = made("vqa", asked(20))
    calls = []
    say = evaluator.say
    evaluator.say = lambda variables, batch: calls.append(np.asarray(batch["image"])) or say(variables, batch)
    list(evaluator.run(VARIABLES))
    assert len(calls) == 5 + 1  # twenty questions in fives, two distinct ones
    assert (calls[-1] == common.GREY).all()


def test_without_blank_nothing_is_said_of_it():
    assert not any("blank" in name for name, _ in made("vqa", asked(), blank=False).run(VARIABLES))
    assert not any("blank" in name for name, _ in made("caption", captioned(), blank=False).run(VARIABLES))
    assert not any("blank" in name for name, _ in made("loss", captioned(), blank=False).run(VARIABLES))


def test_blank_keeps_shapes_and_empties_every_label():
    batch = {
        "image": np.zeros((2, 4, 4, 3), np.uint8),
        "labels/depth": np.ones((2, 4, 4, 1), np.uint8),
        "labels/seg_coco": np.ones((2, 4, 4, 1), np.uint8),
        labels.CLASSES_KEY: np.ones((2, 256), np.int32),
        labels.WORDS_KEY: np.ones((2, 256, 64), np.float16),
        "text": np.ones((2, 3), np.int32),
    }
    empty = common.blank(batch)
    assert {k: (v.shape, v.dtype) for k, v in empty.items()} == {k: (v.shape, v.dtype) for k, v in batch.items()}
    values = {key: set(np.unique(value).tolist()) for key, value in empty.items()}
    assert values == {
        "image": {128},
        "labels/depth": {0},
        "labels/seg_coco": {255},
        labels.CLASSES_KEY: {-1},
        labels.WORDS_KEY: {0.0},
        "text": {1},
    }


@pytest.mark.parametrize(
    ("kind", "options"),
    [("caption", {"method": "sample"}), ("vqa", {"method": "rank", "answers": ["red", "blue"]}), ("loss", {})],
)
def test_moves_arrays_explicitly(kind, options):
    variables = jax.device_put(VARIABLES)
    evaluator = made(kind, captioned() if kind != "vqa" else asked(), **options)
    with jax.transfer_guard("disallow"):
        assert len(dict(evaluator.run(variables))) >= 2


@pytest.mark.parametrize("batch_size", [3, 4, 10, 16])
def test_loss_is_the_mean_over_examples_whatever_the_batch(batch_size):
    # Each example scores the token 0 of its last column, against a distribution that is certain of another.
    values = dict(
        made("loss", captioned(), batch_size=batch_size, loss_options={"label_smoothing": 0.0}).run(VARIABLES)
    )
    expected = np.log(np.exp(9.0) + len(WORDS) - 1)
    assert values["loss"] == pytest.approx(expected, rel=1e-5)
    assert values["loss_blank"] == pytest.approx(expected, rel=1e-5)


def test_other_variables_give_other_values_without_a_second_compilation():
    evaluator = made("caption", captioned())
    first, traced = dict(evaluator.run(VARIABLES)), len(TRACES)
    second = dict(evaluator.run({"params": {"scale": np.float32(0.0)}}))
    assert len(TRACES) == traced
    assert second["cider"] < first["cider"]
    assert {p["caption"] for p in evaluator.predictions} == {""}  # it says the start token, which is no word


def test_samples_are_the_same_every_time_and_of_all_question_types():
    evaluator = made("vqa", asked(6))
    list(evaluator.run(VARIABLES))
    first = evaluator.samples(4)
    list(evaluator.run(VARIABLES))
    assert [s["id"] for s in first] == [s["id"] for s in evaluator.samples(4)]
    assert sorted(s["question_type"] for s in first) == ["what", "what", "where", "where"]
    assert len(evaluator.samples(100)) == 6
    for sample in first:
        value = int(sample["image"][0, 0, 0])
        assert sample["prediction"] == WORDS[value] == WORDS[4 + (sample["id"] - 100) % 3]
        assert sample["correct"] == (1.0 if value == 4 else 0.0)
        assert sample["blank"] == "grey"
        assert sample["labels"]["depth"].shape == (2, 2, 1)


def test_test_sets_without_references_give_predictions_where_that_is_asked_for():
    hidden = [{"id": "7", "value": 4}, {"id": "x8", "value": 5}]
    evaluator = made("caption", hidden, predict_only=True)
    assert list(evaluator.run(VARIABLES)) == []
    assert evaluator.predictions == [{"image_id": 7, "caption": "red"}, {"image_id": "x8", "caption": "green"}]
    hidden = [{"id": "1", "value": 4, "question": "what"}]
    assert list(made("vqa", hidden, predict_only=True).run(VARIABLES)) == []


@pytest.mark.parametrize(
    ("kind", "source", "options", "noun"),
    [
        ("caption", [{"id": "7", "value": 4}, {"id": "8", "value": 4, "captions": []}], {}, "caption"),
        ("vqa", [{"id": "1", "value": 4, "question": "what", "answers": []}], {}, "answer"),
        ("classification", [{"id": "9", "value": 4}], {"classes": COLORS}, "class"),
    ],
)
def test_what_cannot_be_scored_is_an_error_before_the_model_is_asked(kind, source, options, noun):
    evaluator = made(kind, source, **options)
    calls = stop_after(evaluator, 0)
    with pytest.raises(
        UserError, match=f"^{kind}: no sample has a reference {noun}, so nothing can be scored.*predict_only"
    ):
        list(evaluator.run(VARIABLES))
    assert not calls


def test_a_loss_of_no_token_is_no_loss():
    def empty(example, rng):
        return dict(pp(example, rng), mask_loss=np.zeros(3, np.float32))

    with pytest.raises(UserError, match="10 of 10 samples have no text, such as 1"):
        list(made("loss", captioned(), pp=empty).run(VARIABLES))
    expected = dict(made("loss", captioned()).run(VARIABLES))
    evaluator = made("loss", captioned(), pp=lambda e, r: (empty if e["id"] == "3" else pp)(e, r), max_unscored=0.1)
    assert dict(evaluator.run(VARIABLES)) == pytest.approx(expected | {"unscored": 1})
    assert "scores" not in evaluator.records[2]


EMPTY_CELLS = dict(captions=[float("nan")], answers=[float("nan")])  # as pandas reads them


@pytest.mark.parametrize(
    ("kind", "instead"),
    [("caption", {}), ("vqa", {}), ("classification", {}), ("caption", EMPTY_CELLS), ("vqa", EMPTY_CELLS)],
)
def test_samples_without_reference_are_left_out_of_metrics_and_counted(kind, instead):
    function, options = KINDS[kind]
    source, part = function(10), function(10)
    for key in ("captions", "answers", "class_name"):
        part[3].pop(key, None)
    part[3] |= instead
    expected = dict(made(kind, source[:3] + source[4:], **options).run(VARIABLES))
    evaluator = made(kind, part, max_unscored=0.1, **options)
    assert dict(evaluator.run(VARIABLES)) == pytest.approx(expected | {"unscored": 1})
    assert len(evaluator.predictions) == 10
    assert "scores" not in evaluator.records[3]
    with pytest.raises(UserError, match=r"1 of 10 samples have no .*, such as .*max_unscored \(now 0.01\)"):
        list(made(kind, part, **options).run(VARIABLES))


class Damaged(list):
    """A source of which some samples cannot be read."""

    def __init__(self, samples, bad):
        super().__init__(samples)
        self.bad = bad

    def __getitem__(self, index):
        if index in self.bad:
            raise BadSample(f"photo {index} is damaged", "damaged image")
        return super().__getitem__(index)


@pytest.mark.parametrize("mesh", [None, {"data": 4}], ids=["one device", "mesh"])
@pytest.mark.parametrize("bad", [0, 5, 10])
@pytest.mark.parametrize("kind", ["caption", "vqa", "classification", "loss"])
def test_one_bad_photo_costs_one_photo(kind, bad, mesh, caplog, tmp_path):
    function, options = KINDS[kind]
    source = function(11)
    expected = dict(made(kind, source[:bad] + source[bad + 1 :], **options).run(VARIABLES))
    mesh = sharding.make_mesh(mesh, jax.devices()[:4]) if mesh else None
    for _ in range(2):  # the second time from the journal
        evaluator = made(kind, Damaged(source, {bad}), mesh=mesh, **options)
        values = dict(evaluator.run(VARIABLES, Journal(tmp_path, kind, {})))
        assert values == pytest.approx(expected | {"left_out": 1})
        assert [record["index"] for record in evaluator.records] == [i for i in range(11) if i != bad]
        assert evaluator.left_out == [{"index": bad, "error": f"photo {bad} is damaged", "reason": "damaged image"}]
        assert f"Left out: photo {bad} is damaged" in caplog.text
        caplog.clear()
    mended = made(kind, source, **options)
    assert "left_out" not in dict(mended.run(VARIABLES, Journal(tmp_path, kind, {})))
    assert len(mended.records) == 11


def test_many_bad_photos_are_an_error():
    with pytest.raises(
        UserError, match=r"2 of 10 samples are bad, the first: photo 3 is damaged.* Mend .*max_unscored"
    ):
        list(made("vqa", Damaged(asked(), {3, 4})).run(VARIABLES))
    assert dict(made("vqa", Damaged(asked(), {3, 4}), max_unscored=0.2).run(VARIABLES))["left_out"] == 2
    with pytest.raises(UserError, match="None of the 10 samples can be used"):
        list(made("loss", Damaged(captioned(), range(10)), max_unscored=1).run(VARIABLES))


@pytest.mark.parametrize(
    ("example", "key"),
    [
        ({"question_id": 42}, 42),
        ({"question_id": np.int64(2**40)}, 2**40),
        ({"question_id": 0}, 0),
        ({"question_id": "42"}, "42"),
        ({"question_id": "0042"}, "0042"),
        ({"id": "42"}, 42),
        ({"id": "0"}, 0),
        ({"id": "0042"}, "0042"),
        ({"id": "01827492"}, "01827492"),
        ({"id": "-3"}, "-3"),
        ({"id": "a.jpg#1"}, "a.jpg#1"),
        ({}, 7),
    ],
)
def test_ids_go_out_as_they_came(example, key):
    given = made("caption", captioned()).key_of(example, 7)
    assert (given, type(given)) == (key, type(key))


@pytest.mark.parametrize(
    ("kind", "source", "options", "message"),
    [
        ("captoin", captioned(), {}, "Did you mean 'caption'"),
        ("caption", captioned(), {"method": "beem"}, "Did you mean 'beam'"),
        ("caption", captioned(), {"num_beam": 3}, "Did you mean 'num_beams'"),
        ("vqa", asked(), {"method": "rank"}, "needs answers"),
        ("vqa", asked(), {"method": "rank", "answers": "no_such.json"}, r"no_such\.json"),
        ("vqa", asked(), {"method": "rank", "answers": ["red"], "k": 0}, "k=0: must be at least 1"),
        ("vqa", asked(), {"num_workers": -1}, "num_workers=-1: must be from 0"),
        ("vqa", asked(), {"style": "planar"}, "Did you mean 'plain'"),
        ("vqa", asked(), {"padding": "referenc"}, "Did you mean 'reference'"),
        ("vqa", asked(), {"method": "rank", "answers": ["red"], "max_new": 3}, "setting of vqa: 'max_new'"),
        (
            "classification",
            classified(),
            {"classes": ["red", "green"]},
            "Example 3 is of class 'blue', which",
        ),
        ("classification", classified(), {}, "needs `classes`"),
        (
            "classification",
            [*classified(2), {"id": "9", "value": 4}],
            {"classes": COLORS},
            "1 of 3 samples have no class, .* 9",
        ),
        ("caption", [], {}, "no sample has a reference"),
        ("loss", [], {}, "data set to evaluate on is empty"),
        ("loss", captioned(), {"loss": "cross_entropi"}, "Did you mean 'cross_entropy'"),
        ("loss", captioned(), {"loss_options": {"label_smoothing": 2.0}}, "loss_options: label_smoothing=2.0"),
        ("caption", captioned(2) + captioned(1), {}, "more than once.*such as 1"),
        ("caption", [*captioned(2), UNKNOWN], {}, "1 of 3 samples have no caption, .* 9"),
        (
            "vqa",
            [*asked(2), {"id": "9", "value": 4, "question": "what"}],
            {},
            "1 of 3 samples have no answer, .* 9",
        ),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(kind, source, options, message):
    with pytest.raises(UserError, match=message):
        list(made(kind, source, **options).run(VARIABLES))


@pytest.mark.parametrize("setting", [dict(num_return=9), dict(padding="ours"), dict(method="sample", temperature=0.0)])
def test_a_decoding_that_cannot_be_is_refused_before_the_training(setting):
    with pytest.raises(UserError, match=r"temperature|num_return|padding"):
        made("caption", captioned(), **setting)


def test_captions_are_scored_by_domain_too():
    source = [dict(example, domain=("in-domain", "out-domain")[i % 2]) for i, example in enumerate(captioned())]
    evaluator = made("caption", source)
    values = dict(evaluator.run(VARIABLES))
    references = {i + 1: example["captions"] for i, example in enumerate(source)}
    said = {p["image_id"]: p["caption"] for p in evaluator.predictions}
    for start, domain in ((1, "in-domain"), (2, "out-domain")):
        ids = range(start, 11, 2)
        for name, value in caption_metrics({i: said[i] for i in ids}, {i: references[i] for i in ids}).items():
            assert values[f"{name}/{domain}"] == pytest.approx(value)
    assert "cider_blank/in-domain" in values


def test_answers_are_scored_by_answer_type_too():
    source = [dict(example, answer_type="other" if example["value"] == 4 else "number") for example in asked()]
    values = dict(made("vqa", source).run(VARIABLES))
    assert (values["accuracy/other"], values["accuracy/number"]) == (100.0, 0.0)
    assert values["accuracy/what"] == pytest.approx(40.0)


def test_a_test_sets_submission_has_every_question_once():
    hidden = [{k: v for k, v in example.items() if k not in ("answers", "question_type")} for example in asked(11)]
    evaluator = made("vqa", hidden, predict_only=True)
    assert list(evaluator.run(VARIABLES)) == []
    assert [p["question_id"] for p in evaluator.predictions] == list(range(100, 111))
    assert all(p.keys() == {"question_id", "answer"} and isinstance(p["answer"], str) for p in evaluator.predictions)


# ------------------------------------------------------------------------------------------------ going on after a stop


class Stop(Exception):
    pass


KINDS = {
    "caption": (captioned, {"max_new": 4}),
    "vqa": (asked, {}),
    "rank": (asked, {"method": "rank", "answers": ["green", "red", "grey"], "k": 2}),
    "classification": (classified, {"classes": COLORS, "k": 2}),
    "loss": (captioned, {}),
}


def of_kind(kind, count=11, **options):
    source, settings = KINDS[kind]
    return made({"rank": "vqa"}.get(kind, kind), source(count), **settings, **options)


def stop_after(evaluator, calls):
    """The evaluator stops as if killed when its model is asked once more; returns where calls are counted."""
    counted = []
    name = "say" if hasattr(evaluator, "say") else "measure"
    function = getattr(evaluator, name)

    def counting(*args):
        if len(counted) == calls:
            raise Stop
        counted.append(1)
        return function(*args)

    setattr(evaluator, name, counting)
    return counted


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_numbers(kind, tmp_path):
    whole = of_kind(kind)
    expected = dict(whole.run(VARIABLES))
    calls = 3 if kind == "loss" else 4  # three batches, and what is said of a blank image
    for stop in range(calls):
        journal = Journal(tmp_path / str(stop), kind, {})
        stopped = of_kind(kind)
        stop_after(stopped, stop)
        with pytest.raises(Stop):
            list(stopped.run(VARIABLES, journal))
        journal.close()
        evaluator = of_kind(kind)
        counted = stop_after(evaluator, -1)
        assert dict(evaluator.run(VARIABLES, Journal(tmp_path / str(stop), kind, {}))) == expected
        assert (evaluator.records, evaluator.predictions) == (whole.records, whole.predictions)
        assert len(counted) == calls - stop


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_is_read_and_not_computed_again(kind, tmp_path):
    expected = dict(of_kind(kind).run(VARIABLES, Journal(tmp_path, kind, {})))
    evaluator = of_kind(kind)
    stop_after(evaluator, 0)
    assert dict(evaluator.run(VARIABLES, Journal(tmp_path, kind, {}))) == expected


def test_a_batch_of_which_a_line_is_lost_is_computed_again(tmp_path):
    expected = dict(of_kind("vqa").run(VARIABLES, Journal(tmp_path, "vqa", {})))
    file = tmp_path / "vqa.0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:7]) + lines[7][:10])  # header, a batch of four, and two of the next, a third torn
    evaluator = of_kind("vqa")
    calls = stop_after(evaluator, -1)
    assert dict(evaluator.run(VARIABLES, Journal(tmp_path, "vqa", {}))) == expected
    assert len(calls) == 3


def test_ids_of_64_bits_survive_the_way_to_the_other_processes(monkeypatch):
    """multihost_utils.process_allgather (jax 0.10.2) makes 7 of 2**32 + 7, as JAX does of all its arrays."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        common.multihost_utils, "process_allgather", lambda x: np.stack([np.asarray(jnp.asarray(x))] * 2)
    )
    assert common.multihost_utils.process_allgather(np.array([2**32 + 7])).ravel().tolist() == [7, 7]
    records = [{"id": 2**32 + 7, "question_id": 2**53 + 1}, {"id": "ü"}]
    assert common.gather(records) == 2 * records


# --------------------------------------------------------------------------------------------------------- its samples


@pytest.mark.parametrize("kind", KINDS)
def test_each_metric_with_scores_is_their_mean(kind):
    evaluator = of_kind(kind)
    values = dict(evaluator.run(VARIABLES))
    assert evaluator.main_score in evaluator.records[0]["scores"]
    for name in evaluator.records[0]["scores"]:
        assert values[name] == pytest.approx(np.mean([record["scores"][name] for record in evaluator.records]))
    for name, kind in [(name, name.partition("/")[2]) for name in values if "/" in name]:
        scores = [r["scores"][name.partition("/")[0]] for r in evaluator.records if r["type"] == kind]
        assert values[name] == pytest.approx(np.mean(scores))


def test_the_best_and_the_worst_samples_are_those():
    evaluator = of_kind("vqa")  # of eleven questions, numbers 0, 3, 6 and 9 are answered rightly
    list(evaluator.run(VARIABLES))
    assert {s["id"] for s in evaluator.samples(4, "best")} == {100, 103, 106, 109}
    assert not {s["id"] for s in evaluator.samples(7, "worst")} & {100, 103, 106, 109}
    assert len(evaluator.samples(100, "worst")) == 11
    assert evaluator.samples(1, "best")[0]["score"] == ("accuracy", 100.0)
    by_loss = of_kind("loss")
    list(by_loss.run(VARIABLES))
    for place, record in enumerate(by_loss.records):
        record["scores"]["loss"] = float(place)
    assert [sample["id"] for sample in by_loss.samples(2, "best")] == [1, 2]
    assert [sample["id"] for sample in by_loss.samples(2, "worst")] == [11, 10]


def test_without_references_there_are_samples_but_no_best_ones():
    evaluator = made("caption", [{"id": "7", "value": 4}], predict_only=True)
    list(evaluator.run(VARIABLES))
    assert evaluator.samples(3, "best") == evaluator.samples(3, "worst") == []
    assert evaluator.samples(3)[0]["prediction"] == "red"
