from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from openblip.runtime.errors import DataError, OpenBlipWarning, RecipeError
from openblip.table.judging import AdmittedText, Rejection
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView, split_rows


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


def test_the_texts_of_some_rows(bootstrapped: PairTable) -> None:
    index = CaptionView(itm=0.5).resolve(bootstrapped)
    assert index.captions_of_rows([3, 2]) == [[], ["w2b"]]


def test_an_error_of_capfilt_rejects_no_human_text(bootstrapped: PairTable) -> None:
    bootstrapped.add_columns(pa.table({"capfilt_error": ["workers died on the batch"] * 7}))
    view = CaptionView(sources=("human", "web"))
    with pytest.warns(OpenBlipWarning, match=r"none of 4 web texts|none of 5 web texts"):
        assert _texts(view, bootstrapped) == {0: ["h0", "h1"]}
    assert {text.reason for text in view.rejected(bootstrapped)} == {Rejection.UNREADABLE}
    bootstrapped.add_columns(pa.table({"image_error": ["damaged", *[None] * 6]}))
    with pytest.raises(DataError, match="none"):
        view.resolve(bootstrapped)


def test_a_missing_column_names_the_command_that_makes_it(table: PairTable) -> None:
    with pytest.raises(DataError, match=r"captions_itm.*openblip capfilt run"):
        CaptionView(itm=0.5).resolve(table)
    with pytest.raises(DataError, match=r"synthetic.*openblip capfilt run"):
        CaptionView(sources=("synthetic",)).resolve(table)


def test_scores_that_do_not_fit_the_texts_are_an_error(table: PairTable) -> None:
    scores = [[0.5, 0.5]] * 7 + [[0.5]] + [[0.5, 0.5]] * 12
    table.add_columns(pa.table({"captions_itm": scores}))
    with pytest.raises(DataError, match="row 7: 2 texts in captions but 1 values"):
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
    "changes",
    [
        {"sources": ("humans",)},
        {"sources": ()},
        {"itm": 1.5},
        {"split": "dev"},
        {"without": ("bad",)},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(changes))):
        CaptionView(**changes)


def test_admitted_texts_carry_source_and_score(bootstrapped: PairTable) -> None:
    view = CaptionView(sources=("human", "web", "synthetic"), itm=0.5)
    assert view.admitted(bootstrapped.take([0, 1])) == [
        [AdmittedText("h0", "human", 0.1), AdmittedText("h1", "human", 0.1)],
        [AdmittedText("w1", "web", 0.9), AdmittedText("s1", "synthetic", 0.8)],
    ]


def test_a_text_that_was_not_judged_has_no_score(bootstrapped: PairTable) -> None:
    assert CaptionView().admitted(bootstrapped.take([4])) == [[AdmittedText("w4", "web", None)]]


ALL = ("human", "web", "synthetic")


def test_each_source_may_have_a_threshold_of_its_own(bootstrapped: PairTable) -> None:
    view = CaptionView(sources=ALL, itm_of=("web=0.55", "synthetic=0.75"))
    assert _texts(view, bootstrapped) == {0: ["h0", "h1"], 1: ["w1", "s1"], 2: ["w2b"]}
    # What is not named has the general threshold, or none.
    view = CaptionView(sources=ALL, itm_of=("synthetic=0.75",))
    assert _texts(view, bootstrapped)[3] == ["w3"]
    view = CaptionView(sources=ALL, itm=0.95, itm_of=("synthetic=0.75",))
    with pytest.warns(OpenBlipWarning, match=r"none of 5 web texts counts at itm=0.95"):
        assert _texts(view, bootstrapped) == {0: ["h0", "h1"], 1: ["s1"]}


