"""Which stages a comparison has, and what their fingerprints depend on."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from openblip.comparison.graph import StageGraph
from openblip.comparison.spec import ComparisonSpec, read_spec
from openblip.comparison.stages import Given, Stage, closure
from openblip.recipes.baselines import as_clip
from openblip.runtime.errors import RecipeError
from openblip.table.reviews import ReviewLog, ReviewRecord, Verdict
from openblip.table.table import PairTable
from openblip.training.recipe import Recipe
from openblip.training.recipe_file import FieldError, recipe_from_dict

from .conftest import TINY, written


def spec_of(folder: Path, text: str = TINY) -> ComparisonSpec:
    return read_spec(written(folder, text))[0]


def stages_of(spec: ComparisonSpec, seed: int = 0) -> dict[str, Stage]:
    """By kind and name of the last model or data."""
    graph = StageGraph(spec)
    wanted = [graph.evaluation(m, t, seed) for m in spec.models for t in spec.tasks]
    return {f"{s.kind} {s.name}".split(",")[0]: s for s in closure(wanted).values()}


def recipe_of(stage: Stage | Given) -> Recipe:
    assert isinstance(stage, Stage)
    values: dict[str, Any] = stage.settings["recipe"]
    return recipe_from_dict(values)


@pytest.fixture
def spec(tmp_path: Path) -> ComparisonSpec:
    return spec_of(tmp_path)


def test_what_is_needed_comes_first_and_once(spec: ComparisonSpec) -> None:
    names = list(stages_of(spec))
    assert names.index("data pairs") < names.index("train noise") < names.index("train filter")
    assert names.index("train filter") < names.index("capfilt cleaned") < names.index("train both")
    assert len(names) == len(set(names)) == 1 + 5 + 1 + 10


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("world: {web_rows: 16", "world: {web_rows: 17", "everything"),
        (
            "train.steps: 1, train.batch_size: 8}",
            "train.steps: 3, train.batch_size: 8}",
            {"train captioner", "capfilt cleaned", "train both"},
        ),
        ("itm: 0.0", "itm: 0.1", {"train both"}),
        ("max_length: 10", "max_length: 11", {"capfilt cleaned", "train both"}),
        ("trained_as: clip", "trained_as: unimodal", {"train clip"}),
        ("label: CLIP", "label: another", set()),
    ],
)
def test_a_change_concerns_what_depends_on_it(
    before: str, after: str, changed: Any, spec: ComparisonSpec, tmp_path: Path
) -> None:
    old, new = stages_of(spec), stages_of(spec_of(tmp_path, TINY.replace(before, after, 1)))
    differ = {name for name in old if old[name].fingerprint != new[name].fingerprint}
    if changed == "everything":
        assert differ == set(old)
        return
    models = {name.removeprefix("train ") for name in changed if name.startswith("train ")}
    evaluated = {n for n in old if n.startswith("evaluate ") and n.split()[1] in models}
    assert differ == changed | evaluated


def test_a_new_name_changes_no_fingerprint(spec: ComparisonSpec, tmp_path: Path) -> None:
    renamed = spec_of(tmp_path, TINY.replace("cleaned", "other"))
    assert spec.data.keys() != renamed.data.keys()
    old, new = stages_of(spec), stages_of(renamed)
    assert old["train both"].fingerprint == new["train both"].fingerprint


def test_each_seed_has_its_own_world_unless_one_is_given(
    spec: ComparisonSpec, tmp_path: Path
) -> None:
    fixed = spec_of(tmp_path, TINY.replace("{web_rows", "{seed: 5, web_rows"))
    assert len({StageGraph(spec).data("pairs", seed).fingerprint for seed in (0, 1)}) == 2
    assert len({StageGraph(fixed).data("pairs", seed).fingerprint for seed in (0, 1)}) == 1
    assert len({StageGraph(fixed).model("noise", seed).fingerprint for seed in (0, 1)}) == 2


def test_like_begins_with_the_recipe_of_another_model(spec: ComparisonSpec) -> None:
    graph = StageGraph(spec)
    noise, both, clip = (recipe_of(graph.model(m, 1)) for m in ("noise", "both", "clip"))
    assert noise.train.seed == both.train.seed == 1
    assert both.data.view.sources == ("human", "web", "synthetic")
    assert both.model == noise.model
    assert clip == as_clip(noise)


def test_the_same_training_can_go_on_from_weights(tmp_path: Path) -> None:
    text = TINY.replace("  clip: {", "  more: {like: both, init: noise}\n  clip: {")
    graph = StageGraph(spec_of(tmp_path, text))
    more, stage = graph.recipe("more"), graph.model("more", 0)
    assert (more.task, more.model, more.tokenizer) == ("pretrain", None, None)
    assert isinstance(stage, Stage)
    assert stage.inputs["init"] is graph.model("noise", 0)
    assert stage.inputs["table"] is graph.data("cleaned", 0)


def test_files_that_a_recipe_names_count_by_what_is_in_them(tmp_path: Path) -> None:
    for name in ("vocab.txt", "same.txt"):
        (tmp_path / name).write_text("[PAD]\n[UNK]\n")
    table = PairTable.create(tmp_path / "more.lance")
    shutil.copytree(table.uri, tmp_path / "same.lance")

    def noise(tokenizer: str, mixed: str) -> Stage | Given:
        text = TINY.replace("train:300", str(tmp_path / tokenizer)).replace(
            "train.steps: 2", f"data.mix: [{{table: {tmp_path / mixed}}}]\n      train.steps: 2"
        )
        return StageGraph(spec_of(tmp_path, text)).model("noise", 0)

    first = noise("vocab.txt", "more.lance")
    assert isinstance(first, Stage)
    assert first.inputs["mix.0"] == Given(table.uri, table.fingerprint, 1)
    assert first.inputs["tokenizer"].place == str(tmp_path / "vocab.txt")
    assert noise("same.txt", "same.lance").fingerprint == first.fingerprint
    (tmp_path / "same.txt").write_text("[PAD]\n[UNK]\na\n")
    assert noise("same.txt", "more.lance").fingerprint != first.fingerprint
    table.update_metadata({"more": "1"})
    assert noise("vocab.txt", "more.lance").fingerprint != first.fingerprint
    assert noise("vocab.txt", "same.lance").fingerprint == first.fingerprint


def test_another_table_in_the_place_of_one_changes_the_fingerprint(tmp_path: Path) -> None:
    place = tmp_path / "pairs.lance"
    world = "world: {web_rows: 16, human_rows: 24, val_rows: 2, test_rows: 8}"
    spec = spec_of(tmp_path, TINY.replace(world, f"table: {place}"))
    table = PairTable.create(place)
    first = StageGraph(spec).data("pairs", 0)
    assert first == StageGraph(spec).data("pairs", 1) == Given(str(place), table.fingerprint, 1)
    shutil.rmtree(place)
    PairTable.create(place)
    assert StageGraph(spec).data("pairs", 0).fingerprint != first.fingerprint


def test_verdicts_count_where_reviewed_texts_are_asked_for(tmp_path: Path) -> None:
    table = PairTable.create(tmp_path / "pairs.lance")
    world = "world: {web_rows: 16, human_rows: 24, val_rows: 2, test_rows: 8}"
    text = TINY.replace(world, f"table: {table.uri}")
    text = text.replace("    label: the noise\n", "    view: {sources: [web, reviewed]}\n")

    def fingerprints() -> tuple[str, str]:
        graph = StageGraph(spec_of(tmp_path, text))
        return graph.model("noise", 0).fingerprint, graph.model("captioner", 0).fingerprint

    def judge(verdict: Verdict) -> None:
        record = ReviewRecord(
            row="r", source="web", place=0, text="t", verdict=verdict, reviewer="a", table_version=1
        )
        ReviewLog.of(table.uri).append([record])

    seen = [fingerprints()]
    for verdict in ("right", "wrong"):
        judge(verdict)
        seen.append(fingerprints())
    # The captioner begins with the model whose training asks.
    assert len(set(seen)) == 3
    text = text.replace("view: {sources: [web, reviewed]}", "view: {sources: [web]}")
    before = fingerprints()
    judge("right")
    assert fingerprints() == before


OWN = """
from dataclasses import replace
from openblip.recipes.pretrain import tiny

