"""Caption words as the COCO caption metrics count them, without Java.

The rules are those of the Penn Treebank convention, written from the observed behaviour of the
tokenizer behind pycocoevalcap (Stanford CoreNLP 3.4.1, `-preserveLines -lowerCase`). At each place
the rule with the longest match wins, the earlier rule on a tie; context that a rule matches after
its group `token` counts towards that length. Tokens which the caption metrics drop as punctuation
are rewritten to nothing.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from openblip.batches.text import characters, has_words

# A word of letters between spaces, perhaps with a mark behind it: nine of ten words in captions.
_PLAIN_WORD = re.compile(r"([A-Za-z]+)([.,;]?)(?=\s|$)")


@lru_cache(maxsize=1 << 16)
def caption_tokens(caption: str) -> tuple[str, ...]:
    """Returns the lower-case words of a caption without punctuation.

    Equals pycocoevalcap's `PTBTokenizer` (Stanford CoreNLP with `-lowerCase`, then its list of
    punctuation) on a caption alone. What follows from it and may surprise: brackets stay, as
    "-lrb-" and "-rrb-", for that list names them in capitals; "!!" stays and "!" goes; a number of
    several words ("2 1/2", a telephone number) is one token holding no-break spaces; characters
    that the reference does not know, emoji for instance, vanish.

    Differs from pycocoevalcap: that one tokenises all captions as one text, so the first word of a
    caption can decide on the last full stop of the caption before it ("Fig." keeps it before a
    number, "J." loses it before "The"). Here no caption depends on its neighbour. And a text of a
    script without spaces between words (Chinese, Japanese, Thai) is one token there, so that every
    score is 0 unless all is equal; here each of its characters counts as a word.
    """
    if not has_words(caption):
        return tuple(characters(caption))
    text = caption.replace("\u00ad", "")
    tokens: list[str] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        plain = _PLAIN_WORD.match(text, position)
        if plain and _is_ordinary(plain[1].lower(), plain[2]):
            tokens.append(plain[1].lower())
            position = plain.end()
        else:
            position = _apply_rules(text, position, tokens)
    return tuple(tokens)


def _is_ordinary(word: str, mark: str) -> bool:
    if mark == "." and (len(word) == 1 or word in _KEEP_FULL_STOP):
        return False
    return word not in _SPLIT_WORDS


def _apply_rules(text: str, position: int, tokens: list[str]) -> int:
    """Appends the tokens of the longest rule; returns the position behind them."""
    longest, chosen = 0, None
    for rule in RULES:
        match = rule.pattern.match(text, position)
        if match and match.end() - position > longest:
            longest, chosen = match.end() - position, (rule, match)
    if chosen is None:
        return position + 1
    rule, match = chosen
    tokens.extend(rule.rewrite(match["token"]))
    return match.end("token")


class _Rule(NamedTuple):
    """One kind of token: how it looks, and the tokens it becomes."""

    pattern: re.Pattern[str]
    rewrite: Callable[[str], list[str]]


# Split after the third letter: "can not", "gon na".
_SPLIT_WORDS = frozenset(("cannot", "gonna", "gotta", "lemme", "gimme", "wanna"))

# Abbreviations, which keep their full stop. These may end a sentence; a single letter glued to the
# stop ("Jr.a") is then a word of its own. Of names the stop stays only with a capital ("Pa.", but
# "pa"), of the forms not in capitals ("Pty.", but "PTY").
_CLOSING = """al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq
    est etc ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon
    mont neb nev nov oct okla penn plc rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues
    univ va vt wed wis wisc wyo"""
_CLOSING_NAMES = "ark az del ill la mass miss ore pa tex wash"
_CLOSING_FORMS = "ppte pptes ppty pptys pte ptes pty ptys"
# These stand before a name or a number; the forms again not in capitals.
_LEADING = """adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept
    det dr drs elec ens ft gen gov govs hon insp invt jos lieut lt maj messrs mlle mme mr mrs ms
    msgr mt natl pfc ph pres prof profs pvt rep reps rev sen sens sfc sgt spc st ste supt supts
    treas vs wm"""
_LEADING_FORMS = "mfg mtg"
# These keep it before a number only.
_NUMBERED = "art ca fig figs no nos op pp prop"
_KEEP_FULL_STOP = frozenset(
    " ".join(
        (_CLOSING, _CLOSING_NAMES, _CLOSING_FORMS, _LEADING, _LEADING_FORMS, _NUMBERED)
    ).split()
)

# A single letter loses its full stop in front of one of these.
_SENTENCE_STARTS = """a about according additionally after an as at but earlier he her here however
    if in it last many more now once one other our she since so some such that the their then
    there these they this we what when while yet you"""
_FILE_ENDINGS = """bat bmp cgi cpp dll docx? exe gif gz html? jar java jpe?g mov mp3 pdf php pl png
    ppt ps py sql tar txt wav xml zip c h x"""

# Word characters: letters (category L) with the combining marks of the older scripts, and decimal
# digits. Other numerals (superscripts, fractions, circled digits) and everything beyond U+FFFF are
# in `\w`, but in no word.
_NOT_IN_WORDS = (
    "_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070\u2074-\u2089\u2150-\u218b\u2460-\u24ff\u2776-\u2793"
    "\u3007\u3021-\u3029\u3038-\u303a\u3192-\u3195\u3220-\u32bf\U00010000-\U0010ffff"
)
_MARKS = (
    "\u02c2-\u02c5\u02d2-\u02df\u02e5-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4"
    "\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06ed\u0711\u0730-\u074a\u07a6-\u07b0"
    "\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955\u0962\u0963\u0981-\u0983\u09bc"
    "\u09be-\u09cd\u09d7\u09e2\u09e3\u0a01-\u0a03\u0a3c-\u0a4f\u0a81-\u0a83\u0abc\u0abe-\u0acf"
    "\u0b82\u0bbe-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56\u0d3e-\u0d48\u0e31\u0e34-\u0e3a\u0e47-\u0e4e"
    "\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd"
)
_ACCENTED = "&[aeiouAEIOU](?:acute|grave|uml);"
_LETTER = rf"(?:[^\W\d{_NOT_IN_WORDS}]|[{_MARKS}]|{_ACCENTED})"
_ALNUM = rf"(?:[^\W{_NOT_IN_WORDS}]|[{_MARKS}]|{_ACCENTED})"
_APOS = r"(?:['\u0092\u2019]|&apos;)"
_AUXILIARY = rf"{_APOS}(?:[msd]|re|ve|ll)"
_NOT = rf"n(?:{_APOS}|`)t"
# A mark between two letters does not end a word: "sign.the", "who?what".
_WORD = rf"(?:{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*)"
_PART = rf"(?:[dlo](?:{_APOS}|`){_ALNUM}{{2,}}|{_ALNUM}+)"
_COMPOUND = rf"(?:{_PART}(?:[-_\u058a\u2010\u2011]{_PART})*)"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+\."
_HOST_CHARACTER = r"""[^\s0-9A-Z!"$'(),./:;<=>?@\[\]\\^_`{|}-]"""
_URL_TAIL = r"""[^\s<>"|(){}]+[^\s<>|.!?(){},"-]"""

# Signs that stay, as tokens of one character. All others (emoji among them) vanish.
_SIGNS = (
    "\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b1\u00b4\u00b6-\u00b8\u00bf\u00d7\u00f7\u2016\u2017"
    "\u2020-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u207a-\u207e\u208a-\u208e\u20a4\u2100"
    "\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e"
    "\u213a\u213b\u2140-\u2144\u214a-\u214d\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012"
    "\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
_QUOTES = "`\u0091-\u0094\u00ab\u00bb\u2018-\u201f\u2039\u203a"
_PTB_QUOTE = (
    dict.fromkeys(map(ord, "\u0091\u2018\u201b\u2039"), "`")
    | dict.fromkeys(map(ord, "\u0092\u2019\u203a"), "'")
    | dict.fromkeys(map(ord, "\u0093\u00ab\u201c"), "``")
    | dict.fromkeys(map(ord, "\u0094\u00bb\u201d"), "''")
)


def _keep(token: str) -> list[str]:
    # A space inside a token (phone numbers, "2 1/2", tags) is a no-break space.
    return [token.lower().replace(" ", "\u00a0")]


def _drop(_: str) -> list[str]:
    return []


def _halves(token: str) -> list[str]:
    return [token[:3].lower(), token[3:].lower()]


def _straight_apostrophe(token: str) -> list[str]:
    return [re.sub(_APOS, "'", token.lower())]


def _named_brackets(token: str) -> list[str]:
    return _keep(token.replace("(", "-lrb-").replace(")", "-rrb-"))


def _plain_ampersand(token: str) -> list[str]:
    return [token.lower().replace("&amp;", "&")]


def _quotes(token: str) -> list[str]:
    # Two unlike quotes side by side are one token that no list of punctuation holds.
    quotes = token.translate(_PTB_QUOTE)
    return [] if quotes in ("'", "''", "`", "``") else [quotes]


def _rule(
    pattern: str,
    rewrite: Callable[[str], list[str]] = _keep,
    *,
    before: str = "",
    flags: re.RegexFlag = re.NOFLAG,
) -> _Rule:
    return _Rule(re.compile(f"(?P<token>{pattern})(?:{before})", flags), rewrite)


def _fixed(pattern: str, token: str) -> _Rule:
    return _rule(pattern, lambda _: [token])


def _any_of(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


def _capitalised(words: str) -> str:
    return f"(?:{_any_of(words.title())}|{_any_of(words.upper())})"


_I = re.IGNORECASE
_CLOSING_STOP = (
    rf"(?:(?i:{_any_of(_CLOSING)})|{_capitalised(_CLOSING_NAMES)}"
    rf"|{_any_of(_CLOSING_FORMS)}|{_any_of(_CLOSING_FORMS.title())})\."
)

_CONTRACTIONS = (
    _rule(_any_of(" ".join(sorted(_SPLIT_WORDS))), _halves, flags=_I),
    _rule("'t", before="is|was", flags=_I),
    _rule("[a-z]*[a-mo-z]", before=_NOT, flags=_I),
    _rule(_WORD, before=_AUXILIARY, flags=_I),
    _rule(_NOT, _straight_apostrophe, flags=_I),
    _rule(_AUXILIARY, _straight_apostrophe, before="[^A-Za-z]|$", flags=_I),
    # Apostrophes that belong to the word: 'n', ol', '80s, D'Angelo, Hawai'i.
    _rule(rf"{_APOS}n{_APOS}?|(?:[ldj]|dunkin|somethin|ol){_APOS}", flags=_I),
    _rule(rf"{_APOS}(?:em|till?|cause|[2-9]0s)|c{_APOS}mon|o(?:{_APOS}|`)o", flags=_I),
    _rule(rf"y{_APOS}", before=_LETTER, flags=_I),
    _rule(rf"{_APOS}\d\d", before=r"\s|$"),
    _rule(rf"[A-HJ-XZn](?:{_APOS}|`){_LETTER}{{2,}}"),
    _rule(rf"{_LETTER}+[aeiouyAEIOUY](?:{_APOS}|`)[aeiouA-Z]{_LETTER}*"),
    _rule("'", _drop, before=r"[A-Za-z]\S"),
    _rule(_AUXILIARY, _straight_apostrophe, flags=_I),
)
_WORDS = (
    _rule(_WORD),
    _rule(_COMPOUND, flags=_I),
    _rule(rf"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:{_INITIALS}|[A-Za-z0-9]+))+"),
    _rule(r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),
    _rule(r"[A-Z]+(?:(?:&(?:[aA][mM][pP];)?|\+)[A-Z]+)+", _plain_ampersand),
    _rule(r"[CF]\#|C\+\+|(?:pro|anti)-", flags=_I),
)
_ABBREVIATIONS = (
    _rule(_CLOSING_STOP, before="[A-Za-z]?"),
    _rule(rf"{_any_of(_LEADING)}\.", flags=_I),
    _rule(rf"(?:{_any_of(_LEADING_FORMS)}|{_any_of(_LEADING_FORMS.title())})\."),
    _rule(rf"{_any_of(_NUMBERED)}\.", before=r"\s?\d", flags=_I),
    _rule("[A-Za-z]", before=rf"\.\s+{_capitalised(_SENTENCE_STARTS)}(?:\s|$)"),
    _rule(rf"{_INITIALS}|[A-Za-z]\."),
    _rule(r"(?:Ph|Ed)\.D\.", flags=_I),
    _rule(rf"(?:{_WORD}|{_COMPOUND})\.", before="[,:;]"),
)
_NUMBERS = (
    _rule(r"[+-]?(?:\d*(?:[.:,]\d+)+|\d+)"),
    _rule(r"(?:\d{1,4}[- \u00a0])?\d{1,4}/\d{1,4}"),
    _rule(r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"),
    _rule(
        r"(?:\(\d{2,3}\)[ \u00a0]?|\+{0,2}(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])"
        r"\d{3,4}[- \u00a0]?\d{3,5}",
        _named_brackets,
    ),
    _rule(r"[A-Z]*\$"),
)
_ADDRESSES = (
    _rule(rf"https?://{_URL_TAIL}", flags=_I),
    _rule(rf"""www\.(?:[^\s<>|.!?(){{}},"]+\.)+[a-z]{{2,4}}(?:/{_URL_TAIL})?""", flags=_I),
    _rule(rf"(?:{_HOST_CHARACTER}+\.)+(?:com|net|org|edu)(?:/{_URL_TAIL})?"),
    _rule(r'<?[A-Za-z0-9][^\s<>|(){}"]*@(?:[^\s<>|(){}."]+\.)*[^\s<>|(){}."]+>?'),
    _rule(rf"@[A-Za-z_][A-Za-z0-9_]*|\#{_LETTER}+"),
    _rule(rf"{_ALNUM}+(?:\.{_ALNUM}+)*\.{_any_of(_FILE_ENDINGS)}", before=r"[\s.,!?]|$", flags=_I),
)
_EMOTICONS = (
    _rule(r"[<>]?[:;=][-o*']?[()DdPpO\\{@|\[\]](?![A-Za-z0-9])", _named_brackets),
    _rule(r"[-^x=~<>']_[-^x=~<>']"),
    _rule(r"\([-^x=~<>'][_.]?[-^x=~<>']\)", _named_brackets),
)
_MARK_UP = (
    _rule(
        r"""</?[A-Za-z][\w:.-]*(?:\s+[A-Za-z][\w:.-]*(?:\s*=\s*(?:"[^"]*"|'[^']*'))?)*\s*/?\s*>"""
    ),
    _rule(r"<[!?][A-Za-z-][^<>\n]*>"),
    _fixed("&(?:[aA][mM][pP];)?", "&"),
    _fixed("&lt;", "<"),
    _fixed("&gt;", ">"),
    _rule("&(?:quot|apos|nbsp|[mn]dash);", _drop),
    _rule(r"&\#[0-9]+;"),
)
_SYMBOLS = (
    _fixed("[\u0080\u00a4\u20a0\u20ac]", "$"),
    _fixed("\u00a3", "#"),
    _fixed("\u00a2", "cents"),
    _fixed("\u00bc", "1/4"),
    _fixed("\u00bd", "1/2"),
    _fixed("\u00be", "3/4"),
    _fixed("\u2153", "1/3"),
    _fixed("\u2154", "2/3"),
    _fixed(r"\(", "-lrb-"),
    _fixed(r"\)", "-rrb-"),
    _fixed(r"\[", "-lsb-"),
    _fixed(r"\]", "-rsb-"),
    _fixed(r"\{", "-lcb-"),
    _fixed(r"\}", "-rcb-"),
    _rule(r"[?!]{2,}|-{5,}"),
    _rule(r"\.{3,}|''|[?!.,:;\"'\u0096\u0097\u2013-\u2015\u2026]|-{1,4}", _drop),
    _rule(f"[{_QUOTES}]{{1,2}}", _quotes),
    _rule(r"_+|\*+|\#+|@+|<<|>>|\\\*|[%=+/\\|~^<>]"),
    _rule("[\u00b2\u00b3\u00b9\u2070\u2074-\u2079\u2080-\u2089]+"),
    _rule(f"[{_SIGNS}]"),
)

RULES: tuple[_Rule, ...] = (
    *_CONTRACTIONS,
    *_ABBREVIATIONS,
    *_WORDS,
    *_NUMBERS,
    *_ADDRESSES,
    *_EMOTICONS,
    *_MARK_UP,
    *_SYMBOLS,
)
