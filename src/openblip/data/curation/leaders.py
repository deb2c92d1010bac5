"""Which of several alike things is kept: each is kept unless an earlier kept one is like it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def find_leaders(
    order: Iterable[int],
    look_in: Callable[[int], Sequence[int]],
    stand_in: Callable[[int], Sequence[int]],
    are_alike: Callable[[int, NDArray[np.int64]], NDArray[np.bool_]],
    most_in_group: int | None = None,
) -> dict[int, int]:
    """The kept item that each item repeats; items that are kept are not in it.

    Items are taken in their order. One repeats the first kept item that is like it; if there is
    none it is kept itself. So an item is always like the one that stands for it (chains of
    likeness do not join), and of any number of equal items only one is compared with the next.

    Args:
        order: the items, those that are to be kept first.
        look_in: numbers of the groups where items like this one may be.
        stand_in: numbers of the groups where a kept item is looked for.
        are_alike: which of some kept items, in order, an item is like.
        most_in_group: only the first so many kept items of a group are compared; None for all.
    """
    kept: defaultdict[int, list[int]] = defaultdict(list)
    place: dict[int, int] = {}
    leader: dict[int, int] = {}
    for number, item in enumerate(order):
        near = {other for group in look_in(item) for other in kept.get(group, ())}
        if near:
            candidates = np.array(sorted(near, key=place.__getitem__), dtype=np.int64)
            alike = are_alike(item, candidates)
            if alike.any():
                leader[item] = int(candidates[int(alike.argmax())])
                continue
        place[item] = number
        for group in stand_in(item):
            if most_in_group is None or len(kept[group]) < most_in_group:
                kept[group].append(item)
    return leader
