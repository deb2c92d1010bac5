"""How well scores find noise of known kinds, against counting by hand."""

import io
import math
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from openblip.evaluation.filtering import evaluate_filter
from openblip.runtime.errors import DataError, RecipeError
from openblip.table.table import PairRow, PairTable

# Kind of noise and score of each row; None is a row without a result.
ROWS: list[tuple[str, float | None]] = [
    ("true", 0.9),
    ("true", 0.2),
    ("other_image", 0.1),
    ("other_image", 0.6),
    ("truncated", 0.3),
    ("boilerplate", 0.05),
    ("true", 0.5),
    ("true", None),
]


@pytest.fixture
def judged(tmp_path: Path) -> PairTable:
    """Web rows with scores, and a human one without."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    web = [
        PairRow(f"r{n}", file.getvalue(), captions=["a"], origin="web", meta={"noise": kind})
        for n, (kind, _) in enumerate(ROWS)
    ]
    human = PairRow("h", file.getvalue(), captions=["a"], origin="human")
    table = PairTable.create(tmp_path / "t.lance", [*web, human])
    scores = [None if score is None else [score] for _, score in ROWS]
    values = pa.array([*scores, None], pa.list_(pa.float32()))
    right = [None if s is None else [1.0 if kind == "true" else 0.0] for kind, s in ROWS]
    better = pa.array([*right, None], values.type)
    cosines = pa.array([None if s is None else [0.0] for s in scores] + [None], values.type)
    columns = {"captions_itm": values, "captions_itc": cosines, "captions_score_right": better}
    # Of the two first true texts, and of noise: it does not apply to the others.
    some = [[0.9], [0.9], [0.1], [0.1], *([[float("nan")]] * 3), None, None]
    columns["captions_score_agreement"] = pa.array(some, values.type)
    table.add_columns(pa.table(columns))
    return table


def test_shares_are_those_of_counting(judged: PairTable) -> None:
    result = evaluate_filter(judged, threshold=0.5)
    assert result.num_texts == 7
    # At the threshold and below is rejected: 0.2, 0.5 of the true ones; 0.1, 0.3, 0.05 of noise.
    assert result.metrics == pytest.approx(
        {
            "precision": 100 * 3 / 5,
            "recall": 100 * 3 / 4,
            "true kept": 100 / 3,
            "recall of other_image": 50.0,
            "recall of truncated": 100.0,
            "recall of boilerplate": 100.0,
            # Each beside the two true texts that are rejected, too.
            "precision of other_image": 100 / 3,
            "precision of truncated": 100 / 3,
            "precision of boilerplate": 100 / 3,
        }
    )
    # Image by image, so that intervals can be drawn; each has a place whether it counts or not.
    assert {len(units.scores) for units in result.units.values()} == {7}


def test_any_score_of_the_texts_can_be_asked(judged: PairTable) -> None:
    result = evaluate_filter(judged, score="right", threshold=0.5)
    assert result.metrics["precision"] == result.metrics["recall"] == 100.0
    with pytest.raises(DataError, match="no column captions_score_other: let a filter judge"):
        evaluate_filter(judged, score="other")


def test_texts_to_which_a_score_does_not_apply_are_left_out(judged: PairTable) -> None:
    result = evaluate_filter(judged, score="agreement")
    assert result.num_texts == 4
    found = {"precision": 100, "recall": 100, "true kept": 100}
    found |= {"recall of other_image": 100, "precision of other_image": 100}
    assert result.metrics == pytest.approx(found)
    # Where all are kept nothing was rejected, rightly or not.
    assert math.isnan(
        evaluate_filter(judged, score="agreement", threshold=-1.0).metrics["precision"]
    )


def test_by_itself_the_score_is_the_one_that_decides_in_the_table(judged: PairTable) -> None:
    assert evaluate_filter(judged, score="auto").metrics["precision"] == 100.0


def test_what_cannot_be_asked_is_told(judged: PairTable) -> None:
    with pytest.raises(DataError, match="no web text of the split 'test' has a score"):
        evaluate_filter(judged, split="test")
    with pytest.raises(RecipeError, match="threshold"):
        evaluate_filter(judged, threshold=float("nan"))
    with pytest.raises(RecipeError, match="threshold is 5; give a number from 0 to 1"):
        evaluate_filter(judged, threshold=5)