def test_each_data_set_may_have_thresholds_of_its_own(tmp_path: Path) -> None:
    sources = ["clean", "dirty", "", "dirty"]
    rows = [
        PairRow(str(n), b"x", captions=[f"w{n}"], meta={"source": source} if source else {})
        for n, source in enumerate(sources)
    ]
    table = PairTable.create(tmp_path / "t", rows)
    scores = [[0.5]] * 4
    texts = [[f"s{n}"] for n in range(4)]
    table.add_columns(
        pa.table({"captions_itm": scores, "synthetic": texts, "synthetic_itm": scores})
    )
    thresholds = ("clean=0.1", "dirty=0.9", "dirty/synthetic=0.4", "web=0.6")
    view = CaptionView(sources=("web", "synthetic"), itm_of=thresholds)
    assert _texts(view, table) == {0: ["w0", "s0"], 1: ["s1"], 2: ["s2"], 3: ["s3"]}


@pytest.mark.parametrize("entry", ["web", "web=2", "=0.5", "web=x", "human=0.5"])
def test_a_malformed_threshold_is_refused(entry: str) -> None:
    with pytest.raises(RecipeError, match="itm_of"):
        CaptionView(itm_of=(entry,))


def test_a_threshold_is_given_once() -> None:
    with pytest.raises(RecipeError, match=r"gives 'web' twice: web=0\.9 and web=0\.1"):
        CaptionView(itm_of=("web=0.9", "web=0.1"))


@pytest.mark.parametrize("name", ["webb", "Web", "nosuch", "nosuch/web", "web/web"])
def test_a_name_that_nothing_has_is_refused(name: str, bootstrapped: PairTable) -> None:
    view = CaptionView(sources=ALL, itm_of=(f"{name}=0.9",))
    for use in (view.resolve, lambda table: list(view.rejected(table))):
        with pytest.raises(DataError, match=rf"itm_of names '{name}', which is no source"):
            use(bootstrapped)


def test_every_rejected_text_has_its_reason(bootstrapped: PairTable) -> None:
    errors = [None, None, None, None, "broken", None, None]
    bootstrapped.add_columns(pa.table({"capfilt_error": pa.array(errors, pa.string())}))
    view = CaptionView(sources=ALL, itm=0.5)
    assert view.resolve(bootstrapped).num_rejected == {
        "human": {},
        "web": {"below the threshold": 2, "unreadable image": 1},
        "synthetic": {"below the threshold": 2},
    }
    assert [(t.id, t.source, t.text, t.reason, t.itm) for t in view.rejected(bootstrapped)] == [
        ("2", "web", "w2a", Rejection.BELOW_THRESHOLD, 0.5),
        ("2", "synthetic", "s2", Rejection.BELOW_THRESHOLD, pytest.approx(0.3)),
        ("3", "web", "w3", Rejection.BELOW_THRESHOLD, pytest.approx(0.2)),
        ("3", "synthetic", "s3", Rejection.BELOW_THRESHOLD, pytest.approx(0.1)),
        ("4", "web", "w4", Rejection.UNREADABLE, None),
    ]
    # Without the error, the text was not scored.
    bootstrapped.drop_columns(["capfilt_error"])
    assert view.resolve(bootstrapped).num_rejected["web"]["not scored"] == 1


def test_a_blank_text_is_rejected(tmp_path: Path) -> None:
    table = PairTable.create(tmp_path / "t", [PairRow("0", b"x", captions=[" ", "a dog"])])
    assert _texts(CaptionView(), table) == {0: ["a dog"]}
    assert CaptionView().resolve(table).num_rejected == {"human": {}, "web": {"empty text": 1}}


def test_what_was_not_checked_cannot_be_left_out(bootstrapped: PairTable) -> None:
    with pytest.raises(DataError, match=r"not been checked: run `openblip data duplicates"):
        CaptionView(without=("duplicate_images",)).resolve(bootstrapped)
    with pytest.raises(DataError, match=r"not been checked: run `openblip data leakage"):
        CaptionView(without=("leaks",)).resolve(bootstrapped)


