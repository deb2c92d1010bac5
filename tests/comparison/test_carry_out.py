"""What is carried out is what was planned."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from openblip.batches.tokenizer import TextTokenizer
from openblip.cli import main
from openblip.comparison.carry_out import carry_out
from openblip.comparison.graph import StageGraph
from openblip.comparison.spec import read_spec
from openblip.comparison.stages import Given, Order, Stage
from openblip.inference.blip import Blip
from openblip.inference.loading import load
from openblip.runtime.errors import DataError
from openblip.table.reviews import ReviewLog, ReviewRecord, verdicts_digest
from openblip.table.table import PairTable
from openblip.training.recipe_file import read_recipe
from openblip.world import WorldConfig, create_world

from ..inference.conftest import TEXTS, make_med
from .conftest import written

FROM_A_FILE = """\
title: From a file
seeds: [0]
data:
  pairs: {{table: {table}}}
models:
  given: {{checkpoint: {model}}}
  tuned:
    recipe: captioner
    init: given
    settings:
      train.steps: 1
      train.epochs: null
      train.batch_size: 2
      train.device: cpu
      optimiser.lr: 0.0
      optimiser.weight_decay: 0.0
tasks:
  caption: {{task: caption}}
tables:
  - {{title: One, models: [tuned], figures: [caption.CIDEr]}}
"""


@pytest.fixture
def table(tmp_path: Path) -> PairTable:
    return PairTable.create(tmp_path / "pairs.lance")


@pytest.fixture
def order(table: PairTable, tmp_path: Path) -> Order:
    """To do something with the table."""
    given = Given(table.uri, table.fingerprint, table.version)
    return Order.read(Stage("train", "any", {}, {"table": given}).write_order(tmp_path / "stages"))


def test_a_table_that_has_changed_since_is_read_as_it_was(order: Order, table: PairTable) -> None:
    assert order.latest_table() == table.uri
    table.update_metadata({"more": "1"})
    assert order.table().fingerprint == order.of["table"] != table.fingerprint
    with pytest.raises(DataError, match="changed during the comparison: run the same command"):
        order.latest_table()


def test_verdicts_that_were_added_since_are_told_where_they_count(
    table: PairTable, tmp_path: Path
) -> None:
    given = Given(table.uri, table.fingerprint, table.version)
    orders = [
        Order.read(Stage("train", "any", settings, {"table": given}).write_order(tmp_path / "s"))
        for settings in ({"verdicts": {"table": verdicts_digest([])}}, {})
    ]
    assert [order.latest_table() for order in orders] == [table.uri] * 2
    record = ReviewRecord(
        row="r", source="web", place=0, text="t", verdict="right", reviewer="a", table_version=1
    )
    ReviewLog.of(table.uri).append([record])
    with pytest.raises(DataError, match="changed during the comparison: run the same command"):
        orders[0].latest_table()
    assert orders[1].latest_table() == table.uri


def test_another_table_in_its_place_is_an_error(order: Order, table: PairTable) -> None:
    shutil.rmtree(table.uri)
    PairTable.create(table.uri)
    with pytest.raises(DataError, match="changed during the comparison: run the same command"):
        order.table()


def test_of_one_image_in_several_sources_the_first_is_taken_and_the_other_told(
    tmp_path: Path,
) -> None:
    sources = []
    for name, text in (("people", "a red square"), ("web", "best price")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), "red").save(tmp_path / name / f"{name}.png")
        (tmp_path / name / f"{name}.txt").write_text(text)
        sources.append({"source": str(tmp_path / name), "origin": "web", "ids": "sha256"})
    stage, root = Stage("data", "any", {"sources": sources}), tmp_path / "stages"
    carry_out(stage.write_order(root))
    result = stage.result(root)
    assert result is not None
    assert result["rows"] == 1
    # Two files: the image, and the text beside it.
    assert result["left_out"] == {str(tmp_path / "web"): {"duplicate id": 2}}
    table = PairTable.open(stage.folder(root) / "pairs.lance")
    assert table.take([0], ["captions"])["captions"].to_pylist() == [["a red square"]]


def test_the_time_of_earlier_attempts_counts(tmp_path: Path) -> None:
    source = tmp_path / "pairs"
    values = {"source": str(source), "origin": "human"}
    stage, root = Stage("data", "any", {"sources": [values]}), tmp_path / "stages"
    with pytest.raises(DataError):
        carry_out(stage.write_order(root))
    spent = json.loads((stage.folder(root) / "seconds.json").read_text())
    (stage.folder(root) / "seconds.json").write_text(json.dumps(spent + 100))
    source.mkdir()
    Image.new("RGB", (8, 8)).save(source / "a.png")
    (source / "a.txt").write_text("black")
    carry_out(stage.write_order(root))
    result = stage.result(root)
    assert result is not None
    assert result["rows"] == 1
    assert result["seconds"] > 100 + spent > 100


def test_a_training_reads_the_files_that_its_recipe_names(tmp_path: Path) -> None:
    world = WorldConfig(web_rows=0, human_rows=24, test_rows=8)
    table = create_world(tmp_path / "pairs.lance", world)
    TextTokenizer.train(["a red square", "two blue dots"], 60).save(tmp_path / "words")
    text = f"""\
