"""Samples of tables: found again, extended, for every reason; errors name the remedy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openblip.review.sampling import ReviewSettings, SampleStore, open_sample
from openblip.runtime.errors import DataError, RecipeError
from openblip.table.reviews import PARTIAL_SAMPLES
from openblip.table.table import PairTable

PLAIN = ReviewSettings(size=50)


def test_the_same_settings_find_the_same_sample(scored: PairTable) -> None:
    first = open_sample(scored, PLAIN)
    again = open_sample(PairTable.open(scored.uri), PLAIN)
    assert first.order.tolist() == again.order.tolist()
    assert SampleStore(scored.uri).names() == [first.name]
    assert SampleStore(scored.uri).settings(first.name) == replace(PLAIN, score="itm")
    other = open_sample(scored, replace(PLAIN, seed=1))
    assert other.order.tolist() != first.order.tolist()
    assert len(SampleStore(scored.uri).names()) == 2


def test_more_can_be_drawn_and_a_smaller_size_takes_nothing_away(scored: PairTable) -> None:
    small = open_sample(scored, PLAIN)
    large = open_sample(scored, replace(PLAIN, size=90))
    assert large.order[:50].tolist() == small.order.tolist()
    assert open_sample(scored, PLAIN).order.tolist() == large.order.tolist()
    every = open_sample(scored, replace(PLAIN, size=10**6))
    assert len(every.order) == len(every.frame) == 238


def test_another_column_changes_nothing_and_other_scores_everything(scored: PairTable) -> None:
    import pyarrow as pa

    before = open_sample(scored, PLAIN)
    scored.add_columns(pa.table({"note": list(range(120))}))
    assert open_sample(PairTable.open(scored.uri), PLAIN).name == before.name
    itm = [[0.5] if n != 7 else [] for n in range(120)]
    scored.add_columns(
        pa.table({"captions_itm": pa.array(itm, pa.list_(pa.float32()))}), overwrite=True
    )
    assert open_sample(PairTable.open(scored.uri), PLAIN).name != before.name


def test_probabilities_are_those_of_the_strata(scored: PairTable) -> None:
    sample = open_sample(scored, PLAIN)
    # Weighed by the inverse of its probability each stratum with a draw counts as its texts.
    drawn = np.unique(sample.strata)
    total = (1 / sample.probabilities).sum()
    assert total == pytest.approx(sample.design.sizes[drawn].sum())
    assert (sample.frame.rows[sample.order] != 7).all()


@pytest.mark.parametrize(
    "by", ["threshold", "accepted", "rejected", "disagreement", "given-synthetic", "source"]
)
def test_every_reason_draws_what_it_says(scored: PairTable, by: str) -> None:
    sample = open_sample(scored, ReviewSettings(by=by, size=60))  # type: ignore[arg-type]
    itm = sample.frame.itm
    drawn = itm[sample.order]
    if by == "accepted":
        assert (itm > 0.5).all()
        assert (itm <= 0.5).any() or sample.design.floor == 0.5
        assert (drawn >= np.quantile(itm, 0.7)).mean() > 0.5
    elif by == "rejected":
        assert (itm <= 0.5).all()
        assert (drawn <= np.quantile(itm, 0.3)).mean() > 0.5
    elif by == "disagreement":
        web = sample.order[sample.frame.sources[sample.order] == 0]
        # ITC is the reverse of ITM here: ranks lie furthest apart at both ends.
        apart = np.abs(sample.frame.itm - 0.5)
        assert apart[web].mean() > apart[sample.frame.sources == 0].mean()
    elif by == "given-synthetic":
        alone = [n for n in sample.design.names if "alone kept" in n]
        names = np.array(sample.design.names)[sample.strata[:40]]
        assert np.isin(names, alone).mean() > 0.5
    elif by == "source":
        rows, sources = (array[sample.order] for array in (sample.frame.rows, sample.frame.sources))
        groups = [((rows % 2 == d) & (sources == s)).sum() for d in (0, 1) for s in (0, 1)]
        assert min(groups) > 8
    else:
        assert (drawn > 0.5).mean() > 0.7


def test_a_sample_of_a_part_of_the_texts_is_known_by_its_name(scored: PairTable) -> None:
    for by in ("threshold", "accepted", "rejected", "disagreement", "given-synthetic", "source"):
        sample = open_sample(scored, ReviewSettings(by=by, size=3))
        is_part = by in ("accepted", "rejected", "given-synthetic")
        assert sample.name.startswith(PARTIAL_SAMPLES) == is_part
    searched = open_sample(scored, ReviewSettings(by="search", rows=(1, 2), size=3))
    assert searched.name.startswith(PARTIAL_SAMPLES)
    by_source = open_sample(scored, ReviewSettings(by="source", size=3)).frame.names
    of_one = open_sample(scored, ReviewSettings(datasets=by_source[:1], size=3))
    assert of_one.name.startswith(PARTIAL_SAMPLES)


def test_a_search_is_reviewed_by_its_rows(scored: PairTable) -> None:
    sample = open_sample(scored, ReviewSettings(by="search", rows=(3, 5, 7, 3)))
    assert sorted(sample.frame.rows[sample.order].tolist()) == [3, 3, 5, 5]
    assert sample.scope == "4 web and synthetic texts in the 3 rows that were given"


def test_one_data_set_or_source_alone(scored: PairTable) -> None:
    sample = open_sample(scored, ReviewSettings(datasets=("a",), sources=("web",)))
    assert set((sample.frame.rows % 2).tolist()) == {0}
    assert sample.scope == "60 web texts of a"
    assert open_sample(scored, PLAIN).scope == ""


def test_what_cannot_be_reviewed_is_said(scored: PairTable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no data set 'c'; it has a, b"):
        open_sample(scored, ReviewSettings(datasets=("c",)))
    with pytest.raises(RecipeError, match="no row 120 in"):
        open_sample(scored, ReviewSettings(by="search", rows=(120,)))
    with pytest.raises(DataError, match="no scored text for by=accepted"):
        open_sample(scored, ReviewSettings(by="accepted", threshold=1.0))
    with pytest.raises(RecipeError, match="rows and by=search go together"):
        ReviewSettings(rows=(1,))
    with pytest.raises(RecipeError, match="sources must be some of web, synthetic"):
        ReviewSettings(sources=("human",))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="leave sources out"):
        ReviewSettings(by="given-synthetic", sources=("web",))
    with pytest.raises(RecipeError, match="threshold is 2"):
        ReviewSettings(threshold=2.0)
    bare = PairTable.create(tmp_path / "bare.lance")
    with pytest.raises(DataError, match="openblip capfilt run"):
        open_sample(bare, PLAIN)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: text.replace('"items"', '"itmes"'),
        lambda text: json.dumps({**json.loads(text), "items": [[0, 0, 99]]}),
        lambda text: json.dumps({**json.loads(text), "items": [["x"]]}),
        lambda text: json.dumps({**json.loads(text), "items": [[3, 0, 0], [3, 0, 0]]}),
    ],
)
def test_a_damaged_sample_is_named(scored: PairTable, damage: object) -> None:
    name = open_sample(scored, PLAIN).name
    path = Path(f"{scored.uri}.samples", f"{name}.json")
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(DataError, match=f"{name}.json is no sample"):
        open_sample(scored, PLAIN)


def test_a_sample_of_before_there_was_a_choice_is_of_the_match_probability(
    scored: PairTable,
) -> None:
    name = open_sample(scored, PLAIN).name
    path = next(Path(scored.uri).parent.rglob(f"{name}.json"))
    stored = json.loads(path.read_text())
    del stored["settings"]["score"]
    path.write_text(json.dumps(stored))
    assert SampleStore(scored.uri).settings(name) == replace(PLAIN, score="itm")


def test_another_score_has_samples_of_its_own(scored: PairTable) -> None:
    import pyarrow as pa

    before = open_sample(scored, PLAIN)
    lists = [[n / 120] if n != 7 else [] for n in range(120)]
    kind = pa.list_(pa.float32())
    columns = {f"{name}_score_right": pa.array(lists, kind) for name in ("captions", "synthetic")}
    scored.add_columns(pa.table(columns))
    opened = PairTable.open(scored.uri)
    assert open_sample(opened, replace(PLAIN, score="itm")).name == before.name
    sample = open_sample(opened, replace(PLAIN, score="right"))
    assert sample.name != before.name
    # By itself the probability of all scores together decides, now that there is one.
    assert open_sample(opened, PLAIN).name == sample.name
    assert sample.frame.itm.max() == pytest.approx(119 / 120)
    assert SampleStore(scored.uri).settings(sample.name).score == "right"
    with pytest.raises(DataError, match="its scores are itm, itc, right"):
        open_sample(opened, replace(PLAIN, score="clip"))
    with pytest.raises(RecipeError, match="from 0 to 1"):
        ReviewSettings(score="right", threshold=2.0)
