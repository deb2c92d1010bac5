"""Importing through its command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from openblip.cli import main
from openblip.table.table import PairTable


@pytest.fixture
def source(tmp_path: Path) -> Callable[[str], Path]:
    """A folder of one image of a colour, called as that of every other such folder."""

    def write(colour: str) -> Path:
        folder = tmp_path / colour
        folder.mkdir()
        Image.new("RGB", (8, 8), colour).save(folder / "a.png")
        (folder / "captions.jsonl").write_text(json.dumps({"image": "a.png", "text": colour}))
        return folder

    return write


def test_a_source_all_of_whose_ids_are_taken_fails_and_the_remedy_is_said(
    source: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = str(source("red")), str(source("blue"))
    table = str(tmp_path / "pairs.lance")
    assert main(["data", "import", first, table]) == 0
    assert "--ids sha256" not in capsys.readouterr().err

    assert main(["data", "import", second, table]) == 1
    told = capsys.readouterr()
    assert "duplicate id: 1" in told.out
    assert "--ids sha256" in told.err

    hashed = str(tmp_path / "hashed.lance")
    for folder in (first, second):
        assert main(["data", "import", folder, hashed, "--ids", "sha256"]) == 0


def test_an_import_of_nothing_but_damage_fails(
    source: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = source("red")
    (folder / "a.png").write_bytes(b"no image")
    assert main(["data", "import", str(folder), str(tmp_path / "pairs.lance"), "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["skipped"] == {"unreadable image": 1}
    assert "sha256" not in told.err


def test_photos_without_captions_are_imported_where_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    Image.new("RGB", (8, 8), "blue").save(folder / "more" / "b.png")
    table = str(tmp_path / "photos.lance")
    assert main(["data", "import", str(folder), table]) == 1
    told = capsys.readouterr()
    assert "missing caption: 2" in told.out
    assert "--without-captions imports them" in told.err

    (folder / "a.txt").write_text("a red square")
    assert main(["data", "import", str(folder), table, "--without-captions", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_rows"] == 2
    rows = PairTable.open(table).take([0, 1], ["id", "captions"]).to_pylist()
    assert rows == [{"id": "a", "captions": ["a red square"]}, {"id": "more/b", "captions": []}]


def test_columns_and_encoding_of_a_list_that_has_no_header(
    source: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, table = source("red"), str(tmp_path / "pairs.lance")
    (folder / "a.csv").write_text("Grüße,a.png\n", encoding="cp1252")
    words = ["data", "import", str(folder / "a.csv"), table]

    assert main(words) == 1
    assert "--columns image caption" in capsys.readouterr().err
    assert main([*words, "--columns", "image", "caption", "id"]) == 1
    assert "line 1 has 2 fields, and --columns names 3" in capsys.readouterr().err
    assert main([*words, "--columns", "caption", "image"]) == 1
    assert "--encoding cp1252" in capsys.readouterr().out
    assert main([*words, "--columns", "caption", "image", "--encoding", "latin9000"]) == 1
    assert "unknown encoding 'latin9000'" in capsys.readouterr().err
    assert not (tmp_path / "pairs.lance").exists()

    assert main([*words, "--columns", "caption", "image", "--encoding", "cp1252"]) == 0
    (row,) = PairTable.open(table).take([0]).to_pylist()
    assert (row["id"], row["captions"]) == ("a.png", ["Grüße"])


def test_several_processes_import_as_one_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        folder = tmp_path / "photos" / str(number)
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(folder / "a.png")
        (folder / "captions.jsonl").write_text(json.dumps({"image": "a.png", "text": "red"}))
    told = []
    for name, flags in (("one", []), ("many", ["--processes", "2"])):
        words = ["data", "import", str(tmp_path / "photos"), str(tmp_path / f"{name}.lance")]
        assert main([*words, "--json", *flags]) == 0
        report = json.loads(capsys.readouterr().out)
        told.append({n: v for n, v in report.items() if n not in ("uri", "seconds", "completed")})
    assert told[0] == told[1]
    assert told[0]["num_rows"] == 3
    tables = [PairTable.open(tmp_path / f"{name}.lance") for name in ("one", "many")]
    assert tables[0].take([0, 1, 2]) == tables[1].take([0, 1, 2])

    words = ["data", "import", str(tmp_path / "photos"), str(tmp_path / "other.lance")]
    assert main([*words, "--workers", "2"]) == 1
    assert "--workers" in capsys.readouterr().err
    assert main([*words, "--processes", "2", "--limit", "1"]) == 1
    assert "leave out --limit" in capsys.readouterr().err
