import functools

import numpy as np
import pytest

from prismer_jax import evaluators, models, pp
from prismer_jax.errors import UserError
from prismer_jax.evaluators import text as module
from prismer_jax.evaluators.text import TextEvaluator, scan


class Listening(TextEvaluator):
    """Says nothing, and keeps what it was asked."""

    def say(self, variables, batch):
        self.asked = [*getattr(self, "asked", []), np.asarray(batch["mask_ar"])]
        return ["nothing"] * len(batch["text"])

    def texts_of(self, example):
        return ["nothing"]

    def metrics(self, records):
        yield "blank", float(all(record["blank"] == "nothing" for record in records))


@pytest.mark.parametrize("ar", [0, 1])
def test_a_prompt_is_read_with_a_blank_image_as_it_is_with_a_photo(ar):
    def example(number):
        text = np.full(3, number, np.int32)
        masks = {"mask_input": text > 0, "mask_ar": text * 0 + ar, "segment": text * 0}
        return {"id": str(number), "image": np.zeros((2, 2, 3), np.uint8), "text": text, **masks}

    tokenizer = type("Tokenizer", (), {"pad": 0, "eos": 1})
    options = dict(model=None, tokenizer=tokenizer, source=[example(1), example(2)], batch_size=2, quiet=True)
    evaluator = Listening(**options, pp=lambda example, rng: example)
    assert dict(evaluator.run({})) == {"blank": 1.0}
    photo, blank = evaluator.asked
    np.testing.assert_array_equal(photo, blank)
    assert (blank == ar).all()


def test_scan_is_evenly_spaced_and_bounded(monkeypatch):
    monkeypatch.setattr(module, "SCANNED", 10)
    assert list(scan(range(5))) == [0, 1, 2, 3, 4]
    seen = list(scan(range(95)))
    assert seen == list(range(0, 95, 10))
    assert list(scan(None)) == []
    assert list(scan(range(95), 3)) == [0, 1, 2]


def test_ids_that_occur_twice_are_found_before_training_and_name_the_section():
    class Source:
        """A million examples, of which two neighbours are of one photo."""

        read = 0

        def __len__(self):
            return 1_000_000

        def __getitem__(self, index):
            self.read += 1
            return {"id": str(index // 2), "captions": ["a cat"]}

    options = dict(model=None, tokenizer=None, pp=None, source=Source(), batch_size=2)
    with pytest.raises(UserError, match=r"config\.evals\.mine: 250 ids occur more than once .*, such as 0\. Give each"):
        Listening(**options, where="config.evals.mine").check_source()
    assert options["source"].read < 1000


def test_ops_that_make_no_prompt_are_named_before_training():
    """And not at the first evaluation, after hours."""
    source = [{"id": "1", "image": np.zeros((4, 4, 3), np.uint8), "captions": ["a cat"]}]
    options = dict(model=None, tokenizer=None, source=source, batch_size=1)
    with pytest.raises(UserError, match=r"config\.evals\.caption\.pp makes no prompt: end it with question_prompt or"):
        Listening(**options, pp=pp.build("resize(2)"), where="config.evals.caption").check_source()
    words = pp.tokenizer.load("scenes")
    with pytest.raises(UserError, match="tokenize needs an op before it that makes a prompt"):
        Listening(**options, pp=pp.build("resize(2)|tokenize(8)", words)).check_source()
    Listening(**options, pp=pp.build("resize(2)|caption_prompt()|tokenize(8)", words)).check_source()


@pytest.mark.parametrize(
    ("kind", "ops", "enough", "message"),
    [
        ("detection", "resize(2)", "resize(2)|caption_prompt()|tokenize(8)", "makes no prompt: end it with detect or"),
        ("loss", "resize(2)", "resize(2)|caption|tokenize(8)", "makes no text to be predicted: end it with caption or"),
        ("perplexity", "resize(2)", "resize(2)|caption|tokenize(8)", "makes no text to be predicted"),
    ],
)
def test_ops_without_what_an_evaluator_reads_are_named_before_training(kind, ops, enough, message):
    source = [{"id": "1", "image": np.zeros((4, 4, 3), np.uint8), "captions": ["a cat"]}]
    words = pp.tokenizer.load("scenes")
    options = dict(model=models.build("prismer", variant="tiny"), tokenizer=words, source=source, batch_size=1)
    build = functools.partial(evaluators.build, kind, where="config.evals.mine", **options)
    with pytest.raises(UserError, match=rf"config\.evals\.mine\.pp {message}"):
        build(pp=pp.build(ops, words)).check_source()
    build(pp=pp.build(enough, words)).check_source()
