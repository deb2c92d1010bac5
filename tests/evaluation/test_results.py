"""Files of what a model said of each example."""

import csv
import json
from pathlib import Path

from openblip.evaluation.results import save_records

RECORDS = [
    {"video": "-clip", "answers": ["=1+1", "b"], "logprob": -1.5, "count": "-3"},
    {"video": "b\udce9", "answers": [], "logprob": -2.5, "count": "4"},
]


def test_a_spreadsheet_runs_no_cell(tmp_path: Path) -> None:
    save_records(tmp_path / "a.csv", RECORDS[:1])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows == [
        ["video", "answers", "logprob", "count"],
        ["'-clip", "'=1+1; b", "-1.5", "-3"],
    ]


def test_a_name_that_is_no_unicode_stops_no_file(tmp_path: Path) -> None:
    save_records(tmp_path / "a.json", RECORDS)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == RECORDS
    save_records(tmp_path / "a.csv", RECORDS)
    assert r"b\xe9" in (tmp_path / "a.csv").read_text(encoding="utf-8")