def test_an_index_knows_its_texts_again(bootstrapped: PairTable, tmp_path: Path) -> None:
    def digest(view: CaptionView, table: PairTable) -> bytes:
        return view.resolve(table).text_digest

    given, all_texts = CaptionView(), CaptionView(sources=("web", "synthetic"))
    before = digest(given, bootstrapped), digest(all_texts, bootstrapped)
    # A threshold that leaves rows alone and takes a text of one.
    assert digest(CaptionView(itm_of=("web=0.55",)), bootstrapped) != digest(
        CaptionView(itm_of=("web=0.45",)), bootstrapped
    )
    # Another captioner.
    again = pa.table({"synthetic": [["t0"], ["t1"], ["t2"], ["t3"], None, ["t5"], ["t6"]]})
    bootstrapped.add_columns(again, overwrite=True)
    assert digest(given, bootstrapped) == before[0]
    assert digest(all_texts, bootstrapped) != before[1]


def test_what_a_table_is_written_in_does_not_change_the_digest(tmp_path: Path) -> None:
    rows = [PairRow(str(n), b"", captions=[f"text {n}", "another"]) for n in range(6)]
    whole = PairTable.create(tmp_path / "whole", rows)
    parts = PairTable.create(tmp_path / "parts", rows[:2])
    parts.append(rows[2:])
    view = CaptionView()
    assert view.resolve(whole).text_digest == view.resolve(parts).text_digest


def test_a_source_that_contributes_nothing_is_warned_of(table: PairTable) -> None:
    row = PairRow("human", b"x", captions=["h"], origin="human")
    table.append([row])
    texts: list[list[str]] = [[]] * 21
    scores: list[list[float]] = [[0.3, 0.4]] * 20 + [[0.9]]
    table.add_columns(pa.table({"synthetic": pa.array(texts, pa.list_(pa.string()))}))
    table.add_columns(pa.table({"captions_itm": scores}))
    with pytest.warns(OpenBlipWarning, match=r"split 'train': there are no synthetic texts"):
        CaptionView(sources=ALL).resolve(table)
    with pytest.warns(OpenBlipWarning, match=r"web texts counts at itm=0\.5 \(below"):
        CaptionView(itm=0.5).resolve(table)
    # It is said of sources that somebody has named, and of none that contributes.
    CaptionView().resolve(table)
    only_human = PairTable.create(Path(table.uri).with_name("human"), [row])
    CaptionView().resolve(only_human)


@pytest.fixture
def rescored(bootstrapped: PairTable) -> PairTable:
    """The same with a second score, which finds web texts good that the first finds bad."""
    bootstrapped.add_columns(
        pa.table(
            {
                "captions_itc": [[0.1, 0.1], [-0.2], [0.3, 0.4], [-0.1], None, [], [0.1]],
                "captions_score_right": [[0.1, 0.1], [0.2], [0.9, None], [0.8], None, [], [0.1]],
                "synthetic_score_right": [[0.9], [0.1], [0.7], [0.6], None, [0.2], [0.9]],
            },
            schema=pa.schema(
                [
                    (name, pa.list_(pa.float32()))
                    for name in ("captions_itc", "captions_score_right", "synthetic_score_right")
                ]
            ),
        )
    )
    return bootstrapped


def test_a_view_says_which_score_its_threshold_compares(rescored: PairTable) -> None:
    view = CaptionView(sources=("human", "web", "synthetic"), itm=0.5, score="right")
    assert "captions_itm" not in view.columns
    # A null is no score, as a missing list is none.
    assert _texts(view, rescored) == {0: ["h0", "h1"], 2: ["w2a", "s2"], 3: ["w3", "s3"]}
    index = view.resolve(rescored)
    assert index.num_rejected["web"] == {"not scored": 2, "below the threshold": 1}
    assert index.summary().endswith("synthetic: 2 of 4 texts, by the score right")
    own = CaptionView(sources=("web",), itm=0.5, score="right", itm_of=("web=0.85",))
    assert _texts(own, rescored) == {2: ["w2a"]}


