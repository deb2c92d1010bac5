"""`openblip match`, `ask` and `explain` on a photo."""

import json
import re
import shutil
import tarfile
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
    assert main([*words[:-1], "0"]) == 2
    assert "--top must be at least 1, not 0" in capsys.readouterr().err


@pytest.mark.filterwarnings("always::openblip.runtime.errors.OpenBlipWarning")
def test_words_that_the_model_does_not_know_are_told_in_one_line(
    photo: str, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["собака на столе", "кошка на улице"]
    assert main(["match", photo, *texts, "--model", checkpoint("filter"), "--json"]) == 0
    output = capsys.readouterr()
    first, second = json.loads(output.out)
    assert first["itm"] == second["itm"]
    (told,) = output.err.splitlines()[1:]  # the first line says that the command begins
    assert told.count("[UNK]") == 1
    assert "2 of 2 texts have no word that it knows" in output.err
    Path("many").mkdir()
    shutil.copy(photo, "many")
    assert main(["match", "many", *texts, "--model", checkpoint("filter")]) == 0
    assert "2 of 2 texts have no word that it knows" in capsys.readouterr().err
    assert main(["ask", "many", *texts, "--model", checkpoint("vqa")]) == 0
    assert capsys.readouterr().err.count("have no word that it knows") == 1


@pytest.mark.filterwarnings("always::openblip.runtime.errors.OpenBlipWarning")
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


def test_one_answer_for_nearly_all_images_is_told_at_the_end(
    photo: str, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("many").mkdir()
    for number in range(10):
        shutil.copy(photo, Path("many", f"{number}.png"))
    words = [
        "ask",
        "many",
        "is it night",
        "--model",
        checkpoint("vqa"),
        "--candidates",
        "yes",
        "no",
    ]
    for json_too in ([], ["--json"]):
        assert main([*words, *json_too]) == 0
        output = capsys.readouterr()
        (told,) = [line for line in output.err.splitlines() if "nearly all" in line]
        assert told.startswith("openblip ask: nearly all results are the same: 10 of 10 are '")
        assert "nearly all" not in output.out
    # Of several questions each has its own line, which names it.
    words.insert(3, "is it a dog")
    assert main(words) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "nearly all" in line]
    assert [line.partition(" nearly")[0] for line in told] == [
        "openblip ask: is it night",
        "openblip ask: is it a dog",
    ]
    Path("many", "9.png").unlink()
    assert main(words) == 0
    assert "nearly all" not in capsys.readouterr().err


def test_candidates_may_stand_in_a_file(
    photo: str, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("answers.txt").write_text("yes\n\n no \n")
    words = ["ask", photo, "is it night?", "--model", checkpoint("vqa"), "--json"]
    assert main([*words, "--candidates-file", "answers.txt"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["answer"] in ("yes", "no")
    assert main([*words, "--candidates", "answers.txt"]) == 1
    assert "answers.txt is a file: --candidates-file reads it" in capsys.readouterr().err
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
        (["match", "photo.png", "a dog", ""], "a text is empty"),
        (["ask", "photo.png", " "], "a question is empty"),
        (["explain", "photo.png", "a dog", "-o", "./photo.png"], "is the image that is explained"),
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


@pytest.fixture
def photos(photo: str) -> Path:
    """A folder of two photos, one of them in another folder, and of a broken one."""
    folder = Path("photos")
    (folder / "more").mkdir(parents=True)
    Image.open(photo).save(folder / "a.png")
    Image.new("RGB", (50, 40), "red").save(folder / "more" / "b.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def test_every_photo_of_a_folder_is_matched_with_every_text(
    photos: Path, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, names = ["a red square", "people at night"], ["photos/a.png", "photos/more/b.jpg"]
    words = ["match", "photos/", *texts, "--model", checkpoint("filter")]
    assert main([*words, "--json"]) == 1
    told = capsys.readouterr()
    assert "openblip match: photos/broken.jpg: " in told.err
    assert "2 images, 1 failed" in told.err
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [line["image"] for line in lines] == names
    blip = openblip.load(checkpoint("filter"), "cpu")
    for line in lines:
        expected = blip.match(line["image"], texts)
        assert [m["text"] for m in line["matches"]] == texts
        for kind in ("itm", "itc"):
            found = [m[kind] for m in line["matches"]]
            assert found == pytest.approx([getattr(m, kind) for m in expected], abs=1e-5)

    (photos / "broken.jpg").unlink()
    assert main(words) == 0
    shown = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == ["image", *texts]
    assert [row[0] for row in shown[1:]] == names
    assert all(0 <= float(value) <= 1 for row in shown[1:] for value in row[1:])


def test_every_photo_is_asked_every_question_wherever_it_lies(
    photos: Path, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.jpg").unlink()
    with tarfile.open("photos.tar", "w") as tar:
        tar.add(photos, ".")
    assert main(["data", "import", "photos", "photos.lance", "--without-captions"]) == 0
    questions = ["is it night?", "is there a dog?"]
    model = ["--model", checkpoint("vqa"), "--candidates", "yes", "no"]
    blip = openblip.load(checkpoint("vqa"), "cpu")
    files = [photos / "a.png", photos / "more" / "b.jpg"]
    expected = [[a.text for a in blip.ask(file, questions, ["yes", "no"])] for file in files]
    capsys.readouterr()
    for place, number in (
        ("photos", 2),
        ("photos/*.png", 1),
        ("photos.tar", 2),
        ("photos.lance", 2),
    ):
        assert main(["ask", place, *questions, *model, "--json"]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        answers = [[a["answer"] for a in line["answers"]] for line in found]
        assert answers == (expected if place != "photos/*.png" else expected[:1])
        assert len(found) == number
    capsys.readouterr()
    assert main(["ask", "photos", *questions, *model, "--top", "2", "--json"]) == 0
    found = [json.loads(line)["answers"] for line in capsys.readouterr().out.splitlines()]
    for file, answers in zip(files, found, strict=True):
        ranked = blip.ask_top([file] * 2, questions, 2, ["yes", "no"])
        assert [[a["answer"] for a in answer["ranking"]] for answer in answers] == [
            [a.text for a in of_question] for of_question in ranked
        ]
    assert main(["ask", "photos", *questions, *model, "--top", "2"]) == 0
    _, first, _ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".*a\.png(\t(yes|no) \d\.\d+, (yes|no) \d\.\d+){2}", first)
    assert main(["ask", "photos.lance", *questions, *model, "--split", "train"]) == 0
    assert main(["ask", "photos/*.gif", *questions, *model]) == 1
