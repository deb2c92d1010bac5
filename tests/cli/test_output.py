"""What commands print for programs; what they are asked to write is looked at before the work."""

import json
import math
from pathlib import Path

import pytest

from openblip.cli import main
from openblip.cli.output import print_json, print_table, printable
from openblip.table.table import PairRow, PairTable

# No model and no table of these names: whoever looks at them first says so.
COMMANDS = {
    "evaluate retrieval": ["evaluate", "retrieval", "m", "t", "--report"],
    "evaluate caption": ["evaluate", "caption", "m", "t", "--results"],
    "evaluate vqa": ["evaluate", "vqa", "m", "t", "--results"],
    "evaluate nlvr": ["evaluate", "nlvr", "m", "t", "--results"],
    "evaluate videoqa": ["evaluate", "videoqa", "m", "q", "v", "--results"],
    "evaluate video": ["evaluate", "video", "m", "q", "v", "--results"],
    "evaluate classify": ["evaluate", "classify", "m", "t", "--results"],
    "data duplicates": ["data", "duplicates", "t", "--page"],
    "data duplicates ": ["data", "duplicates", "t", "-o"],
    "runs": ["runs", "runs", "--page"],
    "capfilt report": ["capfilt", "report", "t", "-o"],
    "capfilt review": ["capfilt", "review", "t", "--export-sample"],
    "search": ["search", "t", "a dog", "--page"],
    "explain": ["explain", "photo.jpg", "a dog", "-o"],
    "convert": ["convert", "m", "--to", "original"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("place", ["folder", "file/inside.html"])
def test_a_file_that_cannot_be_written_is_told_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    place: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("precious")
    words = COMMANDS[name]
    flag = words[-1] if words[-1].startswith("-") else "DESTINATION"
    assert main([*words, place]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith(f"openblip {name.strip()}: {flag} {place}: "), told
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("explain", "convert")])
def test_a_text_does_not_replace_a_photo(
    photo: str, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    before = Path(photo).read_bytes()
    assert main([*COMMANDS[name], photo]) == 1
    assert f"{photo}: is there, and no text" in capsys.readouterr().err
    assert Path(photo).read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "m"],
        ["pretrain", "tiny", "t"],
        ["demo", "-o"],
        ["compare", "c.yaml", "-o"],
    ],
)
@pytest.mark.parametrize("place", ["file", "/dev/null"])
def test_a_folder_that_cannot_be_made_is_told_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    place: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("precious")
    assert main([*words, place]) == 1
    assert f"{place}: it is a file; give the name of a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "precious"


def test_two_things_are_not_written_into_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "a.json")
    assert main(["evaluate", "vqa", "m", "t", "--results", place, "--report", place]) == 1
    assert "--results and --report are the same file" in capsys.readouterr().err


def test_json_has_no_number_that_is_none(capsys):
    print_json({"a": [1.5, math.nan, (math.inf, {"b": -math.inf})], "c": "NaN", "d": True})
    text = capsys.readouterr().out
    assert json.loads(text) == {"a": [1.5, None, [None, {"b": None}]], "c": "NaN", "d": True}


def test_columns_of_wide_letters_stand_below_each_other(capsys):
    print_table(["class", "top-1"], [["狗", "50.0"], ["กำลัง", "7.5"], ["plane", "100.0"]])
    lines = capsys.readouterr().out.splitlines()
    # Of the Thai word a mark takes no place, of the Chinese one each letter two.
    assert lines == ["class  top-1", "狗      50.0", "กำลัง     7.5", "plane  100.0"]


def test_names_of_others_tell_a_terminal_nothing(
    photo: str, checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    red = "\x1b[31mred"
    Path("many").mkdir()
    Path("many", f"{red}.png").write_bytes(Path(photo).read_bytes())
    Path("many", f"{red}.docx").touch()
    PairTable.create("t.lance", [PairRow(id="a", image=b"x", captions=["a"])])
    Path("texts.jsonl").write_text(
        "\n".join(json.dumps(line) for line in ({"id": "a", "text": "a"}, {red: "b", "text": "b"}))
    )
    for words in (
        ["caption", "many", "--model", checkpoint("captioner"), "-o", "c.jsonl"],
        ["match", "many", "a", "--model", checkpoint("filter")],
        ["capfilt", "add-texts", "t.lance", "texts.jsonl", "--name", "other"],
    ):
        assert main(words) == 0
        output = capsys.readouterr()
        assert "[31mred" in output.out + output.err
        assert "\x1b" not in output.out + output.err


def test_marks_that_scripts_need_reach_the_terminal_and_others_do_not() -> None:
    # Persian and Hindi join letters by marks of no width, Japanese has a wide space.
    for text in ("\u0645\u06cc\u200c\u062e", "\u0915\u094d\u200d\u0937", "a\u3000b", "a\xa0b"):
        assert printable(text) == text
    for mark in ("\x1b", "\n", "\x7f", "\x9b", "\u202e", "\u2066", "\udc80"):
        assert printable(f"a{mark}b") == "a?b"
