"""proto"""
from dataclasses import dataclass
import numpy as np
from numpy.typing import NDArray

@dataclass(frozen=True, eq=False)
class Design:
    shares: NDArray[np.float64]
    scores: tuple[NDArray[np.float64], ...]
    @property
    def sizes(self):
        return np.array([len(s) for s in self.scores])
    @property
    def guesses(self):
        return np.array([0.1 + 0.8 * s.mean() for s in self.scores])
    def kept(self, thresholds):
        return np.stack([len(s) - np.searchsorted(s, thresholds, side="right") for s in self.scores], axis=1)

@dataclass(frozen=True, eq=False)
class Labels:
    strata: NDArray[np.int64]
    itm: NDArray[np.float64]
    right: NDArray[np.float64]
