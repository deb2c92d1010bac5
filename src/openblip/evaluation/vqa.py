"""Visual question answering: a split's questions are answered and judged (BLIP, section 5.3)."""

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from openblip.batches.images import every_image
from openblip.batches.questions import Question, QuestionIndex
from openblip.evaluation.results import UnitScores, official_id, save_json, summed_units
from openblip.evaluation.settings import VqaSettings
from openblip.inference.answers import Answer, AnswerList, answer_each
from openblip.inference.blip import Blip
from openblip.metrics.accuracy import Dominant, dominant
from openblip.metrics.vqa import VqaScores, vqa_scores
from openblip.metrics.wups import WordNet, items_of, wups_scores
from openblip.runtime.errors import DataError, TextTruncated
from openblip.runtime.progress import Progress
from openblip.sources.row_images import check_reachable
from openblip.table.table import PairTable

# As many answers has each question of VQA v2.
_OFFICIAL_ANSWERS = 10
# Questions whose candidates are ranked together: enough to keep the matrix products busy.
_PORTION = 32


@dataclass(frozen=True)
class AnsweredQuestion:
    """What a model answers to a question."""

    question: Question
    row: int
    """Of the image in the table."""
    answer: Answer


@dataclass(frozen=True)
class VqaResult:
    """Answers to the questions of one split, and how good they are."""

    metrics: dict[str, float]
    """Per cent. Where every answered question has ten human answers "overall" of VQA v2 and its
    answer and question types, otherwise "accuracy"; "WUPS@t" where it was asked for. Empty where
    no answers are known."""
    answers: dict[str, str]
    """Answer by question id."""
    units: dict[str, UnitScores] = field(repr=False)
    """"overall" or "accuracy", and "WUPS@t", image by image."""
    asked: list[AnsweredQuestion] = field(repr=False)
    """Question by question, in the order of the table."""
    num_images: int
    num_questions: int
    seconds: float

    @property
    def dominant(self) -> Dominant | None:
        """The answer of nearly all, if there is one."""
        return dominant(self.answers.values())

    def save_results(self, path: Path) -> None:
        """Write the answers in the form that the server of the VQA challenge takes."""
        answers = self.answers.items()
        save_json(
            path, [{"question_id": official_id(key), "answer": text} for key, text in answers]
        )


def evaluate_vqa(
    blip: Blip,
    table: PairTable,
    *,
    split: str = "test",
    candidates: Sequence[str] | None = VqaSettings.candidates,
    k: int = VqaSettings.k,
    wups: bool = VqaSettings.wups,
    batch_size: int = VqaSettings.batch_size,
) -> VqaResult:
    """Answers to the questions of a split, against those of people where these are known.

    An image is encoded once, however many questions it has.

    The model answers questions; the table has them in the metadata of the split's rows. Keywords
    are fields of `VqaSettings`; of `candidates`, which the paper ranks, those whose first token is
    likeliest are scored whole.

    Raises:
        DataError: there is no question, two have one id, an image cannot be read, or WUPS is
            asked for where questions have several answers or none, or WordNet is not there.
        MissingExtra: an image lies in an object store, whose packages are not installed.
        MissingHead: the model answers no questions.
        RecipeError: a number is too small, or the list of candidates is empty.
    """
    listed = None if candidates is None else tuple(candidates)
    settings = VqaSettings(candidates=listed, k=k, wups=wups, batch_size=batch_size)
    started = time.perf_counter()
    index = QuestionIndex.resolve(table, split, with_answers=False)
    questions = index.read(np.arange(len(index)))
    rows, image_of = np.unique(index.rows, return_inverse=True)
    check_reachable(table, rows)
    keys = distinct_keys(questions, table.uri)
    if settings.wups:
        _check_single_answers(questions, table, split)
        WordNet.find()  # missed now, not when all is answered
    texts = _grouped(questions, image_of, len(rows))
    answers: list[Answer] = []
    encoded = (
        encode_for_questions(blip, images)
        for images in every_image(table, rows, settings.batch_size, blip.image_size)
    )
    with Progress("answering", total=len(questions), unit="questions") as progress:
        for own in answer_all(blip, encoded, texts, settings.candidates, settings.k):
            answers += own
            progress.update(len(own))
    given = {key: answer.text for key, answer in zip(keys, answers, strict=True)}
    metrics, units = judge_answers(questions, image_of, given, settings.wups)
    asked = [
        AnsweredQuestion(*each)
        for each in zip(questions, index.rows.tolist(), answers, strict=True)
    ]
    seconds = time.perf_counter() - started
    return VqaResult(metrics, given, units, asked, len(rows), len(questions), seconds)


def distinct_keys(questions: Sequence[Question], source: str) -> list[str]:
    """The keys of questions, by which their answers are told apart.

    Raises:
        DataError: two are equal; names the source.
    """
    seen: set[str] = set()
    for question in questions:
        if question.key in seen:
            raise DataError(
                f"{source}: the question_id {question.key} occurs twice in what is evaluated; take "
                "questions that come from one source"
            )
        seen.add(question.key)
    return [question.key for question in questions]


