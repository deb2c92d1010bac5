"""Texts that say the same in nearly the same letters, and texts that many images have."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from openblip.curation.nearness import find_leaders
from openblip.table.flags import normalised
from openblip.table.judging import string_values
from openblip.table.table import PairTable

_WORD = re.compile(r"\w+")
# Words that are in any text say nothing of what two texts share.
_EMPTY_WORDS = frozenset(
    "a an and are at by for from in is it of on the this to with".split()  # noqa: SIM905
)
_SHINGLE = 4
# Of 60 minima in 10 bands of 6, two texts of similarity 0.9 share a band with a probability of
# 0.9995, of 0.8 with 0.95, of 0.3 with 0.007.
_BANDS, _ROWS = 10, 6
_CHUNK = 50_000
# Texts of one template, a million of them, are alike enough to share buckets, and yet different.
_MOST_IN_BUCKET = 16
_MULTIPLIERS = np.random.default_rng(20220128).integers(
    0, 1 << 64, size=_BANDS * _ROWS, dtype=np.uint64
) | np.uint64(1)


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of the sets of runs of four characters, 0 to 1."""
    return _jaccard(_shingles(first), _shingles(second))


def repeated_texts(texts: Sequence[str], least: float) -> dict[int, int]:
    """For each place whose text repeats an earlier kept one, the place of that.

    Which texts are compared is found by MinHash (Broder, 1997) in bands, so one that is just as
    similar as asked for may be missed (see above); so may one of very many texts that are nearly as
    similar as asked for, as those of a template are. What is found is exact.

    Args:
        texts: distinct and normalised, those that are to be kept first.
        least: similarity from which on a text repeats another, over 0; 1 finds nothing, as the
            texts are distinct.
    """
    if least >= 1 or not texts:
        return {}
    buckets = _buckets(texts)
    suspicious = np.flatnonzero((buckets >= 0).any(axis=1)).tolist()

    def groups(item: int) -> list[int]:
        return [number for number in buckets[item].tolist() if number >= 0]

    are_alike = _likeness(texts, least)
    return find_leaders(
        suspicious,
        groups,
        groups,
        lambda item, candidates: are_alike(texts[item], candidates),
        _MOST_IN_BUCKET,
    )


def seen_texts(texts: Sequence[str], references: Sequence[str], least: float) -> dict[int, int]:
    """For each place whose text is near a reference, the first such place there.

    Found as by `repeated_texts`.

    Args:
        texts: normalised, none of them a reference.
        references: distinct and normalised.
        least: similarity from which on a text is near, over 0.
    """
    if least >= 1 or not texts or not references:
        return {}
    buckets = _buckets([*references, *texts])
    members: defaultdict[int, list[int]] = defaultdict(list)
    for at, row in enumerate(buckets[: len(references)].tolist()):
        for number in row:
            members[number].append(at)
    # -1 stands for no bucket.
    members.pop(-1, None)
    are_alike = _likeness(references, least)
    seen = {}
    own = buckets[len(references) :]
    for place in np.flatnonzero(np.isin(own, list(members)).any(axis=1)).tolist():
        near = {at for number in own[place].tolist() for at in members.get(number, ())}
        candidates = np.array(sorted(near), dtype=np.int64)
        alike = are_alike(texts[place], candidates)
        if alike.any():
            seen[place] = int(candidates[int(alike.argmax())])
    return seen


def _likeness(
    texts: Sequence[str], least: float
) -> Callable[[str, NDArray[np.int64]], NDArray[np.bool_]]:
    def are_alike(text: str, candidates: NDArray[np.int64]) -> NDArray[np.bool_]:
        mine = _shingles(text)
        others = (_shingles(texts[at]) for at in candidates.tolist())
        return np.array([_jaccard(mine, other) >= least for other in others])

    return are_alike


def _jaccard(first: set[str], second: set[str]) -> float:
    common = len(first & second)
    return common / (len(first) + len(second) - common)


def _shingles(text: str) -> set[str]:
    # A text of fewer letters has one shingle, not none.
    text = text.ljust(_SHINGLE)
    return {text[at : at + _SHINGLE] for at in range(len(text) - _SHINGLE + 1)}


def _buckets(texts: Sequence[str]) -> NDArray[np.int64]:
    """Numbers (texts, bands) of the buckets, each of its own band; -1 where a text is alone."""
    keys = np.concatenate(
        [_band_keys(texts[start : start + _CHUNK]) for start in range(0, len(texts), _CHUNK)]
    )
    buckets = np.full(keys.shape, -1, dtype=np.int64)
    num_buckets = 0
    for band in range(_BANDS):
        _, inverse, counts = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        shared = counts[inverse] > 1
        buckets[shared, band] = inverse[shared] + num_buckets
        num_buckets += len(counts)
    return buckets


