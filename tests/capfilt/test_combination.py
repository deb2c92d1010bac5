"""One probability of many scores."""

import numpy as np
import pytest

from openblip.capfilt.combination import DIRECTIONS, MODELS, Combination, Examples, combine

TEXTS = 600


def examples(**scores: np.ndarray) -> Examples:
    """Texts with some scores, of which every second one is right."""
    right = np.arange(TEXTS) % 2 == 0
    kinds = np.where(right, "true", "other_image")
    images, weights = np.arange(TEXTS) // 2, np.ones(TEXTS)
    matrix = np.stack(list(scores.values()), axis=1)
    return Examples(tuple(scores), matrix, right, kinds, images, weights)


def related() -> Examples:
    """Scores that share most of what is random in them, so that one mends what another overdoes.

    A fit without bounds gives the weaker of two a weight of the wrong sign, though each of them
    tells right from wrong by itself.
    """
    draws = np.random.default_rng(0)
    truth = (np.arange(TEXTS) % 2 == 0).astype(float)
    shared, other, own = draws.normal(size=(3, TEXTS))
    return examples(
        itm=truth + shared,
        clip=0.3 * truth + shared + 0.1 * own,
        common=-0.3 * truth - other,
        contrast=truth + other,
        length=-truth + 0.5 * own,
    )


def weights_of(found: Combination) -> dict[str, float]:
    """By score, in the logistic regression."""
    return {name: weight for name, _, weight in found.told.importance if weight is not None}


@pytest.mark.parametrize("model", ["logistic regression", "boosted trees"])
def test_a_higher_score_never_makes_a_text_less_likely_right(model: str) -> None:
    made = related()
    predict = MODELS[model](made, 0)
    for at, name in enumerate(made.names):
        steps = np.repeat(made.scores[:40, None], 25, axis=1)
        steps[:, :, at] = np.linspace(-3, 3, 25)
        found = predict(steps.reshape(-1, len(made.names))).reshape(40, 25)
        direction = DIRECTIONS.get(name, 1)
        assert (direction * np.diff(found, axis=1)).min() >= -1e-12, name
    # What has no direction may fall.
    assert "length" in made.names
    assert DIRECTIONS["length"] == 0


def test_a_score_that_would_count_the_wrong_way_round_has_no_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = related()
    with monkeypatch.context() as patched:
        # Without directions the regression gives both a wrong sign: there is something to mend.
        patched.setattr("openblip.capfilt.combination.DIRECTIONS", dict.fromkeys(made.names, 0))
        weights = vars(MODELS["logistic regression"](made, 0))["weights"]
    free = dict(zip(made.names, weights, strict=True))
    assert free["clip"] < 0 < free["common"]
    found = weights_of(combine(made, folds=2, seed=0))
    assert found["clip"] == found["common"] == 0
    assert found["itm"] > 0
    assert found["contrast"] > 0
    assert found["length"] < 0


def test_where_every_score_would_count_the_wrong_way_round_none_decides() -> None:
    truth = (np.arange(TEXTS) % 2 == 0).astype(float)
    made = examples(itm=-truth, common=truth)
    predict = MODELS["logistic regression"](made, 0)
    assert predict(made.scores) == pytest.approx(np.full(TEXTS, 0.5))


def test_a_fit_of_trees_tells_the_weights_of_the_regression_too() -> None:
    draws = np.random.default_rng(1).normal(size=(2, TEXTS))
    truth = np.arange(TEXTS) % 2 == 0
    # Neither short nor long texts are right, which no regression of the length can say.
    made = examples(itm=0.5 * truth + draws[0], length=np.where(truth, 0.2, 2.0) * draws[1])
    told = combine(made, folds=2, seed=0).told
    assert told.model == "boosted trees"
    assert {name for name, *_ in told.importance} == {"itm", "length"}
    assert all(weight is not None for *_, weight in told.importance)
