"""WUPS on similarities that are known, and on WordNet's where it is there."""

import pytest

from openblip import metrics
from openblip.metrics.wups import WordNet, items_of, wups, wups_scores
from openblip.runtime.errors import DataError

ALIKE = {
    frozenset(("chair", "sofa")): 0.8,
    frozenset(("chair", "table")): 0.6,
    frozenset(("sofa", "couch")): 0.95,
    frozenset(("sofa", "table")): 0.5,
}


def similarity(first: str, second: str) -> float:
    return ALIKE.get(frozenset((first, second)), 0.0)


def score(answer: str, reference: str, threshold: float) -> float:
    found = wups({"q": answer}, {"q": reference}, [threshold], similarity)
    return found[f"WUPS@{threshold}"] / 100


@pytest.mark.parametrize(
    ("answer", "reference", "threshold", "expected"),
    [
        ("chair", "chair", 0.9, 1.0),
        ("chair", "sofa", 0.0, 0.8),
        # Below the threshold a tenth of the similarity counts.
        ("chair", "sofa", 0.9, 0.08),
        ("sofa", "couch", 0.9, 0.95),
        ("chair", "horse", 0.0, 0.0),
        # Every item of one side is looked for on the other: the worse side counts.
        ("chair", "chair, sofa", 0.0, 1.0 * 0.8),
        ("chair, sofa", "chair", 0.0, 0.8),
        ("chair, sofa", "sofa, chair", 0.9, 1.0),
        ("chair, chair", "chair", 0.9, 1.0),
        ("table, sofa", "chair, couch", 0.0, min(0.6 * 0.95, 0.8 * 0.95)),
        ("", "chair", 0.0, 0.0),
    ],
)
def test_a_question(answer: str, reference: str, threshold: float, expected: float) -> None:
    assert score(answer, reference, threshold) == pytest.approx(expected)


def test_the_result_is_the_mean_over_questions_in_per_cent() -> None:
    answers = {1: "chair", 2: "sofa", 3: "horse"}
    references = {3: "chair", 1: "chair", 2: "chair"}
    scores = wups_scores(answers, references, similarity=similarity)
    assert scores["WUPS@0.0"] == pytest.approx([0.0, 1.0, 0.8])
    found = metrics.wups(answers, references, similarity=similarity)
    assert found == pytest.approx({"WUPS@0.9": 100 * 1.08 / 3, "WUPS@0.0": 100 * 1.8 / 3})


def test_an_answer_is_a_set_of_words_in_any_spelling() -> None:
    assert items_of(" Garbage  bin,sofa ,, sofa") == {"garbage bin", "sofa"}


def test_other_questions_or_none_are_refused() -> None:
    with pytest.raises(DataError, match="2 stand in one of them"):
        wups({1: "a"}, {2: "a"}, similarity=similarity)
    with pytest.raises(DataError, match="no answers"):
        wups({}, {}, similarity=similarity)


def test_words_are_alike_as_wordnet_says() -> None:
    try:
        alike = WordNet.find().similarity("sofa", "chair")
    except DataError as error:
        pytest.skip(str(error))
    found = wups({1: "sofa", 2: "couches"}, {1: "chair", 2: "sofas"})
    assert 0.8 < alike < 0.95
    assert found["WUPS@0.0"] == pytest.approx(100 * (alike + 1) / 2)
