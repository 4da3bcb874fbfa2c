"""Tokens and scores against the official caption evaluation, where Java and pycocoevalcap are there."""

import json
import random
import shutil

import numpy as np
import pytest

from prismer_jax.scores import ptb
from prismer_jax.scores.caption import caption_metrics

pytestmark = pytest.mark.skipif(not shutil.which("java"), reason="compares with Java, which is not installed here")

# Split at spaces.
WORDS = """
a the A The dog dogs man Man woman's people bicycle street red RED two at on an It In He T-shirt well-known e-mail co-ed
pro-choice non-U.S. rock'n'roll O'Neil d'Angelo l'eau o'clock ma'am y'all c'mon e'er li'l cannot Cannot gonna Gotta
lemme gimme wanna 'tis 'twas 'cause 'em 'til it's its' don't CAN'T ain’t we’ve they'll I'm he'd isn't Mr. Mrs Dr. St.
Ave. Blvd. etc. e.g. i.e. vs. U.S. U.S.A. p.m. a.m. No. no. Fig. pp. Jan. Sept. Miss. miss. wash. Wash. Tex. Ill. Inc.
Co. Ltd. pty. Ph.D. Jr. B. I. x.y C++ F# photo.jpg setup.exe index.html a/c and/or 24/7 and&or AT&T R&D S&P-500 naïve
café Zürich Ærø straße Ελλάδα Москва مرحبا नमस्ते 日本 e\u0301 soft\u00adhyphen &amp; &lt; &gt; &quot; &apos; &nbsp;
&mdash; caf&eacute; <b> </b> <br/> <!-- <a href='x y'> #tag #1 @home me@x.org www.site.com site.com Site.com
http://a.b/c?d=e&f https://x.org/ ftp://x sub.site.edu/path/x.html
"""
NUMBERS = """
0 1 5 10 42 1,000 3.5 .5 -3 +7 1/2 3/4 7:30 1990s '90s '90 1st 22nd 3-D 5-year-old 5'10 6" 50% #1 $5 US$5 £3.20 €9 ¥100
¢5 10¢ 12/25/2014 1-2-99 555-1234 (212) 555 867-5309 +1 1 1 ½ ¼ ⅔ x² 10³ H₂O 2x4 4x4s ٣ 1.2.3 1,2,3
"""
SIGNS = """
. . . , , ; : ? ! ?! !! ... .. .... … - -- --- ---- – — ― ' '' ` `` " “ ” ‘ ’ « » ‹ › „ ‚ ( ) [ ] { } < > << >> -LRB-
-rrb- / \\ | & + = * ** \\* @ @@ # ## _ __ ~ ^ % $ € £ ¥ § ¶ © ® ™ ° · • † × ÷ ± ≤ ∞ → ¿ ¡ 😀 👍🏽 🇩🇪 :) :-) ;-D :( =]
<3 :/ :p ^_^ -_- (^_^) x.x ( ._. ) \u200b \ufeff 、 。 ！ \ufffd \x7f \x01 ㎏ Ⅷ
"""


def generated(number, seed=0):
    """Strings of words, numbers and signs, with and without spaces between, and of letters put together at random."""
    draw = random.Random(seed)
    letters = "abcdefnorstxyzABCNTUS0123456789.,'’-/&@#$:()_ "
    words, numbers, signs = WORDS.split(), NUMBERS.split(), [*SIGNS.split(), "\u00a0", "\u3000"]
    strings = []
    for _ in range(number):
        text = ""
        for _ in range(draw.randint(1, 14)):
            kind = draw.random()
            if kind < 0.08:
                text += "".join(draw.choices(letters, k=draw.randint(1, 8)))
            else:
                text += draw.choice(words if kind < 0.6 else numbers if kind < 0.75 else signs)
            text += " " * (draw.random() < 0.75)
        strings.append(text)
    return strings


def java_tokens(captions):
    """{id: texts} -> {id: texts of tokens}."""
    official = pytest.importorskip(
        "pycocoevalcap.tokenizer.ptbtokenizer", reason="needs the extra `eval`: pip install pycocoevalcap"
    )
    return official.PTBTokenizer().tokenize({i: [{"caption": text} for text in texts] for i, texts in captions.items()})


