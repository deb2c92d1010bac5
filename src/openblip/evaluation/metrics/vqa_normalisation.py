"""Normal form of short answers, as the evaluation of the VQA challenge compares them.

Written from the published rules (visualqa.org/evaluation.html) and the behaviour of the official
program (GT-Vision-Lab/VQA, `vqaEval.py`), which decides where the two differ: its digits, articles
and contractions are looked up as whole words, in that order, after the punctuation is gone.
"""

import re

# Apostrophe and colon are not among them ("girl's", "2:50"); the full stop has a rule of its own.
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# The official program stops after so many: it passes a flag of that value where `re.sub` takes a
# count.
_MOST_FULL_STOPS = 32

_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBERS.split())}

# Word and contraction by turns. Not regular, and not to be mended: "somebody'd" loses its
# apostrophe, and common words ("im", "id", "shell") are absent. The official table also has "Im",
# "Ive", "Id've" and "I'dve", which no lower-case word equals.
_CONTRACTIONS = """
    aint ain't arent aren't cant can't couldve could've couldnt couldn't couldn'tve couldn't've
    couldnt've couldn't've didnt didn't doesnt doesn't dont don't hadnt hadn't hadnt've hadn't've
    hadn'tve hadn't've hasnt hasn't havent haven't hed he'd hed've he'd've he'dve he'd've hes he's
    howd how'd howll how'll hows how's isnt isn't itd it'd itd've it'd've it'dve it'd've itll it'll
    maam ma'am mightnt mightn't mightnt've mightn't've mightn'tve mightn't've mightve might've
    mustnt mustn't mustve must've neednt needn't notve not've oclock o'clock oughtnt oughtn't
    ow's'at 'ow's'at 'ows'at 'ow's'at 'ow'sat 'ow's'at shant shan't shed've she'd've
    she'dve she'd've shouldve should've shouldnt shouldn't shouldnt've shouldn't've
    shouldn'tve shouldn't've somebody'd somebodyd somebodyd've somebody'd've
    somebody'dve somebody'd've somebodyll somebody'll somebodys somebody's someoned someone'd
    someoned've someone'd've someone'dve someone'd've someonell someone'll someones someone's
    somethingd something'd somethingd've something'd've something'dve something'd've
    somethingll something'll thats that's thered there'd thered've there'd've there'dve there'd've
    therere there're theres there's theyd they'd theyd've they'd've they'dve they'd've
    theyll they'll theyre they're theyve they've twas 'twas wasnt wasn't wed've we'd've
    we'dve we'd've weve we've werent weren't whatll what'll whatre what're whats what's
    whatve what've whens when's whered where'd wheres where's whereve where've whod who'd
    whod've who'd've who'dve who'd've wholl who'll whos who's whove who've whyll why'll whyre why're
    whys why's wont won't wouldve would've wouldnt wouldn't wouldnt've wouldn't've
    wouldn'tve wouldn't've yall y'all yall'll y'all'll y'allll y'all'll yall'd've y'all'd've
    y'alld've y'all'd've y'all'dve y'all'd've youd you'd youd've you'd've you'dve you'd've
    youll you'll youre you're youve you've
"""
CONTRACTIONS = dict(zip(_CONTRACTIONS.split()[::2], _CONTRACTIONS.split()[1::2], strict=True))


def on_one_line(text: str) -> str:
    """Returns `text` with spaces for line ends and tabs, and without white space around it."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normal_answer(text: str) -> str:
    """Returns the normal form of an answer: "The 2 dogs, dont run." becomes "2 dogs don't run".

    Punctuation goes, number words up to ten become digits, articles go, contractions get their
    apostrophe, letters become small. An answer of an article alone becomes empty.
    """
    words = (_DIGITS.get(word, word) for word in _without_punctuation(text).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Returns `text` without its marks, and without full stops unless a digit follows.

    A mark leaves a space behind ("black/white" is two words), except where that mark stands beside
    a space anywhere in the text; and no mark does if the text has a number like 1,000.
    """
    close_all = _NUMBER_WITH_COMMA.search(text) is not None
    result = text
    for mark in filter(text.__contains__, _MARKS):
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if close_all or beside_space else " ")
    return _FULL_STOP.sub("", result, count=_MOST_FULL_STOPS)
