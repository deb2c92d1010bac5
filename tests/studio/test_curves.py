"""Curves are thinned as they grow, told in parts, and share an axis where that means something."""

from typing import Any

import pytest

from openblip.studio.runs import MOST_POINTS, ThinnedCurve, comparable, loss_scale


def drawn(values: list[float]) -> ThinnedCurve:
    curve = ThinnedCurve()
    curve.extend(range(1, len(values) + 1), values, change=1)
    return curve


def test_a_short_curve_is_told_as_it_is() -> None:
    assert drawn([3.0, 2.0, 1.5]).since(-1) == (0, [1, 2, 3], [3.0, 2.0, 1.5])


def test_a_long_curve_is_means_of_neighbours_and_bounded() -> None:
    count = 10 * MOST_POINTS
    first, steps, values = drawn([float(step % 2) for step in range(count)]).since(-1)
    assert first == 0
    assert MOST_POINTS / 2 <= len(steps) <= MOST_POINTS
    assert steps[-1] == count
    assert set(values) == {0.5}


def test_only_what_has_come_since_is_told() -> None:
    curve = ThinnedCurve()
    curve.extend(range(10), [1.0] * 10, change=1)
    curve.extend([10], [2.0], change=2)
    assert curve.since(1) == (10, [10], [2.0])
    assert curve.since(2) == (11, [], [])


@pytest.mark.parametrize("length", [1, 7, MOST_POINTS, MOST_POINTS + 1, 3 * MOST_POINTS + 5])
def test_parts_put_together_are_the_whole(length: int) -> None:
    curve, steps, values = ThinnedCurve(), list[int](), list[float]()
    for step in range(length):
        curve.extend([step], [float(step)], change=step)
        first, new_steps, new_values = curve.since(step - 1)
        steps[first:], values[first:] = new_steps, new_values
    assert (0, steps, values) == curve.since(-1)


@pytest.mark.parametrize("size", [1, 3, 399, 400, 401, 5000])
def test_a_curve_is_the_same_however_it_comes(size: int) -> None:
    values = [float(step % 7) for step in range(4 * MOST_POINTS + 3)]
    parts = ThinnedCurve()
    for start in range(0, len(values), size):
        some = values[start : start + size]
        parts.extend(range(start + 1, start + 1 + len(some)), some, change=start)
    whole = drawn(values).since(-1)
    assert parts.since(-1) == whole
    # The means of all points are those of the values, each counted once.
    assert whole[2][0] == pytest.approx(sum(values[: whole[1][0]]) / whole[1][0], rel=1e-4)


def test_what_is_not_finite_is_left_out_and_counted() -> None:
    curve = drawn([1.0, float("nan"), float("inf"), 2.0])
    assert curve.since(-1) == (0, [1, 4], [1.0, 2.0])
    assert curve.num_odd == 2


PRETRAIN: dict[str, Any] = {
    "task": "pretrain",
    "objectives.losses": ["itc", "itm", "lm"],
    "objectives.queue_size": 256,
    "objectives.alpha": 0.4,
    "objectives.momentum": 0.99,
    "objectives.label_smoothing": 0.1,
    "optimiser.lr": 1e-3,
    "train.batch_size": 24,
    "train.accumulate": 1,
}


@pytest.mark.parametrize(
    ("quantity", "changes", "share"),
    [
        ("loss", {"optimiser.lr": 2e-3, "objectives.momentum": 0.9}, True),
        ("loss", {"train.batch_size": 48}, True),
        ("loss", {"objectives.queue_size": 512}, False),
        ("loss", {"objectives.losses": ["itc", "itm"]}, False),
        ("loss", {"task": "captioner"}, False),
        ("loss", {"vocabulary": "other"}, False),
        ("lm", {"objectives.queue_size": 512}, True),
        ("lm", {"objectives.label_smoothing": 0.0}, False),
        ("itc", {"objectives.label_smoothing": 0.0, "vocabulary": "other"}, True),
        ("itc", {"objectives.queue_size": 512}, False),
        ("lr", {"task": "captioner", "objectives.queue_size": 512}, True),
    ],
)
def test_runs_share_an_axis_where_their_values_mean_the_same(
    quantity: str, changes: dict[str, Any], share: bool
) -> None:
    other = {**PRETRAIN, **changes}
    scales = {
        "a": loss_scale(quantity, PRETRAIN, "words"),
        "b": loss_scale(quantity, other, other.get("vocabulary", "words")),
    }
    assert (len(comparable(scales)) == 1) is share


def test_without_a_queue_the_size_of_the_batch_decides() -> None:
    small = PRETRAIN | {"objectives.queue_size": 0}
    large = small | {"train.batch_size": 48}
    scales = {name: loss_scale("itc", s, "") for name, s in (("a", small), ("b", large))}
    assert [label for label, _ in comparable(scales)] == ["batch_size 24", "batch_size 48"]


def test_an_axis_is_named_by_what_tells_it_from_the_others() -> None:
    other = {**PRETRAIN, "objectives.queue_size": 512}
    settings = {"a": PRETRAIN, "b": other, "c": PRETRAIN}
    scales = {name: loss_scale("loss", own, "w") for name, own in settings.items()}
    assert comparable(scales) == [("queue_size 256", ["a", "c"]), ("queue_size 512", ["b"])]
    assert comparable({"a": scales["a"]}) == [("", ["a"])]
