"""Token rules of the Penn Treebank convention as caption metrics use it.

Written from the observed behaviour of the tokenizer behind pycocoevalcap (Stanford CoreNLP 3.4.1
with `-preserveLines -lowerCase`). At each place the rule with the longest match wins, the earlier
rule on a tie. What a pattern matches after its group `token` is only looked at, but counts towards
the length.
"""

import re
from collections.abc import Callable
from typing import NamedTuple


class Rule(NamedTuple):
    """One kind of token: how it looks and which tokens it becomes."""

    pattern: re.Pattern[str]
    rewrite: Callable[[str], list[str]]


# Word characters: letters (category L) with the combining marks of the older scripts, and decimal
# digits. Numerals that are not decimal (superscripts, fractions, circled) and characters beyond
# U+FFFF are in `\w` but in no word.
_NOT_IN_WORDS = (
    "_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070\u2074-\u2089\u2150-\u218b\u2460-\u24ff\u2776-\u2793"
    "\u3007\u3021-\u3029\u3038-\u303a\u3192-\u3195\u3220-\u32bf\U00010000-\U0010ffff"
)
_MARKS = (
    "\u02c2-\u02c5\u02d2-\u02df\u02e5-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5"
    "\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06ed\u0711\u0730-\u074a\u07a6-\u07b0"
    "\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955\u0962\u0963\u0981-\u0983\u09bc"
    "\u09be-\u09cd\u09d7\u09e2\u09e3\u0a01-\u0a03\u0a3c-\u0a4f\u0a81-\u0a83\u0abc\u0abe-\u0acf"
    "\u0b82\u0bbe-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56\u0d3e-\u0d48\u0e31\u0e34-\u0e3a\u0e47-\u0e4e"
    "\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd"
)
_L = rf"(?:[^\W\d{_NOT_IN_WORDS}]|[{_MARKS}])"
_LD = rf"(?:[^\W{_NOT_IN_WORDS}]|[{_MARKS}])"
_D = r"\d"
_NOT_L = rf"(?!{_L})"
_APOS = r"(?:['\u0092\u2019]|&apos;)"
# A full stop, question or exclamation mark inside a word does not end it: "side.the", "who?what".
_WORD = rf"(?:{_L}{_LD}*(?:[.!?]{_L}{_LD}*)*)"
_HYPHEN = "[-\u058a\u2010\u2011]"

# Words that keep their full stop wherever they stand ...
_ABBREVIATIONS = """
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
    ala ariz calif colo conn ct dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn
    tenn va vt wis wisc wyo
    mr mrs ms mme mlle messrs dr drs prof profs pres sr jr esq hon rev st ste mt msgr
    gen lt lieut col cpl sgt pfc pvt sfc spc maj capt cmdr comdr adm ens brig insp supt supts
    gov govs rep reps sen sens atty attys treas asst det
    inc corp co cos ltd plc bhd cie bros assn assoc dept univ natl intl elec sys invt
    ave blvd rd rt sq bldg ft ext tel est
    adj adv al cf etc ph seq vs alex jos wm
"""
# ... but not in capitals; with a capital only; before a number only.
_NOT_IN_CAPITALS = "mfg mtg pte ptes pty ptys ppte pptes ppty pptys"
_CAPITALISED = "ark az del ill la mass miss ore pa tex wash"
_NUMBERED = "no nos fig figs art ca op pp prop"
# A single letter loses its full stop where one of these starts the next sentence.
_SENTENCE_STARTS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last
    Many More Now Once One Other Our She Since So Some Such That The Their Then There These They
    This We What When While Yet You