def longer(table):
    recipe = tiny(table)
    return replace(recipe, train=replace(recipe.train, steps=7))
"""


def test_a_recipe_may_be_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))

    def named(name: str) -> Stage:
        text = TINY.replace("  noise:\n    recipe: world\n", f"  noise:\n    recipe: {name}\n")
        text = text.replace("      train.steps: 2\n", "", 1)
        return stages_of(spec_of(tmp_path, text))["train noise"]

    assert recipe_of(named("recipes_of_mine:longer")).train.steps == 7
    with pytest.raises(RecipeError, match=r"models.noise.recipe: .* has no shorter"):
        named("recipes_of_mine:shorter")


def test_files_of_a_source_count_by_their_names_and_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = "world: {web_rows: 16, human_rows: 24, val_rows: 2, test_rows: 8}"
    given = "sources: [{source: $DATA/photos, origin: human}]"

    def seen() -> str:
        stage = StageGraph(spec_of(tmp_path, TINY.replace(world, given))).data("pairs", 0)
        return stage.fingerprint

    monkeypatch.setenv("DATA", str(tmp_path))
    file = tmp_path / "photos" / "train" / "a.jpg"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"one")
    first = seen()
    shutil.copytree(tmp_path / "photos", tmp_path / "copy" / "photos")
    monkeypatch.setenv("DATA", str(tmp_path / "copy"))
    assert seen() == first
    monkeypatch.chdir(tmp_path / "photos")
    monkeypatch.setenv("DATA", "../copy")
    assert seen() == first
    monkeypatch.setenv("DATA", str(tmp_path))
    status = file.stat()
    file.write_bytes(b"two")  # as long, and set back to its time
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = seen()
    (tmp_path / "photos" / "test").mkdir()
    file.rename(tmp_path / "photos" / "test" / "a.jpg")
    assert len({first, changed, seen()}) == 3


MAKER = """
def noisy(place, seed, source, noise=0.5):
    raise NotImplementedError
