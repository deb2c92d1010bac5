"""When two images, or two texts, count as nearly the same, and which images of a table do.

Of several alike things each is kept unless an earlier kept one is like it (`find_leaders`).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from openblip.curation.marks import HASH_BITS, Marks
from openblip.runtime.errors import RecipeError

Criterion = Literal["hash", "embedding", "both"]
_BLOCK = 1024
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """Thresholds; equal files need none, but for their embeddings."""

    by: Criterion = "hash"
    """`hash`: hash and colours are near; `embedding`: the cosine is; `both`: all three are."""
    radius: int = 6
    """Most bits of 64 in which the perceptual hashes differ, 0 to 16."""
    colour: int = 24
    """Most that a value of the 4 x 4 RGB thumbnails differs, 0 to 255: the hash is of the grey
    image, and knows no difference between plain areas."""
    cosine: float = 0.95
    """Least cosine of image embeddings; what is near depends on the model."""
    text: float = 0.9
    """Least similarity of texts, see `near_texts.similarity`; 1 for equality after
    normalisation."""

    def __post_init__(self) -> None:
        """Checks every field."""
        if self.by not in ("hash", "embedding", "both"):
            raise RecipeError(f"by must be hash, embedding or both. Got {self.by!r}.")
        if not 0 <= self.radius <= 16:
            raise RecipeError(f"radius must be 0 to 16 bits. Got {self.radius}.")
        if not 0 <= self.colour <= 255:
            raise RecipeError(f"colour must be 0 to 255. Got {self.colour}.")
        if not -1 <= self.cosine <= 1:
            raise RecipeError(f"cosine must be -1 to 1. Got {self.cosine}.")
        if not 0 < self.text <= 1:
            raise RecipeError(f"text must be over 0, and 1 at most. Got {self.text}.")

    @property
    def needs_embeddings(self) -> bool:
        """Whether a model is needed."""
        return self.by != "hash"


def repeated_images(marks: Marks, nearness: Nearness) -> dict[int, int]:
    """For each place whose image repeats an earlier kept one, the place of that; exact.

    Args:
        marks: of images, those that are to be kept first.
        nearness: when an image repeats another.
    """
    order = np.flatnonzero(marks.readable)
    if nearness.by == "embedding":
        return _repeated_by_embedding(marks, order, nearness.cosine)
    unique, groups = np.unique(marks.hashes[order], return_inverse=True)
    neighbours = _neighbours(near_pairs(unique, None, nearness.radius))
    sizes = np.bincount(groups, minlength=len(unique))
    suspicious = sizes > 1
    # An image whose hash is like no other is kept without being looked at.
    suspicious[list(neighbours)] = True
    group_of = np.full(len(marks.readable), -1, dtype=np.int64)
    group_of[order] = groups
    return find_leaders(
        order[suspicious[groups]].tolist(),
        lambda item: [int(group_of[item]), *neighbours.get(int(group_of[item]), ())],
        lambda item: [int(group_of[item])],
        _likeness(marks, marks, nearness),
    )


def seen_images(marks: Marks, evaluation: Marks, nearness: Nearness) -> dict[int, int]:
    """For each place of `marks` whose image is in `evaluation`, the first place there; exact."""
    mine, theirs = np.flatnonzero(marks.readable), np.flatnonzero(evaluation.readable)
    if nearness.by == "embedding":
        return _seen_by_embedding(marks, mine, evaluation, theirs, nearness.cosine)
    unique, groups = np.unique(marks.hashes[mine], return_inverse=True)
    other, other_groups = np.unique(evaluation.hashes[theirs], return_inverse=True)
    neighbours: defaultdict[int, list[int]] = defaultdict(list)
    for group, other_group in near_pairs(unique, other, nearness.radius).tolist():
        neighbours[group] += theirs[other_groups == other_group].tolist()
    are_alike = _likeness(marks, evaluation, nearness)
    suspicious = np.isin(groups, list(neighbours))
    seen = {}
    for item, group in zip(mine[suspicious].tolist(), groups[suspicious].tolist(), strict=True):
        candidates = np.array(sorted(neighbours[group]), dtype=np.int64)
        alike = are_alike(item, candidates)
        if alike.any():
            seen[item] = int(candidates[int(alike.argmax())])
    return seen


def _neighbours(pairs: Rows) -> dict[int, list[int]]:
    neighbours: defaultdict[int, list[int]] = defaultdict(list)
    for first, second in pairs.tolist():
        neighbours[first].append(second)
        neighbours[second].append(first)
    return dict(neighbours)


def _likeness(
    marks: Marks, others: Marks, nearness: Nearness
) -> Callable[[int, Rows], NDArray[np.bool_]]:
    """Which of some images, whose hashes are near, one image is like."""

    def are_alike(item: int, candidates: Rows) -> NDArray[np.bool_]:
        # Signed: the difference of two bytes does not fit into a byte.
        mine = marks.thumbnails[item].astype(np.int16)
        colours = np.abs(others.thumbnails[candidates] - mine).max(axis=1)
        alike: NDArray[np.bool_] = colours <= nearness.colour
        if nearness.by == "both":
            assert marks.embeddings is not None
            assert others.embeddings is not None
            cosines = others.embeddings[candidates] @ marks.embeddings[item]
            alike &= cosines >= nearness.cosine
        # Equal files are the same, whatever colours or embeddings say.
        alike |= others.digests[candidates] == marks.digests[item]
        return alike

    return are_alike


def _repeated_by_embedding(marks: Marks, order: Rows, least: float) -> dict[int, int]:
    """A block of images is compared with all kept ones, then within itself."""
    assert marks.embeddings is not None
    leader: dict[int, int] = {}
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        first = _first_near(marks.embeddings[block], marks.embeddings[kept], least)
        leader |= {
            int(item): int(kept[at]) for item, at in zip(block, first, strict=True) if at >= 0
        }
        # What repeats nothing kept so far may still repeat one of its own block.
        left = block[first < 0]
        near = marks.embeddings[left] @ marks.embeddings[left].T >= least
        own: list[int] = []
        for place, item in enumerate(left.tolist()):
            earlier = [at for at in own if near[place, at]]
            if earlier:
                leader[item] = int(left[earlier[0]])
            else:
                own.append(place)
        kept = np.concatenate([kept, left[own]])
    return leader


def _seen_by_embedding(
    marks: Marks, mine: Rows, evaluation: Marks, theirs: Rows, least: float
) -> dict[int, int]:
    assert marks.embeddings is not None
    assert evaluation.embeddings is not None
    seen: dict[int, int] = {}
    references = evaluation.embeddings[theirs]
    for start in range(0, len(mine), _BLOCK):
        block = mine[start : start + _BLOCK]
        first = _first_near(marks.embeddings[block], references, least)
        seen |= {
            int(item): int(theirs[at]) for item, at in zip(block, first, strict=True) if at >= 0
        }
    return seen


def _first_near(
    queries: NDArray[np.float32], references: NDArray[np.float32], least: float
) -> Rows:
    """The first reference with a cosine of at least `least` for each query, -1 for none.

    All products are computed, on the GPU where there is one.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    first = torch.full((len(queries),), -1, dtype=torch.int64, device=device)
    mine = torch.from_numpy(queries).to(device)
    for start in range(0, len(references), 64 * _BLOCK):
        others = torch.from_numpy(references[start : start + 64 * _BLOCK]).to(device)
        near = mine @ others.T >= least
        # Of equal ones the first counts; booleans have no argmax.
        at = torch.where(near.any(dim=1), near.to(torch.uint8).argmax(dim=1) + start, -1)
        first = torch.where(first >= 0, first, at)
    found: Rows = first.cpu().numpy()
    return found


Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]
# A comparison costs about as much as an eighth of sorting one hash in.
_SORTING = 8
_MOST_EQUAL = 5


