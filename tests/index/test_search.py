"""Two stages of a search, and how texts, images and conditions go together."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import openblip
from openblip.index.build import IndexReport, build_index, open_index
from openblip.index.embeddings import embed_table
from openblip.index.query import Query
from openblip.index.search import Searcher, choose_candidates
from openblip.index.states import StateCache
from openblip.inference.blip import Blip
from openblip.inference.loading import load
from openblip.runtime.errors import DataError, UnknownWords
from openblip.table.table import PairRow, PairTable

from ..inference.published_clip import save_clip
from .conftest import draw

Build = Callable[..., IndexReport]
pytestmark = pytest.mark.filterwarnings("ignore::openblip.runtime.errors.UnknownWords")
RED, DOG, NIGHT = "a red square", "a large dog", "people at night"


@pytest.fixture
def blip(model: str) -> Blip:
    return load(model, "cpu")


@pytest.fixture
def searcher(indexed: Path, blip: Blip) -> Searcher:
    return Searcher(open_index(str(indexed))[0], blip)


def paths(searcher: Searcher) -> list[str]:
    rows = searcher.table.take(range(len(searcher.table)), ["image_uri"])
    return rows["image_uri"].to_pylist()


def ranked(blip: Blip, odds: NDArray[np.float64], cosines: NDArray[np.float64]) -> list[int]:
    """What is found (above 0.5) first; each by the log-odds and the logit of the contrast."""
    temperature = float(blip.med.temperature.detach())
    both = np.log(odds) - np.log1p(-odds) + cosines / temperature
    order: list[int] = np.lexsort((-both, odds < 0.5)).tolist()
    return order


def test_the_first_are_those_that_both_heads_find_best(searcher: Searcher, blip: Blip) -> None:
    found = searcher.find(Query([RED]), k=5, rerank=12)
    itm = blip.match_all(paths(searcher), RED)[:, 0].numpy().astype(float)
    cosines = (blip.embed_images(paths(searcher)) @ blip.embed_texts(RED).T)[:, 0].numpy()
    order = ranked(blip, itm, cosines.astype(float))[:5]
    assert [hit.row for hit in found.hits] == order
    assert [hit.itm for hit in found.hits] == pytest.approx(itm[order], abs=1e-5)
    for hit in found.hits:
        assert hit.itc == pytest.approx(float(cosines[hit.row]), abs=2e-3)
    assert (found.matched, found.margin) == (12, None)


def test_without_matching_contrast_decides(searcher: Searcher, blip: Blip) -> None:
    found = searcher.find(Query([RED]), k=4, rerank=0)
    cosines = (blip.embed_images(paths(searcher)) @ blip.embed_texts(RED).T)[:, 0].numpy()
    assert [hit.row for hit in found.hits] == np.argsort(-cosines)[:4].tolist()
    assert {hit.itm for hit in found.hits} == {None}
    assert not found.nothing


def test_and_and_not_combine_probabilities(searcher: Searcher, blip: Blip) -> None:
    query = Query([RED, DOG], without=[NIGHT], weights=[1, 0.5])
    found = searcher.find(query, k=12, rerank=12)
    itm = blip.match_all(paths(searcher), [RED, DOG, NIGHT]).numpy().astype(float)
    expected = itm[:, 0] * itm[:, 1] ** 0.5 * (1 - itm[:, 2])
    known = {hit.row: hit.itm for hit in found.hits}
    assert [known[row] for row in range(12)] == pytest.approx(expected, abs=1e-5)


def test_what_reaches_the_threshold_stands_first(searcher: Searcher) -> None:
    all_of_them = searcher.find(Query([RED], without=[NIGHT]), k=12, rerank=12).hits
    middle = sorted(hit.itm or 0.0 for hit in all_of_them)[6]
    hits = searcher.find(Query([RED], without=[NIGHT]), k=12, rerank=12, threshold=middle).hits
    assert [(hit.itm or 0.0) >= middle for hit in hits] == [True] * 6 + [False] * 6


def test_an_image_finds_itself_first_and_a_row_its_like(searcher: Searcher, indexed: Path) -> None:
    found = searcher.find(Query(images=[indexed / "trip" / "9.png"]), k=3)
    assert found.hits[0].id == "trip/9.png"
    assert found.hits[0].itc == pytest.approx(1, abs=1e-3)
    assert found.matched == 0
    others = searcher.find(Query(like=["trip/9.png"]), k=3)
    assert [hit.id for hit in others.hits[:2]] == [hit.id for hit in found.hits[1:]]
    assert searcher.find(Query(like=[str(found.hits[0].row)]), k=3).hits == others.hits


def test_an_image_and_a_text_are_asked_for_together(
    searcher: Searcher, indexed: Path, blip: Blip
) -> None:
    image = indexed / "0.png"
    found = searcher.find(Query([RED], images=[image]), k=12, rerank=12)
    itm = blip.match_all(paths(searcher), RED)[:, 0].numpy().astype(float)
    embeds = blip.embed_images(paths(searcher))
    alike = (embeds @ blip.embed_images(image).T)[:, 0].numpy().clip(1e-9, 1 - 1e-9)
    cosines = (embeds @ blip.embed_texts(RED).T)[:, 0].numpy().astype(float)
    known = {hit.row: hit.itm for hit in found.hits}
    assert [known[row] for row in range(12)] == pytest.approx(itm, abs=1e-5)
    # By probability times likeness; found is what is probable.
    both = (
        np.log(itm * alike)
        - np.log1p(-itm * alike)
        + cosines / float(blip.med.temperature.detach())
    )
    assert found.hits[0].row == np.lexsort((-both, itm < 0.5))[0]


def test_conditions_choose_rows_before_anything_is_ranked(searcher: Searcher) -> None:
    found = searcher.find(Query([RED]), k=12, where="id LIKE 'trip/%'")
    assert {hit.id for hit in found.hits} == {f"trip/{n}.png" for n in range(8, 12)}
    empty = searcher.find(Query([RED]), where="width > 1000")
    assert (empty.hits, empty.nothing) == ([], True)
    with pytest.raises(DataError, match="cannot be used"):
        searcher.find(Query([RED]), where="nonsense >")
    with pytest.raises(DataError, match="cannot be used"):
        searcher.find(Query([RED]), where="colour = 'red'")


def test_it_says_when_nothing_fits(searcher: Searcher) -> None:
    best = searcher.find(Query([RED]), rerank=12).best
    assert best is not None
    assert searcher.find(Query([RED]), rerank=12, threshold=min(best * 1.01, 1)).nothing
    assert not searcher.find(Query([RED]), rerank=12, threshold=best * 0.99).nothing


def test_auto_matches_those_that_contrast_cannot_tell_apart(searcher: Searcher) -> None:
    # The third is 0.2 behind the first: what is at most 0.1 behind the third may be better.
    near = np.array([0.9, 0.8, 0.7, *np.linspace(0.69, 0.601, 40), *np.linspace(0.59, 0, 200)])
    assert choose_candidates(near, 3, "auto") == (43, pytest.approx(0.1))
    assert choose_candidates(np.linspace(0.9, 0, 20), 3, "auto")[0] == 20
    assert choose_candidates(np.linspace(0.9, 0, 90), 3, "auto")[0] == 32
    assert choose_candidates(np.full(500, 0.4), 3, "auto") == (128, 0)
    assert choose_candidates(near[:0], 3, "auto") == (0, 0)
    assert choose_candidates(near, 3, 7) == (7, None)
    found = searcher.find(Query([RED]), k=3)
    assert found.matched == 12
    assert "auto" in str(found)


def test_a_file_that_is_gone_is_found_by_contrast_alone(
    searcher: Searcher, indexed: Path, tmp_path: Path
) -> None:
    (indexed / "0.png").unlink()
    found = searcher.find(Query([RED]), k=12, rerank=12)
    assert (found.matched, found.unreadable) == (11, 1)
    assert "1 cannot be read: bring the index up to date" in str(found)
    assert found.hits[-1].id == "0.png"
    assert found.hits[-1].itm is None


def test_a_second_search_needs_no_encoder(
    searcher: Searcher, tmp_path: Path, blip: Blip, indexed: Path
) -> None:
    plain = searcher.find(Query([RED]), k=12, rerank=12)
    searcher.cache = StateCache(tmp_path / "states", 10**6, "m")
    first = searcher.find(Query([RED]), k=12, rerank=12)
    for file in indexed.glob("*.png"):  # of a folder, not even the file is needed
        file.unlink()
    second = searcher.find(Query([RED]), k=12, rerank=12)
    assert (first.cached, second.cached, second.matched) == (0, 12, 12)
    for hits in (first.hits, second.hits):
        assert [hit.row for hit in hits] == [hit.row for hit in plain.hits]
        assert [h.itm for h in hits] == pytest.approx([h.itm for h in plain.hits], abs=2e-2)


def test_what_a_file_has_become_is_never_kept_as_what_it_was(
    searcher: Searcher, indexed: Path, build: Build, tmp_path: Path
) -> None:
    """Neither while it has another content than the index knows, nor after it has its own again."""
    plain = {hit.id: hit.itm for hit in searcher.find(Query([RED]), k=12, rerank=12).hits}
    searcher.cache = StateCache(tmp_path / "states", 10**6, "m")
    own = (indexed / "0.png").read_bytes()
    draw(indexed / "0.png", 99)
    changed = searcher.find(Query([RED]), k=12, rerank=12)
    assert {hit.id: hit.itm for hit in changed.hits}["0.png"] != pytest.approx(plain["0.png"])
    (indexed / "0.png").write_bytes(own)
    build(indexed)
    again = searcher.find(Query([RED]), k=12, rerank=12)
    found = {hit.id: hit.itm for hit in again.hits}
    assert found["0.png"] == pytest.approx(plain["0.png"], abs=1e-3)


def test_bad_queries_are_refused(searcher: Searcher) -> None:
    for bad, said in (
        ({}, "nothing to look for"),
        ({"without": [RED]}, "nothing to look for"),
        ({"texts": [" "]}, "empty"),
        ({"texts": [RED], "weights": [1, 2]}, "2 weights for 1 texts"),
        ({"texts": [RED], "weights": [0]}, "above 0"),
    ):
        with pytest.raises(DataError, match=said):
            Query(**bad)
    with pytest.raises(DataError, match="no row 'lost'"):
        searcher.find(Query(like=["lost"]))
    with pytest.raises(DataError, match="k is 0"):
        searcher.find(Query([RED]), k=0)


@pytest.mark.filterwarnings("default::openblip.runtime.errors.UnknownWords")
def test_unknown_words_are_told(searcher: Searcher) -> None:
    with pytest.warns(UnknownWords):
        searcher.find(Query(["zebra \u4e00"]), rerank=2)


def test_rows_that_came_later_are_not_found_before_the_update(
    tmp_path: Path, pair_rows: Callable[..., list[PairRow]], build: Build, blip: Blip
) -> None:
    table = PairTable.create(tmp_path / "pairs.lance", pair_rows(6))
    build(table.uri)
    late = [replace(row, id=f"late {row.id}") for row in pair_rows(4)]
    PairTable.open(table.uri).append(late)
    found = Searcher(open_index(table.uri)[0], blip).find(Query([RED]), k=10)
    assert {hit.id for hit in found.hits} == {f"r{n}" for n in range(6)}
    build(table.uri)
    found = Searcher(open_index(table.uri)[0], blip).find(Query([RED]), k=10)
    assert len(found.hits) == 10
    assert found.hits[0].captions


def test_embeddings_that_another_command_has_made_are_searched(
    tmp_path: Path, pair_rows: Callable[..., list[PairRow]], model: str
) -> None:
    table = PairTable.create(tmp_path / "pairs.lance", pair_rows(6))
    embed_table(table, model, device="cpu", show_progress=False)
    with pytest.raises(DataError, match="give --model"):
        openblip.search(table, RED, device="cpu", cache_bytes=0)
    assert len(openblip.search(table, RED, model=model, device="cpu", cache_bytes=0)) == 6
    assert build_index(table.uri, model, device="cpu", show_progress=False).embedded == 0
    assert len(openblip.search(table, RED, device="cpu", cache_bytes=0)) == 6


def test_a_published_clip_searches_by_contrast(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    clip = str(save_clip(tmp_path / "clip"))
    build_index(str(photos), clip, device="cpu", show_progress=False)
    hits = openblip.search(photos, "a dog", not_="a cat", k=3, device="cpu")
    assert [hit.itm for hit in hits] == [None] * 3
    assert openblip.search(photos, image=photos / "3.png", k=1, device="cpu")[0].id == "3.png"


def test_the_python_name(
    indexed: Path, blip: Blip, model: str, tmp_path: Path, other_model
) -> None:
    hits = openblip.search(indexed, RED, and_=DOG, not_=[NIGHT], k=4, model=blip, rerank=12)
    assert len(hits) == 4
    again = openblip.search(
        indexed, [RED, DOG], not_=NIGHT, k=4, rerank=12, device="cpu", cache_bytes=0
    )
    assert [hit.row for hit in again] == [hit.row for hit in hits]
    liked = openblip.search(open_index(str(indexed))[0], like="0.png", k=2, model=blip)
    assert "0.png" not in {hit.id for hit in liked}
    with pytest.raises(DataError, match="of another model"):
        openblip.search(indexed, RED, model=other_model)
    draw(tmp_path / "bare" / "0.png", 0)
    with pytest.raises(DataError, match="has no index"):
        openblip.search(tmp_path / "bare", RED)
