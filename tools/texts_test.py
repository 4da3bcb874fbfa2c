"""From photos to texts: what the reference's code says about its demo's photos, with weights by the golden rule.

Recorded from NVlabs/prismer at 4f27ab3 (PrismerCaption, PrismerVQA, Transform with Pillow 10.4, RobertaTokenizer of
transformers 4.26.1) with its encoder's states repeated for the beams, without which its batches fail.
"""

import re

import jax
import numpy as np
import pytest

from prismer_jax import datasets, evaluators, models, pp
from prismer_jax.models import conversion
from prismer_jax.models.prismer import table
from prismer_jax.weights import rules
from tools.parity.case import fill

pytestmark = pytest.mark.slow  # four programs over RoBERTa's whole vocabulary to compile

DECODER = dict(width=64, layers=3, heads=4, mlp_dim=128, vocab_size=50265, max_positions=514)
SIZES = dict(image_size=96, width=64, layers=2, heads=1, decoder=DECODER)
GAINS = {r"\.1\.self|\.1\.output\.dense": 4.0, r"word_embeddings": 8.0}  # for much of the photo, and sharp choices
LOOK = "labels_for('none')|decode|resize(96, 224)"
ANSWERS = [
    *("yes", "no", "red", "new york", "2", "a man", "dog", "tennis"),
    *("on the left side", "blue and white", "skateboard", "2 people"),
]
QUESTIONS = [
    "what is it",
    "what color is the large dog on the left?",
    "Is there (a) cat?",
    "how many people are there",
    "who",
]
BEAMS = dict(method="beam", num_beams=3)


class Asked:
    def __init__(self, photos):
        self.photos = photos

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, index):
        return {**self.photos[index], "question": QUESTIONS[index], "question_id": index}


@pytest.fixture(scope="module")
def predict(shared):
    """Runs an evaluator on the five photos; returns its texts."""
    model = models.build("prismer", variant="tiny", experts="none", **SIZES)
    shapes = rules.key_shapes(table.TABLE, conversion.shapes_of(model))
    state = {}
    for key, shape in shapes.items():
        gain = next((gain for pattern, gain in GAINS.items() if re.search(pattern, key)), 1.0)
        if not key.endswith("position_ids") and "lm_head.decoder" not in key:  # constant or tied
            state[key] = fill(f"photos:{key}", shape, gain)
    variables = jax.tree.map(np.asarray, conversion.from_torch(state, model, table.TABLE))
    tokenizer = pp.tokenizer.load(f"roberta:{shared}/data/roberta")
    photos = datasets.load("lists", images=shared / "data/photos")

    def run(kind, prompt, **options):
        options = dict(style="reference", padding="reference", predict_only=True, quiet=True, batch_size=5) | options
        evaluator = evaluators.build(
            kind,
            model=model,
            tokenizer=tokenizer,
            source=Asked(photos) if "question" in prompt else photos,
            pp=pp.build(f"{LOOK}|{prompt}", tokenizer=tokenizer),
            **options,
        )
        with jax.default_matmul_precision("highest"):
            list(evaluator.run(variables))
        return [prediction[evaluator.text_key] for prediction in evaluator.predictions]

    return run


def test_captions(predict):
    assert predict("caption", "caption_prompt('A picture of')|tokenize(4)", **BEAMS, max_len=20, min_len=8) == [
        "Potter cavs cavs cavs cavs cavs cavs cavs cavs cavs cavs cavsissue congratulated congratulated congratulated.",
        "Charleston celebrated rapids charleston charleston charleston shortyahoo formhk consistentalky firsthand "
        "neoliberal� prot.",
        "Tion anchorage tom cups tomaunted tomaunted tomaunted tom catapult whatever tom.",
        "Ud grateful fortifiedsingle stre strenecessary capt legislatures strenecessary roads9necessaryitansnecessary.",
        "Neoliberal roadsアルassisted9assistedyahoown ► roads lionsアル neoliberal shadowswn shadows.",
    ]


def test_answers_generated_in_a_batch_of_unequal_questions(predict):
    settings = dict(**BEAMS, length_penalty=-1, max_new=10, min_new=2)
    assert predict("vqa", "question_prompt(style='reference')|tokenize(35)", **settings) == [
        "specialists specialists specialists specialists specialists genre abolished specialistsaud whatever",
        "infall lomb tunnelcastle603 sob budget lomb lau glover",
        "ult tomation missileaunted tomaunted tomaunted tom",
        "reid bulletinshift roads9 roads9 roads grateful roads",
        "lions roads neoliberalyahoo neoliberal neoliberal neoliberalyahooassisted9",
    ]


def test_answers_ranked_in_a_batch_of_unequal_questions(predict):
    settings = dict(method="rank", answers=ANSWERS, k=5)
    found = predict("vqa", "question_prompt(style='reference')|tokenize(35)", **settings)
    assert found == ["no", "no", "no", "new york", "blue and white"]


def test_classes(predict):
    found = predict("classification", "caption_prompt('A photo of a')|tokenize(5)", classes=ANSWERS, k=5)
    assert found == ["on the left side", "yes", "a man", "dog", "dog"]
