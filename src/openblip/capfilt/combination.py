"""One probability out of many scores: fitted, chosen by cross-validation, calibrated, and measured.

The only file that imports scikit-learn. Everything is a function of the examples and a seed.

*Which model.* Logistic regression and gradient-boosted trees, both monotone where a score has a
direction; the one with the smaller out-of-fold logarithmic loss is taken. Folds divide images, so
that no image is in a model that judges it.

*Calibration.* What boosted trees call 0.8 need not be right in 80 of 100 cases. A map from their
out-of-fold probabilities to shares is fitted (Platt's, or an isotonic one where that is better),
and what is told of it is cross-fitted once more: each fold by the map of the others.

*Base rate.* Examples are half right and half wrong, a table is not. Its own share of right texts is
estimated from its scores alone by expectation-maximisation (Saerens et al., 2002), and the
probabilities are moved by it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openblip.runtime.errors import RecipeError, install_extra

FloatArray = NDArray[np.float64]

DIRECTIONS = {
    "itm": 1,
    "itc": 1,
    "contrast": 1,
    "agreement": 1,
    "overlap": 1,
    "unknown": 0,
    "common": -1,
    "frequency": 0,
    "length": 0,
}
"""Whether a text is likelier to be right the higher a score is (1), the lower (-1), or neither (0);
further filters' scores count as 1."""
_LEAST = 1e-4
_BOOTSTRAPS = 400
_BINS = 10


@dataclass(frozen=True, eq=False)
class Examples:
    """Texts whose fate is known; position i of every array is one text."""

    names: tuple[str, ...]
    """Of the scores."""
    scores: FloatArray
    """(texts, scores); NaN where one does not apply."""
    right: NDArray[np.bool_]
    kinds: NDArray[np.str_]
    """`true`, the kind of corruption, or `reviewed`."""
    images: NDArray[np.int64]
    """Row of each text's image."""
    weights: FloatArray

    def __len__(self) -> int:
        return len(self.right)


@dataclass(frozen=True)
class KindQuality:
    """The noise of one kind among right texts: precision of its rejection at a recall."""

    kind: str
    texts: int
    combination: float
    """Precision of the combination."""
    single: float
    """That of the best single score."""


@dataclass(frozen=True)
class Combined:
    """What was fitted and how good it is on texts of images that it had not seen."""

    model: str
    """`logistic regression` or `boosted trees`."""
    calibration: str
    """`Platt` or `isotonic`."""
    texts: int
    right: int
    reviewed: int
    auc: float
    """Area under the curve of right against wrong texts; 0.5 is chance."""
    losses: Mapping[str, float]
    """Out-of-fold logarithmic loss of each model that was tried."""
    single: str
    """The best single score."""
    single_auc: float
    gain: float
    """AUC of the combination less that of the best single score."""
    gain_low: float
    gain_high: float
    """The middle 95 % of that, over images drawn anew (paired bootstrap)."""
    error: float
    """Expected calibration error: how far probabilities are from shares, on average."""
    reliability: tuple[tuple[float, float, int], ...]
    """For each tenth that has texts: mean probability, share of right ones, texts."""
    recall: float
    """Of the noise, at which `kinds` tell precision."""
    kinds: tuple[KindQuality, ...]
    importance: tuple[tuple[str, float, float | None], ...]
    """By score: AUC that is lost when it is shuffled, and its weight in the logistic regression of
    all scores, whichever model was taken, per standard deviation; 0 where it would count the wrong
    way round. The most important first. Fits of before have None where trees were taken."""


@dataclass(frozen=True, eq=False)
class Combination:
    """A fitted combination of scores."""

    names: tuple[str, ...]
    predict: Callable[[FloatArray], FloatArray]
    """From scores (texts, scores) to calibrated probabilities for equally many right and wrong."""
    told: Combined


