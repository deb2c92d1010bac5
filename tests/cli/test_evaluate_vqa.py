"""`openblip evaluate vqa` on a small table of questions."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from openblip.cli import main
from openblip.table.table import PairRow, PairTable

Checkpoint = Callable[[str], str]


@pytest.fixture
def table(photo: str) -> str:
    """A training question and two test questions about a photo."""
    image = Path(photo).read_bytes()

    def row(split: str, *answers: dict[str, str]) -> PairRow:
        questions = [
            {"question": "what is it?", "question_id": number, **answer}
            for number, answer in enumerate(answers)
        ]
        return PairRow(split, image, split=split, meta={"questions": questions})

    yes, no = {"answer": "yes"}, {"answer": "no"}
    rows = [row("train", yes), row("test", yes, no), row("val", {})]
    PairTable.create("pairs.lance", rows)
    return "pairs.lance"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["evaluate", "vqa", *words]) == 0
    return capsys.readouterr().out


def test_the_answers_of_the_training_questions_are_ranked(
    checkpoint: Checkpoint, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint("vqa")
    words = [model, table, "--candidates", "train", "--results", "answers.json"]
    found = json.loads(run(capsys, *words, "--json"))
    # There is but one.
    assert found["metrics"] == {"accuracy": 50.0}
    assert found["intervals"] == {"accuracy": [50.0, 50.0]}
    assert (found["num_images"], found["num_questions"]) == (1, 2)
    expected = [{"question_id": number, "answer": "yes"} for number in range(2)]
    assert json.loads(Path("answers.json").read_text()) == expected
    shown = run(capsys, *words)
    assert "2 questions about 1 images, answers ranked among 1" in shown
    assert "50.00" in shown


def test_answers_are_those_of_a_file_or_written(
    checkpoint: Checkpoint, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.txt").write_text("no\n")
    words = [checkpoint("vqa"), table, "--results", "answers.json"]
    assert "ranked among 1," in run(capsys, *words, "--candidates", "list.txt")
    assert {entry["answer"] for entry in json.loads(Path("answers.json").read_text())} == {"no"}
    assert "answers written" in run(capsys, *words)
    unknown = run(capsys, *words, "--split", "val")
    assert "no answers are known in this split; see answers.json" in unknown
    assert len(json.loads(Path("answers.json").read_text())) == 1


def test_mistakes_are_named(
    checkpoint: Checkpoint, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "vqa", checkpoint("vqa"), table, "--candidates", "gone.txt"]) == 1
    assert "gone.txt: cannot be read" in capsys.readouterr().err
    # Before the model is loaded.
    assert main(["evaluate", "vqa", "gone", table, "--split", "val", "--report", "p.html"]) == 1
    assert "--report: pairs.lance: no row of the split 'val'" in capsys.readouterr().err
    assert main(["evaluate", "vqa", checkpoint("captioner"), table]) == 1
    assert "question-answering" in capsys.readouterr().err


@pytest.mark.filterwarnings("always::openblip.runtime.errors.OpenBlipWarning")
def test_one_answer_for_nearly_all_comes_first(
    checkpoint: Checkpoint, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = [{"question": "is it night", "answer": "no"}] * 12
    row = PairRow("row", Path(photo).read_bytes(), split="test", meta={"questions": questions})
    PairTable.create("pairs.lance", [row])
    Path("list.txt").write_text("\ufeffyes\nyes\n\n", encoding="utf-8")
    words = [checkpoint("vqa"), "pairs.lance", "--candidates", "list.txt"]
    shown = run(capsys, *words).splitlines()
    assert shown[0] == "nearly all results are the same: 12 of 12 are 'yes'"
    found = json.loads(run(capsys, *words, "--json"))
    assert found["dominant"] == {"text": "yes", "count": 12, "of": 12}
