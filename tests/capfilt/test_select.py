"""Keep rates and the filter's quality, from scores that stand in a table."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from openblip.capfilt.select import (
    Rejected,
    TextScores,
    cuts,
    keep_rates,
    noise_quality,
    precision_at_recall,
    read_scores,
    rejections,
    spreads,
    texts_of,
    weighed,
)
from openblip.cli import main
from openblip.runtime.errors import DataError, RecipeError
from openblip.table.scores import named_score
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView

KINDS = ["true", "true", "other_image", "other_image", "boilerplate"]
WEB_ITM = [0.9, 0.2, 0.1, 0.6, 0.05]


@pytest.fixture
def scored(tmp_path: Path) -> PairTable:
    """Five web rows and a human one; the synthetic texts match with 0.8."""
    rows = [
        PairRow(id=f"w{n}", image=b"x", captions=[f"web {n}"], meta={"noise": kind})
        for n, kind in enumerate(KINDS)
    ]
    rows.insert(2, PairRow(id="h", image=b"x", captions=["human"], origin="human"))
    table = PairTable.create(tmp_path / "t.lance", rows)
    web: list[list[float] | None] = [[itm] for itm in WEB_ITM]
    web.insert(2, None)
    synthetic = [None if scores is None else [0.8] for scores in web]
    texts = [None if scores is None else ["made"] for scores in web]
    table.add_columns(
        pa.table(
            {
                "synthetic": texts,
                "captions_itm": pa.array(web, pa.list_(pa.float32())),
                "captions_itc": pa.array(web, pa.list_(pa.float32())),
                "synthetic_itm": pa.array(synthetic, pa.list_(pa.float32())),
                "synthetic_itc": pa.array(synthetic, pa.list_(pa.float32())),
            }
        )
    )
    return table


def test_scores_of_web_rows_alone_are_read_with_their_rows(scored: PairTable) -> None:
    scores = read_scores(scored)

    assert scores["web"].rows.tolist() == [0, 1, 3, 4, 5]
    assert scores["web"].kinds.tolist() == KINDS
    assert scores["web"].itm == pytest.approx(WEB_ITM)
    assert texts_of(scored, scores["web"], np.array([4, 2])) == ["web 4", "web 2"]
    assert len(scores["synthetic"]) == 5


def test_a_text_is_kept_above_the_threshold(scored: PairTable) -> None:
    rates = {(r.source, r.threshold): r for r in keep_rates(read_scores(scored), [0.5, 0.8])}

    assert (rates["web", 0.5].kept, rates["web", 0.5].total) == (2, 5)
    assert rates["web", 0.5].rate == pytest.approx(0.4)
    assert rates["synthetic", 0.5].kept == 5
    assert rates["web", 0.8].kept == 1


def test_precision_and_recall_count_rejections_of_a_kind_and_of_true_texts(
    scored: PairTable,
) -> None:
    quality = {q.kind: q for q in noise_quality(read_scores(scored)["web"], 0.5)}

    # Rejected: one of two true texts, one of two of other images, the boilerplate.
    assert (quality["other_image"].precision, quality["other_image"].recall) == (0.5, 0.5)
    assert (quality["boilerplate"].precision, quality["boilerplate"].recall) == (0.5, 1.0)
    assert quality["all noise"].precision == pytest.approx(2 / 3)
    assert quality["all noise"].recall == pytest.approx(2 / 3)
    assert "true" not in quality


def test_precision_at_recall_is_the_best_over_thresholds(scored: PairTable) -> None:
    web = read_scores(scored)["web"]

    # One of the two texts of other images (0.1) is found below both true texts (0.2, 0.9).
    assert precision_at_recall(web, "other_image", 0.5) == (1.0, pytest.approx(0.1))
    # Both of them (0.6) cost the true text with 0.2.
    assert precision_at_recall(web, "other_image", 0.8) == (
        pytest.approx(2 / 3),
        pytest.approx(0.6),
    )
    with pytest.raises(RecipeError, match="wrong_object"):
        precision_at_recall(web, "wrong_object", 0.8)
    with pytest.raises(RecipeError, match="recall"):
        precision_at_recall(web, "other_image", 0.0)


def test_unknown_noise_gives_no_quality(scored: PairTable) -> None:
    web = read_scores(scored)["web"]
    from dataclasses import replace

    assert noise_quality(replace(web, kinds=np.array([""] * 5)), 0.5) == []


def test_an_unscored_table_and_a_wrong_threshold_are_errors(tmp_path: Path) -> None:
    table = PairTable.create(tmp_path / "t.lance", [PairRow(id="a", image=b"x")])

    with pytest.raises(DataError, match="openblip capfilt run"):
        read_scores(table)
    with pytest.raises(RecipeError, match=r"1\.5"):
        keep_rates({}, [1.5])


def test_meta_of_a_row_is_json(scored: PairTable) -> None:
    assert json.loads(scored.take([0], ["meta"])["meta"][0].as_py()) == {"noise": "true"}


def test_every_text_that_does_not_count_has_its_reason(scored: PairTable) -> None:
    assert rejections(scored, [0.5, 0.85]) == [
        Rejected(0.5, "web", "below the threshold", 3),
        Rejected(0.85, "web", "below the threshold", 4),
        Rejected(0.85, "synthetic", "below the threshold", 5),
    ]
    assert rejections(scored, [0.85], itm_of=("synthetic=0.1", "web=0.0")) == []
    with pytest.raises(DataError, match="not been checked"):
        rejections(scored, [0.5], without=("leaks",))


def test_a_threshold_is_found_by_the_share_that_it_keeps(scored: PairTable) -> None:
    scores = read_scores(scored)
    found = {(c.source, c.share): c for c in cuts(scores, [1.0, 0.6, 0.4, 0.0])}
    # Of 0.05, 0.1, 0.2, 0.6, 0.9; equal scores stay or go together.
    assert [found["web", share].kept for share in (1.0, 0.6, 0.4, 0.0)] == [5, 3, 2, 0]
    assert [found["synthetic", share].kept for share in (1.0, 0.6, 0.4, 0.0)] == [5, 0, 0, 0]
    assert found["web", 0.4].threshold == 0.4
    for cut in found.values():
        view = CaptionView(sources=(cut.source,), itm=cut.threshold)
        assert view.resolve(scored, may_be_empty=True).num_admitted[cut.source] == cut.kept
        (rate,) = (r for r in keep_rates(scores, [cut.threshold]) if r.source == cut.source)
        assert (rate.kept, rate.total) == (cut.kept, 5)
    with pytest.raises(RecipeError, match="a share of 2 cannot"):
        cuts(scores, [2.0])


def test_a_recall_of_28_in_100_is_reached_by_7_of_25_texts() -> None:
    """Though 0.28 * 25 is a little more than 7 to a computer."""
    noise = np.linspace(0.1, 0.5, 25)
    itm = np.concatenate([noise, [(noise[6] + noise[7]) / 2] * 10])
    kinds = np.array(["spam"] * 25 + ["true"] * 10)
    rows = np.arange(35)
    web = TextScores("web", rows, rows * 0, itm, np.zeros(35, np.float32), kinds)
    assert precision_at_recall(web, "spam", 0.28) == (1.0, noise[6])


def test_all_of_a_score_below_0_is_kept_where_that_is_asked_for() -> None:
    itm = np.array([-0.3, -0.1, 0.2])
    nothing = np.zeros(3, dtype=np.int64)
    kinds = np.full(3, "", dtype=np.str_)
    texts = TextScores("web", nothing, nothing, itm, np.zeros(3, np.float32), kinds, "contrast")
    (every,) = cuts({"web": texts}, [1.0])
    assert (every.threshold, every.kept) == (-0.4, 3)


def test_shares_and_quantiles_are_given_on_the_command_line(
    scored: PairTable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["capfilt", "select", scored.uri, "--keep", "40%", "--quantiles", "0.4"]) == 0
    shown = capsys.readouterr().out
    assert "to keep 40 %: --itm-of web=0.4 synthetic=" in shown
    assert "to keep 60 %: --itm-of web=0.2 " in shown
    assert "\nthreshold" not in shown
    assert main(["capfilt", "select", scored.uri, "--keep", "40%", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(c["source"], c["kept"]) for c in told["cuts"]] == [("web", 2), ("synthetic", 0)]
    assert main(["capfilt", "select", scored.uri, "--keep", "half"]) == 1
    assert "--keep half: write a share as 50% or 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--confidence", "0.9"], "--confidence and --partly-is-right change nothing without"),
        (["--partly-is-right"], "--confidence and --partly-is-right change nothing without"),
        (["--keep", "40%", "--without", "leaks"], "--itm-of and --without change nothing"),
        (["--quantiles", "0.4", "--itm-of", "web=0.1"], "--itm-of and --without change nothing"),
    ],
)
def test_flags_that_change_nothing_are_refused(
    scored: PairTable, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["capfilt", "select", scored.uri, *words]) == 2
    assert told in capsys.readouterr().err


def test_reasons_are_given_at_thresholds_beside_shares(
    scored: PairTable, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--keep", "40%", "--thresholds", "0.5", "--itm-of", "web=0.1"]
    assert main(["capfilt", "select", scored.uri, *words]) == 0
    assert "training texts that do not count:" in capsys.readouterr().out


def test_scores_that_no_threshold_separates_are_told(
    scored: PairTable, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = {spread.source: spread.is_narrow for spread in spreads(read_scores(scored))}
    assert narrow == {"web": False, "synthetic": True}
    assert main(["capfilt", "select", scored.uri]) == 0
    shown = capsys.readouterr()
    assert "ITM of 5 web texts: 0.05 to 0.9, standard deviation 0.3" in shown.out
    assert "5 synthetic texts: 0.8 to 0.8, standard deviation 0: so narrow a range" in shown.out
    assert "at the threshold 0.9 none of 5 web texts stays" in shown.err


def test_a_flag_for_several_values_without_any_is_wrong_usage(
    scored: PairTable, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--thresholds"], ["--thresholds", "--json"], ["--keep", "--json"]):
        assert main(["capfilt", "select", scored.uri, *words]) == 2
        assert f"{words[0]} needs a value, or several" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("itm", "message"),
    [
        ([float("nan")], "row 0 of .*: a text in captions has the scores nan and"),
        ([None], "has the scores None and"),
        ([1.5], "has the scores 1.5 and"),
        ([0.5, 0.5], "2 values in captions_itm but 1 in captions_itc"),
        ([], "0 values in captions_itm but 1 in captions_itc"),
    ],
)
def test_scores_that_are_none_are_refused_with_their_row(
    itm: list[float | None], message: str, scored: PairTable
) -> None:
    web: list[list[float | None] | None] = [[score] for score in WEB_ITM]
    web.insert(2, None)
    web[0] = itm
    column = pa.table({"captions_itm": pa.array(web, pa.list_(pa.float32()))})
    scored.add_columns(column, overwrite=True)
    with pytest.raises(DataError, match=message):
        read_scores(PairTable.open(scored.uri))


def rescored(table: PairTable, name: str, web: list[float], made: float | None) -> PairTable:
    """The table with another score; of synthetic texts only where one is given."""
    kind = pa.list_(pa.float32())
    lists: list[list[float] | None] = [[value] for value in web]
    lists.insert(2, None)
    columns = {f"captions_score_{name}": pa.array(lists, kind)}
    if made is not None:
        of_made = [None if own is None else [made] for own in lists]
        columns[f"synthetic_score_{name}"] = pa.array(of_made, kind)
    table.add_columns(pa.table(columns))
    return PairTable.open(table.uri)


def test_another_score_is_compared_where_it_is_asked_for(
    scored: PairTable, capsys: pytest.CaptureFixture[str]
) -> None:
    table = rescored(scored, "right", [0.9, 0.8, 0.1, 0.2, 0.05], 0.4)
    scores = read_scores(table, "right")
    assert [rate.kept for rate in keep_rates(scores, [0.5])] == [2, 0]
    assert {q.kind: q.recall for q in noise_quality(scores["web"], 0.5)}["all noise"] == 1.0
    assert str(spreads(scores)[0]).startswith("score 'right' of 5 web texts: 0.05 to 0.9")
    below = [r for r in rejections(table, [0.5], score="right") if "below" in r.reason]
    assert {r.source: r.count for r in below} == {"web": 3, "synthetic": 5}
    assert main(["capfilt", "select", table.uri, "--score", "right", "--thresholds", "0.5"]) == 0
    out, err = capsys.readouterr()
    assert "score 'right' of 5 web texts" in out
    assert "--score right" not in err
    # It decides where no score is named: the same texts, and it is said.
    assert main(["capfilt", "select", table.uri, "--thresholds", "0.5"]) == 0
    by_default = capsys.readouterr()
    assert by_default.out == out
    assert "--score itm takes the filter's own" in by_default.err
    assert main(["capfilt", "select", table.uri, "--score", "itm", "--thresholds", "0.5"]) == 0
    assert capsys.readouterr().out != out
    assert main(["capfilt", "select", table.uri, "--keep", "50%"]) == 0
    assert "--score right --itm-of web=" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="between 0 and 1"):
        keep_rates(scores, [1.5])


def test_where_later_rows_have_no_right_the_filters_own_score_decides_and_that_is_told(
    scored: PairTable, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = pa.list_(pa.float32())
    columns = {}
    for texts in ("captions", "synthetic"):
        there = scored.take(range(len(scored)), [f"{texts}_itm"])[f"{texts}_itm"].to_pylist()
        lists = [own and [0.9] * len(own) for own in there]
        # As after rows that were added and scored since the fit.
        lists[[place for place, own in enumerate(lists) if own][-1]] = None
        columns[f"{texts}_score_right"] = pa.array(lists, kind)
    scored.add_columns(pa.table(columns))
    table = PairTable.open(scored.uri)
    assert named_score(table) == "itm"
    assert main(["capfilt", "select", table.uri, "--thresholds", "0.5"]) == 0
    err = capsys.readouterr().err
    assert "not all scored texts have that of all scores together" in err


def test_a_score_that_is_no_probability_is_divided_by_shares(
    scored: PairTable, capsys: pytest.CaptureFixture[str]
) -> None:
    table = rescored(scored, "clip", [-0.2, 0.3, 0.31, 0.32, 7.0], None)
    scores = read_scores(table, "clip")
    assert [rate.kept for rate in keep_rates(scores, [-0.1])] == [4, 0]
    assert not spreads(scores)[0].is_narrow
    # Synthetic texts have no such score, and none of them is said to be rejected.
    assert {r.source for r in rejections(table, [0.305], score="clip")} == {"web"}
    assert main(["capfilt", "select", table.uri, "--score", "clip"]) == 0
    told = capsys.readouterr().out
    assert "to keep 90 %" in told
    assert main(["capfilt", "select", table.uri, "--score", "siglip"]) == 1
    assert "its scores are itm, itc, clip" in capsys.readouterr().err


def test_weights_show_an_image_as_often_as_its_likeliest_text_is_right(scored: PairTable) -> None:
    found = weighed(scored)
    assert found is not None
    assert (found.score, found.images) == ("itm", 6)
    assert found.texts == {"human": 1, "web": 5, "synthetic": 5}
    # Of the web rows each has a text of its own probability, and a synthetic one of 0.8.
    likeliest = [max(itm, 0.8) for itm in WEB_ITM]
    total = 1 + sum(likeliest)
    assert found.shown == int(total)
    web = [best * itm / (itm + 0.8) for best, itm in zip(likeliest, WEB_ITM, strict=True)]
    assert found.shares["human"] == pytest.approx(1 / total)
    assert found.shares["web"] == pytest.approx(sum(web) / total, rel=1e-5)
    assert sum(found.shares.values()) == pytest.approx(1)


def test_weights_are_by_right_where_all_texts_have_it_and_of_no_cosine(scored: PairTable) -> None:
    lists = [None if n == 2 else [0.25] for n in range(6)]
    right = pa.array(lists, pa.list_(pa.float32()))
    scored.add_columns(
        pa.table({"captions_score_right": right, "synthetic_score_right": right}),
    )
    found = weighed(scored)
    assert found is not None
    assert (found.score, found.shown) == ("right", 2)
    assert found.shares["web"] == pytest.approx(found.shares["synthetic"])
    scored.drop_columns(
        [name for name in scored.columns if name.endswith(("_itm", "_itc", "_right"))]
    )
    assert weighed(scored) is None
