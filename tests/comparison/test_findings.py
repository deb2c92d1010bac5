"""Figures from the results of stages, and why there is none."""

import json
from pathlib import Path

import pytest

from openblip.comparison.findings import Findings
from openblip.comparison.run import read_comparison
from openblip.comparison.stages import RESULT_FILE

from .conftest import TINY, written

UNITS = {"scores": [100.0, 0.0], "weights": [1.0, 1.0]}


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    """Of a comparison on one world, nothing of which is finished."""
    text = TINY.replace("{web_rows", "{seed: 5, web_rows")
    return read_comparison(written(tmp_path, text), tmp_path)


def finish(findings: Findings, name: str, result: object, folder: Path) -> None:
    """Pretend that stages are finished."""
    for stage in findings.evaluations:
        if stage.name.startswith(name):
            place = stage.folder(folder / "stages")
            place.mkdir(parents=True)
            (place / RESULT_FILE).write_text(json.dumps(result))


def test_a_figure_that_is_not_there_has_a_reason(findings: Findings, tmp_path: Path) -> None:
    assert findings.why_missing("noise", "caption.CIDEr") is None
    finish(findings, "noise on caption", {"units": {"ROUGE-L": UNITS}}, tmp_path)
    finish(findings, "clip on caption", {"units": {}, "missing": "it cannot write"}, tmp_path)
    finish(findings, "noise on retrieval", {"units": {}}, tmp_path)
    finish(findings, "both on caption", {"units": {"CIDEr": UNITS}}, tmp_path)
    assert findings.why_missing("noise", "caption.CIDEr") == "the data gives ROUGE-L alone"
    assert findings.why_missing("noise", "retrieval.R@1") == "the data has nothing to compare with"
    assert findings.why_missing("clip", "caption.CIDEr") == "it cannot write"
    assert findings.why_missing("both", "caption.CIDEr") is None
    assert findings.scores("both", "caption.CIDEr") is not None


def test_seeds_share_the_images_of_a_table_whatever_captions_were_added(
    tmp_path: Path,
) -> None:
    on_cleaned = TINY.replace("retrieval: {task", "retrieval: {data: cleaned, task")
    for number, (world, is_shared) in enumerate((("{seed: 5, ", True), ("{", False))):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = written(folder, on_cleaned.replace("{web_rows", f"{world}web_rows"))
        findings = read_comparison(path, folder)
        finish(findings, "both on retrieval", {"units": {"TR@1": UNITS}}, folder)
        scores = findings.scores("both", "retrieval.TR@1")
        assert scores is not None
        assert scores.is_shared == is_shared
        assert scores.num_images == (2 if is_shared else 4)
