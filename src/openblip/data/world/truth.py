"""What is known for certain about the rows of a world."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openblip.data.world.scene import Scene, scene_from_dict
from openblip.errors import DataError


@dataclass(frozen=True)
class RowTruth:
    """What an image shows, and of which kind its web caption is."""

    scene: Scene
    noise: str | None
    """One of `NOISE_KINDS`; None for rows with human captions."""


def truth_of(meta: str | Mapping[str, Any]) -> RowTruth:
    """The truth about a row, from its `meta` (the column's JSON or what it holds).

    Raises:
        DataError: the row is not of an embedded world.
    """
    plain = json.loads(meta) if isinstance(meta, str) else meta
    try:
        return RowTruth(scene_from_dict(plain["scene"]), plain.get("noise"))
    except (KeyError, TypeError) as error:
        raise DataError(
            "this row carries no scene in its meta: the truth is known for tables made by "
            "`create_world` only"
        ) from error