def test_a_score_that_is_no_probability_has_thresholds_of_any_size(rescored: PairTable) -> None:
    view = CaptionView(sources=("web",), itm=-0.15, score="itc")
    assert _texts(view, rescored) == {2: ["w2a", "w2b"], 3: ["w3"]}
    with pytest.raises(RecipeError, match=r"itm must be a finite number, or None. Got nan"):
        CaptionView(itm=float("nan"), score="itc")
    with pytest.raises(RecipeError, match=r"itm must be a probability from 0 to 1, or None"):
        CaptionView(itm=-0.1, score="right")
    with pytest.raises(RecipeError, match="score is empty"):
        CaptionView(score=" ")


def test_a_score_that_is_not_there_names_those_that_are(rescored: PairTable) -> None:
    with pytest.raises(DataError, match="captions have no score 'clip'; they have itm, itc, right"):
        CaptionView(itm=0.5, score="clip").resolve(rescored)
    with pytest.raises(DataError, match="synthetic have no score 'itc'; they have itm, right"):
        CaptionView(sources=("synthetic",), itm=0.5, score="itc").resolve(rescored)
    # Without a threshold no score is asked for.
    assert len(CaptionView(score="clip").resolve(rescored)) == 4 + 1


def test_what_is_rejected_by_a_score_tells_it_beside_the_match(rescored: PairTable) -> None:
    view = CaptionView(sources=("web",), itm=0.5, score="right")
    told = [(t.text, t.itm, t.score, t.threshold) for t in view.rejected(rescored)]
    assert told[0] == ("w1", pytest.approx(0.9), pytest.approx(0.2), 0.5)
    assert told[1] == ("w2b", pytest.approx(0.6), None, 0.5)
    same = next(iter(CaptionView(sources=("web",), itm=0.95).rejected(rescored)))
    assert same.score == same.itm == pytest.approx(0.9)


def test_a_view_of_another_score_that_contributes_nothing_names_it(rescored: PairTable) -> None:
    view = CaptionView(itm=0.95, score="right")
    with pytest.warns(OpenBlipWarning, match=r"web texts counts at itm=0\.95 score=right"):
        view.resolve(rescored)
    with pytest.raises(DataError, match="lower the right threshold"):
        CaptionView(sources=("web",), itm=0.95, score="right").resolve(rescored)


def test_a_table_whose_filter_gives_no_match_says_what_it_gives(table: PairTable) -> None:
    rows = table.take(range(len(table)), ["captions"]).to_pylist()
    lists = pa.array([[0.3 for _ in row["captions"] or []] for row in rows], pa.list_(pa.float32()))
    table.add_columns(pa.table({"captions_score_clip": lists}))
    opened = PairTable.open(table.uri)
    with pytest.raises(DataError, match="captions have no score 'itm'; they have clip"):
        CaptionView(sources=("web",), itm=0.5).resolve(opened)
    view = CaptionView(sources=("web",), itm=0.25, score="clip")
    texts = view.admitted(next(opened.scan(view.columns)))
    assert texts[0][0].scores["clip"] == pytest.approx(0.3)


def _weights(view: CaptionView, table: PairTable) -> dict[str, float]:
    index = view.resolve(table)
    told = index.admitted(table.take(index.rows, index.columns))
    return {text.text: round(text.weight, 3) for texts in told for text in texts}


def test_a_weighed_view_draws_texts_by_how_likely_they_are_right(bootstrapped: PairTable) -> None:
    view = CaptionView(sources=("human", "web", "synthetic"), weights="calibrated")
    expected = {"h0": 1, "h1": 1, "w1": 0.9, "s1": 0.8, "w2a": 0.5, "w2b": 0.6, "s2": 0.3}
    assert _weights(view, bootstrapped) == {**expected, "w3": 0.2, "s3": 0.1, "s5": 0.7}
    index = view.resolve(bootstrapped)
    # A row weighs what its likeliest text does; what has no score does not count.
    assert index.rows.tolist() == [0, 1, 2, 3, 5]
    assert index.weights is not None
    assert index.weights.dtype == np.float32
    assert index.weights == pytest.approx([1, 0.9, 0.6, 0.2, 0.7])
    assert index.num_rejected["web"] == {"not scored": 1}
    assert index.summary().endswith("weighed by the score itm")
    assert CaptionView().resolve(bootstrapped).weights is None