def check_library() -> None:
    """Nothing, if scikit-learn is installed.

    Raises:
        RecipeError: it is not.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise RecipeError(f"capfilt fit needs scikit-learn: {install_extra('fit')}") from error


def combine(examples: Examples, *, folds: int, seed: int, recall: float = 0.8) -> Combination:
    """The better model of all scores, calibrated.

    Args:
        examples: of both fates, of at least `folds` images.
        folds: of the cross-validation.
        seed: decides folds and models.
        recall: of the noise, at which precision is told.

    Raises:
        RecipeError: there are fewer images than folds.
    """
    divided = _folds(examples, folds, seed)
    fitted = {
        name: [make(_part(examples, inside), seed) for inside, _ in divided]
        for name, make in MODELS.items()
    }
    tried = {name: _held_out(models, examples.scores, divided) for name, models in fitted.items()}
    losses = {name: _loss(examples, found) for name, found in tried.items()}
    chosen = min(losses, key=lambda name: losses[name])
    raw = tried[chosen]
    calibrated = {
        name: _cross_fitted(fit, examples, raw, divided) for name, fit in _CALIBRATIONS.items()
    }
    briers = {name: _brier(examples, found) for name, found in calibrated.items()}
    calibration = min(briers, key=lambda name: briers[name])
    model = MODELS[chosen](examples, seed)
    to_share = _CALIBRATIONS[calibration](raw, examples.right, examples.weights)
    told = _told(examples, calibrated[calibration], losses, chosen, calibration, recall, seed)
    # Of the other model where trees are better: they have no weights, and people ask for some.
    linear = model if chosen == _LINEAR else MODELS[_LINEAR](examples, seed)
    importance = _importance(examples, linear, fitted[chosen], divided, seed)
    told = Combined(**{**vars(told), "importance": importance})
    return Combination(examples.names, lambda scores: to_share(model(scores)), told)


def share_of_right(probabilities: FloatArray) -> float:
    """The share of right texts among these, of which half would be right in the examples.

    Raises nothing; 0.5 where there is no text.
    """
    if not probabilities.size:
        return 0.5
    # Each step reads the share off the probabilities that the share before makes.
    share = 0.5
    for _ in range(200):
        following = float(at_base_rate(probabilities, share).mean())
        # A share of 0 or 1 would be believed for ever, whatever the next text is.
        following = min(max(following, 0.02), 0.98)
        if abs(following - share) < 1e-6:
            break
        share = following
    return share


def at_base_rate(probabilities: FloatArray, share: float) -> FloatArray:
    """Probabilities for equally many right and wrong texts, where `share` of them is right."""
    right, wrong = probabilities * share, (1 - probabilities) * (1 - share)
    return np.asarray(right / np.maximum(right + wrong, 1e-12))


def precision_at(
    scores: FloatArray, noisy: NDArray[np.bool_], recall: float, weights: FloatArray | None = None
) -> float:
    """Best precision of rejecting what is noisy by a threshold, at a recall of at least `recall`.

    Args:
        scores: higher is better, (texts,).
        noisy: (texts,); the others are true.
        recall: above 0, at most 1.
        weights: of the texts; by default equal.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    # The lowest scores are rejected first: how much noise is among each first so many of them.
    order = np.argsort(scores, kind="stable")
    found = np.cumsum((weights * noisy)[order])
    rejected = np.cumsum(weights[order])
    # Equal scores go together.
    is_end = np.append(np.diff(scores[order]) > 0, True)
    enough = is_end & (found >= recall * found[-1] - 1e-9)
    return float((found[enough] / rejected[enough]).max())


def area(scores: FloatArray, right: NDArray[np.bool_], weights: FloatArray | None = None) -> float:
    """Area under the curve of right against wrong texts."""
    weights = np.ones(len(scores)) if weights is None else weights
    _, places = np.unique(scores, return_inverse=True)
    rights = np.bincount(places, weights * right)
    wrongs = np.bincount(places, weights * ~right)
    # Of each pair of a right and a wrong text: is the right one higher? Equal ones count half.
    below = np.cumsum(wrongs) - wrongs / 2
    return float((rights * below).sum() / (rights.sum() * wrongs.sum()))


def gain_interval(
    first: FloatArray,
    second: FloatArray,
    right: NDArray[np.bool_],
    images: NDArray[np.int64],
    weights: FloatArray | None = None,
    *,
    seed: int = 0,
    measure: Callable[[FloatArray, NDArray[np.bool_], FloatArray], float] = area,
) -> tuple[float, float]:
    """The middle 95 % of how much better `first` is, over images drawn anew (paired)."""
    generator = np.random.default_rng(seed)
    weights = np.ones(len(right)) if weights is None else weights
    _, of_image = np.unique(images, return_inverse=True)
    count, gains = of_image.max() + 1, []
    for _ in range(_BOOTSTRAPS):
        # An image that is drawn twice has twice the weight, with all of its texts.
        drawn = np.bincount(generator.integers(0, count, count), minlength=count)[of_image]
        inside = drawn > 0
        if len(np.unique(right[inside])) < 2:
            continue
        own = (right[inside], (weights * drawn)[inside])
        gains.append(measure(first[inside], *own) - measure(second[inside], *own))
    if not gains:
        return float("nan"), float("nan")
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)


