"""Training on a table that lies in an object store."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from openblip.table.table import PairTable
from openblip.training.recipe import Recipe
from openblip.training.run import train

from ..s3_server import S3Proxy
from .conftest import wall


def test_the_weights_are_those_of_a_table_on_the_disk(
    make_recipe: Callable[..., Recipe], s3: S3Proxy, tmp_path: Path
) -> None:
    recipe = make_recipe()
    uri = f"{s3.bucket}/walls.lance"
    PairTable.create(uri, (wall(number) for number in range(24)))
    s3.share, s3.faults = 0.4, ("slow down", "drop", "cut")
    away = train(replace(recipe, data=replace(recipe.data, table=uri)), tmp_path / "s3", quiet=True)
    here = train(recipe, tmp_path / "disk", quiet=True)
    assert s3.failed.total() > 0
    files = [run.model_folder / "model.safetensors" for run in (away, here)]
    assert files[0].read_bytes() == files[1].read_bytes()
