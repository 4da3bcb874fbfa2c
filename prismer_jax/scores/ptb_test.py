import json

import pytest

from prismer_jax.scores import ptb

# Expected tokens are what the Java tokenizer of the COCO caption evaluation prints for the same line.
EXAMPLES = {
    "A dog isn't here, can't go; gonna play.": "a dog is n't here ca n't go gon na play",
    'The dog\'s "toy" (red) [old] {x}': "the dog 's toy -lrb- red -rrb- -lsb- old -rsb- -lcb- x -rcb-",
    "A T-shirt, a well-known man -- he said ...": "a t-shirt a well-known man he said",
    "It costs $5.00 & 50% at 3:30 p.m. in the U.S.": "it costs $ 5.00 & 50 % at 3:30 p.m. in the u.s.",
    "Mr. Smith, James' and O'Neil's o'clock": "mr. smith james and o'neil 's o'clock",
    "a/c 1/2 cup 1 1/2 24/7 and/or": "a/c 1/2 cup 1\u00a01/2 24/7 and/or",
    "don’t y'all 'tis '90s rock'n'roll": "do n't y' all 't is '90s rock 'n' roll",
    "what?! yes!! :) #1 #tag @home a_b C++": "what ?! yes !! :-rrb- # 1 #tag @home a_b c++",
    "  leading \t and  double\n": "leading and double",
    "naïve café ½ “curly” – dash — 😀": "naïve café 1/2 curly dash",
    "plan B. Wash. wash. miss. No. 5": "plan b. wash. wash miss no. 5",
    "": "",
    " . , ! ": "",
}


def tokenize(caption):
    return ptb.tokenize_all([caption])[0]


@pytest.mark.parametrize("caption", EXAMPLES)
def test_equals_what_the_java_tokenizer_prints(caption):
    assert tokenize(caption) == EXAMPLES[caption].split(" ") if EXAMPLES[caption] else not tokenize(caption)


def test_words_of_real_captions_survive(shared):
    # Splitting moves no letter: without spaces and the dropped signs the text is the same.
    files = sorted((shared / "data/captions").glob("*/captions_val.json"))
    captions = [a["caption"] for f in files for a in json.loads(f.read_text())["annotations"]]
    assert captions
    for caption in captions:
        kept = "".join(c for c in "".join(tokenize(caption)) if c.isalpha())
        kept = kept.replace("lrb", "").replace("rrb", "")
        assert kept == "".join(c for c in caption.lower() if c.isalpha()), caption


def test_long_strings_take_no_long_time():
    assert len(tokenize("a" * 2000 + "." * 2000 + "-1" * 500)) <= 3
