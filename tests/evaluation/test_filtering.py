"""How well scores find noise of known kinds, against counting by hand."""

import io
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
    better = pa.array([[1.0 if kind == "true" else 0.0] for kind, _ in ROWS] + [None], values.type)
    table.add_columns(pa.table({"captions_itm": values, "captions_score_right": better}))
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
        }
    )
    # Image by image, so that intervals can be drawn; each has a place whether it counts or not.
    assert {len(units.scores) for units in result.units.values()} == {7}


def test_any_score_of_the_texts_can_be_asked(judged: PairTable) -> None:
    result = evaluate_filter(judged, score="right", threshold=0.5)
    assert result.metrics["precision"] == result.metrics["recall"] == 100.0
    with pytest.raises(DataError, match="no column captions_score_other: let a filter judge"):
        evaluate_filter(judged, score="other")


def test_what_cannot_be_asked_is_told(judged: PairTable) -> None:
    with pytest.raises(DataError, match="no web text of the split 'test' has a score"):
        evaluate_filter(judged, split="test")
    with pytest.raises(RecipeError, match="threshold"):
        evaluate_filter(judged, threshold=float("nan"))
