"""A run directory may be continued with what its run began with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from openblip.data.table import PairTable
from openblip.data.views import CaptionView
from openblip.errors import TrainingError
from openblip.training.config import MixedTable, Recipe
from openblip.training.run import train

from .conftest import wall

MakeRecipe = Callable[..., Recipe]


def test_a_run_does_not_go_on_with_other_rows_of_any_table(
    make_recipe: MakeRecipe, other_table: str, tmp_path: Path
) -> None:
    recipe = make_recipe(steps=2)
    mix = (MixedTable(table=other_table),)
    recipe = replace(recipe, data=replace(recipe.data, mix=mix))
    train(recipe, tmp_path / "run", quiet=True)
    PairTable.open(other_table).append([wall(100, "another")])
    with pytest.raises(TrainingError, match=r"walls\.lance: 20 pairs.*other\.lance: 7 pairs"):
        train(recipe, tmp_path / "run", quiet=True)


def test_a_run_does_not_go_on_with_other_texts_of_the_same_rows(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    rows = [replace(wall(number), origin="web") for number in range(20)]
    table = PairTable.create(tmp_path / "walls.lance", rows)
    table.add_columns(pa.table({"synthetic": [[f"a wall, {n}"] for n in range(20)]}))
    recipe = make_recipe(steps=2)
    view = CaptionView(sources=("web", "synthetic"))
    recipe = replace(recipe, data=replace(recipe.data, table=table.uri, view=view))
    train(recipe, tmp_path / "run", quiet=True)
    assert train(recipe, tmp_path / "run", quiet=True).steps == 2
    again = pa.table({"synthetic": [[f"one wall, {n}"] for n in range(20)]})
    table.add_columns(again, overwrite=True)
    with pytest.raises(TrainingError, match="other rows or texts than its tables have today"):
        train(recipe, tmp_path / "run", quiet=True)