"""
_FILE_ENDINGS = (
    "c h x gz pl ps py bat bmp cgi cpp dll doc docx exe gif htm html jar java jpeg jpg mov mp3 pdf "
    "php png ppt sql tar txt wav xml zip"
)


def _any_of(words: str) -> str:
    return "(?:" + "|".join(words.split()) + ")"


def _capitalised(words: str) -> str:
    return _any_of(" ".join(f"{word.title()} {word.upper()}" for word in words.split()))


def _lower(token: str) -> list[str]:
    return [token.lower()]


def _whole(pattern: str, flags: int = 0) -> Rule:
    """Returns a rule whose token is the matched text in lower case."""
    return Rule(re.compile(f"(?P<token>{pattern})", flags), _lower)


def _before(pattern: str, context: str, flags: int = 0) -> Rule:
    """Returns a rule for a token that counts only in front of `context`."""
    return Rule(re.compile(f"(?P<token>{pattern})(?:{context})", flags), _lower)


def _becomes(pattern: str, *tokens: str) -> Rule:
    """Returns a rule whose match is replaced by fixed tokens."""
    return Rule(re.compile(f"(?P<token>{pattern})"), lambda _: list(tokens))


def _straight_quote(token: str) -> list[str]:
    return [re.sub(_APOS, "'", token.lower())]


def _halves(token: str) -> list[str]:
    return [token[:3].lower(), token[3:].lower()]


def _bracketed(token: str) -> list[str]:
    return [token.lower().replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", "\u00a0")]


def _entity_free(token: str) -> list[str]:
    return [token.lower().replace("&amp;", "&")]


# Signs that stay as tokens of one character; all other signs (emoji among them) vanish.
_SYMBOLS = (
    "\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b1\u00b4\u00b6-\u00b8\u00bf\u00d7\u00f7"
    "\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044"
    "\u207a-\u207e\u208a-\u208e\u20a4\u2100\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118"
    "\u211e-\u2123\u2125\u2127\u2129\u212e\u213a\u213b\u2140-\u2144\u214a-\u214d\u214f"
    "\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40"
    "\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
_QUOTES_AND_DASHES = (
    "\u0091-\u0094\u0096\u0097\u00ab\u00bb\u2013-\u2015\u2018-\u201f\u2026\u2039\u203a"
)
_I = re.IGNORECASE
_AUXILIARY = rf"{_APOS}(?:[msd]|re|ve|ll)"
_NOT = rf"n(?:{_APOS}|`)t"
_AMPERSAND = "(?:&(?:[aA][mM][pP];)?)"
_PATH_END = r"""[^\s<>|.!?(){},"-]"""

RULES: tuple[Rule, ...] = (
    # Contractions.
    Rule(re.compile("(?P<token>cannot|gonna|gotta|lemme|gimme|wanna)", _I), _halves),
    _before("'t", "is|was", _I),
    _before(_WORD, _NOT, _I),
    _before(_WORD, rf"{_AUXILIARY}{_NOT_L}", _I),
    Rule(re.compile(f"(?P<token>{_NOT})", _I), _straight_quote),
    Rule(re.compile(rf"(?P<token>{_AUXILIARY}){_NOT_L}", _I), _straight_quote),
    # Words with an apostrophe that is no contraction: 'n', ol', 'em, '80s, D'Angelo, go'in.
    _whole(rf"{_APOS}n(?:{_APOS}|(?!{_LD}))", _I),
    _whole(rf"(?:[ldj]|dunkin|somethin|ol){_APOS}", _I),
    _whole(rf"{_APOS}(?:em|till?|cause)|{_APOS}[2-9]0s|c{_APOS}mon|o{_APOS}o", _I),
    _before(rf"y{_APOS}", _L, _I),
    _whole(rf"{_APOS}{_D}\d(?!\d)"),
    _whole(rf"(?:[A-HJ-XZdlno]){_APOS}{_L}{_LD}+"),
    _whole(rf"{_L}+[aeiouyAEIOUY]{_APOS}[aeiouA-Z]{_L}*"),
    # Plain and compound words.
    _whole(_WORD),
    _whole(rf"{_LD}+(?:(?:_|{_HYPHEN}){_LD}+)*"),
    _whole(r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-[A-Za-z0-9]+)+"),
    _whole(r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),
    Rule(re.compile(rf"(?P<token>[A-Z]+(?:(?:{_AMPERSAND}|\+)[A-Z]+)+)"), _entity_free),
    # Abbreviations.
    _whole(rf"{_any_of(_ABBREVIATIONS)}\.", _I),
    _whole(rf"(?:{_capitalised(_CAPITALISED)}|{_any_of(_NOT_IN_CAPITALS)})\."),
    _whole(rf"{_any_of(_NOT_IN_CAPITALS.title())}\."),
    _before(rf"{_any_of(_NUMBERED)}\.", rf"\ ?{_D}", _I),
    _before(r"[A-Za-z]", rf"\.\s+{_capitalised(_SENTENCE_STARTS)}{_NOT_L}"),
    _whole(r"[A-Za-z](?:\.[A-Za-z])*\."),
    _whole(r"(?:Ph|Ed)\.D\.", _I),
    # Numbers.
    _whole(rf"[+-]?(?:{_D}*(?:[.:,]{_D}+)+|{_D}+)"),
    Rule(re.compile(rf"(?P<token>(?:{_D}{{1,4}}[- \u00a0])?{_D}{{1,4}}/{_D}{{1,4}})"), _bracketed),
    _whole(rf"{_D}{{1,2}}[-/]{_D}{{1,2}}[-/]{_D}{{2,4}}"),
    _whole(r"[A-Z]*\$"),
    _before(rf"{_D}+\.", "[,:;]"),
    # Addresses.
    _whole(rf"""https?://[^\s<>"|(){{}}]+{_PATH_END}""", _I),
    _whole(rf"""(?:www\.(?:[^\s<>"`'|.!?(){{}},-]+\.)*[^\s<>"`'|.!?(){{}},-]+)(?:/[^\s<>"|(){{}}]+{_PATH_END})?""", _I),
    _whole(rf"""(?:[^\s<>"`'|.!?(){{}},-]+\.)+(?:com|net|org|edu)(?:/[^\s<>"|(){{}}]+{_PATH_END})?""", _I),
    _whole(r"""<?[A-Za-z0-9][^\s<>|(){}"]*@(?:[^\s<>|(){}."]+\.)*[^\s<>|(){}."]+>?"""),
    _whole(r"@[A-Za-z_][A-Za-z0-9_]*"),
    _whole(rf"\#{_L}+"),
    _whole(rf"{_LD}+(?:\.{_LD}+)*\.{_any_of(_FILE_ENDINGS)}{_NOT_L}", _I),
    # Emoticons.
    Rule(re.compile(r"(?P<token>[<>]?[:;=][-o*']?[()DdPpO\\{@|\[\]])(?![A-Za-z0-9])"), _bracketed),
    _whole(r"[-^x=~<>']_[-^x=~<>']"),
    Rule(re.compile(r"(?P<token>\([-^x=~<>'][_.]?[-^x=~<>']\))"), _bracketed),
    # Mark-up.
    Rule(re.compile(r"(?P<token></?[A-Za-z][^<>'\"]*>)"), _bracketed),
    _becomes(r"&[aA][mM][pP];", "&"),
    _becomes(r"&lt;", "<"),
    _becomes(r"&gt;", ">"),
    _becomes(r"&(?:quot|apos|nbsp|[mn]dash);"),
    _whole(r"&(?:[aeiouAEIOU](?:acute|grave|uml)|#[0-9]+);"),
    # Currency, fractions, marks.
    _becomes("[\u0080\u00a4\u20a0\u20ac]", "$"),
    _becomes("\u00a3", "#"),
    _becomes("\u00a2", "cents"),
    _becomes("\u00bc", "1/4"),
    _becomes("\u00bd", "1/2"),
    _becomes("\u00be", "3/4"),
    _becomes("\u2153", "1/3"),
    _becomes("\u2154", "2/3"),
    _becomes(r"\(", "-lrb-"),
    _becomes(r"\)", "-rrb-"),
    _becomes(r"\[", "-lsb-"),
    _becomes(r"\]", "-rsb-"),
    _becomes(r"\{", "-lcb-"),
    _becomes(r"\}", "-rcb-"),
    _whole(r"[?!]{2,}|-{5,}"),
    _becomes(rf"[?!.,:;\"'`{_QUOTES_AND_DASHES}]|-{{1,4}}|''|``"),
    _whole(r"_+|\*+|\#+|@+|<<|>>|[%&=+/\\|~^<>]"),
    _whole(r"[CFcf]\#|[Cc]\+\+|\\\*"),
    _whole("[\u00b2\u00b3\u00b9\u2070\u2074-\u2079\u2080-\u2089]+"),
    _whole(f"[{_SYMBOLS}]"),
)
