"""From a recipe to the objects of a run."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.batches.tokenizer import TextTokenizer
from openblip.curation.leakage import flag_leaks
from openblip.objectives.finetune import CaptionerTask
from openblip.objectives.settings import CaptionerObjectives
from openblip.runtime.errors import OpenBlipWarning, RecipeError
from openblip.table.table import PairRow, PairTable
from openblip.training.build import build_model, build_task, make_tokenizer, resolve
from openblip.training.loaders import open_tables, training_loader, validation_loader
from openblip.training.parallelism import Processes
from openblip.training.recipe import MixedTable, Recipe

from .conftest import wall

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def table(table_uri: str) -> PairTable:
    return PairTable.open(table_uri)


@pytest.fixture(scope="module")
def tokenizer(make_recipe: MakeRecipe, table: PairTable) -> TextTokenizer:
    return make_tokenizer(make_recipe(), [table])


def captioner_recipe(recipe: Recipe, **data: Any) -> Recipe:
    return replace(
        recipe,
        task="captioner",
        objectives=CaptionerObjectives(),
        data=replace(recipe.data, **data),
    )


def test_a_tokenizer_learns_the_captions_of_the_view(
    make_recipe: MakeRecipe, tokenizer: TextTokenizer, table: PairTable
) -> None:
    assert tokenizer.decode(tokenizer.encode(["a pale blue wall"], 30).ids[0]) == "a pale blue wall"
    recipe = make_recipe()
    again = replace(recipe, data=replace(recipe.data, prefix="once upon a time "))
    pieces = [
        int(made.encode(["once upon a time"], 30).mask.sum())
        for made in (tokenizer, make_tokenizer(again, [table]))
    ]
    assert pieces[0] > pieces[1], "the prefix is learnt as well"


def test_fresh_weights_depend_on_the_seed_alone(
    make_recipe: MakeRecipe, tokenizer: TextTokenizer
) -> None:
    def first_weight(seed: int) -> torch.Tensor:
        torch.rand(1)
        return build_model(resolve(make_recipe(seed=seed), tokenizer), Processes()).itm_head.weight

    assert torch.equal(first_weight(1), first_weight(1))
    assert not torch.equal(first_weight(1), first_weight(2))


@pytest.mark.parametrize(("sharding", "held"), [("replicate", "cpu"), ("full", "meta")])
def test_of_a_model_that_is_divided_the_first_process_alone_has_the_whole(
    make_recipe: MakeRecipe, tokenizer: TextTokenizer, sharding: str, held: str
) -> None:
    recipe = resolve(make_recipe(sharding=sharding), tokenizer)
    first, second = (build_model(recipe, Processes(rank, world_size=2)) for rank in range(2))
    assert {p.device.type for p in first.parameters()} == {"cpu"}
    assert {p.device.type for p in second.parameters()} == {held}


def test_the_prompt_is_counted_in_tokens(make_recipe: MakeRecipe, tokenizer: TextTokenizer) -> None:
    recipe = resolve(captioner_recipe(make_recipe(), prefix="this wall is "), tokenizer)
    task = build_task(recipe, build_model(recipe, Processes()), tokenizer, Processes())
    assert isinstance(task, CaptionerTask)
    with_prompt = tokenizer.encode(["this wall is red"], 30)
    alone = tokenizer.encode(["red"], 30)
    # The first token and the prompt, without the caption and [SEP].
    assert task.prompt_tokens == int(with_prompt.mask.sum() - alone.mask.sum()) + 1


def test_a_prompt_that_fills_the_text_is_refused(
    make_recipe: MakeRecipe, tokenizer: TextTokenizer
) -> None:
    recipe = captioner_recipe(make_recipe(), prefix="this wall is ", max_tokens=4)
    recipe = resolve(recipe, tokenizer)
    with pytest.raises(RecipeError, match="leaves no room for a caption"):
        build_task(recipe, build_model(recipe, Processes()), tokenizer, Processes())


def test_ranks_and_parts_divide_the_batch(
    make_recipe: MakeRecipe, tokenizer: TextTokenizer, table: PairTable
) -> None:
    """Whatever the division, a step learns from the same rows."""

    def rows_of_first_step(world_size: int, accumulate: int) -> set[int]:
        recipe = make_recipe(batch_size=12, accumulate=accumulate)
        return {
            int(row)
            for rank in range(world_size)
            for part in range(accumulate)
            for row in training_loader(
                recipe, [table], tokenizer, Processes(rank=rank, world_size=world_size)
            )
            .samples_of_step(part)
            .rows
        }

    expected = rows_of_first_step(1, 1)
    assert len(expected) == 12
    assert rows_of_first_step(2, 1) == rows_of_first_step(1, 3) == expected
    assert rows_of_first_step(2, 2) == expected


def test_tables_are_mixed_by_weight_and_validated_where_they_can_be(
    make_recipe: MakeRecipe, tokenizer: TextTokenizer, other_table: str
) -> None:
    recipe = make_recipe(batch_size=16)
    mix = (MixedTable(table=other_table, weight=2.0),)
    recipe = replace(recipe, data=replace(recipe.data, mix=mix, validation_split="val"))
    tables = open_tables(recipe.data)
    loader = training_loader(recipe, tables, tokenizer, Processes())
    assert loader.batches_per_epoch == 2
    with loader:
        ids = [key for batch in islice(loader.iterate(), 2) for key in batch.ids]
    assert sum(key.startswith("row-") for key in ids) == 20
    assert all(ids.count(f"other-{number}") == 2 for number in range(6))
    validation = validation_loader(recipe, tables, tokenizer, Processes())
    assert validation is not None
    assert validation.batches_per_epoch == 1
    assert len(validation.samples_of_step(0).rows) == 4


def test_a_tokenizer_learns_the_captions_of_every_table(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    row = replace(wall(0), captions=["zigzag"])
    other = PairTable.create(tmp_path / "zigzag.lance", [row])
    recipe = make_recipe()
    alone = make_tokenizer(recipe, open_tables(recipe.data))
    mix = (MixedTable(table=other.uri),)
    recipe = replace(recipe, data=replace(recipe.data, mix=mix))
    both = make_tokenizer(recipe, open_tables(recipe.data))
    assert both.decode(both.encode(["zigzag"], 30).ids[0]) == "zigzag"
    assert alone.decode(alone.encode(["zigzag"], 30).ids[0]) != "zigzag"


def test_validation_takes_what_the_split_has(
    make_recipe: MakeRecipe, tokenizer: TextTokenizer, table: PairTable
) -> None:
    recipe = make_recipe(batch_size=20)
    assert validation_loader(recipe, [table], tokenizer, Processes()) is None
    recipe = replace(recipe, data=replace(recipe.data, validation_split="val"))
    loader = validation_loader(recipe, [table], tokenizer, Processes())
    assert loader is not None
    with loader:
        (first, second) = (next(loader.iterate()) for _ in range(2))
    assert len(first.ids) == 4
    # Without augmentation a row looks the same each time.
    assert torch.equal(first.images, second.images)


def test_training_on_known_leaks_warns_and_names_the_remedy(
    make_recipe: MakeRecipe, tokenizer: TextTokenizer, table: PairTable, tmp_path: Path
) -> None:
    rows = table.take(range(24), ["id", "image", "captions", "origin"]).to_pylist()
    copy = PairTable.create(
        tmp_path / "t.lance",
        [PairRow(**{**row, "split": "test" if n == 0 else "train"}) for n, row in enumerate(rows)]
        + [PairRow(**{**rows[0], "id": "leak"})],
    )
    flag_leaks(copy, copy, "test", show_progress=False)
    recipe = make_recipe()
    with pytest.warns(OpenBlipWarning, match=r"1 of the 24 .*--data\.view\.without leaks"):
        training_loader(recipe, [copy], tokenizer, Processes())
    view = replace(recipe.data.view, without=("leaks",))
    recipe = replace(recipe, data=replace(recipe.data, view=view))
    # Two texts of the leaking row stand in the evaluation, others of other rows may do so as well.
    assert training_loader(recipe, [copy], tokenizer, Processes()).mixture.num_rows <= 23