Predict = Callable[[FloatArray], FloatArray]


def _logistic(examples: Examples, seed: int) -> Predict:
    from sklearn.linear_model import LogisticRegression

    # Of one unit each, so that the regularisation treats all scores alike.
    filled, centre, spread = _standard(examples.scores)
    directions = np.array(_directions(examples.names))
    kept = np.ones(len(directions), dtype=bool)
    while True:
        # Zeros in the place of what is left out, whose weight is 0 then.
        columns = np.where(kept, filled, 0.0)
        model = LogisticRegression(max_iter=1000, random_state=seed)
        model.fit(columns, examples.right, sample_weight=examples.weights)
        weights = np.where(kept, model.coef_[0], 0.0)
        against = -weights * directions
        if against.max(initial=0.0) <= 0:
            break
        # Of scores that say nearly the same, one may mend what another overdoes. The worst alone is
        # left out: without it the others may well have the right sign.
        kept[int(against.argmax())] = False

    def predict(scores: FloatArray) -> FloatArray:
        known = (np.where(np.isnan(scores), centre, scores) - centre) / spread
        return np.asarray(model.predict_proba(np.where(kept, known, 0.0))[:, 1])

    predict.__dict__["weights"] = weights
    return predict


def _trees(examples: Examples, seed: int) -> Predict:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        max_iter=150,
        learning_rate=0.08,
        max_leaf_nodes=12,
        min_samples_leaf=20,
        l2_regularization=1.0,
        # Its own early stopping would divide texts of one image.
        early_stopping=False,
        monotonic_cst=_directions(examples.names),
        random_state=seed,
    )
    model.fit(examples.scores, examples.right, sample_weight=examples.weights)
    return lambda scores: np.asarray(model.predict_proba(scores)[:, 1])


def _directions(names: Sequence[str]) -> list[int]:
    return [DIRECTIONS.get(name, 1) for name in names]


_LINEAR = "logistic regression"
MODELS: dict[str, Callable[[Examples, int], Predict]] = {
    _LINEAR: _logistic,
    "boosted trees": _trees,
}
"""What is fitted to examples with a seed, by name."""


def _standard(scores: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Scores with mean 0 and deviation 1, 0 for NaN; and both numbers of each."""
    centre = np.nan_to_num(np.nanmean(scores, axis=0))
    spread = np.nan_to_num(np.nanstd(scores, axis=0))
    spread[spread < 1e-9] = 1.0
    return (np.where(np.isnan(scores), centre, scores) - centre) / spread, centre, spread


def _folds(
    examples: Examples, folds: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    from sklearn.model_selection import GroupKFold

    count = len(np.unique(examples.images))
    if count < folds:
        raise RecipeError(f"{folds} folds of {count} images: there is nothing in some of them")
    splitter = GroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(examples.scores, groups=examples.images))


def _part(examples: Examples, chosen: NDArray[np.int64]) -> Examples:
    return Examples(
        examples.names,
        examples.scores[chosen],
        examples.right[chosen],
        examples.kinds[chosen],
        examples.images[chosen],
        examples.weights[chosen],
    )


def _held_out(models: Sequence[Predict], scores: FloatArray, divided: Any) -> FloatArray:
    """What each fold's model says of the texts that it has not seen."""
    found = np.zeros(len(scores))
    for model, (_, outside) in zip(models, divided, strict=True):
        found[outside] = model(scores[outside])
    return found


def _platt(raw: FloatArray, right: NDArray[np.bool_], weights: FloatArray) -> Predict:
    from sklearn.linear_model import LogisticRegression

    def logits(values: FloatArray) -> FloatArray:
        inside = np.clip(values, _LEAST, 1 - _LEAST)
        return np.asarray(np.log(inside / (1 - inside)))[:, None]

    # Hardly regularised: two numbers from thousands of texts.
    model = LogisticRegression(C=1e4).fit(logits(raw), right, sample_weight=weights)
    return lambda values: np.asarray(model.predict_proba(logits(values))[:, 1])


def _isotonic(raw: FloatArray, right: NDArray[np.bool_], weights: FloatArray) -> Predict:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=_LEAST, y_max=1 - _LEAST, out_of_bounds="clip")
    model.fit(raw, right.astype(float), sample_weight=weights)
    # Its steps make equal what was told apart: a thousandth of the raw value keeps the order.
    return lambda values: np.asarray(0.999 * model.predict(values) + 0.001 * values)


