"""Text exactly as the reference has it: its cleaning, transformers 4.26.1's ids, and what becomes of generated ids.

The cleaning is compared with recorded cases; ids and texts below were recorded from RobertaTokenizer and the official
code around it (model/prismer_caption.py, model/prismer_vqa.py at 4f27ab3).
"""

import json

import numpy as np
import pytest

from prismer_jax import pp
from prismer_jax.pp import text, tokenizer

REFERENCE = text.style_of("reference")


@pytest.fixture(scope="module")
def roberta(shared):
    return tokenizer.load(f"roberta:{shared}/data/roberta")


def ids_of(spec, example, roberta):
    """Token ids that a chain makes of an example, pads dropped, and how many of them are not scored."""
    out = pp.build(spec, tokenizer=roberta)({"id": "x", **example}, np.random.default_rng(0))
    ids = out["text"][out["text"] != roberta.pad].tolist()
    return ids, int(np.argmax(out["mask_loss"] > 0))


@pytest.mark.parametrize(
    ("name", "function", "error"),
    [("pre_caption", REFERENCE.caption, None), ("pre_question", REFERENCE.clean_question, "IndexError")],
)
def test_cleaning_agrees_with_every_recorded_case(shared, name, function, error):
    cases = json.loads((shared / "golden/text_cases.json").read_text())[name]
    assert len(cases) > 60
    for case in cases:
        if "error" in case:  # the reference crashes where nothing is left
            assert (case["error"], function(case["in"], case["max_words"])) == (error, "")
        else:
            assert function(case["in"], case["max_words"]) == case["out"], case


PICTURE = [0, 250, 2170, 9]  # <s> A picture of
ZEBRA = [992, 31898]


@pytest.mark.parametrize(
    ("prefix", "caption", "ids", "unscored"),
    [
        ("A picture of", "A Zebra. ", [*PICTURE, 10, *ZEBRA, 2], 4),
        (
            "A picture of",
            "a man's hat, it isn't 3.5 m wide",
            [*PICTURE, 10, 313, 18, 3988, 6, 24, 965, 75, 155, 195, 475, 1810, 2],
            4,
        ),
        ("A picture of", "zebra " * 40, [*PICTURE, *ZEBRA * 12, 992, 2], 4),  # 30 tokens
        ("", "A A.", [0, 102, 10, 2], 1),  # no capital after the empty prefix
        (None, "A A.", [0, 250, 10, 2], 1),  # pretraining has no prefix
        (None, "Naïve café 東京", [0, 30612, 48350, 26059, 47416, 46, 15389, 46499, 11582, 2], 1),
    ],
)
def test_captions_have_the_references_ids(roberta, prefix, caption, ids, unscored):
    spec = f"caption(prefix={prefix!r}, style='reference')|tokenize(30)"
    assert ids_of(spec, {"captions": [caption]}, roberta) == (ids, unscored)


@pytest.mark.parametrize(
    ("question", "ids"),
    [
        ("what  is  it ", [0, 2264, 1437, 16, 1437, 24, 116]),
        ("how " + "zebras " * 40, [0, 6179, *[20025, 3809, 281] * 11]),  # cut to 30 words, then to 35 tokens
    ],
)
def test_questions_have_the_references_ids(roberta, question, ids):
    assert ids_of("question_prompt(style='reference')|tokenize(35)", {"question": question}, roberta)[0] == ids


@pytest.mark.parametrize(
    ("ids", "width", "caption", "answer"),
    [
        (  # " a dog , it is n't a cat ."
            [*PICTURE, 10, 2335, 2156, 24, 16, 295, 75, 10, 4758, 479, 2, 1],
            4,
            "A dog, it isn't a cat..",
            "a dog, it isn't a cat.",
        ),
        ([*PICTURE, 10, 1437, 1275, 128, 29, 3988, 2, 1], 4, "A  red's hat.", "a  red's hat"),  # two spaces
        ([0, 102, 2335, 128, 579, 5749, 2, 1], 1, "A dog's bowl.", "a dog's bowl"),  # no prompt, no space to cut
        ([*PICTURE, 29, 9, 3678, 2, 1], 4, " of dogs.", "s of dogs"),  # cut by characters: the s of "ofs" is lost
        ([*PICTURE, 39300, 26059, 47416, 46, 15389, 46499, 11582, 2], 4, "Naïve café 東京.", "naïve café 東京"),
        ([1, 1, *PICTURE, 10, 2335, 2], 6, "A dog.", "a dog"),  # pads anywhere say nothing
        ([1, *PICTURE, 1, 10, 2335, 2], 6, "A dog.", "a dog"),
    ],
)
def test_generated_ids_become_the_references_texts(roberta, ids, width, caption, answer):
    parts = (ids[:width], ids[width:])
    assert REFERENCE.caption_said(roberta, *parts) == caption
    assert REFERENCE.answer_said(roberta, *parts) == answer


def test_plain_captions_only_lose_extra_spaces_and_answers_nothing(roberta):
    ids = [*PICTURE, 10, 1437, 1275, 128, 29, 2156, 3988, 479, 2, 1]
    parts = (ids[:4], ids[4:])
    assert text.Plain().caption_said(roberta, *parts) == "a red 's , hat ."
    assert text.Plain().answer_said(roberta, *parts) == "a  red 's , hat ."  # as it was written: it may have lines