def _check_single_answers(questions: Sequence[Question], table: PairTable, split: str) -> None:
    for question in questions:
        if len(question.answers) != 1:
            raise DataError(
                f"{table.uri}: WUPS compares with one answer, but question {question.key} of the "
                f"split {split!r} has {len(question.answers)}: leave it out (--wups)"
            )


def _grouped(
    questions: Sequence[Question], image_of: NDArray[np.int64], num_images: int
) -> list[list[str]]:
    texts: list[list[str]] = [[] for _ in range(num_images)]
    for question, image in zip(questions, image_of.tolist(), strict=True):
        texts[image].append(question.text)
    return texts


@torch.inference_mode()
def encode_for_questions(
    blip: Blip, images: Float[Tensor, "images 3 height width"]
) -> Float[Tensor, "images patches width"]:
    """Patch tokens of a question-answering model."""
    return blip.vqa.encode_images(images.to(blip.device, blip.dtype))


def answer_all(
    blip: Blip,
    encoded: Iterable[Float[Tensor, "images patches width"]],
    texts: Sequence[Sequence[str]],
    candidates: Sequence[str] | None,
    k: int,
) -> Iterator[list[Answer]]:
    """Answers to the questions about each image, or video, in turn; errors as in `answer_each`.

    Candidates are ranked for few questions at a time, so that the first answers come soon.

    Args:
        blip: a question-answering model.
        encoded: patch tokens of some of them at a time.
        texts: the questions about each.
        candidates: answers to rank; None lets the model write.
        k: candidates that are scored whole.
    """
    vqa, tokenizer = blip.vqa, blip.tokenizer  # missed before anything is read
    every = [text for own in texts for text in own]
    blip.warn_of_unknown_words([*every, *(candidates or ())], "questions and candidates")
    listed = None
    if candidates is not None:
        listed = AnswerList.of(tokenizer, candidates, vqa.config.text.max_positions)
    first = 0
    for hidden in encoded:
        for some in _portions(texts[first : first + len(hidden)], whole=listed is None):
            own = texts[first + some.start : first + some.stop]
            with torch.inference_mode(), warnings.catch_warnings():
                # The protocol cuts questions to what the model reads.
                warnings.simplefilter("ignore", TextTruncated)
                answers = answer_each(vqa, tokenizer, hidden[some], own, listed, k)
            yield from answers
        first += len(hidden)


def _portions(texts: Sequence[Sequence[str]], whole: bool) -> Iterator[slice]:
    """Images that follow each other, with about `_PORTION` questions, or all of them."""
    begin = count = 0
    for place, own in enumerate(texts, 1):
        count += len(own)
        if place == len(texts) or (count >= _PORTION and not whole):
            yield slice(begin, place)
            begin, count = place, 0


def judge_answers(
    questions: Sequence[Question],
    image_of: NDArray[np.int64],
    given: Mapping[str, str],
    wups: bool = False,
) -> tuple[dict[str, float], dict[str, UnitScores]]:
    """Metrics and their scores image by image, as `VqaResult` has them.

    Args:
        questions: those whose answers are not known are passed over.
        image_of: (questions,), a number for the image of each.
        given: the answer by question id.
        wups: also compute WUPS.
    """
    known = [place for place, question in enumerate(questions) if question.answers]
    if not known:
        return {}, {}
    answered = [questions[place] for place in known]
    answers = {question.key: given[question.key] for question in answered}
    by_types = _scores_by_type(answered, answers)
    name = "overall" if _is_official(answered) else "accuracy"
    metrics = {name if of == "overall" else of: v for of, v in by_types.summary().items()}
    scores = {name: by_types.accuracy}
    if wups:
        right = {question.key: question.answers[0] for question in answered}
        of_words = wups_scores(answers, right)
        metrics |= {key: 100 * float(values.mean()) for key, values in of_words.items()}
        scores |= of_words
    _, owner = np.unique(image_of[known], return_inverse=True)
    images = int(owner.max()) + 1
    return metrics, {key: summed_units(100 * v, owner, images) for key, v in scores.items()}


def question_accuracies(asked: Sequence[AnsweredQuestion]) -> list[float]:
    """Accuracy of each answer, 0 to 1; all questions must have known answers."""
    if not asked:
        return []
    answers = {each.question.key: each.answer.text for each in asked}
    scores = _scores_by_type([each.question for each in asked], answers)
    return [float(value) for value in scores.accuracy]


def _is_official(known: Sequence[Question]) -> bool:
    return all(len(question.answers) == _OFFICIAL_ANSWERS for question in known)


def _scores_by_type(known: Sequence[Question], answers: Mapping[str, str]) -> VqaScores:
    """Official accuracies; or 1 where an answer names what one of the known answers names."""
    if _is_official(known):
        annotations = [
            {
                "question_id": question.key,
                "question_type": question.question_type,
                "answer_type": question.answer_type,
                "answers": [{"answer": answer} for answer in question.answers],
            }
            for question in known
        ]
        return vqa_scores(answers, annotations)
    right = [
        items_of(answers[question.key]) in {items_of(answer) for answer in question.answers}
        for question in known
    ]
    return VqaScores(
        accuracy=np.array(right, np.float64),
        answer_types=tuple(question.answer_type for question in known),
        question_types=tuple(question.question_type for question in known),
    )
