"""Words of a caption as the caption metrics count them: lower case, Penn Treebank splitting, punctuation dropped.

Follows the tokenizer of the COCO caption evaluation (Stanford's PTBTokenizer 3.4.1 with -lowerCase, then a fixed list
of punctuation that is removed) without Java. Like that lexer it tries every rule at a position and takes the longest
match, the earlier rule on a tie; text that a rule only looks ahead at counts towards its length.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# The official list. It names brackets in upper case while tokens are lower case, so "-lrb-" and the like stay.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
QUOTES = {'"': "''", "“": "``", "”": "''", "‘": "`", "’": "'", "«": "``", "»": "''", "‹": "`", "›": "'"}
FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''"}
ASSIMILATED = ("cannot", "gonna", "gotta", "lemme", "gimme", "wanna")  # two words written as one: can not, gon na

LETTER = r"[^\W\d_²³¹¼-¾⅓⅔]"
LETTER_DIGIT = r"[^\W_²³¹¼-¾⅓⅔]"
APOSTROPHE = "['’]"
WORD = rf"{LETTER}{LETTER_DIGIT}*(?:[.!?]{LETTER}{LETTER_DIGIT}*)*"
NUMBER = r"[-+]?(?:\d+(?:[.:,]\d+)*|(?:[.,]\d+)+)"
CLITIC = rf"{APOSTROPHE}(?:[msd]|re|ve|ll)(?![a-z])"
PART = rf"(?:[dol]{APOSTROPHE}(?=[a-z0-9]))?(?:[a-z0-9]+|{NUMBER})"
SLASHED = r"[a-z0-9]+(?:-[a-z]+){0,2}"
ACRONYM = r"[a-z](?:\.[a-z])+"
WEB_SITE = r"www\.(?:[^\s<>|.!?(){},]+\.)+[a-z]{2,4}|(?:[^\s`<>|.!?(){},/$]+\.)+(?:com|net|org|edu)"
ABBREVIATION = (
    r"jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri ala ariz calif colo conn ct "
    r"dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo inc co cos corp ltd "
    r"plc bancorp bhd assn univ intl sys tel est ext sq jr sr bros esq etc al seq mr mrs ms dr drs prof profs sen "
    r"sens rep reps atty lt col gen messrs gov govs adm rev maj sgt cpl pvt capt st ste ave blvd rd dept p rt pres "
    r"lieut hon brig comdr pfc spc supt supts det mt ft adj adv asst assoc ens insp mlle mme msgr sfc vs ph\.d"
)
# States that are common words too count as abbreviations only when capitalised.
STATES = "Az Ark Del Ill La Mass Miss Ore Pa Tex Wash"
BEFORE_NUMBER = "nos? figs? prop ops? art bro pt"

Action = Callable[[str], list[str]]


def _word(text: str) -> list[str]:
    return [text]


def _straight(text: str) -> list[str]:
    return [text.replace("’", "'")]


def _unspaced(text: str) -> list[str]:
    return [text.replace(" ", "\u00a0")]


def _smiley(text: str) -> list[str]:
    return ["".join(BRACKETS.get(c, c) for c in text)]


def _nothing(text: str) -> list[str]:
    return []


def _table(table: dict[str, str]) -> Action:
    return lambda text: [table.get(text, text)]


# (pattern, the tokens that its first group becomes), in the lexer's order.
RULES: list[tuple[re.Pattern, Action]] = [
    (re.compile(pattern, re.IGNORECASE), action)
    for pattern, action in [
        (rf"((?:{'|'.join(ASSIMILATED)}))", lambda text: [text[:3], text[3:]]),
        (rf"({APOSTROPHE}t)(?=(is|was))", _word),
        (rf"({APOSTROPHE}(?:em|till?|cause|twixt|[1-9]0s))(?![a-z])", _word),
        (rf"(y{APOSTROPHE})(?=([a-z]+))", _word),
        (r"((?:https?|ftp)://[^\s<>|(){}]+[^\s<>|.!?(){},:&`\"'-])", _word),
        (rf"((?:{WEB_SITE})(?:/\S*[\w/])?)", _word),
        (r"([a-z0-9][^\s\"<>|()]*@(?:[^\s\"<>|().]+\.)*[^\s\"<>|().]+)", _word),
        (r"([@#][a-z_]\w*)", _word),
        (rf"([a-z]*[a-mo-z])(?=(n{APOSTROPHE}t)(?![a-z]))", _word),
        (rf"(n{APOSTROPHE}t)(?![a-z])", _straight),
        (rf"({WORD})(?=({CLITIC}))", _word),
        (rf"({CLITIC})", _straight),
        (rf"({WORD})", _word),
        (rf"({APOSTROPHE}n{APOSTROPHE}?|[ldj]{APOSTROPHE})", _word),
        (rf"({LETTER}+{APOSTROPHE}(?!s\b){LETTER}{{2,}}|o{APOSTROPHE}{LETTER}+)", _word),
        (r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})", _word),
        (rf"({NUMBER})", _word),
        (r"((?:\d{1,4}[- \u00a0])?\d{1,4}/\d{1,4})", _unspaced),
        (rf"([{''.join(FRACTIONS)}])", _table(FRACTIONS)),
        (rf"({PART}(?:-{PART})*)", _word),
        (rf"({SLASHED}(?:/{SLASHED}){{1,2}})", _word),
        (r"((?-i:[A-Z]+(?:[+&][A-Z]+)+))", _word),
        (r"([a-z0-9][a-z0-9.,]*(?:-(?:[a-z0-9]+(?:\.\d+)?|(?:[a-z]\.)+))+)", _word),
        (rf"((?:{'|'.join(ABBREVIATION.split())})\.)", _word),
        (rf"((?-i:{'|'.join(STATES.split())})\.)", _word),
        (rf"((?:{'|'.join(BEFORE_NUMBER.split())})\.)(?=(\s+\d))", _word),
        (rf"({ACRONYM}\.)", _word),
        (r"(c\+\+|[a-z0-9]+(?:_[a-z0-9]+)+)", _word),
        (r"([a-z]\.)(?=\s|$)", _word),
        (r"([<>]?[:;=][-o*']?[()DPdpO\\/:{@|\[\]])", _smiley),
        (r"(\.\.+|\. \. \.|…)", lambda text: ["..."]),
        (r"(---*|[–—])", lambda text: ["--"]),
        (r"(``|''|[!?]{2,})", _word),
        (r"(&(?:amp|lt|gt|quot);)", _table(ENTITIES)),
        (r"(</?[a-z!?][^<>]*>)", _unspaced),
        (r"([a-z]+\$)(?=\d)", _word),
        (r"([£¢])", _table({"£": "#", "¢": "cents"})),
        (r"(\*\*+|__+|<<+|>>+)", _word),
        (r"(::+)", _nothing),
        (r"([$£€¥#%&*+=@_~^|\\<>/])", _word),
        (r"([\"“”‘’«»‹›„(){}\[\]'`.,:;-])", _table(BRACKETS | QUOTES)),
        (r"([\ufffd\u200b-\u200f\ufeff\x00-\x08\U00010000-\U0010ffff])", _nothing),
        (r"(\S)", _word),
    ]
]
PLAIN = re.compile(r"[A-Za-z]+(?= |$)")  # most words: nothing to decide


def tokenize(caption: str) -> list[str]:
    """Splits a caption into the tokens that BLEU, ROUGE-L and CIDEr count."""
    text = " ".join(caption.split())
    tokens, position = [], 0
    while position < len(text):
        if text[position] == " ":
            position += 1
        elif (match := PLAIN.match(text, position)) and match.group().lower() not in ASSIMILATED:
            tokens.append(match.group())
            position = match.end()
        else:
            part, action = _longest(text, position)
            tokens += action(part)
            position += len(part)
    return [token.lower() for token in tokens if token not in PUNCTUATION]


def _longest(text: str, position: int) -> tuple[str, Action]:
    best, best_length, best_action = "", 0, _word
    for pattern, action in RULES:
        if match := pattern.match(text, position):
            # A lookahead's own group, where there is one, counts towards the length.
            length = max(match.end(i) for i in range(1, pattern.groups + 1)) - position
            if length > best_length:
                best, best_length, best_action = match.group(1), length, action
    return best, best_action