_CALIBRATIONS: dict[str, Callable[[FloatArray, NDArray[np.bool_], FloatArray], Predict]] = {
    "Platt": _platt,
    "isotonic": _isotonic,
}


def _cross_fitted(
    fit: Callable[[FloatArray, NDArray[np.bool_], FloatArray], Predict],
    examples: Examples,
    raw: FloatArray,
    divided: Any,
) -> FloatArray:
    found = np.zeros(len(raw))
    for inside, outside in divided:
        to_share = fit(raw[inside], examples.right[inside], examples.weights[inside])
        found[outside] = to_share(raw[outside])
    return found


def _loss(examples: Examples, found: FloatArray) -> float:
    inside = np.clip(found, _LEAST, 1 - _LEAST)
    each = np.where(examples.right, -np.log(inside), -np.log(1 - inside))
    return float(np.average(each, weights=examples.weights))


def _brier(examples: Examples, found: FloatArray) -> float:
    return float(np.average((found - examples.right) ** 2, weights=examples.weights))


def directed(name: str, scores: FloatArray, examples: Examples) -> FloatArray:
    """A single score so that more is better, the middle for what it does not apply to."""
    known = np.where(np.isnan(scores), np.nanmedian(scores), scores)
    direction = DIRECTIONS.get(name, 1)
    if direction == 0:
        direction = 1 if area(known, examples.right, examples.weights) >= 0.5 else -1
    return np.asarray(direction * known)


def _told(
    examples: Examples,
    found: FloatArray,
    losses: Mapping[str, float],
    chosen: str,
    calibration: str,
    recall: float,
    seed: int,
) -> Combined:
    right, weights = examples.right, examples.weights
    singles = {
        name: directed(name, examples.scores[:, at], examples)
        for at, name in enumerate(examples.names)
        if np.isfinite(examples.scores[:, at]).any()
    }
    areas = {name: area(values, right, weights) for name, values in singles.items()}
    single = max(areas, key=lambda name: areas[name])
    auc = area(found, right, weights)
    low, high = gain_interval(found, singles[single], right, examples.images, weights, seed=seed)
    error, reliability = _reliability(examples, found)
    # Each kind of noise is told from all right texts, as if it were alone in the table.
    wrong = sorted(set(examples.kinds[~right].tolist()))
    groups = {kind: (examples.kinds == kind) & ~right for kind in wrong} | {"all noise": ~right}
    kinds = []
    for kind, noisy in groups.items():
        inside = noisy | right
        both = [
            precision_at(values[inside], noisy[inside], recall, weights[inside])
            for values in (found, singles[single])
        ]
        kinds.append(KindQuality(kind, int(noisy.sum()), *both))
    return Combined(
        model=chosen,
        calibration=calibration,
        texts=len(examples),
        right=int(right.sum()),
        reviewed=int((examples.kinds == "reviewed").sum()),
        auc=auc,
        losses=dict(losses),
        single=single,
        single_auc=areas[single],
        gain=auc - areas[single],
        gain_low=low,
        gain_high=high,
        error=error,
        reliability=reliability,
        recall=recall,
        kinds=tuple(kinds),
        importance=(),
    )


def _reliability(
    examples: Examples, found: FloatArray
) -> tuple[float, tuple[tuple[float, float, int], ...]]:
    bins = np.minimum((found * _BINS).astype(int), _BINS - 1)
    error, rows = 0.0, []
    for number in np.unique(bins).tolist():
        inside = bins == number
        weight = examples.weights[inside]
        told = float(np.average(found[inside], weights=weight))
        share = float(np.average(examples.right[inside], weights=weight))
        error += abs(told - share) * weight.sum() / examples.weights.sum()
        rows.append((told, share, int(inside.sum())))
    return float(error), tuple(rows)


def _importance(
    examples: Examples, linear: Predict, fitted: Sequence[Predict], divided: Any, seed: int
) -> tuple[tuple[str, float, float | None], ...]:
    # On held-out images: shuffled inside a training set, a score that was learnt by heart would
    # look important.
    generator = np.random.default_rng(seed)
    weights = vars(linear)["weights"]

    def area_of(scores: FloatArray) -> float:
        return area(_held_out(fitted, scores, divided), examples.right, examples.weights)

    whole = area_of(examples.scores)
    rows = []
    for at, name in enumerate(examples.names):
        shuffled = examples.scores.copy()
        shuffled[:, at] = generator.permutation(shuffled[:, at])
        rows.append((name, whole - area_of(shuffled), float(weights[at])))
    return tuple(sorted(rows, key=lambda row: -row[1]))
