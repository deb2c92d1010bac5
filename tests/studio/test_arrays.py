"""What a table says of rows and texts as arrays is what the views say of them."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from openblip.curation.duplicates import flag_duplicates
from openblip.runtime.errors import DataError
from openblip.studio.arrays import FLAGS, TableArrays, is_scored, view_of
from openblip.table.judging import REJECTIONS
from openblip.table.table import SPLITS, PairRow, PairTable
from openblip.table.views import CaptionView
from openblip.world import WorldConfig, build_world


@pytest.fixture
def arrays(world_table: str) -> TableArrays:
    return TableArrays(PairTable.open(world_table))


def column(arrays: TableArrays, name: str) -> list:
    return arrays.table.take(range(len(arrays)), [name])[name].to_pylist()


def test_rows_have_their_size_split_and_place_among_the_ids(arrays: TableArrays) -> None:
    sides = zip(column(arrays, "width"), column(arrays, "height"), strict=True)
    assert arrays.pixels().tolist() == [width * height for width, height in sides]
    assert [SPLITS[code] for code in arrays.splits()] == column(arrays, "split")
    ids = column(arrays, "id")
    assert [ids[row] for row in np.argsort(arrays.id_ranks())] == sorted(ids)
    assert arrays.rows_of_ids({ids[7], ids[3], "nobody"}) == {ids[3]: 3, ids[7]: 7}


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.5, 1.0])
@pytest.mark.parametrize("split", SPLITS)
def test_what_counts_is_what_counts_in_a_view(
    arrays: TableArrays, threshold: float, split: str
) -> None:
    view = view_of(arrays.table, threshold, split)
    index = view.resolve(arrays.table, may_be_empty=True)
    inside = arrays.splits() == SPLITS.index(split)
    rows: set[int] = set()
    for source, texts in arrays.texts().items():
        own = inside[texts.rows]
        fates = texts.fates(None if source == "human" else threshold)[own]
        assert (fates == 0).sum() == index.num_admitted[source]
        assert len(fates) == index.num_offered[source]
        for reason, count in index.num_rejected[source].items():
            assert (fates == 1 + [r.value for r in REJECTIONS].index(reason)).sum() == count
        rows |= set(texts.rows[own][fates == 0].tolist())
    assert sorted(rows) == index.rows.tolist()


def test_a_threshold_that_is_a_score_leaves_it_out_as_a_view_does(tmp_path: Path) -> None:
    rows = [PairRow(id=f"r{n}", image_uri=f"/{n}.jpg", captions=["a"]) for n in range(3)]
    table = PairTable.create(tmp_path / "t.lance", rows)
    # The float32 that is nearest to 0.3 is larger than 0.3.
    scores = [
        [0.3],
        [float(np.float32(0.3))],
        [float(np.nextafter(np.float32(0.3), np.float32(0)))],
    ]
    for kind in (pa.float32(), pa.float64()):
        column = pa.array(scores, pa.list_(kind))
        table.add_columns(pa.table({"captions_itm": column}), overwrite=True)
        texts = TableArrays(table).texts()["web"]
        for threshold in (0.3, float(np.float32(0.3))):
            view = CaptionView(sources=("web",), itm=threshold)
            counts = texts.rows[texts.fates(threshold) == 0].tolist()
            assert counts == view.resolve(table, may_be_empty=True).rows.tolist()


def test_places_say_which_text_of_its_row_each_is(tmp_path: Path) -> None:
    captions = [["a", "b"], [], ["c"], ["d", "e", "f"]]
    rows = [PairRow(id=str(n), image_uri="/x", captions=some) for n, some in enumerate(captions)]
    texts = TableArrays(PairTable.create(tmp_path / "t.lance", rows)).texts()["web"]
    assert texts.rows.tolist() == [0, 0, 2, 3, 3, 3]
    assert texts.places(np.arange(6)).tolist() == [0, 1, 0, 0, 1, 2]
    assert np.isnan(texts.itm).all()


def test_flags_say_what_checks_have_found(tmp_path: Path) -> None:
    rows = list(
        build_world(WorldConfig(seed=1, web_rows=12, human_rows=0, val_rows=0, test_rows=0))
    )
    rows.append(replace(rows[2], id="again"))
    table = PairTable.create(tmp_path / "t.lance", rows)
    assert not TableArrays(table).flags().any()
    flag_duplicates(table, show_progress=False)
    table = PairTable.open(table.uri)
    arrays = TableArrays(table)
    is_repeated = column(arrays, "duplicate_of")
    bits = arrays.flags()
    assert [bool(bit & FLAGS["duplicate image"]) for bit in bits] == [
        first is not None for first in is_repeated
    ]
    assert any(is_repeated)
    without = ("duplicate_images", "duplicate_captions")
    view = view_of(table, 0.5, without=without)
    index = view.resolve(table, may_be_empty=True)
    texts = arrays.texts(without)["web"]
    assert (texts.fates(None) == 0).sum() == index.num_admitted["web"] < len(texts)
    # The reasons without a choice are not changed by one.
    assert not arrays.texts()["web"].reasons.any()


def test_leaving_out_what_was_not_looked_for_is_refused(arrays: TableArrays) -> None:
    with pytest.raises(DataError, match="has not been checked: run `openblip data leakage"):
        arrays.texts(("leaks",))


def test_a_table_without_scores_has_texts_all_the_same(tmp_path: Path, jpeg: Callable) -> None:
    rows = [PairRow(id="a", image=jpeg(0), captions=["dog", " "])]
    table = PairTable.create(tmp_path / "t.lance", rows)
    assert not is_scored(table)
    texts = TableArrays(table).texts()
    assert set(texts) == {"human", "web"}
    fates = texts["web"].fates(None)
    assert [REJECTIONS[fate - 1].value if fate else "counts" for fate in fates] == [
        "counts",
        "empty text",
    ]


def test_words_are_found_whatever_their_case(tmp_path: Path) -> None:
    captions = [["A Dog", "cat"], ["the DOGS (two)"], ["ÉTÉ"]]
    rows = [PairRow(id=str(n), image_uri="/x", captions=some) for n, some in enumerate(captions)]
    arrays = TableArrays(PairTable.create(tmp_path / "t.lance", rows))
    assert arrays.matching_texts("dog")["web"].tolist() == [True, False, True, False]
    assert arrays.matching_texts("(two)")["web"].tolist() == [False, False, True, False]
    assert arrays.matching_texts("été")["web"].tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("meta", "name"),
    [
        ({"source": "sbu"}, "sbu"),
        ({"url": "x", "source": "with { brace"}, "with { brace"),
        ({"source": 'with "quotes"'}, 'with "quotes"'),
        ({"source": "\u6f22"}, "\u6f22"),
        ({"source": 3}, "3"),
        ({"source": ""}, ""),
        ({"is": "source"}, ""),
        ({"inner": {"source": "not this"}}, ""),
        ({"inner": {"source": "not this"}, "source": "this"}, "this"),
        ({}, ""),
    ],
)
def test_the_data_set_is_the_source_in_the_meta(tmp_path: Path, meta: dict, name: str) -> None:
    rows = [
        PairRow(id="a", image_uri="/x", meta={"source": "first"}),
        PairRow(id="b", image_uri="/x", meta=meta),
    ]
    names, codes = TableArrays(PairTable.create(tmp_path / "t.lance", rows)).data_sets()
    assert [names[code] for code in codes] == ["first", name]


def test_many_threads_get_the_same_arrays(world_table: str) -> None:
    arrays = TableArrays(PairTable.open(world_table))
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(arrays.texts())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(texts is found[0] for texts in found)
