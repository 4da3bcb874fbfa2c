import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prismer_jax.errors import UserError
from prismer_jax.scores import caption, ptb
from prismer_jax.scores.caption import caption_metrics

NAMES = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider")
# Cases of (prediction, references), and what the pycocoevalcap package 1.2 prints for them in the order of NAMES.
CASES = {
    "varied": [
        ("a red ball beside a wooden box", ["a red ball next to a box", "a small red sphere is beside a wooden box"]),
        ("two dogs run over the grass", ["two dogs are running on grass", "a pair of dogs runs over a green field"]),
        ("a man on a horse", ["a woman rides a brown horse along the beach", "a horse near the sea", "a rider"]),
        ("the the the the the", ["the cat is on the mat", "there is a cat on the mat"]),
        ("a tall blue cylinder stands behind a cone", ["a tall blue cylinder stands behind a cone", "a cone"]),
        ("sign", ["a sign that says stop", "stop"]),
    ],
    "empty prediction": [
        ("", ["a dog", "the dog runs"]),
        ("a cat", ["a cat", "cats sleep"]),
        ("it's a cat 's tail", ["a cat 's tail"]),
    ],
    "nothing in common": [("x y z", ["a b c d"]), ("p q", ["r s t", "u"])],
    "one image": [("a dog runs", ["a dog runs fast", "the dog"])],
    "long against short": [(" ".join("abc" * 12), ["a b c", "c b a"]), ("a", ["a b c d e f g h", "a b"])],
}
EXPECTED: dict[str, list[float]] = {
    "varied": [
        0.7572134643873181,
        0.62863803860666,
        0.5475422147786535,
        0.49422885491555,
        0.5764403050398329,
        1.974954513452787,
    ],
    "empty prediction": [
        0.7430381995735735,
        0.7178430991015536,
        0.6677930739464198,
        0.599395415118903,
        0.6356877323420074,
        3.442042187628695,
    ],
    "nothing in common": [
        1.9999999992000006e-16,
        2.5819888962666836e-16,
        4.0548013274988615e-16,
        9.036020030827439e-14,
        0.0,
        0.0,
    ],
    "one image": [
        0.999999999666667,
        0.9999999995833336,
        0.9999999993888895,
        0.03162277658719003,
        0.8356164383561644,
        0.0,
    ],
    "long against short": [
        0.1081081081051863,
        0.078597749187001,
        0.05663876397075654,
        8.614039132989083e-06,
        0.4052067992145312,
        0.0,
    ],
}


def tokenized(case):
    return [p.split() for p, _ in case], [[r.split() for r in refs] for _, refs in case]


def package_scores(predictions, references):
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="needs the extra `eval`: pip install pycocoevalcap")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    results = {i: [" ".join(p)] for i, p in enumerate(predictions)}
    truths = {i: [" ".join(r) for r in refs] for i, refs in enumerate(references)}
    scorers = (Rouge(), Cider())
    return [
        *bleu.Bleu(4).compute_score(truths, results, verbose=0)[0],
        *(s.compute_score(truths, results)[0] for s in scorers),
    ]


def our_scores(predictions, references):
    rouge, cider = caption.rouge_l(predictions, references), caption.cider_d(predictions, references)[0]
    return [*caption.bleu(predictions, references), rouge, cider]


@pytest.mark.parametrize("name", CASES)
def test_equals_the_scores_printed_by_pycocoevalcap(name):
    np.testing.assert_allclose(our_scores(*tokenized(CASES[name])), EXPECTED[name], rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_equals_the_pycocoevalcap_package_on_random_token_strings(data):
    tokens = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12)
    case = data.draw(st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=4)), min_size=1, max_size=6))
    predictions, references = [p for p, _ in case], [r for _, r in case]
    assume(any(map(any, references)))  # the package crashes on a corpus whose references hold no word
    expected = package_scores(predictions, references)
    np.testing.assert_allclose(our_scores(predictions, references), expected, rtol=1e-9, atol=1e-9)


def test_equals_the_pycocoevalcap_package_on_human_captions(shared):
    annotations = json.loads((shared / "data/captions/flickr8k_1k/captions_test.json").read_text())["annotations"]
    captions: dict[int, list[list[str]]] = {}
    for annotation in annotations:
        captions.setdefault(annotation["image_id"], []).extend(ptb.tokenize_all([annotation["caption"]]))
    case = [c[0] for c in captions.values()], [c[1:] for c in captions.values()]
    np.testing.assert_allclose(our_scores(*case), package_scores(*case), atol=1e-9)


def test_bleu_by_hand():
    # 3 of 4 words and 1 of 3 word pairs match; closest reference length 5, so the penalty is exp(1 - 5/4).
    prediction, reference = ["a", "b", "x", "c"], ["a", "b", "c", "d", "e"]
    values = caption.bleu([prediction], [[reference]])
    np.testing.assert_allclose(values[:2], np.exp(-0.25) * np.array([0.75, np.sqrt(0.75 / 3)]), rtol=1e-6)


def test_rouge_takes_best_precision_and_best_recall_of_different_references():
    value = caption.rouge_l([["a", "b"]], [[["a", "b", "c", "d"], ["b"]]])
    assert value == pytest.approx(1.0)  # precision 1 from the first, recall 1 from the second


def test_cider_of_a_perfect_rare_caption_is_ten():
    captions = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
    assert caption.cider_d(captions, [[c] for c in captions])[1] == pytest.approx([10.0, 10.0])


def test_caption_metrics_splits_and_lowers_texts():
    values = caption_metrics({7: "A dog isn't here.", 8: "Cats sleep!"}, {8: ["cats sleep"], 7: ["a dog is n't here"]})
    assert tuple(values) == NAMES
    assert values["bleu4"] < values["bleu2"] == pytest.approx(values["rouge_l"]) == pytest.approx(1.0)


def test_empty_predictions_score_zero():
    values = caption_metrics({"1": "", "2": "..."}, {"1": ["a dog runs"], "2": ["a cat sleeps"]})
    assert all(value == pytest.approx(0.0, abs=1e-6) for value in values.values())


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ({}, {}, "Nothing to score"),
        ({1: "a"}, {1: ["a"], 2: ["b"]}, r"1 of 2 ids have no prediction, such as 2"),
        ({1: "a", "2": "b"}, {1: ["a"]}, "without references, such as '2'"),
        ({1: "a"}, {1: []}, "Image 1 has no reference"),
    ],
)
def test_ids_that_do_not_fit_are_an_error(predictions, references, message):
    with pytest.raises(UserError, match=message):
        caption_metrics(predictions, references)


@pytest.mark.parametrize(("prediction", "captions"), [(None, ["a"]), ("a", "a dog"), ("a", ["a", 3])])
def test_captions_that_are_no_texts_are_an_error(prediction, captions):
    with pytest.raises(UserError, match="Image 1: a prediction is one text"):
        caption_metrics({1: prediction}, {1: captions})
