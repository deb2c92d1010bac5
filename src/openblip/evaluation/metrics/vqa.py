"""Accuracy of visual question answering: the evaluation of VQA v2 (Antol et al. 2015)."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from openblip.errors import DataError
from openblip.evaluation.metrics.vqa_normalisation import normal_answer, on_one_line

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
    answer = on_one_line(answer)
    human = [on_one_line(text) for text in human]
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
