"""Lists of possible answers: from a file, or from the training questions of a table."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from openblip.batches.questions import frequent_answers, read_answers
from openblip.runtime.errors import DataError
from openblip.table.table import PairRow, PairTable


def table(folder: Path, *questions: object, split: str = "train") -> PairTable:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    rows = [PairRow("a", file.getvalue(), split=split, meta={"questions": list(questions)})]
    return PairTable.create(folder / "pairs.lance", rows)


def asked(*answers: str) -> dict[str, object]:
    return {"question": "q", "answers": list(answers)}


def test_the_answer_of_most_annotators_counts_once_for_a_question(tmp_path: Path) -> None:
    questions = (asked("yes", "no", "yes"), asked("yes"), asked("dog", "cat"), asked("ant"))
    found = table(tmp_path, *questions, {"question": "q", "answers": []})
    assert frequent_answers(found) == ["yes", "ant", "dog"]
    assert frequent_answers(found, min_count=2) == ["yes"]


def test_no_answer_is_frequent_enough(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="given to 3 questions"):
        frequent_answers(table(tmp_path, asked("yes")), min_count=3)
    with pytest.raises(DataError, match="'val' has a question with an answer"):
        frequent_answers(table(tmp_path / "other", asked("yes")), "val")


def test_a_file_has_one_a_line_or_a_list(tmp_path: Path) -> None:
    lines, listed = tmp_path / "answers.txt", tmp_path / "answer_list.json"
    lines.write_text("yes\n\n garbage bin \n")
    listed.write_text(json.dumps(["yes", "garbage bin"]))
    assert read_answers(lines) == read_answers(listed) == ["yes", "garbage bin"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " \n", "no candidate"),
        ("a.json", '{"yes": 1}', "no list of texts"),
        ("a.json", "[", "cannot be read"),
    ],
)
def test_a_file_without_answers_is_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_answers(tmp_path / name)
    with pytest.raises(DataError, match=r"none\.txt"):
        read_answers(tmp_path / "none.txt")