title: Files
data: {{pairs: {{table: {table.uri}}}}}
models:
  one:
    recipe: world
    settings:
      data.mix: [{{table: {table.uri}}}]
      objectives.queue_size: 16
      tokenizer: {tmp_path / "words"}
      train.batch_size: 8
      train.steps: 1
tasks: {{retrieval: {{task: retrieval}}}}
tables: [{{title: A, models: [one], figures: [retrieval.TR@1]}}]
"""
    graph = StageGraph(read_spec(written(tmp_path, text))[0])
    stage = graph.model("one", 0)
    assert isinstance(stage, Stage)
    root = tmp_path / "stages"
    carry_out(stage.write_order(root))
    assert stage.result(root)
    recipe = read_recipe(stage.folder(root) / "run" / "recipe.yaml")
    assert [part.table for part in recipe.data.mixture] == [table.uri] * 2
    assert recipe.tokenizer == str(tmp_path / "words" / "tokenizer.json")


MAKER = """
from openblip.table.table import PairRow, PairTable

def rows(place, seed, count):
    PairTable.create(place, (PairRow(f"{seed}-{n}", b"", captions=["a"]) for n in range(count)))
"""


def test_a_table_that_a_function_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows_of_mine.py").write_text(MAKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = {"by": "rows_of_mine:rows", "settings": {"count": 3, "seed": 7}}
    stage, root = Stage("data", "any", {"made": made}), tmp_path / "stages"
    folder = stage.write_order(root)
    # An earlier attempt was killed within the function.
    PairTable.create(folder / "unfinished.lance")
    carry_out(folder)
    assert stage.result(root)["rows"] == 3  # type: ignore[index]
    table = PairTable.open(folder / "pairs.lance")
    assert table.take([0, 2], ["id"])["id"].to_pylist() == ["7-0", "7-2"]


@pytest.mark.parametrize("layout", ["original", "huggingface"])
def test_a_training_starts_from_a_model_of_any_layout(tmp_path: Path, layout: str) -> None:
    tokenizer = TextTokenizer.train(TEXTS, 90)
    med = make_med(tokenizer, heads=("lm",))
    Blip(med, tokenizer, "captioner", 32, 30).save(tmp_path / "ours")
    place = tmp_path / ("theirs.pth" if layout == "original" else "theirs")
    assert main(["convert", str(tmp_path / "ours"), str(place), "--to", layout]) == 0
    create_world(
        tmp_path / "t.lance", WorldConfig(web_rows=2, human_rows=4, val_rows=2, test_rows=2)
    )
    spec = written(tmp_path, FROM_A_FILE.format(table=tmp_path / "t.lance", model=place))
    stage = StageGraph(read_spec(spec)[0]).model("tuned", 0)
    assert isinstance(stage, Stage)
    carry_out(stage.write_order(tmp_path / "stages"))
    # Nothing was learnt, so that the weights are those of the start.
    trained = load(stage.folder(tmp_path / "stages") / "run", "cpu").model.state_dict()
    begun = med.state_dict()
    assert all(torch.equal(trained[name], weight) for name, weight in begun.items())
