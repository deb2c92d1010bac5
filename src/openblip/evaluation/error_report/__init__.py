"""Pages on which people look at what a model gets wrong, one module per task."""

import numpy as np
from numpy.typing import NDArray

from openblip.runtime.charts import Curve

PERFECT = Curve(name="perfect", points=[(0.0, 0.0), (1.0, 1.0)])
"""What is as sure as it is right."""


def by_confidence(
    confidence: NDArray[np.float64], values: NDArray[np.float64], parts: int
) -> list[tuple[float, float]]:
    """Mean confidence and mean value of equally many examples each, from the least sure on."""
    order = np.argsort(confidence, kind="stable")
    chosen = [part for part in np.array_split(order, parts) if len(part)]
    return [(float(confidence[part].mean()), float(values[part].mean())) for part in chosen]
