"""Similarity of nouns: closed forms on a small hierarchy; nltk on drawn ones and the real one."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from openblip.metrics.wups import WordNet
from openblip.runtime.errors import DataError

from .wordnet_files import nltk_reader, write_wordnet

# entity > thing > furniture > {chair, table}; entity > colour; a person who is a chair too.
SENSES = [
    (["entity"], []),
    (["thing"], [0]),
    (["furniture"], [1]),
    (["chair"], [2]),
    (["table"], [2]),
    (["colour", "color"], [0]),
    (["person"], [1]),
    (["chairman", "chair"], [6]),
    (["box"], [1]),
    (["garbage_bin"], [8]),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    folder = tmp_path_factory.mktemp("small")
    write_wordnet(folder, SENSES, "people person\n")
    return WordNet(folder)


@pytest.fixture(scope="module")
def whole() -> WordNet:
    try:
        return WordNet.find()
    except DataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Twice the depth of what both are (in nodes), over the sum of their depths.
        ("chair", "chair", 1.0),
        ("chair", "table", 2 * 3 / (4 + 4)),
        ("furniture", "table", 2 * 3 / (3 + 4)),
        ("table", "colour", 2 * 1 / (4 + 2)),
        ("colour", "color", 1.0),
        # The closest meanings count: a chair may be a chairman.
        ("chair", "person", 2 * 3 / (4 + 3)),
        ("chair", "blurb", 0.0),
    ],
)
def test_it_is_that_of_wu_and_palmer(
    small: WordNet, first: str, second: str, expected: float
) -> None:
    assert small.similarity(first, second) == pytest.approx(expected)
    assert small.similarity(second, first) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("written", "singular"),
    [
        ("tables", "table"),
        ("boxes", "box"),
        ("people", "person"),
        ("chairmen", "chairman"),
        ("Garbage bins", "garbage_bin"),
        ("blurbs", None),
    ],
)
def test_plurals_and_several_words_are_found(
    small: WordNet, written: str, singular: str | None
) -> None:
    assert small.senses(written) == (small.senses(singular) if singular else [])
    assert bool(small.senses(written)) == (singular is not None)


# nltk leaves its files to the collector, of which some Pythons warn.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", range(6))
def test_any_hierarchy_gives_what_nltk_gives(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    senses: list[tuple[list[str], list[int]]] = [(["root"], [])]
    for number in range(1, 40):
        # Several ways up, of other lengths, and words with several meanings.
        above = rng.choice(number, size=min(number, int(rng.integers(1, 3))), replace=False)
        words = {f"w{rng.integers(25)}", f"w{rng.integers(25)}"}
        senses.append((sorted(words), [int(other) for other in above]))
    keys = write_wordnet(tmp_path / "own", senses)
    ours, peer = WordNet(tmp_path / "own"), nltk_reader(tmp_path / "own", tmp_path / "nltk")
    theirs = [peer.synset_from_pos_and_offset("n", key) for key in keys]
    for first, second in itertools.product(range(len(keys)), repeat=2):
        expected = theirs[first].wup_similarity(theirs[second])
        assert ours.sense_similarity(keys[first], keys[second]) == pytest.approx(expected), (
            first,
            second,
        )


WORDS = (
    *("chair", "chairs", "table", "garbage_bin", "garbage_can", "fire_extinguisher", "sofa"),
    *("couch", "bookshelf", "shelves", "men", "people", "mice", "2", "3", "two", "white"),
    *("black", "gray", "picture", "photo", "lamp", "bed_sheets", "oven", "glasses", "leaves"),
)


# nltk leaves its files to the collector, of which some Pythons warn.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_real_one_gives_what_nltk_gives(whole: WordNet, tmp_path: Path) -> None:
    peer = nltk_reader(whole.folder, tmp_path / "nltk")
    for word in WORDS:
        assert whole.senses(word) == [sense.offset() for sense in peer.synsets(word, pos="n")]
    for first, second in itertools.combinations(WORDS, 2):
        pairs = itertools.product(peer.synsets(first, pos="n"), peer.synsets(second, pos="n"))
        expected = max((a.wup_similarity(b) for a, b in pairs), default=0.0)
        assert whole.similarity(first, second) == pytest.approx(expected), (first, second)


def test_where_it_is_missing_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere is no database of WordNet"):
        WordNet.find()
    monkeypatch.delenv("WNSEARCHDIR")
    monkeypatch.setattr(sys.modules[WordNet.__module__], "_PLACES", (str(tmp_path),))
    with pytest.raises(DataError, match="apt install wordnet-base"):
        WordNet.find()
