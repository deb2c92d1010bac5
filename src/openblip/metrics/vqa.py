"""Accuracy of visual question answering: the evaluation of VQA v2 (Antol et al. 2015).

The normal form of short answers is written from the published rules (visualqa.org/evaluation.html)
and the behaviour of the official program (GT-Vision-Lab/VQA, `vqaEval.py`), which decides where the
two differ: its digits, articles and contractions are looked up as whole words, in that order, after
the punctuation is gone.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from openblip.runtime.errors import DataError

_HUMAN_ANSWERS = 10

# As many other people must have given an answer for it to be fully right.
_ENOUGH = 3

# Question ids that an error names.
_NAMED = 3

# A mapping is invariant in its keys: without this {int: ...} would not be accepted.
Key = TypeVar("Key", bound=Hashable)

Annotations = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class VqaScores:
    """Accuracy per question, in the order of the annotations."""

    accuracy: NDArray[np.float64]
    """(questions,), 0 to 1."""

    answer_types: tuple[str, ...]
    """"yes/no", "number" or "other", per question."""

    question_types: tuple[str, ...]
    """First words of the question ("how many"), per question."""

    def summary(self) -> dict[str, float]:
        """Returns the mean "overall", of each answer type, and of each question type, in per cent.

        An empty name is that of an unknown type, which gets no value.

        Raises:
            DataError: a type of question has the name of a type of answer, or is "overall".
        """
        result = {"overall": 100.0 * float(self.accuracy.mean())}
        for kind, types in (("answer", self.answer_types), ("question", self.question_types)):
            column = np.array(types)
            for name in sorted(set(types) - {""}):
                if name in result:
                    raise DataError(
                        f"{kind} type {name!r} has the name of another result; rename it"
                    )
                result[name] = 100.0 * float(self.accuracy[column == name].mean())
        return result


class _Question(NamedTuple):
    key: Hashable
    question_type: str
    answer_type: str
    human: list[str]


def vqa(answers: Mapping[Key, str], annotations: Annotations) -> dict[str, float]:
    """Returns the official accuracy of answers to the questions of VQA v2, in per cent.

    An answer that n of nine people gave is right to min(n / 3, 1); the accuracy of a question is
    the mean over the ten ways to leave one of its ten people out. Texts are compared in the normal
    form of the official evaluation, except where all ten people wrote the same: then an answer
    must equal theirs as it stands, in upper and lower case too. Unlike there, values are not
    rounded.

    Args:
        answers: one text per question id; the empty text for no answer.
        annotations: the official annotations as `json.load` returns them, or their list
            "annotations". Only "question_id", "question_type", "answer_type" and the "answer" of
            each of the ten "answers" are read; nothing is changed in them.

    Returns:
        "overall", then a value for each answer type ("yes/no", "number", "other") and for each
        question type ("how many", ...) that occurs.

    Raises:
        DataError: there is nothing to evaluate, a question has no answer, an answer no question,
            an annotation lacks one of the fields or has not ten answers, or a question type has
            the name of an answer type.
    """
    return vqa_scores(answers, annotations).summary()


def vqa_scores(answers: Mapping[Key, str], annotations: Annotations) -> VqaScores:
    """Returns the accuracy of each question, for intervals and comparisons; see `vqa`."""
    questions = _questions(annotations)
    given: Mapping[Any, str] = answers
    _check(given, questions)
    accuracy = [_accuracy(given[question.key], question.human) for question in questions]
    return VqaScores(
        accuracy=np.array(accuracy),
        answer_types=tuple(question.answer_type for question in questions),
        question_types=tuple(question.question_type for question in questions),
    )


def _accuracy(answer: str, human: Sequence[str]) -> float:
    answer = _on_one_line(answer)
    human = [_on_one_line(text) for text in human]
    # Where all agree the question may be about a text in the image, which is to be read exactly.
    if len(set(human)) > 1:
        answer = normal_answer(answer)
        human = [normal_answer(text) for text in human]
    same = [text == answer for text in human]
    others = [sum(same) - left_out for left_out in same]
    return sum(min(count, _ENOUGH) for count in others) / (_ENOUGH * len(human))


def _questions(annotations: Annotations) -> list[_Question]:
    entries: object = annotations
    if isinstance(entries, Mapping):
        entries = entries.get("annotations")
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise DataError(
            'annotations must be the official JSON object with a list "annotations", or that list'
        )
    if not entries:
        raise DataError("the annotations hold no question")
    questions = [_question(entry, number) for number, entry in enumerate(entries)]
    seen: set[Hashable] = set()
    for question in questions:
        if question.key in seen:
            raise DataError(f"question {question.key!r} is annotated twice; leave one out")
        seen.add(question.key)
    return questions


def _question(entry: object, number: int) -> _Question:
    """Returns what is read of one annotation, checked."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("question_id"), int | str):
        raise DataError(f'annotation {number} (from 0) has no "question_id"')
    key = entry["question_id"]
    for field in ("question_type", "answer_type"):
        if not isinstance(entry.get(field), str):
            raise DataError(f'annotation of question {key!r} has no text "{field}"')
    answers = entry.get("answers")
    if not isinstance(answers, list | tuple) or len(answers) != _HUMAN_ANSWERS:
        raise DataError(
            f"annotation of question {key!r} must have a list of {_HUMAN_ANSWERS} human "
            '"answers"; questions of the test splits have none and are scored by their server'
        )
    human = [item.get("answer") for item in answers if isinstance(item, Mapping)]
    texts = [text for text in human if isinstance(text, str)]
    if len(texts) != _HUMAN_ANSWERS:
        raise DataError(
            f'annotation of question {key!r}: each of its "answers" needs a text "answer"'
        )
    return _Question(key, entry["question_type"], entry["answer_type"], texts)


def _check(answers: Mapping[Any, str], questions: Sequence[_Question]) -> None:
    if not answers:
        raise DataError("there are no answers to evaluate")
    keys = [question.key for question in questions]
    missing = [key for key in keys if key not in answers]
    if missing:
        # JSON has text keys only: answers read from an object in a file lose their numbers.
        as_text = any(str(key) in answers for key in missing)
        remedy = (
            "turn the question ids of the answers from text into numbers"
            if as_text
            else "answer all questions, with an empty text where there is no answer"
        )
        raise DataError(f"{len(missing)} questions have no answer: {_named(missing)}; {remedy}")
    known = set(keys)
    unknown = [key for key in answers if key not in known]
    if unknown:
        raise DataError(
            f"{len(unknown)} answers belong to no annotated question: {_named(unknown)}; leave "
            "them out, or take the annotations of their split"
        )
    for key, text in answers.items():
        if not isinstance(text, str):
            raise DataError(f"the answer to question {key!r} is {text!r}; it must be a text")


def _named(keys: Sequence[Hashable]) -> str:
    shown = ", ".join(repr(key) for key in keys[:_NAMED])
    return shown if len(keys) <= _NAMED else f"{shown}, ..."


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


def _on_one_line(text: str) -> str:
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