def _band_keys(texts: Sequence[str]) -> NDArray[np.uint64]:
    """A hash (texts, bands) of the minima of each band."""
    padded = [text.ljust(_SHINGLE) for text in texts]
    letters = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lengths = np.array([len(text) for text in padded])
    ends = np.cumsum(lengths)
    # All texts are one array: a shingle begins at every letter but the last three of each text.
    is_start = np.ones(len(letters), dtype=bool)
    for back in range(1, _SHINGLE):
        is_start[ends - back] = False
    starts = np.flatnonzero(is_start)
    values = np.zeros(len(starts), dtype=np.uint64)
    for offset in range(_SHINGLE):
        values = _mixed(values + letters[starts + offset].astype(np.uint64))
    first = np.concatenate([[0], np.cumsum(lengths - _SHINGLE + 1)[:-1]])
    keys = np.zeros((len(texts), _BANDS), dtype=np.uint64)
    for number, multiplier in enumerate(_MULTIPLIERS):
        # Multiplying by an odd number is a permutation of 64-bit numbers: another random order.
        minima = np.minimum.reduceat(values * multiplier, first)
        band = number // _ROWS
        keys[:, band] = _mixed(keys[:, band] + minima)
    return keys


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A permutation of 64-bit numbers that spreads every bit (splitmix64; Steele et al., 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class CommonTexts:
    """How often the web texts of a table are repeated, and how often they have a word."""

    def __init__(self, texts: Sequence[str], words: Mapping[str, int]) -> None:
        """Takes the normalised web texts, and their words with how often each stands there."""
        keys = [_band_keys(texts[at : at + _CHUNK]) for at in range(0, len(texts), _CHUNK)]
        # Ten numbers a text, of which near ones share one: sorted, so that a look takes no time.
        self._bands = [np.sort(column) for column in np.concatenate(keys).T] if keys else []
        self._words, self._total = words, max(sum(words.values()), 1)

    @classmethod
    def of(cls, table: PairTable) -> "CommonTexts":
        """Those of all rows; 80 bytes of memory for each web text."""
        words: Counter[str] = Counter()
        texts: list[str] = []
        for batch in table.scan(["origin", "captions"]):
            is_web = (string_values(batch["origin"]) == "web").tolist()
            for web, captions in zip(is_web, batch["captions"].to_pylist(), strict=True):
                # People's texts are left out: a text that is made of one of them would know itself.
                for text in (normalised(caption or "") for caption in captions or () if web):
                    words.update(_WORD.findall(text))
                    texts.append(text)
        return cls(texts, words)

    def common(self, texts: Sequence[str], is_own: NDArray[np.bool_]) -> NDArray[np.float64]:
        """log(1 + how many other web texts are the same, or nearly), (texts,)."""
        if not texts or not self._bands:
            return np.zeros(len(texts))
        keys = _band_keys([normalised(text) for text in texts])
        # Texts that share a band are alike with near certainty; the fullest one counts.
        counts = [
            np.searchsorted(band, own, "right") - np.searchsorted(band, own, "left")
            for band, own in zip(self._bands, keys.T, strict=True)
        ]
        others = np.max(counts, axis=0) - is_own
        return np.asarray(np.log1p(np.maximum(others, 0)), dtype=np.float64)

    def frequency(self, texts: Sequence[str], is_own: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Mean log10 of how often web texts have its words, its own use left out, (texts,)."""
        found = np.zeros(len(texts))
        for place, text in enumerate(texts):
            words = Counter(_WORD.findall(normalised(text)))
            used = [
                (max(self._words.get(word, 0) - count * bool(is_own[place]), 0) + 0.5, count)
                for word, count in words.items()
            ]
            logs = [count * np.log10(times / self._total) for times, count in used]
            found[place] = (
                sum(logs) / max(sum(words.values()), 1) if words else -np.log10(self._total)
            )
        return found


def overlap(first: str, second: str) -> float:
    """How many words two texts share, 0 to 1 (the harmonic mean of both shares)."""
    one, two = (set(_WORD.findall(normalised(text))) - _EMPTY_WORDS for text in (first, second))
    return 2 * len(one & two) / max(len(one) + len(two), 1)


def num_words(text: str) -> int:
    """Runs of letters and digits in a text."""
    return len(_WORD.findall(text))
