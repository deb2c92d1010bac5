"""A comparison file: what is wrong is named with its line."""

import re
from pathlib import Path

import pytest

from openblip.comparison.graph import StageGraph
from openblip.comparison.run import read_comparison
from openblip.comparison.spec import read_spec
from openblip.runtime.errors import RecipeError
from openblip.training.recipe_file import write_recipe
from openblip.world.demo import world_captioner

from .conftest import TINY, written

ROOT = Path(__file__).resolve().parents[2]


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


CAPTIONER_INIT = "    init: noise\n    settings: {train.steps: 1, train.batch_size: 8}\n"
WRONG = {
    "unknown field": ("trained_as:", "trained_like:", "models.clip.trained_like is unknown"),
    "unknown model": ("like: noise, trained", "like: nose, trained", "did you mean noise?"),
    "unknown data": ("data: cleaned", "data: claened", "did you mean cleaned?"),
    "unknown metric": ("retrieval.R@5", "retrieval.R@7", "'retrieval.R@7' has an unknown metric"),
    "task that always fails": ("{k: 4}", "{k: 0}", "k is 0; give at least 1"),
    "no metric": ("retrieval.R@5", "retrieval;R@5", "'retrieval;R@5' is not TASK.METRIC"),
    "unknown setting": ("train.steps: 2", "train.step: 2", "did you mean train.steps?"),
    "seed": ("train.steps: 2", "train.seed: 2", "train.seed is not set here, but by"),
    "seed within a part": ("train.steps: 2", "train: {seed: 2}", "train.seed is not set here"),
    "start": ("train.steps: 2", "init_from: run", "init_from is not set here, but by `init`"),
    "place": ("train.steps: 2", "data.table: pairs", "data.table is not set here, but by `data`"),
    "wrong type": ("train.steps: 2", "train.steps: two", "train.steps is 'two'"),
    "task setting": ("{k: 4}", "{top: 4}", "tasks.retrieval.settings.top is unknown"),
    "more texts than beams": (
        "filter: filter,",
        "filter: filter, num_captions: 4,",
        "num_captions 4: beam search with decoding.num_beams 3 finds no more than 3 texts",
    ),
    "more texts than one": (
        "decoding: {max_length: 10}",
        "decoding: {method: greedy, max_length: 10}, num_captions: 2",
        "num_captions 2: decoding.method greedy finds one text for an image; give decoding.method",
    ),
    "setting of a loss that is not there": (
        "train.steps: 2",
        "train.steps: 2\n      objectives: {losses: [lm], queue_size: 16}",
        "models.noise.settings: objectives.queue_size is 16, which changes nothing with",
    ),
    "setting without what it belongs to": (
        "train.steps: 2",
        "train.steps: 2\n      train.validation_batches: 4",
        "train.validation_batches is 4, which changes nothing without data.validation_split",
    ),
    "score that decides nothing": (
        "synthetic], itm: 0.0",
        "synthetic], score: right",
        "data.view.score is right, which changes nothing without a threshold",
    ),
    "score that decides nothing, as a setting": (
        "train.steps: 2",
        "train.steps: 2\n      data.view.score: right",
        "data.view.score is right, which changes nothing without a threshold",
    ),
    "loss without a head": (
        "trained_as: clip",
        "trained_as: unimodal, settings: {objectives.losses: [itc, lm]}",
        "objectives.losses are itc, lm, but model.heads are itc: give each loss its head",
    ),
    "refused view": ("itm: 0.0", "itm: 7", "itm must be a probability from 0 to 1"),
    "refused world": ("web_rows: 16", "web_rows: -1", "web_rows must be >= 0"),
    "two beginnings": ("recipe: world\n", "recipe: world\n    like: both\n", "give one of"),
    "no such recipe": ("recipe: world_filter", "recipe: world_filer", "did you mean world_filter"),
    "no init": (CAPTIONER_INIT, "", "world_captioner starts from a model: give init"),
    "gains without rows": ("layout: figures", "layout: gains", "a table of gains has rows"),
    "circle": ("like: noise\n    data", "like: noise\n    init: both\n    data", "needs itself"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_names_file_and_line(case: str, tmp_path: Path) -> None:
    before, after, message = WRONG[case]
    text = TINY.replace(before, after, 1)
    assert text != TINY
    with pytest.raises(RecipeError) as error:
        read_comparison(written(tmp_path, text), tmp_path / "out")
    found = re.match(r".*tiny\.yaml, line (\d+): (.*)", str(error.value))
    assert found is not None, error.value
    assert message in found[2]
    # The line of the field, or of the entry that it belongs to.
    changed = line_of(text, after) if after else line_of(text, "  captioner:\n")
    assert changed - 3 <= int(found[1]) <= changed + 1
    assert not (tmp_path / "out").exists()


def test_a_field_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    text = TINY.replace("  clip: {", "  noise: {}\n  clip: {")
    with pytest.raises(RecipeError, match=r"models.noise is there twice, in lines \d+ and \d+"):
        read_spec(written(tmp_path, text))


def test_a_metric_that_a_setting_must_switch_on_is_refused_without_it(tmp_path: Path) -> None:
    text = TINY.replace("tables:\n", "  vqa: {task: vqa}\ntables:\n")
    text = text.replace("[retrieval.TR@1,", "[vqa.WUPS@0.9,")
    message = r"line \d+: .*'vqa\.WUPS@0\.9' needs tasks\.vqa\.settings with wups: true"
    with pytest.raises(RecipeError, match=message):
        read_spec(written(tmp_path, text))
    switched_on = text.replace("{task: vqa}", "{task: vqa, settings: {wups: true}}")
    assert read_spec(written(tmp_path, switched_on))


def test_models_of_one_label_in_one_chart_are_refused(tmp_path: Path) -> None:
    text = TINY.replace("label: CLIP", "label: the noise")
    line = line_of(text, "  - title: Models")
    message = rf"line {line}: tables\.1: noise and clip are both called 'the noise'"
    with pytest.raises(RecipeError, match=message):
        read_spec(written(tmp_path, text))


def test_a_recipe_file_that_starts_from_a_model_needs_init(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    write_recipe(world_captioner("pairs.lance", "runs/noise", 32), recipe)
    text = TINY.replace("recipe: world_captioner", f"recipe: {recipe}")
    assert read_comparison(written(tmp_path, text), tmp_path / "out").stages
    with pytest.raises(RecipeError, match=r"line \d+: .*yaml starts from a model: give init"):
        read_comparison(written(tmp_path, text.replace(CAPTIONER_INIT, "")), tmp_path / "out")


def test_what_is_no_yaml_says_where(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"(?s)cannot be read as YAML .*line 2"):
        read_spec(written(tmp_path, "title: [\n"))
    with pytest.raises(RecipeError, match="expected the fields of a comparison"):
        read_spec(written(tmp_path, "- a\n"))
    with pytest.raises(RecipeError, match=r"nothing\.yaml: cannot be read"):
        read_spec(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("setting", "off"),
    [
        ("objectives: {queue_size: 16, label_smoothing: 0.2}", "objectives.losses: [itm]"),
        ("data.augmentation: {randaugment: true, magnitude: 7}", "data.augmentation.randaugment"),
        ("data.validation_split: val, train.validation_batches: 4", "data.validation_split"),
        ("data.view: {itm: 0.5, score: right}", "data.view.itm"),
        ("stability: {rewinds: 1, skip_steps: 4}", "stability.rewinds: 0"),
    ],
)
def test_a_model_like_another_may_switch_off_what_settings_of_that_belong_to(
    setting: str, off: str, tmp_path: Path
) -> None:
    if ":" not in off:
        off = f"{off}: {'false' if off.endswith('augment') else 'null'}"
    clip = "  clip: {label: CLIP, like: noise, trained_as: clip}\n"
    both = f"""\
  some: {{like: noise, settings: {{{setting}}}}}
  clip: {{label: CLIP, like: some, settings: {{{off}}}}}
"""
    graph = StageGraph(read_spec(written(tmp_path, TINY.replace(clip, both)))[0])
    # What is off has kept its settings, and neither is refused.
    assert graph.recipe("some") != graph.recipe("clip")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.yaml")), ids=lambda p: p.name)
def test_the_files_of_the_project_are_right(path: Path, tmp_path: Path) -> None:
    spec, _ = read_spec(path)
    assert spec.claims
    for name, model in spec.models.items():
        assert model.is_given or StageGraph(spec).recipe(name)
    if path.name == "ablations.yaml":
        assert read_comparison(path, tmp_path / "out").stages
