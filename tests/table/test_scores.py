"""Scores as flat arrays, and thresholds between them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from openblip.runtime.errors import DataError
from openblip.table.scores import (
    FlatScores,
    check_scored,
    columns_of,
    flat_scores,
    join_scores,
    scores_of,
    scores_without_effect,
    threshold_above,
)
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView

LISTS = pa.list_(pa.float32())


def batch(itm: list[object], itc: list[object], origin: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "origin": origin,
            "captions_itm": pa.array(itm, LISTS),
            "captions_itc": pa.array(itc, LISTS),
        }
    )


def test_texts_stand_in_the_order_of_rows_and_of_texts_in_them() -> None:
    rows = batch([[0.5, 0.25], None, [], [1.0], [0.75]], [[1, 2], None, [], [3], [4]], ["web"] * 5)
    found = flat_scores(rows, "web", 100, "t")
    assert found.rows.tolist() == [100, 100, 103, 104]
    assert found.places.tolist() == [0, 1, 0, 0]
    assert found.itm.tolist() == [0.5, 0.25, 1.0, 0.75]
    assert found.itc.tolist() == [1, 2, 3, 4]
    assert found.itm.dtype == np.float64


def test_rows_of_people_have_none() -> None:
    rows = batch([[0.5], [0.9], [0.25]], [[1], [2], [3]], ["web", "human", "web"])
    found = flat_scores(rows, "web", 0, "t")
    assert (found.rows.tolist(), found.itm.tolist()) == ([0, 2], [0.5, 0.25])


@pytest.mark.parametrize(
    ("itm", "itc", "message"),
    [
        (
            [[0.5], [0.5]],
            [[0.5], []],
            "row 11 of t: 1 values in captions_itm but 0 in captions_itc",
        ),
        (
            [[0.5], [1.5]],
            [[0.5], [0.5]],
            "row 11 of t: a text in captions has the scores 1.5 and 0.5",
        ),
        ([[0.5], [None]], [[0.5], [0.5]], "row 11 of t: .* scores None and 0.5"),
        ([[0.5], [0.5]], [[0.5], [float("inf")]], "row 11 of t: .* scores 0.5 and inf"),
    ],
)
def test_what_is_no_score_is_named(itm: list[object], itc: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        flat_scores(batch(itm, itc, ["web"] * 2), "web", 10, "t")


def test_texts_that_a_score_does_not_apply_to_have_none() -> None:
    """As the agreement with a synthetic text where there is none."""
    values = [[float("nan"), -0.5], [float("nan")], [0.25]]
    columns = {"origin": ["web"] * 3, "captions_score_agreement": pa.array(values, LISTS)}
    found = flat_scores(pa.RecordBatch.from_pydict(columns), "web", 10, "t", "agreement")
    assert (found.rows.tolist(), found.places.tolist()) == ([10, 12], [1, 0])
    assert found.itm.tolist() == [-0.5, 0.25]
    columns["captions_score_agreement"] = pa.array([[float("inf")], [], []], LISTS)
    with pytest.raises(DataError, match="score_agreement inf, which is no number"):
        flat_scores(pa.RecordBatch.from_pydict(columns), "web", 10, "t", "agreement")


def test_several_batches_are_joined() -> None:
    one = flat_scores(batch([[0.5]], [[0.5]], ["web"]), "web", 0, "t")
    two = flat_scores(batch([[0.25]], [[0.5]], ["web"]), "web", 1, "t")
    assert join_scores([one, two]).rows.tolist() == [0, 1]
    empty: FlatScores = join_scores([])
    assert (len(empty), empty.itm.dtype) == (0, np.float64)


def test_a_threshold_is_the_shortest_number_between_two_scores() -> None:
    itm = np.array([0.1, 0.36, 0.38, 0.38, 0.9])
    assert [threshold_above(itm, rejected) for rejected in range(6)] == [
        *(0.0, 0.2, 0.37, 0.6, 0.6, 0.9)
    ]


def test_what_rejects_no_score_lies_below_the_lowest() -> None:
    for lowest, number in ((0.2, 0.0), (0.0, -0.1), (-0.35, -0.4), (-0.4, -0.5), (-57.31, -57.4)):
        assert threshold_above(np.array([lowest, lowest + 1]), 0) == number
    assert threshold_above(np.array([-1e20, 1.0]), 0) < -1e20
    assert threshold_above(np.zeros(0), 0) == 0
    assert str(threshold_above(np.array([-0.03, 0.01]), 1)) == "0.0"


def test_a_table_without_scores_is_sent_to_the_filter(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="openblip capfilt run"):
        check_scored(PairTable.create(tmp_path / "t.lance"))


def test_another_score_may_be_any_number_and_stand_with_given_texts_alone(tmp_path: Path) -> None:
    row = PairRow(id="w", image=b"x", captions=["a"])
    table = PairTable.create(tmp_path / "t.lance", [row])
    table.add_columns(
        pa.table(
            {
                "synthetic": pa.array([["b"]], pa.list_(pa.string())),
                "captions_score_clip": pa.array([[-3.5]], LISTS),
                "captions_score_right": pa.array([[0.25]], LISTS),
                "synthetic_score_right": pa.array([[0.5]], LISTS),
            }
        )
    )
    assert scores_of(table) == ("clip", "right")
    check_scored(table, "clip")
    found = next(table.scan(["origin", *columns_of(table, "clip")]))
    web = flat_scores(found, "web", 0, "t", "clip")
    assert (web.itm.tolist(), np.isnan(web.itc).tolist()) == ([-3.5], [True])
    assert len(flat_scores(found, "synthetic", 0, "t", "clip")) == 0
    with pytest.raises(DataError, match=r"no column captions_itm; its scores are clip, right"):
        check_scored(table)
    with pytest.raises(DataError, match=r"score_siglip; .* make it with `openblip capfilt scores"):
        check_scored(table, "siglip")
    bad = pa.RecordBatch.from_pydict(
        {"origin": ["web"], "captions_score_right": pa.array([[float("nan")]], LISTS)}
    )
    with pytest.raises(DataError, match="score_right nan, which is no number"):
        flat_scores(bad, "web", 0, "t", "right")


def test_a_view_says_which_of_its_fields_wait_for_scores_that_decide_nothing() -> None:
    for decided in (
        CaptionView(itm=0.5, score="right"),
        CaptionView(itm_of=("web=0.5",), score="right"),
        CaptionView(weights="calibrated", score="right"),
        CaptionView(sources=("reviewed", "synthetic"), itm=0.5),
    ):
        assert scores_without_effect(decided) == ((), "")
    names, why = scores_without_effect(CaptionView(score="right"))
    assert (names, why.partition(":")[0]) == (("score",), "without a threshold")
    names, why = scores_without_effect(CaptionView(sources=("human", "reviewed"), itm=0.5))
    assert {"itm", "itm_of", "score", "weights"} <= set(names)
    assert why.endswith("add web or synthetic")
