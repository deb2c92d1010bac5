"""What a run says of its texts before it begins."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from openblip.batches.step_loader import spread
from openblip.batches.text import Cleaning
from openblip.batches.tokenizer import TextTokenizer
from openblip.runtime.errors import DataError, OpenBlipWarning, RecipeError
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView
from openblip.training.recipe import DataConfig, MixedTable, Recipe
from openblip.training.run import train

MakeRecipe = Callable[..., Recipe]


def row(number: int, *captions: str, **meta: object) -> PairRow:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (number * 20 % 256, 0, 0)).save(file, format="PNG")
    return PairRow(
        f"row-{number}", file.getvalue(), captions=list(captions), origin="human", meta=meta
    )


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> str:
    words = ["a red wall", "a green wall", "this wall is blue", "yes no what colour is it"] * 3
    TextTokenizer.train(words, 60).save(tmp_path / "vocabulary")
    return str(tmp_path / "vocabulary")


def on_texts(recipe: Recipe, folder: Path, tokenizer: str, *texts: str, **data: object) -> Recipe:
    """The recipe on a table of these captions, read with a tokenizer that was made before."""
    uri = str(folder / "texts.lance")
    PairTable.create(uri, [row(number, text) for number, text in enumerate(texts * 8)])
    return replace(recipe, tokenizer=tokenizer, data=replace(recipe.data, table=uri, **data))


def test_a_run_on_words_that_the_vocabulary_lacks_does_not_begin(
    make_recipe: MakeRecipe, tmp_path: Path, tokenizer_file: str
) -> None:
    recipe = on_texts(make_recipe(steps=1), tmp_path, tokenizer_file, "a красная стена")
    told = r"67% of the tokens .* are \[UNK\] \('красная', 'стена'\).*--data.max-unknown 1 goes on"
    with pytest.raises(DataError, match=told):
        train(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()
    asked = replace(recipe, data=replace(recipe.data, max_unknown=1.0))
    assert train(asked, tmp_path / "run", quiet=True).steps == 1


def test_a_run_tells_the_share_of_unknown_and_cut_texts(
    make_recipe: MakeRecipe,
    tmp_path: Path,
    tokenizer_file: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = ("a red стена", "this wall is " * 9, "a red wall")
    recipe = on_texts(
        make_recipe(steps=1), tmp_path, tokenizer_file, *texts, max_tokens=6, max_words=20
    )
    train(recipe, tmp_path / "run")
    said = capsys.readouterr().err
    assert "texts: 10.0% of the tokens are [UNK] ('стена'), " in said
    assert "8 of 24 texts are cut at 6 tokens: --data.max-tokens, " in said
    assert "8 of 24 texts are cut at 20 words: --data.max-words " in said
    assert "(counted over all examples)" in said
    assert (
        "texts: 10.0% of the tokens are [UNK]" in next(tmp_path.glob("run/logs/*.log")).read_text()
    )


def test_a_run_on_known_short_texts_says_so(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(make_recipe(steps=1), tmp_path / "run")
    told = (
        "texts: 0.0% of the tokens are [UNK], none of 40 texts is cut (counted over all examples)"
    )
    assert told in capsys.readouterr().err


def test_of_many_examples_a_sample_is_counted_over_all_tables(
    make_recipe: MakeRecipe, tmp_path: Path, tokenizer_file: str
) -> None:
    from openblip.training.loaders import open_tables, training_loader
    from openblip.training.parallelism import join_processes

    recipe = on_texts(make_recipe(), tmp_path, tokenizer_file, "a red wall", "a стена")
    mixed = MixedTable(table=recipe.data.table, view=recipe.data.view, weight=0.5)
    recipe = replace(recipe, data=replace(recipe.data, mix=(mixed,)))
    tokenizer = TextTokenizer.from_file(tokenizer_file)
    processes = join_processes("cpu")
    loader = training_loader(recipe, open_tables(recipe.data), tokenizer, processes)
    sample = loader.text_sample(8)
    assert (sample.num_examples, sample.of_examples, sample.count.num_texts) == (8, 32, 8)
    assert str(sample).endswith("(counted over a sample of 8 of 32 examples)")


@pytest.mark.parametrize("task", ["vqa", "nlvr"])
def test_questions_answers_and_sentences_count(
    make_recipe: MakeRecipe, tmp_path: Path, tokenizer_file: str, task: str
) -> None:
    from openblip.batches.image_pairs import ImagePairIndex, ImagePairLoader
    from openblip.batches.questions import QuestionIndex, QuestionLoader

    meta = {
        "vqa": {"questions": [{"question": "What colour is it", "answers": ["красный"]}]},
        "nlvr": {"pairs": [{"sentence": "a red стена " * 20, "second": "row-0", "label": True}]},
    }[task]
    uri = str(tmp_path / "texts.lance")
    PairTable.create(uri, [row(number, **meta) for number in range(4)])
    index, kind = {
        "vqa": (QuestionIndex, QuestionLoader),
        "nlvr": (ImagePairIndex, ImagePairLoader),
    }[task]
    tokenizer = TextTokenizer.from_file(tokenizer_file)
    loader = kind(index.resolve(PairTable.open(uri), "train"), tokenizer, 2, 16, None, 30, 40, 0)
    sample = loader.text_sample(100)
    assert (sample.num_examples, sample.of_examples) == (4, 4)
    assert set(sample.count.words) == {"красный" if task == "vqa" else "стена"}
    assert (sample.count.num_cut, sample.num_cut_words) == ((0, 0) if task == "vqa" else (4, 4))


def test_numbers_are_spread_evenly() -> None:
    assert spread(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert spread(101, 3).tolist() == [0, 50, 100]
    assert spread(0, 3).tolist() == []


def test_words_behind_the_last_one_that_is_read_are_seen() -> None:
    assert Cleaning().exceeds("a b c d", 3)
    assert not Cleaning().exceeds("a b c .", 3), "a mark is no word"
    assert not Cleaning().exceeds("", 1)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_between_none_and_all(share: float) -> None:
    with pytest.raises(RecipeError, match="max_unknown"):
        DataConfig(table="t", max_unknown=share)


def test_all_processes_see_the_verdicts_of_the_first_though_people_go_on(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    from openblip.table.reviews import ReviewLog, ReviewRecord
    from openblip.table.views import CaptionView
    from openblip.training.loaders import open_tables, resolved_parts, share_verdicts
    from openblip.training.parallelism import Processes

    uri = str(tmp_path / "texts.lance")
    PairTable.create(uri, [row(number, "a red wall") for number in range(4)])
    sent: list[object] = []

    class Rank(Processes):
        def gather_objects(self, value: object) -> list[object]:
            sent.append(value)
            return [sent[0], sent[-1]]

    def judge(number: int) -> None:
        record = ReviewRecord(
            row=f"row-{number}", source="human", place=0, text="a red wall", verdict="right",
            reviewer="ada", table_version=1,
        )  # fmt: skip
        ReviewLog.of(uri).append([record])

    view = CaptionView(sources=("reviewed",))
    data = DataConfig(table=uri, view=view, image_size=16)
    rows = []
    for rank in range(2):
        judge(rank)
        tables = open_tables(data)
        share_verdicts(data, tables, Rank(rank=rank, world_size=2))
        judge(2 + rank)
        rows.append([part.index.rows.tolist() for part in resolved_parts(data, tables)])
    assert rows == [[[0]], [[0]]]
    assert sent[1] is None


def test_a_source_that_contributes_nothing_to_a_run_is_warned_of(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(steps=1)
    table = PairTable.open(recipe.data.table)
    rows = table.take(range(8), ["id", "image", "captions", "origin"]).to_pylist()
    mixed = PairTable.create(
        tmp_path / "mixed.lance",
        [PairRow(**{**row, "origin": "web" if n < 2 else "human"}) for n, row in enumerate(rows)],
    )
    scores = [[0.1, 0.2] if n < 2 else None for n in range(8)]
    mixed.add_columns(pa.table({"captions_itm": pa.array(scores, pa.list_(pa.float32()))}))
    view = CaptionView(sources=("human", "web"), itm=0.5)
    recipe = replace(
        recipe,
        data=replace(recipe.data, table=mixed.uri, view=view),
        objectives=replace(recipe.objectives, queue_size=4),
    )
    with pytest.warns(OpenBlipWarning, match=r"none of 4 web texts counts at itm=0\.5 "):
        train(recipe, tmp_path / "run", quiet=True)
