from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from openblip.data.table import PairRow, PairTable
from openblip.data.views import AdmittedText, CaptionView, split_rows
from openblip.errors import DataError, RecipeError


@pytest.fixture
def bootstrapped(tmp_path: Path) -> PairTable:
    """Rows as CapFilt leaves them.

    0: human; 1: web, both kinds of text good; 2: web, one of two good; 3: web, all bad;
    4: web, failed (no scores); 5: web without captions; 6: human of another split.
    """
    rows = [
        PairRow("0", b"0", captions=["h0", "h1"], origin="human"),
        PairRow("1", b"1", captions=["w1"]),
        PairRow("2", b"2", captions=["w2a", "w2b"]),
        PairRow("3", b"3", captions=["w3"]),
        PairRow("4", b"4", captions=["w4"]),
        PairRow("5", b"5", captions=[]),
        PairRow("6", b"6", captions=["h6"], origin="human", split="val"),
    ]
    table = PairTable.create(tmp_path / "t", rows)
    table.add_columns(
        pa.table(
            {
                "captions_itm": [[0.1, 0.1], [0.9], [0.5, 0.6], [0.2], None, [], [0.1]],
                "synthetic": [["s0"], ["s1"], ["s2"], ["s3"], None, ["s5"], ["s6"]],
                "synthetic_itm": [[0.9], [0.8], [0.3], [0.1], None, [0.7], [0.9]],
            }
        )
    )
    return table


def _texts(view: CaptionView, table: PairTable) -> dict[int, list[str]]:
    index = view.resolve(table)
    assert index.rows.dtype == np.int64
    return dict(zip(index.rows.tolist(), index.captions_of_rows(index.rows), strict=True))


def test_without_a_threshold_all_given_texts_count(bootstrapped: PairTable) -> None:
    assert _texts(CaptionView(), bootstrapped) == {
        0: ["h0", "h1"],
        1: ["w1"],
        2: ["w2a", "w2b"],
        3: ["w3"],
        4: ["w4"],
    }


def test_a_threshold_lets_only_better_web_texts_through(bootstrapped: PairTable) -> None:
    # 0.5 itself is not above the threshold; human texts need no score; no score, no text.
    assert _texts(CaptionView(itm=0.5), bootstrapped) == {0: ["h0", "h1"], 1: ["w1"], 2: ["w2b"]}


def test_all_three_sources_make_the_bootstrapped_set(bootstrapped: PairTable) -> None:
    view = CaptionView(sources=("human", "web", "synthetic"), itm=0.5)
    assert _texts(view, bootstrapped) == {
        0: ["h0", "h1"],
        1: ["w1", "s1"],
        2: ["w2b"],
        5: ["s5"],
    }
    index = view.resolve(bootstrapped)
    assert index.num_admitted == {"human": 2, "web": 2, "synthetic": 2}
    assert index.num_offered == {"human": 2, "web": 5, "synthetic": 4}
    assert index.summary() == "human: 2 of 2 texts, web: 2 of 5 texts, synthetic: 2 of 4 texts"


def test_single_sources(bootstrapped: PairTable) -> None:
    assert _texts(CaptionView(sources=("human",), itm=0.5), bootstrapped) == {0: ["h0", "h1"]}
    synthetic = CaptionView(sources=("synthetic",))
    assert _texts(synthetic, bootstrapped) == {1: ["s1"], 2: ["s2"], 3: ["s3"], 5: ["s5"]}
    assert _texts(CaptionView(split="val"), bootstrapped) == {6: ["h6"]}


def test_the_texts_of_one_row(bootstrapped: PairTable) -> None:
    index = CaptionView(itm=0.5).resolve(bootstrapped)
    assert index.captions_of(2) == ["w2b"]
    assert index.captions_of(3) == []


def test_a_missing_column_names_the_command_that_makes_it(table: PairTable) -> None:
    with pytest.raises(DataError, match=r"captions_itm.*openblip capfilt run"):
        CaptionView(itm=0.5).resolve(table)
    with pytest.raises(DataError, match=r"synthetic.*openblip capfilt run"):
        CaptionView(sources=("synthetic",)).resolve(table)


def test_scores_that_do_not_fit_the_texts_are_an_error(table: PairTable) -> None:
    scores = [[0.5, 0.5]] * 7 + [[0.5]] + [[0.5, 0.5]] * 12
    table.add_columns(pa.table({"captions_itm": scores}))
    with pytest.raises(DataError, match="row 7: 2 texts in captions but 1 scores"):
        CaptionView(itm=0.1).resolve(table)


def test_a_score_that_is_not_a_number_rejects(table: PairTable) -> None:
    table.add_columns(pa.table({"captions_itm": [[float("nan"), None]] * 19 + [[0.9, None]]}))
    assert _texts(CaptionView(itm=0.0), table) == {19: ["picture number 19"]}


def test_an_empty_split_names_those_that_there_are(bootstrapped: PairTable) -> None:
    with pytest.raises(
        DataError, match=r"no row in the split 'test'; the table has train 6, val 1"
    ):
        CaptionView(split="test").resolve(bootstrapped)
    with pytest.raises(DataError, match=r"'test'; it has train 6, val 1"):
        split_rows(bootstrapped, "test")


def test_a_view_that_rejects_everything_says_what_there_was(bootstrapped: PairTable) -> None:
    with pytest.raises(DataError, match=r"6 rows none .*web: 0 of 5 texts.*lower the itm"):
        CaptionView(sources=("web",), itm=0.95).resolve(bootstrapped)


def test_a_table_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the table has no rows"):
        CaptionView().resolve(PairTable.create(tmp_path / "t"))


def test_rows_of_a_split_need_no_texts(bootstrapped: PairTable) -> None:
    assert split_rows(bootstrapped, "train").tolist() == [0, 1, 2, 3, 4, 5]


def test_a_long_table_is_numbered_through(tmp_path: Path) -> None:
    rows = [PairRow(str(n), b"x", captions=["t"] if n % 3 else []) for n in range(9000)]
    table = PairTable.create(tmp_path / "t", rows)
    index = CaptionView().resolve(table)
    assert index.rows.tolist() == [n for n in range(9000) if n % 3]


@pytest.mark.parametrize(
    "changes", [{"sources": ("humans",)}, {"sources": ()}, {"itm": 1.5}, {"split": "dev"}]
)
def test_settings_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(changes))):
        CaptionView(**changes)


def test_admitted_texts_carry_source_and_score(bootstrapped: PairTable) -> None:
    view = CaptionView(sources=("human", "web", "synthetic"), itm=0.5)
    human, web = bootstrapped.take([0, 1]).to_pylist()
    assert view.admitted(human) == [
        AdmittedText("h0", "human", 0.1),
        AdmittedText("h1", "human", 0.1),
    ]
    assert view.admitted(web) == [
        AdmittedText("w1", "web", 0.9),
        AdmittedText("s1", "synthetic", 0.8),
    ]


def test_a_text_that_was_not_judged_has_no_score(bootstrapped: PairTable) -> None:
    (row,) = bootstrapped.take([4]).to_pylist()
    assert CaptionView().admitted(row) == [AdmittedText("w4", "web", None)]
