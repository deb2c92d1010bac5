"""When two images, or two texts, count as nearly the same."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from openblip.data.curation.leaders import find_leaders
from openblip.data.curation.marks import Marks
from openblip.data.curation.near import near_pairs
from openblip.errors import RecipeError

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
    suspicious[list(neighbours)] = True
    group_of = np.full(len(marks.readable), -1, dtype=np.int64)
    group_of[order] = groups
    return find_leaders(
        order[suspicious[groups]].tolist(),
        lambda item: [int(group_of[item]), *neighbours.get(int(group_of[item]), ())],
        lambda item: [int(group_of[item])],
        _comparison(marks, marks, nearness),
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
    are_alike = _comparison(marks, evaluation, nearness)
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


def _comparison(
    marks: Marks, others: Marks, nearness: Nearness
) -> Callable[[int, Rows], NDArray[np.bool_]]:
    """Which of some images, whose hashes are near, one image is like."""

    def are_alike(item: int, candidates: Rows) -> NDArray[np.bool_]:
        mine = marks.thumbnails[item].astype(np.int16)
        colours = np.abs(others.thumbnails[candidates] - mine).max(axis=1)
        alike: NDArray[np.bool_] = colours <= nearness.colour
        if nearness.by == "both":
            assert marks.embeddings is not None
            assert others.embeddings is not None
            cosines = others.embeddings[candidates] @ marks.embeddings[item]
            alike &= cosines >= nearness.cosine
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
        at = torch.where(near.any(dim=1), near.to(torch.uint8).argmax(dim=1) + start, -1)
        first = torch.where(first >= 0, first, at)
    found: Rows = first.cpu().numpy()
    return found
