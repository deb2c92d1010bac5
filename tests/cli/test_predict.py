"""`openblip match`, `ask` and `explain` on a photo."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import openblip
from openblip.cli import main

Checkpoint = Callable[[str], str]


def test_match_prints_a_row_for_each_text(
    photo: str, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["a red square", "people at night"]
    assert main(["match", photo, *texts, "--model", checkpoint("filter"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    expected = openblip.load(checkpoint("filter"), "cpu").match(photo, texts)
    assert [row["text"] for row in rows] == texts
    assert [row["itm"] for row in rows] == pytest.approx([m.itm for m in expected], abs=1e-6)
    assert main(["match", photo, *texts, "--model", checkpoint("filter")]) == 0
    assert "ITM probability" in capsys.readouterr().out


def test_the_first_token_of_a_matched_text_is_a_flag(
    photo: str, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for token in ("[ENC]", "[CLS]"):
        words = ["match", photo, "a dog", "--model", checkpoint("filter"), "--json"]
        assert main([*words, "--first-token", token]) == 0
        found.append(json.loads(capsys.readouterr().out)[0]["itm"])
    assert found[0] != found[1]


def test_ask_answers_each_question(
    photo: str, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = ["is it night?", "is there a dog?"]
    words = ["ask", photo, *questions, "--model", checkpoint("vqa"), "--json"]
    assert main([*words, "--candidates", "yes", "no"]) == 0
    rows = json.loads(capsys.readouterr().out)
    expected = openblip.load(checkpoint("vqa"), "cpu").ask(photo, questions, ["yes", "no"])
    assert [row["question"] for row in rows] == questions
    assert [row["answer"] for row in rows] == [answer.text for answer in expected]
    assert {row["answer"] for row in rows} <= {"yes", "no"}
    assert main(["ask", photo, *questions, "--model", checkpoint("vqa")]) == 0
    assert "probability" in capsys.readouterr().out


def test_ask_gives_a_ranking(
    photo: str, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ask", photo, "is it night", "--model", checkpoint("vqa"), "--top", "2"]
    assert main([*words, "--candidates", "yes", "no", "night", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert len(row["ranking"]) == 2
    assert row["ranking"][0] == {"answer": row["answer"], "probability": row["probability"]}
    assert row["ranking"][0]["probability"] >= row["ranking"][1]["probability"]
    assert main(words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main([*words[:-1], "0"]) == 1
    assert "top is 0" in capsys.readouterr().err


@pytest.mark.filterwarnings("always::openblip.errors.OpenBlipWarning")
def test_words_that_the_model_does_not_know_are_told_in_one_line(
    photo: str, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["собака на столе", "кошка на улице"]
    assert main(["match", photo, *texts, "--model", checkpoint("filter"), "--json"]) == 0
    output = capsys.readouterr()
    first, second = json.loads(output.out)
    assert first["itm"] == second["itm"]
    assert output.err.count("[UNK]") == output.err.count("\n") == 1
    assert "2 of 2 texts have no word that it knows" in output.err


@pytest.mark.filterwarnings("always::openblip.errors.OpenBlipWarning")
def test_a_captioner_asked_to_match_says_what_it_is(
    photo: str, checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blip = openblip.load(checkpoint("pretrain"), "cpu")
    blip.kind = "captioner"
    blip.save(tmp_path / "captioner")
    assert main(["match", photo, "a red square", "--model", str(tmp_path / "captioner")]) == 0
    assert "(such as demo/filter)" in capsys.readouterr().err
    assert main(["match", photo, "a red square", "--model", checkpoint("captioner")]) == 1
    assert "(such as demo/filter)" in capsys.readouterr().err


def test_candidates_may_stand_in_a_file(
    photo: str, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("answers.txt").write_text("yes\n\n no \n")
    words = ["ask", photo, "is it night?", "--model", checkpoint("vqa"), "--json"]
    assert main([*words, "--candidates-file", "answers.txt"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["answer"] in ("yes", "no")
    assert main([*words, "--candidates-file", "nowhere.txt"]) == 1
    assert "nowhere.txt: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "words", "told"),
    [
        ("filter", ["a red square"], "a red square"),
        ("captioner", [], "score"),
        ("captioner", ["a red square"], "a red square"),
        ("vqa", ["--question", "is it night?"], "is it night? "),
        ("vqa", ["--question", "is it night?", "--answer", "no"], "is it night? no"),
        ("pretrain", ["a red square", "--layer", "0"], "a red square"),
    ],
)
def test_explain_writes_a_sheet(
    photo: str,
    checkpoint: Checkpoint,
    kind: str,
    words: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["explain", photo, *words, "--model", checkpoint(kind), "-o", "sheet.png"]) == 0
    assert told in capsys.readouterr().out
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 224


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", "photo.png", "a dog", "--question", "why?"], "a text or --question, not both"),
        (["explain", "photo.png", "a dog", "--layer", "9"], "layer"),
        (["explain", "photo.png", "a dog", "-o", "sheet.jpg"], ".png"),
        (["explain", "photo.png", " "], "no word"),
        (["explain", "nowhere.png", "a dog"], "nowhere.png"),
        (["ask", "photo.png", "why?"], "load a question-answering (vqa) checkpoint"),
        (["ask", "photo.png"], "no question was given"),
        (["match", "photo.png"], "no text was given"),
        (["match", "photo.png", "a dog", "--device", "toaster"], "device 'toaster'"),
    ],
)
def test_mistakes_are_named_in_one_line(
    photo: str,
    checkpoint: Checkpoint,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*words, "--model", checkpoint("filter")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
