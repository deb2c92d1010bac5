"""`openblip index` and `openblip search` on a folder of photos."""

import csv
import io
import json
import os
import webbrowser
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import openblip
from openblip.cli import main
from openblip.index import folder

Checkpoint = Callable[[str], str]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 28, 3), dtype=np.uint8)
        Path("photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(Path("photos", f"{number}.png"))
    return "photos"


@pytest.fixture
def indexed(photos: str, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["index", "build", photos, "--model", checkpoint("pretrain")]) == 0
    capsys.readouterr()
    return photos


def test_an_index_is_built_shown_and_brought_up_to_date(
    photos: str, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", "build", photos, "--model", checkpoint("pretrain")]) == 0
    out = capsys.readouterr().out
    assert "6 images embedded" in out
    assert "(6 new, 6 embedded)" in out
    assert main(["index", "show", photos, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["rows"], shown["missing"], shown["vectors"]) == (6, 0, None)
    assert shown["model"] == checkpoint("pretrain")
    assert main(["data", "show", shown["table"], "--rows", "1"]) == 0
    assert '"image_embedding": "16 numbers"' in capsys.readouterr().out
    Path(photos, "0.png").unlink()
    Path(photos, "bad.png").write_bytes(b"no image")
    Path(photos, "notes.txt").write_text("no image")
    assert main(["index", "update", photos]) == 0
    told = capsys.readouterr()
    assert "(5 unchanged, 1 deleted, 1 unreadable)" in told.out
    assert "\n        bad.png: " in told.out
    assert "left out: 1 not an image (such as " in told.err
    for photo in Path(photos).glob("*.png"):
        photo.write_bytes(b"no image")
    assert main(["index", "update", photos]) == 1
    assert main(["index", "show", photos]) == 0


def test_search_prints_a_table_json_or_csv(
    indexed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", indexed, "a red square", "--not", "people at night", "--k", "3"]
    assert main([*words, "--rerank", "6", "--threshold", "0"]) == 0
    told = capsys.readouterr()
    assert "match probability (ITM)" in told.out
    assert "the first 6 by contrast were matched" in told.err
    assert main([*words, "--rerank", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    hits = openblip.search(indexed, "a red square", not_="people at night", k=3, rerank=6)
    assert [hit["id"] for hit in found["hits"]] == [hit.id for hit in hits]
    assert (found["matched"], found["cached"]) == (6, 6)
    assert main([*words, "--rerank", "auto", "--weights", "2", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 3
    assert rows[0].keys() == {"place", "row", "id", "itm", "itc", "image_uri"}


def test_no_name_of_a_file_is_a_formula_of_a_spreadsheet(
    indexed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(indexed, "0.png").rename(Path(indexed, "=1+1.png"))
    assert main(["index", "update", indexed]) == 0
    capsys.readouterr()
    assert main(["search", indexed, "a red square", "--k", "99", "--rerank", "0", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert "'=1+1.png" in [row["id"] for row in rows]
    # What was not matched has no probability.
    assert {row["itm"] for row in rows} == {""}
    assert all(-1 <= float(row["itc"]) <= 1 for row in rows)


def test_what_has_changed_since_the_index_is_said(
    indexed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> str:
        assert main(["search", indexed, "a red square", "--rerank", "0"]) == 0
        return capsys.readouterr().err

    assert "since the index" not in told()
    Path(indexed, "notes.txt").write_text("no image")
    assert "since the index" not in told()
    Path(indexed, "new.png").write_bytes(Path(indexed, "1.png").read_bytes())
    update = "since the index: openblip index update photos\n"
    assert f"1 file is new {update}" in told()
    os.utime(Path(indexed, "0.png"), ns=(1, 1))
    Path(indexed, "5.png").unlink()
    assert f"3 files are new or changed or gone {update}" in told()
    assert main(["search", indexed, "a red square", "--rerank", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outdated"] == 3
    # In a large folder only the files that are shown are looked at.
    monkeypatch.setattr(folder, "MOST_COMPARED", 5)
    assert "2 files are changed or gone since the index (of those that are shown)" in told()
    assert main(["index", "update", indexed]) == 0
    assert "since the index" not in told()


def test_nothing_found_is_said_and_the_nearest_are_shown(
    indexed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", indexed, "a red square", "--threshold", "1", "-k", "2"]) == 0
    assert capsys.readouterr().out.startswith(
        "nothing found above 1 among the 6 that were matched; nearest:\n"
    )
    assert main(["search", indexed, "a red square", "--where", "width > 1000"]) == 0
    assert "no row fulfils" in capsys.readouterr().out


def test_an_image_finds_its_like_on_a_page_that_escapes_names(
    indexed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(indexed, "0.png").rename(Path(indexed, "<script>alert(1)<!-- \x1b[31m.png"))
    assert main(["index", "update", indexed]) == 0
    capsys.readouterr()
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    words = ["search", indexed, "--image", f"{indexed}/<script>alert(1)<!-- \x1b[31m.png"]
    assert main(words) == 2  # a word with the code of a terminal
    words = ["search", indexed, "--like", "0", "--k", "6", "--page", "found.html", "--open"]
    assert main(words) == 0
    assert "\x1b" not in capsys.readouterr().out
    page = Path("found.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("data:image/") == 5
    assert shown == [Path("found.html").absolute().as_uri()]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["search", "nowhere", "a dog"], 1, "nowhere does not exist"),
        (["search", "photos"], 1, "nothing to look for"),
        (["search", "photos", "a dog", "--json", "--csv"], 2, "give one of them"),
        (["search", "photos", "a dog", "--cache", "much"], 1, "'much' is none"),
        (["search", "photos", "a dog", "--where", "x = 1"], 1, "'x = 1' cannot be used"),
        (["search", "photos", "a dog", "--like", "lost"], 1, "no row 'lost'"),
        (["search", "photos", "--image", "lost.jpg"], 1, "lost.jpg"),
        (["search", "photos", "a", "b", "--weights", "1"], 1, "1 weights for 2 texts"),
        (["index", "show", "."], 1, "has no index"),
        (["search", ".", "a dog"], 1, "(`openblip index build .`)"),
        (["search", ".", "a dog", "--model", "my model"], 1, "build . --model 'my model'`)"),
        (["index", "build", "photos/0.png"], 1, "is a file"),
    ],
)
def test_bad_words_are_answered_in_a_line(
    words: list[str], code: int, said: str, indexed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if "loading" not in line]
    assert said in lines[-1]
    assert len(lines) == 1


def test_a_model_that_lies_elsewhere_now_is_asked_for(
    photos: str, checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("model").symlink_to(checkpoint("pretrain"))
    assert main(["index", "build", photos, "--model", "model"]) == 0
    Path("model").rename("models")
    capsys.readouterr()
    assert main(["search", photos, "a red square"]) == 1
    told = capsys.readouterr().err
    assert "photos: its index was made with " in told
    assert "which cannot be read" in told
    assert "name it with --model" in told
    assert main(["search", photos, "a red square", "--model", "models"]) == 0
