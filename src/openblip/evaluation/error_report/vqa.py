"""The page of a question answering: accuracy by type, confusions, confident mistakes."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openblip.evaluation.error_report import PERFECT, by_confidence
from openblip.evaluation.vqa import VqaResult, question_accuracies
from openblip.inference.answers import Answer
from openblip.runtime.charts import Curve, curves
from openblip.runtime.errors import DataError
from openblip.runtime.page import CardText, Page
from openblip.sources.row_images import stream_images
from openblip.table.table import PairTable

_TYPES = 16
_CONFUSIONS = 24
_ANSWERS = 15
_WORST = 24
_BINS = 10


@dataclass(frozen=True)
class _Case:
    """A question whose answer is known."""

    row: int
    text: str
    kind: str
    """Its type, or its first two words where it has none."""
    answer: Answer
    human: Counter[str]
    accuracy: float

    @property
    def expected(self) -> str:
        """The most frequent human answer."""
        return self.human.most_common(1)[0][0]


def write_vqa_report(result: VqaResult, table: PairTable, path: Path, *, subject: str) -> Path:
    """The error analysis of a question answering as one self-contained HTML file.

    It shows a result of `evaluate_vqa` on the table, from which images are read. `subject`, for
    the title, says model and split.

    Raises:
        DataError: if no answers are known, or an image that is shown cannot be read.
    """
    cases = _cases(result)
    if not cases:
        raise DataError(f"{table.uri}: no answers are known in this split, nothing to report")
    page = Page(
        f"Questions: {subject}",
        f"{table.uri}: {result.num_questions} questions about {result.num_images} images; the "
        f"answers to {len(cases)} are known.",
    )
    _metrics(page, result)
    _types(page, cases)
    _confidence(page, cases)
    _confusions(page, cases)
    _frequent(page, cases)
    _worst(page, table, cases)
    return page.save(path)


def _cases(result: VqaResult) -> list[_Case]:
    known = [each for each in result.asked if each.question.answers]
    cases = []
    for each, accuracy in zip(known, question_accuracies(known), strict=True):
        asked = each.question
        kind = asked.question_type or " ".join(asked.text.lower().split()[:2])
        cases.append(
            _Case(each.row, asked.text, kind, each.answer, Counter(asked.answers), accuracy)
        )
    return cases


def _metrics(page: Page, result: VqaResult) -> None:
    page.section("Accuracy", "Per cent, with 95 % intervals over images.")
    rows = []
    for name, units in result.units.items():
        interval = units.interval()
        rows.append(
            [name, f"{interval.estimate:.2f}", f"{interval.low:.2f} to {interval.high:.2f}"]
        )
    page.table(["", "%", "interval"], rows)


def _types(page: Page, cases: Sequence[_Case]) -> None:
    of_type: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        of_type[case.kind].append(case.accuracy)
    lost = {kind: len(values) - sum(values) for kind, values in of_type.items()}
    total = sum(lost.values()) or 1.0
    page.section(
        "By type of question",
        "By how much of all that is lost is lost there. Questions without a type go by their "
        "first two words.",
    )
    shown = sorted(lost, key=lambda kind: -lost[kind])[:_TYPES]
    page.table(
        ["type", "questions", "accuracy", "of all that is lost"],
        [
            [
                kind,
                str(len(of_type[kind])),
                f"{100 * float(np.mean(of_type[kind])):.1f} %",
                f"{100 * lost[kind] / total:.1f} %",
            ]
            for kind in shown
        ],
    )
    if len(lost) > len(shown):
        page.note(f"And {len(lost) - len(shown)} more types.")


def _confidence(page: Page, cases: Sequence[_Case]) -> None:
    probability = np.array([case.answer.probability for case in cases])
    accuracy = np.array([case.accuracy for case in cases])
    points = by_confidence(probability, accuracy, _BINS)
    page.section(
        "Confidence",
        "Accuracy by the probability that the model gives its answer, a tenth of the questions "
        "each. Of a ranked answer it is the share among the ranked ones.",
    )
    drawn = [Curve(name="answers", points=points, dots=points), PERFECT]
    page.charts([curves("accuracy", drawn, along="probability", legend=True)])


def _confusions(page: Page, cases: Sequence[_Case]) -> None:
    wrong = [case for case in cases if case.accuracy == 0]
    pairs = Counter((case.expected, case.answer.text) for case in wrong)
    asked = {(case.expected, case.answer.text): case.text for case in reversed(wrong)}
    page.section(
        "Most frequent confusions",
        f"Of {len(wrong)} answers that nobody gave: what most people said, then what the model.",
    )
    page.table(
        ["people → model", "questions", "such as"],
        [
            [f"{human} → {model}", str(count), asked[human, model]]
            for (human, model), count in pairs.most_common(_CONFUSIONS)
        ],
    )


def _frequent(page: Page, cases: Sequence[_Case]) -> None:
    ours = Counter(case.answer.text for case in cases)
    human = Counter(case.expected for case in cases)
    page.section("Answers given most", "And how often they are what most people said.")
    page.table(
        ["answer", "model", "people"],
        [[text, str(count), str(human[text])] for text, count in ours.most_common(_ANSWERS)],
    )
    never = [(text, count) for text, count in human.most_common() if not ours[text]]
    if never:
        listed = ", ".join(f"{text} ({count})" for text, count in never[:_ANSWERS])
        page.note(f"Never given, though most people said it: {listed}.")


def _worst(page: Page, table: PairTable, cases: Sequence[_Case]) -> None:
    wrong = [case for case in cases if case.accuracy < 1]
    wrong.sort(key=lambda case: (case.accuracy, -case.answer.probability))
    shown = wrong[:_WORST]
    if not shown:
        return
    page.section(
        "The most confident mistakes", "The question, the model's answer, and what people answered."
    )
    cards = []
    for case in shown:
        said = f"probability {case.answer.probability:.2f} · accuracy {100 * case.accuracy:.0f} %"
        people = ", ".join(
            text if count == 1 else f"{text} ({count})" for text, count in case.human.most_common(5)
        )
        cards.append(
            [
                CardText(case.text, ""),
                CardText(case.answer.text, said, "wrong"),
                CardText(people, "people", "right"),
            ]
        )
    images = stream_images(table, [case.row for case in shown])
    page.cards(zip(images, cards, strict=True))
