"""The page of answers whose accuracy is known."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from openblip.batches.questions import Question
from openblip.batches.tokenizer import TextTokenizer
from openblip.evaluation.error_report.vqa import write_vqa_report
from openblip.evaluation.results import unit_scores
from openblip.evaluation.vqa import AnsweredQuestion, VqaResult, evaluate_vqa, question_accuracies
from openblip.inference.answers import Answer
from openblip.inference.blip import Blip
from openblip.model import TextConfig, VisionConfig
from openblip.model.vqa import Vqa, VqaConfig
from openblip.runtime.errors import DataError
from openblip.table.table import PairRow, PairTable


@pytest.fixture
def table(tmp_path: Path, world: PairTable) -> PairTable:
    images = world.take(range(2), ["image"])["image"].to_pylist()
    rows = [PairRow(f"row-{n}", image, split="test") for n, image in enumerate(images)]
    return PairTable.create(tmp_path / "t.lance", rows)


def answered(text: str, human: Sequence[str], answer: str, sure: float = 0.5) -> AnsweredQuestion:
    question = Question(text=text, answers=tuple(human), key=text)
    return AnsweredQuestion(question, 1, Answer(answer, -1.0, sure))


def result_of(*answers: AnsweredQuestion) -> VqaResult:
    units = {"accuracy": unit_scores([50.0, 100.0])}
    given = {each.question.key: each.answer.text for each in answers}
    return VqaResult({}, given, units, list(answers), 2, len(answers), 1.0)


def page_of(result: VqaResult, table: PairTable) -> str:
    path = Path(table.uri).parent / "page.html"
    return write_vqa_report(result, table, path, subject="runs/vqa").read_text(encoding="utf-8")


def test_the_page_shows_types_confusions_and_the_most_confident_mistakes(table: PairTable) -> None:
    html = page_of(
        result_of(
            answered("What colour is it?", ["red"] * 9 + ["pink"], "blue", sure=0.9),
            answered("What colour is this?", ["red"] * 10, "blue", sure=0.2),
            answered("How many are there?", ["2"] * 10, "2"),
            answered("Is it <b>red</b>?", ["yes"] * 7 + ["no"] * 3, "no"),
            answered("Nobody knows?", [], "blue"),
        ),
        table,
    )
    assert "<script" not in html
    assert "<b>red" not in html
    assert "data:image/" in html
    assert "4 are known" in html
    assert "<td>what colour</td><td>2</td><td>0.0 %</td><td>95.2 %</td>" in html
    assert "<td>red → blue</td><td>2</td><td>What colour is it?</td>" in html
    assert "Never given, though most people said it: red (2), yes (1)." in html
    worst = html.split("The most confident mistakes")[1]
    assert worst.index("What colour is it?") < worst.index("What colour is this?")
    assert worst.index("What colour is this?") < worst.index("Is it &lt;b&gt;")
    assert "red (9), pink" in worst
    assert "How many" not in worst


def test_every_question_is_judged_in_its_place(world: PairTable, tmp_path: Path) -> None:
    asked = [
        {"question": "what colour is it?", "answer": "red", "question_id": 7},
        {"question": "is it red?", "question_id": 8},
    ]
    image = world.take([0], ["image"])["image"][0].as_py()
    rows = [
        PairRow("other", image, split="train"),
        PairRow("asked", image, split="test", meta={"questions": asked}),
    ]
    table = PairTable.create(tmp_path / "asked.lance", rows)
    tokenizer = TextTokenizer.train(["what colour is it?", "is it red?", "red", "no"] * 2, 100)
    sizes = {"width": 32, "depth": 2, "heads": 4}
    text = TextConfig(vocab_size=tokenizer.vocab_size, ffn_width=48, max_positions=40, **sizes)
    vision = VisionConfig(image_size=32, patch_size=16, **sizes)
    torch.manual_seed(0)
    blip = Blip(Vqa(VqaConfig(vision=vision, text=text)), tokenizer, "vqa", 32, 35)

    found = evaluate_vqa(blip, table, candidates=["red", "no"])

    colour, is_red = found.asked
    assert (colour.row, colour.question.key, is_red.question.key) == (1, "7", "8")
    assert colour.answer == blip.ask(image, "what colour is it?", ["red", "no"])[0]
    assert question_accuracies([colour]) == [float(found.answers["7"] == "red")]


def test_without_a_mistake_there_are_no_cards(table: PairTable) -> None:
    html = page_of(result_of(answered("How many?", ["2"], "2")), table)
    assert "confident mistakes" not in html


def test_without_known_answers_there_is_nothing_to_show(table: PairTable) -> None:
    with pytest.raises(DataError, match="no answers are known"):
        page_of(result_of(answered("How many?", [], "2")), table)
