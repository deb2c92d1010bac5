"""What a row of a world tells about itself."""

import json

import pytest

from openblip.runtime.errors import DataError
from openblip.world import WorldConfig, build_world, truth_of


def test_a_row_carries_its_scene_and_its_kind_of_noise() -> None:
    rows = list(build_world(WorldConfig(web_rows=5, human_rows=1, val_rows=1, test_rows=1)))

    for row in rows:
        truth = truth_of(row.meta)
        assert truth == truth_of(json.dumps(row.meta))
        assert (truth.noise is None) == (row.origin == "human")
        assert truth.scene.groups


def test_other_rows_have_no_truth() -> None:
    with pytest.raises(DataError, match="create_world"):
        truth_of({"url": "http://example.org"})
