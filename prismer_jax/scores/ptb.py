"""Words of a caption as the caption metrics count them: lower case, Penn Treebank splitting, punctuation dropped.

Follows the tokenizer of the COCO caption evaluation without Java: Stanford's PTBTokenizer 3.4.1 with -preserveLines
-lowerCase, then a fixed list of punctuation that is removed (pycocoevalcap/tokenizer/ptbtokenizer.py). Like that lexer
(edu/stanford/nlp/process/PTBLexer.flex, whose rules are told here in their order) it tries every rule at a position and
takes the longest match, the earlier rule on a tie; what a rule only looks ahead at counts towards its length. Letters
are those of Python's Unicode: the lexer drops what was added to Unicode after 2013, which is in rare scripts only.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence

# The official list. It names brackets in upper case while tokens are lower case, so "-lrb-" and the like stay.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
QUOTES = (
    dict.fromkeys('"\x94”»', "''")
    | dict.fromkeys("\x93“«", "``")
    | dict.fromkeys("\x91‘‛‹", "`")
    | dict.fromkeys("'\x92’›", "'")
)
FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
CURRENCIES = {"¢": "cents", "£": "#"} | dict.fromkeys("\x80¤₠€", "$")
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&apos;": "'", "&quot;": "''"}
LINE_ENDS = str.maketrans(dict.fromkeys("\n\r\v\f\x85\u2028\u2029", " "))

# -------------------------------------------------------------------------------------------------- parts of rules
# As in the lexer, what is spelled out matches in either case and what is in brackets only as written.

_SPACE = " \t\u00a0\u2000-\u200a\u3000"
_MARKS = (  # no letters to Unicode, but part of words
    "\u00ad\u0237-\u024f\u02c2-\u02c5\u02d2-\u02df\u02e5-\u037d\u0384\u0385\u03cf\u03f6\u03fc-\u03ff\u0483-\u0487"
    "\u04cf\u04f6-\u04ff\u0510-\u0525\u055a-\u055f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a"
    "\u063b-\u063f\u064b-\u065e\u0670\u06d6-\u06ef\u06fa-\u06ff\u070f\u0711\u0730-\u077f\u07a6-\u07b1\u07ca-\u07f5"
    "\u07fa\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955\u0962\u0963\u0981-\u0983\u09bc-\u09c4\u09c7\u09c8"
    "\u09cb-\u09cd\u09d7\u09e2\u09e3\u0a01-\u0a03\u0a3c\u0a3e-\u0a4f\u0a81-\u0a83\u0abc-\u0acf\u0b82\u0bbe-\u0bc2"
    "\u0bc6-\u0bc8\u0bca-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56\u0d3e-\u0d44\u0d46-\u0d48\u0e30-\u0e3a\u0e47-\u0e4e"
    "\u0eb1-\u0ebc\u0ec8-\u0ecd"
)


def _ranges(*categories: str) -> str:
    """The inside of a character class: all of these Unicode categories that one UTF-16 unit can hold."""
    ranges, start = [], None
    for code in range(0x10001):
        inside = code < 0x10000 and unicodedata.category(chr(code)).startswith(categories)
        if inside and start is None:
            start = code
        elif not inside and start is not None:
            ranges.append(f"{chr(start)}-{chr(code - 1)}")
            start = None
    return "".join(ranges)


_L, _D = _ranges("L"), _ranges("Nd") + "\u07c0-\u07c9"
_ALNUM = f"[{_L}{_D}]"
_NL = f"[{_SPACE}\r\n]"
_LETTER = f"(?:[{_L}{_MARKS}]|&[aeiouAEIOU](?i:acute|grave|uml);)"
_LETTER_DIGIT = f"(?:[{_L}{_D}{_MARKS}]|&[aeiouAEIOU](?i:acute|grave|uml);)"
_WORD = f"{_LETTER}{_LETTER_DIGIT}*(?:[.!?]{_LETTER}{_LETTER_DIGIT}*)*"
_APOS = "(?:['\x92’]|(?i:&apos;))"
_APOS_LIKE = "(?:['\x92’`\x91‘‛]|(?i:&apos;))"
_CLITIC = f"{_APOS}(?:[msdMSD]|(?i:re|ve|ll))"
_NOT = f"[nN]{_APOS_LIKE}[tT]"
_NUMBER = f"[-+]?(?:[{_D}]*(?:[.:,\u00ad\u066b\u066c][{_D}]+)+|[{_D}]+)"
_AMP = "(?:[+&]|(?i:&amp;))"
_PART = f"(?:[dDoOlL]{_APOS_LIKE}{_ALNUM})?{_ALNUM}+"
_THING = f"{_PART}(?:[-_\u058a\u2010\u2011]{_PART})*"
_UNITED = r"(?i:canada|sino|korean|eu|japan|non)-[uU]\.[sS]|[uU]\.[sS]\.-(?:[uU]\.[kK]|[uU]\.[sS]\.[sS]\.[rR])"
_ACRONYM = rf"(?:{_UNITED}|[A-Za-z](?:\.[A-Za-z])*)"
_ACRONYM2 = rf"(?:{_UNITED}|[A-Za-z](?:\.[A-Za-z])+)"
_HYPHENED = rf"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{_ACRONYM2}\.|[A-Za-z0-9\u00ad]+))+"
_CAPITALS = f"[A-Z]+(?:{_AMP}[A-Z]+)+"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_MARKUP_NAME = r"[A-Za-z][A-Za-z0-9_:.\-]*"
_URL, _URL_END = r'[^ \t\n\f\r"<>|(){}]', r'[^ \t\n\f\r"<>|.!?(){},\-]'
# The lexer's range from comma to underscore, surely meant as three signs, leaves no digit and no capital to a site.
_SITE = r"""(?:(?i:www)\.(?:[^ \t\n\f\r"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"""
_SITE += r"""|(?:[^ \t\n\f\r"`'<>|!?(){},-_$]+\.)+(?i:com|net|org|edu))"""
_MAIL = r'[^ \t\n\f\r"<>|(){}.\u00a0]'
_FILE_END = (
    "(?i:bat|bmp|cgi|class|cpp|c|dll|docx|doc|exe|gif|gz|html|htm|h|jar|java|jpeg|jpg|mov|mp3|pdf|php|pl|png|ppt|ps|py|"
    "sql|tar|txt|wav|xml|x|zip)"
)

# States that are common words too count as abbreviations only when capitalised, as does one title.
_MONTHS = "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri"
_STATES = (
    "ala ariz calif colo conn ct dak fla ga ind kans? ky md mich minn mo mont neb nev okla penn tenn va vt wisc? wyo "
    "[A]z [A]rk [D]el [I]ll [L]a [M]ass [M]iss [O]re [P]a [T]ex [W]ash"
)
_COMPANIES = "inc cos? corp pp?t[ye]s? ltd plc rt bancorp bhd assn univ intl sys"
_OTHERS = r"tel est ext sq jr sr bros (?:ed|ph)\.d blvd rd esq etc al seq bldg"
_TITLES = (
    "mr mrs ms [M]iss drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev maj sgt cpl pvt capt ste? ave "
    "pres lieut hon brig co?mdr pfc spc supts? det mt ft adj adv asst assoc ens insp mlle mme msgr sfc"
)
_NAMES = r"vs alex wm jos cie a\.k\.a cf treas ph invt elec natl m[ft]g dept"
_BEFORE_NUMBER = "ca figs? prop nos? art bldg pp op"
# After an acronym these begin a sentence.
_STARTERS = (
    "About According Additionally After An A As At But Earlier Her Here He However If In It Last Many More Mr\\. Ms\\. "
    "Now Once One Other Our She Since Some So Such That Their There These They Then The This We When While What Yet You"
)


def _spelled(words: str) -> str:
    """An alternation of words: letters in either case, but a bracketed one only as it is written."""
    parts = re.split(r"(\[[A-Z]\])", "|".join(words.split()))
    return "".join(part if part[:1] == "[" and part[2:] == "]" else _either_case(part) for part in parts)


def _either_case(text: str) -> str:
    """The pattern with each letter outside brackets as a class of both cases."""
    return re.sub(r"\[[^]]*\]|[a-z]", lambda m: m[0] if m[0][0] == "[" else f"[{m[0]}{m[0].upper()}]", text)


_ABBREVIATION = f"(?:{_spelled(' '.join((_MONTHS, _STATES, _COMPANIES, _OTHERS)))})\\."
_TITLE = f"(?:{_spelled(_TITLES + ' ' + _NAMES)}|{_ACRONYM})"
_STARTER = "|".join(word[:1] + _either_case(word[1:]) for word in _STARTERS.split())
_SMILEY = r"[<>]?[:;=][\-o*']?[()DPdpO\\{@|\[\]]"
_ASIAN = r"[x^=~<>]\.\[[x^=~<>]|[\-^x=~<>']_[\-^x=~<>']|\([\-^x=~<>'][_.]?[\-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)"
_SYMBOLS = (
    "+%&~^|\\\\¦§¨©¬®¯°-³´-º×÷\u0387\u05be\u05c0\u05c3\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060a\u060c\u0614\u061b"
    "\u061e\u066a\u066d\u0703-\u070d\u07f6-\u07f8\u0964\u0965\u0e4f\u1fbd\u2016\u2017\u2020-\u2023\u2030-\u2038\u203b"
    "\u203e-\u2042\u2044\u207a-\u207f\u208a-\u208e\u2100-\u214f\u2190-\u2bff\u3012\u30fb\uff01-\uff0f\uff1a-\uff20"
    "\uff3b-\uff40\uff5b-\uff65"
)
_PHONE = (
    r"(?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[\- \u00a0])?[0-9]{2,4}[\- \u00a0])"
    r"[0-9]{3,4}[\- \u00a0]?[0-9]{3,5}|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"
)
_MARKUP = (
    rf"<(?:[!?][A-Za-z\-][^>\r\n]*|/{_MARKUP_NAME}"
    rf"|{_MARKUP_NAME}(?:[ ]+(?:{_MARKUP_NAME}[ ]*=[ ]*(?:'[^']*'|\"[^\"]*\")|{_MARKUP_NAME}))*[ ]*/?)[ ]*>"
)

# ----------------------------------------------------------------------------------------------------------- rules

Action = Callable[[str], str]


def _plain(text: str) -> str:
    return text


def _nothing(text: str) -> str:
    return ""


def _unspaced(text: str) -> str:
    return text.replace(" ", "\u00a0")


def _joined(text: str) -> str:
    return text.replace("\u00ad", "") or "-"


def _ampersand(text: str) -> str:
    return re.sub("(?i:&amp;)", "&", text)


def _translated(*tables: dict[str, str]) -> Action:
    table = {sign: text for part in tables for sign, text in part.items()}
    pattern = re.compile("|".join(map(re.escape, table)), re.IGNORECASE)
    return lambda text: pattern.sub(lambda m: table[m[0].lower()], text)


_quoted = _translated(QUOTES, {key: ENTITIES[key] for key in ("&apos;", "&quot;")})
_bracketed = _translated(BRACKETS)


def _rounded(text: str) -> str:
    return text.replace("(", BRACKETS["("]).replace(")", BRACKETS[")"])


def _phone(text: str) -> str:
    return _rounded(_unspaced(text))


# (the token, what must follow it, what it is written as), in the lexer's order.
_RULES: list[tuple[str, str, Action]] = [
    (r"[cC]\+\+|[cCfF]#", "", _plain),
    ("[cC][aA][nN]", "[nN][oO][tT]", _plain),
    ("'[tT]", "[wW][aA][sS]|[iI][sS]", _plain),
    (_either_case("gon(?=na)|got(?=ta)|lem(?=me)|gim(?=me)|wan(?=na)"), "[nNtTmM][aAeE]", _plain),
    (_MARKUP, "", _unspaced),
    ("(?i:&(?:md|mdash|ndash);)|[\x96\x97–-―]", "", lambda text: "--"),
    ("(?i:&amp;)", "", _ampersand),
    ("(?i:&(?:ht|tl|ur|lr|qc|ql|qr|odq|cdq|#[0-9]+);)", "", _plain),
    (_WORD, _CLITIC, _joined),
    (r"[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*", _NOT, _joined),
    (_WORD, "", _joined),
    (
        f"{_APOS}[nN]{_APOS}|{_APOS}[nN]|[lLdDjJ]{_APOS}|(?i:dunkin|somethin|ol){_APOS}|{_APOS}(?i:em|till|til|cause)"
        f"|{_APOS}[2-9]0[sS]|(?i:cont'd\\.?|'twas|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)|[oO]{_APOS_LIKE}[oO]",
        "",
        _plain,
    ),
    (f"[A-HJ-XZn]{_APOS_LIKE}[{_L}]{{2,}}|[{_L}]+[aeiouyAEIOUY]{_APOS_LIKE}[aeiouA-Z][{_L}]*", "", _plain),
    (f"[yY]{_APOS}", f"[{_L}]", _plain),
    (f"(?i:https?)://{_URL}+{_URL_END}", "", _plain),
    (_SITE, "", _plain),
    (rf'{_SITE}/[^ \t\n\f\r"<>|()]+{_URL_END}', "", _plain),
    (rf'(?:(?i:&lt;)|<)?[a-zA-Z0-9][^ \t\n\f\r"<>|()\u00a0{{}}]*@(?:{_MAIL}+\.)*{_MAIL}+(?:(?i:&gt;)|>)?', "", _plain),
    (f"@[a-zA-Z_][a-zA-Z_0-9]*|#{_LETTER}+", "", _plain),
    (_CLITIC, "[^A-Za-z]", _quoted),
    (_NOT, "[^A-Za-z]", _quoted),
    (f"[{_D}]{{1,2}}[-/][{_D}]{{1,2}}[-/][{_D}]{{2,4}}", "", _plain),
    (_NUMBER, "", _joined),
    ("[\u207a\u207b\u208a\u208b]?(?:[\u2070¹²³\u2074-\u2079]+|[\u2080-\u2089]+)", "", _plain),
    (f"(?:[{_D}]{{1,4}}[- \u00a0])?[{_D}]{{1,4}}(?:\\\\?/|\u2044)[{_D}]{{1,4}}", "", _unspaced),
    ("[¼-¾\u2153-\u215e]", "", _translated(FRACTIONS)),
    (r"(?i:-(?:[rl][rcs]b)-|c\.d\.s|pro-|anti-|s(?:&amp;|&)p-500|s(?:&amp;|&)ls)", "", _ampersand),
    (f"[cC][aA][pP]{_APOS}[nN]|[cC]{_APOS}[eE][sS][tT]", "", _plain),
    (rf"{_SLASHED}(?:\\?/{_SLASHED}){{1,2}}", "", _plain),
    (r"[A-Z]*\$|#", "", _plain),
    ("[¢-¥\x80\u20a0€\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]", "", _translated(CURRENCIES)),
    (r"[A-Za-z]", rf"\.{_NL}+(?:{_STARTER}|{_MARKUP}){_NL}", _plain),
    (rf"{_ACRONYM2}\.", f"{_NL}+(?:{_STARTER}|{_MARKUP}){_NL}", _plain),
    (f"(?:{_spelled(_BEFORE_NUMBER)})\\.", f"{_NL}?[{_D}]", _plain),
    (r"(?:[pP][tT][eyEY]|[cC][oO])\.", f"[{_SPACE}](?i:ltd|lim)", _plain),
    (_ABBREVIATION, r"[\s\S]{2}", _plain),
    (_ABBREVIATION, "", _plain),
    (rf"{_TITLE}\.", "", _plain),
    (_TITLE, f"[{_SPACE}]", _plain),
    (_ACRONYM, _NL, _plain),
    (f"{_APOS}[0-9][0-9]", _NL, _plain),
    (rf"{_LETTER_DIGIT}+(?:\.{_LETTER_DIGIT}+)*\.{_FILE_END}", f"{_NL}|[.?!,]", _plain),
    (rf"{_WORD}\.", "[,;:\u3001]", _joined),
    (_PHONE, "", _phone),
    ('"|(?i:&quot;)', "", _quoted),
    ("(?i:&lt;)|<|(?i:&gt;)|>", "", _translated(ENTITIES)),
    (_SMILEY, "[^A-Za-z0-9]", _rounded),
    (_ASIAN, "", _rounded),
    (r"[(){}\[\]]", "", _bracketed),
    ("-{3,4}", "", lambda text: "--"),
    ("-+", "", _plain),
    (r"\.{3,5}|(?:\.[ \u00a0]){2,4}\.|[\x85…]", "", lambda text: "..."),
    (
        r"@+|#+|_+|\*+|(?:\\\*){1,3}|[,;:\u3001]|[?!]+|[.¡¿\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002=/]",
        "",
        _plain,
    ),
    (rf"(?:{_HYPHENED})\.", "[,;:\u3001]", _joined),
    (_HYPHENED, "", _joined),
    (rf"(?:{_THING})\.", "[,;:\u3001]", _plain),
    (_THING, "", _plain),
    (rf"(?:{_CAPITALS})\.", "[,;:\u3001]", _ampersand),
    (_CAPITALS, "", _ampersand),
    ("'", "[A-Za-z][^ \t\n\r\u00a0]", _quoted),
    (_CLITIC, "", _quoted),
    (_NOT, "", _quoted),
    (f"''|[`‘-‟\x91-\x94‹›«»]{{1,2}}|{_APOS}", "", _quoted),
    ("<<|>>", "", _plain),
    (f"[{_SYMBOLS}]", "", _plain),
    (f"[{_SPACE}]+|(?i:&nbsp;)", "", _nothing),
]


@functools.cache
def _rules() -> list[tuple[re.Pattern[str], Action]]:
    return [(re.compile(f"({token})(?:{ahead})"), action) for token, ahead, action in _RULES]


PLAIN = re.compile(r"(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna)\b)[A-Za-z]+(?=[ \n]|$)")  # nothing to decide
SPACES = re.compile(f" [{_SPACE}]*")


def tokenize_all(captions: Sequence[str]) -> list[list[str]]:
    """Returns each caption's tokens, as the official evaluation finds them in one text with a caption a line.

    The end of a caption may depend on the beginning of the next: of 'vitamin d.' the full stop is part of the last
    token, but not before a line that begins with 'The'. Line breaks within a caption are spaces, also those (a carriage
    return, a form feed, U+2028 ...) by which the official evaluation would confuse captions with one another.
    """
    text = "\n".join(caption.translate(LINE_ENDS) for caption in captions)
    lines: list[list[str]] = [[]]
    position = 0
    while position < len(text):
        if text[position] == "\n":
            lines.append([])
            position += 1
        elif match := SPACES.match(text, position):
            position = match.end()
        elif match := PLAIN.match(text, position):
            lines[-1].append(match.group().lower())
            position = match.end()
        else:
            part, token = _longest(text, position)
            position += len(part)
            if (token := token.lower()) and token not in PUNCTUATION:
                lines[-1].append(token)
    return lines


def _longest(text: str, position: int) -> tuple[str, str]:
    """The text that the rule with the longest match takes, and its token; a sign of no rule vanishes."""
    best, end, how = text[position], position, _nothing
    for pattern, action in _rules():
        match = pattern.match(text, position)
        if match and match.end() > end:
            best, end, how = match.group(1), match.end(), action
    return best, how(best)