def near_pairs(left: Hashes, right: Hashes | None, radius: int) -> Numbers:
    """Places (pairs, 2) of all hashes at most `radius` bits apart, ascending; exact.

    Multi-index hashing (Norouzi, Punjani, Fleet, 2012): of radius + k bands of bits two near
    hashes share at least k, so only hashes that are equal in some k bands are compared. k is
    chosen by the expected number of comparisons. Memory is that of a few copies of the hashes,
    and of the pairs found.

    Args:
        left: hashes, best distinct: equal ones are pairs too.
        right: hashes they are compared with; None for `left` itself, where each pair comes once,
            the lower place first.
        radius: bits, 0 to 16.
    """
    within = right is None
    other = left if right is None else right
    if not left.size or not other.size:
        return np.empty((0, 2), dtype=np.int64)
    width = len(other)
    # A pair is one number, first * width + second: sets of numbers are made and sorted at once, and
    # a pair that is met under several masks is kept once.
    found = np.empty(0, dtype=np.int64)
    for mask in _masks(len(left), width, radius):
        parts = [found]
        for first, second in _equal_under(mask, left, other, within, radius):
            if within:
                first, second = np.minimum(first, second), np.maximum(first, second)
            parts.append(first * width + second)
        found = np.unique(np.concatenate(parts))
    return np.stack(np.divmod(found, width), axis=1)


def _masks(num_left: int, num_right: int, radius: int) -> list[np.uint64]:
    """Which bits must be equal, once for each choice of k bands."""

    def cost(k: int) -> float:
        # More bands must be sorted more often, and leave fewer equal by chance.
        bits = HASH_BITS * k / (radius + k)
        each = _SORTING * (num_left + num_right) + num_left * num_right / 2**bits
        return math.comb(radius + k, k) * each

    k = min(range(1, _MOST_EQUAL + 1), key=cost)
    edges = np.linspace(0, HASH_BITS, radius + k + 1).astype(int).tolist()
    bands = [(1 << high) - (1 << low) for low, high in pairwise(edges)]
    return [np.uint64(sum(chosen)) for chosen in combinations(bands, k)]


def _equal_under(
    mask: np.uint64, left: Hashes, right: Hashes, within: bool, radius: int
) -> Iterator[tuple[Numbers, Numbers]]:
    """Places of pairs that are equal in the bits of the mask, and near."""
    order = np.argsort(right & mask, kind="stable")
    ordered = right[order]
    keys = ordered & mask
    if within:
        # Each asks those behind it alone, so that a pair comes once.
        asking, low = order, np.arange(1, len(order) + 1)
    else:
        asking = np.argsort(left & mask, kind="stable")
        low = np.searchsorted(keys, left[asking] & mask, side="left")
    hashes = left[asking]
    high = np.searchsorted(keys, hashes & mask, side="right")
    step = 0
    rows = np.flatnonzero(low < high)
    # One step compares each hash with the next one of its bucket: as much memory as hashes.
    while rows.size:
        places = low[rows] + step
        near = np.bitwise_count(hashes[rows] ^ ordered[places]) <= radius
        yield asking[rows[near]], order[places[near]]
        step += 1
        rows = rows[low[rows] + step < high[rows]]


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
