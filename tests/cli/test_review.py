"""`openblip capfilt review`, and `capfilt select --precision`: from scores to a threshold."""

import csv
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pyarrow as pa
import pytest

from openblip.cli import main
from openblip.table.table import PairRow, PairTable


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """400 web rows; all texts above 0.4 are right, but for every twentieth."""
    dice = np.random.default_rng(0).random(400)
    rows = [
        PairRow(
            id=f"r{n}",
            image_uri=f"/photos/{n}.jpg",
            captions=["right" if dice[n] > 0.4 and n % 20 else "wrong"],
        )
        for n in range(400)
    ]
    table = PairTable.create(tmp_path / "pairs.lance", rows)
    lists = pa.array([[score] for score in dice], pa.list_(pa.float32()))
    none = pa.array([[]] * 400, pa.list_(pa.float32()))
    table.add_columns(
        pa.table(
            {
                "synthetic": pa.array([[]] * 400, pa.list_(pa.string())),
                "captions_itm": lists,
                "captions_itc": lists,
                "synthetic_itm": none,
                "synthetic_itc": none,
            }
        )
    )
    return table.uri


def fill(sheet: Path, count: int) -> None:
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[:count]:
        row["verdict"] = row["text"]
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_a_threshold_that_keeps_nothing_is_told_with_the_range_of_the_scores(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["capfilt", "review", uri, "--score", "itc", "--export-sample", str(tmp_path / "s.csv")]
    assert main([*words, "--threshold", "7"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"at the threshold 7 no text is kept.*from 0\.00\d+ to 0\.99\d*; give", told)
    assert main([*words, "--threshold", "0.5"]) == 0
    assert "no text is kept" not in capsys.readouterr().out


def test_from_a_sheet_of_texts_to_a_certified_threshold(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sample.csv"
    words = ["capfilt", "review", uri, "--precision", "0.8"]

    assert main([*words, "--export-sample", str(sheet)]) == 0
    told = capsys.readouterr()
    assert "400 texts to judge" in told.err
    assert "0 of 400 drawn texts are judged (no verdict yet)" in told.out
    assert "there is no label yet" in told.out

    fill(sheet, 20)
    assert main([*words, "--verdicts", str(sheet)]) == 0
    told = capsys.readouterr()
    assert "20 verdicts recorded, 0 were there, 380 texts have none" in told.err
    assert "not certifiable with these 20 labels; about " in told.out
    assert main(["capfilt", "select", uri, "--precision", "0.8"]) == 1
    assert "not certifiable with these 20 labels" in capsys.readouterr().out

    fill(sheet, 250)
    assert main([*words, "--verdicts", str(sheet)]) == 0
    told = capsys.readouterr()
    assert "230 verdicts recorded, 20 were there, 150 texts have none" in told.err
    assert "precision (95 %)" in told.out
    assert "at least 80 % of what is kept is right, with 95 % confidence" in told.out

    assert main(["capfilt", "select", uri, "--precision", "0.8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    threshold = found["certificate"]["threshold"]
    assert 0.3 < threshold < 0.7
    assert found["kept"][0]["threshold"] == threshold
    assert found["kept"][0]["kept"] == found["certificate"]["kept"]


def test_json_has_progress_estimates_and_certificate(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sample.csv"
    words = ["capfilt", "review", uri, "--size", "50", "--reviewer", "ann", "--json"]
    assert main([*words, "--export-sample", str(sheet)]) == 0
    capsys.readouterr()
    fill(sheet, 50)
    assert main([*words, "--verdicts", str(sheet)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["progress"]["judged_by_me"] == found["estimates"]["labels"] == 50
    assert found["sheet"] == {"recorded": 50, "unchanged": 0, "blank": 0, "cleared": 0}
    assert found["certificate"]["labels"] == 50
    point = found["estimates"]["current"]
    assert point["precision"]["low"] < point["precision"]["value"] < point["precision"]["high"]


def test_select_without_a_verdict_names_the_command(
    uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["capfilt", "select", uri, "--precision", "0.9"]) == 1
    told = capsys.readouterr().err
    assert (
        f"no verdict on its texts as they are scored now: `openblip capfilt review {uri}`" in told
    )
    assert main(["capfilt", "select", uri]) == 0


def test_a_sheet_has_as_many_texts_as_are_asked_for(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["capfilt", "review", uri, "--export-sample", str(tmp_path / "sample.csv"), "--size"]
    assert main([*words, "50"]) == 0
    assert "50 texts to judge\n" in capsys.readouterr().err
    assert main([*words, "20"]) == 0
    told = "20 texts to judge, the first of 50 that are drawn (--size)\n"
    assert told in capsys.readouterr().err


def test_no_page_is_opened_for_a_table_without_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = PairTable.create(tmp_path / "pairs.lance", [PairRow("a", None, "/photos/a.jpg")]).uri
    assert main(["capfilt", "review", uri, "--no-open"]) == 1
    remedy = f"`openblip capfilt run {uri} --captioner CAPTIONER --filter FILTER`"
    assert f"score it first with {remedy}" in capsys.readouterr().err


def test_what_makes_no_sense_is_refused(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["capfilt", "review", uri, "--threshold", "1.5"]) == 2
    assert "--threshold must be from 0 to 1" in capsys.readouterr().err
    assert main(["capfilt", "review", uri, "--by", "search"]) == 2
    assert "rows and by=search go together" in capsys.readouterr().err
    assert main(["capfilt", "review", uri, "--verdicts", str(tmp_path / "none.csv")]) == 1
    assert "none.csv" in capsys.readouterr().err
    sheet = str(tmp_path / "sample.csv")
    assert main(["capfilt", "review", uri, "--by", "rejected", "--export-sample", sheet]) == 0
    assert "no certificate for what is kept" in capsys.readouterr().out


def test_without_a_sheet_and_without_json_the_page_is_opened(uri: str) -> None:
    words = ["capfilt", "review", uri, "--port", "0", "--no-open", "--size", "50"]
    words += ["--precision", "0.8", "--reviewer", "ann"]
    command = [sys.executable, "-m", "openblip", *words]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found is not None
            address = urlsplit(found[0])
            with urllib.request.urlopen(f"http://{address.netloc}/api/review/choices") as answer:
                assert json.load(answer)["problem"] is None
        finally:
            process.kill()
    room, _, query = address.fragment.partition("?")
    asked = dict(parse_qsl(query))
    assert (room, asked["name"], asked["precision"]) == ("review", "ann", "0.8")
    assert json.loads(asked["settings"]) == {"size": 50, "score": "itm"}