def test_a_temperature_makes_weights_more_equal_and_a_floor_lifts_them(
    bootstrapped: PairTable,
) -> None:
    def of(**changes: float) -> dict[str, float]:
        view = CaptionView(sources=("web", "synthetic"), weights="calibrated", **changes)  # type: ignore[arg-type]
        return _weights(view, bootstrapped)

    # Of odds 9 the square root is 3.
    assert of(weight_temperature=2.0)["w1"] == 0.75
    assert of(weight_temperature=2.0)["w3"] == round(1 / 3, 3)
    sharp = of(weight_temperature=0.01)
    assert (sharp["w1"], sharp["w2a"]) == (1, 0.5)
    # Never impossible: 2^-16.
    assert sharp["w3"] == 0
    assert len(sharp) == 8
    floored = of(weight_floor=0.4)
    assert (floored["w3"], floored["s3"], floored["w1"]) == (0.4, 0.4, 0.9)


def test_weights_and_a_threshold_go_together(bootstrapped: PairTable) -> None:
    view = CaptionView(sources=("web", "synthetic"), itm=0.5, weights="calibrated")
    assert _weights(view, bootstrapped) == {"w1": 0.9, "s1": 0.8, "w2b": 0.6, "s5": 0.7}


def test_a_weighed_view_takes_the_calibrated_score_where_there_is_one(rescored: PairTable) -> None:
    sources = ("web", "synthetic")
    view = CaptionView(sources=sources, weights="calibrated")
    index = view.resolve(rescored)
    assert index.view.score == "right"
    assert "captions_score_right" in index.columns
    assert _weights(view, rescored)["w2a"] == 0.9
    assert {text.text for text in view.rejected(rescored)} == {"w2b", "w4"}
    # Whoever gives a threshold of a score has chosen it.
    chosen = CaptionView(sources=sources, weights="calibrated", itm=0.0)
    assert chosen.resolve(rescored).view.score == "itm"
    assert CaptionView(weights="calibrated", sources=("human",)).resolve(rescored).view.itm is None


def test_what_cannot_be_weighed_is_refused(rescored: PairTable, table: PairTable) -> None:
    with pytest.raises(DataError, match=r"row 1: the score itc .* is -0.2, which is no probab"):
        CaptionView(sources=("web",), score="itc", weights="calibrated").resolve(rescored)
    with pytest.raises(DataError, match=r"no column captions_itm.*openblip capfilt run"):
        CaptionView(weights="calibrated").resolve(table)
    for changes, why in (
        ({"weights": "soft"}, "weights must be one of equal, calibrated"),
        ({"weights": "calibrated", "weight_temperature": 0.0}, "weight_temperature must be above"),
        ({"weights": "calibrated", "weight_floor": 1.5}, "weight_floor must be from 0 to 1"),
        ({"weight_floor": 0.1}, "change nothing without weights"),
    ):
        with pytest.raises(RecipeError, match=why):
            CaptionView(**changes)  # type: ignore[arg-type]


def test_a_rule_for_a_text_is_one_that_its_sources_can_meet() -> None:
    view = CaptionView(contrast_text="web", decoder_text="long")
    assert view.has_two_texts
    assert not CaptionView(contrast_text="long", decoder_text="long").has_two_texts
    with pytest.raises(RecipeError, match="decoder_text must be one of any, short, long, human"):
        CaptionView(decoder_text="synthetic")


def test_reviewed_texts_weigh_one_and_take_part_in_every_rule(bootstrapped: PairTable) -> None:
    view = CaptionView(sources=("web", "reviewed"), weights="calibrated", contrast_text="web")
    with pytest.warns(OpenBlipWarning, match="there are no reviewed texts"):
        assert "w1" in _weights(view, bootstrapped)