def assert_equals_java(captions):
    expected = java_tokens({i: [caption] for i, caption in enumerate(captions)})
    for i, tokens in enumerate(ptb.tokenize_all(captions)):
        assert " ".join(tokens) == expected[i][0], captions[i]


def test_equals_java_on_every_shared_caption_question_and_answer(shared):
    captions = []
    for path in [*(shared / "data").glob("captions/*/*.json"), *(shared / "data").glob("vqa/*/*.json")]:
        content = json.loads(path.read_text())
        for entry in [*content.get("annotations", ()), *content.get("questions", ())]:
            captions += [entry[key] for key in ("caption", "question") if key in entry]
            captions += [answer["answer"] for answer in entry.get("answers", ())]
    assert len(captions) > 12000
    assert_equals_java(captions)


def test_equals_java_on_5000_generated_strings():
    assert_equals_java(generated(5000))


def test_equals_java_where_the_next_caption_decides():
    assert_equals_java(["vitamin d.", "The plan b.", "the fig.", "5 dogs etc.", "In the U.S.", "A cat", "no.", "", "3"])


def perturbed(captions):
    """Predictions {id: text} out of captions {id: texts}: one of them, whole, in parts, twice, another's or nothing."""
    draw = random.Random(0)
    predictions = {}
    for i, texts in captions.items():
        text = draw.choice(texts)
        words = text.split()
        kind = draw.randrange(6)
        if kind == 1:
            text = " ".join(words[: len(words) // 2])
        elif kind == 2:
            text = " ".join(draw.sample(words, len(words))) + " 1 1/2 – naïve"
        elif kind == 3:
            text = f"{text} {text}"
        elif kind == 4:
            text = draw.choice(draw.choice([*captions.values()]))
        elif kind == 5:
            text = draw.choice(["", " ", "...", text.upper()])
        predictions[i] = text
    return predictions


@pytest.mark.parametrize("kind", ["leave one out", "perturbed"])
def test_scores_equal_the_official_pipelines_on_human_captions(shared, kind):
    captions = {}
    for path in sorted((shared / "data").glob("captions/*/captions_*.json")):
        for annotation in json.loads(path.read_text())["annotations"]:
            key = f"{path.parent.name}/{annotation['image_id']}"
            captions.setdefault(key, []).append(annotation["caption"])
    assert len(captions) == 1159
    if kind == "perturbed":
        predictions, references = perturbed(captions), captions
    else:
        predictions = {i: texts[n % len(texts)] for n, (i, texts) in enumerate(captions.items())}
        references = {
            i: [t for m, t in enumerate(texts) if m != n % len(texts)] for n, (i, texts) in enumerate(captions.items())
        }
    ours = caption_metrics(predictions, references)
    np.testing.assert_allclose([*ours.values()], official_scores(predictions, references), rtol=0, atol=1e-6)


def official_scores(predictions, references):
    guesses, targets = java_tokens({i: [text] for i, text in predictions.items()}), java_tokens(references)
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu = Bleu(4).compute_score(targets, guesses, verbose=0)[0]
    return [*bleu, Rouge().compute_score(targets, guesses)[0], Cider().compute_score(targets, guesses)[0]]


@pytest.mark.slow  # its table of paraphrases takes a while to read
def test_meteor_is_that_of_the_official_jar():
    pytest.importorskip("pycocoevalcap", reason="needs the extra `eval`: pip install pycocoevalcap")
    references = {
        0: ["a dog runs on the grass", "a brown dog is running"],
        1: ["two men ride bikes"],
        2: ["a cat"],
    }
    predictions = {0: "A dog is running on grass.", 1: "Men riding bicycles", 2: ""}
    # Printed by pycocoevalcap's Meteor for these captions, tokenized by its PTBTokenizer.
    assert caption_metrics(predictions, references, ["meteor"])["meteor"] == pytest.approx(0.3215993764110706)