"""


class TestTablesThatAFunctionMakes:
    @pytest.fixture
    def made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        """The stage of such a table, for settings and a seed."""
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("DATA", str(tmp_path))
        monkeypatch.delitem(sys.modules, "makers_of_mine", raising=False)
        (tmp_path / "makers_of_mine.py").write_text(MAKER)
        (tmp_path / "list.txt").write_text("one")
        world = "world: {web_rows: 16, human_rows: 24, val_rows: 2, test_rows: 8}"

        def stage(settings: str = "noise: 0.5", seed: int = 0, by: str = "noisy") -> Stage | Given:
            given = (
                f"{{by: 'makers_of_mine:{by}', settings: {{source: $DATA/list.txt, {settings}}}}}"
            )
            spec = spec_of(tmp_path, TINY.replace(world, f"made: {given}"))
            return StageGraph(spec).data("pairs", seed)

        return stage

    def test_settings_seed_code_and_files_decide(self, made: Any, tmp_path: Path) -> None:
        first = made()
        assert first.settings["made"]["settings"] == {
            "source": "$DATA/list.txt",
            "noise": 0.5,
            "seed": 0,
        }
        assert first.placed["made"]["settings"]["source"] == str(tmp_path / "list.txt")
        assert made().fingerprint == first.fingerprint
        others = {made("noise: 0.75").fingerprint, made(seed=1).fingerprint}
        (tmp_path / "list.txt").write_text("another")
        others.add(made().fingerprint)
        (tmp_path / "makers_of_mine.py").write_text(f"{MAKER}# changed\n")
        others.add(made().fingerprint)
        assert len(others - {first.fingerprint}) == 4

    def test_neither_place_nor_time_of_a_file_decides(
        self, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = made()
        copy = tmp_path / "elsewhere"
        copy.mkdir()
        (copy / "list.txt").write_text((tmp_path / "list.txt").read_text())
        os.utime(copy / "list.txt", (1, 1))
        monkeypatch.setenv("DATA", str(copy))
        again = made()
        assert again.fingerprint == first.fingerprint
        assert again.placed["made"]["settings"]["source"] == str(copy / "list.txt")

    def test_what_is_no_such_function_is_refused(self, made: Any, tmp_path: Path) -> None:
        with pytest.raises(FieldError, match=r"makers_of_mine.* has no noise") as refused:
            made(by="noise")
        assert refused.value.field == "data.pairs"
        with pytest.raises(RecipeError, match="the seed is that of the comparison"):
            made("seed: 3")
        with pytest.raises(RecipeError, match="name a function as module:name"):
            made(by="with spaces")


def test_fields_that_came_later_count_once_they_are_set(tmp_path: Path) -> None:
    """Stages that were finished before a field was there are not made again."""

    def view_of(text: str) -> dict[str, Any]:
        stage = StageGraph(spec_of(tmp_path, text)).model("both", 0)
        assert isinstance(stage, Stage)
        view: dict[str, Any] = stage.settings["recipe"]["data"]["view"]
        return view

    assert set(view_of(TINY)) == {"sources", "itm", "split", "itm_of", "without"}
    assert view_of(TINY.replace("itm: 0.0", "itm: 0.0, score: right"))["score"] == "right"
