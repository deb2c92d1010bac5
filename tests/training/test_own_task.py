"""A task from outside of the package is trained, resumed, saved, planned and listed like ours."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import openblip
from openblip.batches.loader import Batch
from openblip.batches.tokenizer import TextTokenizer
from openblip.cli import main
from openblip.model import Med
from openblip.model.config import AlbefConfig
from openblip.objectives.clip import ClipTask
from openblip.objectives.finetune import VqaTask
from openblip.objectives.named import TaskNeeds, find_task
from openblip.objectives.pretrain import PretrainTask
from openblip.objectives.settings import ContrastObjectives, VqaObjectives
from openblip.objectives.task import StepOutput, StepPosition, Task, TaskContext
from openblip.plan.footprint import MOMENTS, WEIGHTS, TextLengths, step_footprint
from openblip.recipes.baselines import as_clip
from openblip.runtime.errors import MissingHead, RecipeError, TrainingError
from openblip.training.build import assemble_task, build_model, resolve
from openblip.training.loaders import with_fitting_queue
from openblip.training.metrics_log import read_metrics
from openblip.training.parallelism import Processes
from openblip.training.recipe import ModelOverrides, Recipe, ScheduleConfig
from openblip.training.recipe_file import read_recipe, write_recipe
from openblip.training.run import train
from openblip.training.watching import summarise

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MakeRecipe = Callable[..., Recipe]
ReadStored = Callable[[Path], dict[str, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the tasks below."""

    weight: float = 1.0
    """Of the loss."""


class Headed(Task[Batch]):
    """A head of its own on the model's features."""

    needs = TaskNeeds(settings=Settings)
    trained_heads = ("itc",)

    def __init__(self, student: Med, settings: Settings, context: TaskContext) -> None:
        super().__init__()
        self.student = student
        self.settings = settings
        self.head = torch.nn.Linear(student.config.embed_dim, 1)

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        hidden = self.student.embed_images(self.student.encode_images(batch.images))
        hidden = hidden + self.student.embed_texts(batch.tokens, batch.mask)
        loss = self.settings.weight * (self.head(hidden) ** 2).mean() / self.student.temperature
        return StepOutput(loss, {"square": loss.detach()})


class SaysNoHeads(Headed):
    trained_heads = ()


class SaysOtherHeads(Headed):
    trained_heads = ("itc", "lm")


class TakesATakenName(Headed):
    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        output = super().forward(batch, position)
        return StepOutput(output.loss, {"step": output.loss.detach()})


class OtherStudent(Headed):
    def __init__(self, student: Med, settings: Settings, context: TaskContext) -> None:
        super().__init__(Med(student.config), settings, context)


class ReadsNumbers(Headed):
    """Cannot be simulated: what it does depends on values in Python."""

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        weights = batch.images.sum(dim=(1, 2, 3)).numpy().tolist()
        return super().forward(batch, position) if weights else NotImplemented


class Unfinished(Task[Batch]):
    needs = TaskNeeds(settings=Settings)


class NeedsNothing(Headed):
    needs = None  # type: ignore[assignment]


@dataclass
class Thawed:
    weight: float = 1.0


class NeedsThawed(Headed):
    needs = TaskNeeds(settings=Thawed)


class OwnVqa(VqaTask):
    """Questions: another loader, another model, and a start from a pre-trained MED."""


@dataclass(frozen=True, kw_only=True)
class OwnContrast(ContrastObjectives):
    """Names no losses."""


class ContrastsAnew(Headed):
    needs = TaskNeeds(settings=OwnContrast)


@pytest.fixture
def siglip(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example, as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import siglip_objective

    return siglip_objective


def contrasting(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe for a model that only embeds."""
    return replace(recipe, model=replace(recipe.model, heads=("itc",)), **changes)


@pytest.fixture
def recipe(make_recipe: MakeRecipe, siglip: Any) -> Recipe:
    """The example's task at the smallest size; a longer run is the same run."""
    return contrasting(
        make_recipe(),
        task=siglip.SigLipTask,
        objectives=siglip.SigLipSettings(),
        schedule=ScheduleConfig(kind="step_decay"),
    )


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    return replace(recipe, train=replace(recipe.train, steps=steps))


def test_it_resumes_bit_for_bit_with_weights_of_its_own(
    recipe: Recipe, tmp_path: Path, read_stored: ReadStored
) -> None:
    whole = train(recipe, tmp_path / "whole", quiet=True)
    train(with_steps(recipe, 2), tmp_path / "parts", quiet=True)
    resumed = train(recipe, tmp_path / "parts", quiet=True)
    first, second = (read_stored(result.model_folder) for result in (whole, resumed))
    assert {"task.bias", "optimiser.bias.exp_avg"} <= set(first)
    assert first["task.bias"] != recipe.objectives.bias
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_it_has_trained_is_a_model_like_others(recipe: Recipe, tmp_path: Path) -> None:
    result = train(recipe, tmp_path / "run", quiet=True)
    blip = openblip.load(result.model_folder, device="cpu")
    assert (blip.kind, blip.trained) == ("pretrain", ("itc",))
    assert blip.embed_texts(["a red wall"]).shape == (1, 8)
    with pytest.raises(MissingHead):
        blip.caption([])


def test_a_recipe_stores_the_name_of_the_class(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    write_recipe(recipe, file)
    assert "task: siglip_objective:SigLipTask\n" in file.read_text()
    assert read_recipe(file) == recipe


def test_a_class_of_ours_is_stored_by_our_name(make_recipe: MakeRecipe) -> None:
    assert replace(make_recipe(), task=PretrainTask).task == "pretrain"
    assert (
        replace(make_recipe(), task="openblip.objectives.pretrain:PretrainTask").task == "pretrain"
    )
    assert find_task("clip") is ClipTask


def test_figures_that_cannot_be_counted_are_left_out_with_one_note(
    recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = train(with_steps(recipe, 6), tmp_path)
    assert result.flops is None
    kinds = [line["kind"] for line in read_metrics(tmp_path)]
    assert kinds.count("train") == 3
    assert kinds.count("note") == 1
    assert not any("utilisation" in line for line in read_metrics(tmp_path))
    shown = capfd.readouterr().err
    assert shown.count("no utilisation is told: the arithmetic of SigLipTask is not known") == 1
    assert "utilisation " not in shown.replace("no utilisation is told", "")
    assert (
        "the arithmetic of SigLipTask is not known"
        in (tmp_path / "logs" / "rank-0.log").read_text()
    )
    # And it is still not known when the run goes on.
    assert train(with_steps(recipe, 7), tmp_path, quiet=True).flops is None


def test_a_figure_of_ours_that_fails_does_not_fail_the_run(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> float:
        raise torch.OutOfMemoryError("no room to measure")

    monkeypatch.setattr("openblip.training.run.measure_peak", fail)
    result = train(make_recipe(), tmp_path, quiet=True)
    assert result.flops is not None
    lines = read_metrics(tmp_path)
    assert [line["text"] for line in lines if line["kind"] == "note"] == [
        "no utilisation is told: OutOfMemoryError: no room to measure"
    ]


def test_a_run_is_listed_where_its_code_is_not(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path, quiet=True)
    file = tmp_path / "recipe.yaml"
    file.write_text(file.read_text().replace("siglip_objective", "gone_since"))
    found = summarise(tmp_path)
    assert (found.task, found.step, found.total_steps) == ("gone_since:SigLipTask", 4, 4)
    assert found.settings["objectives.bias"] == -10.0
    assert found.settings["model.heads"] == ["itc"]
    assert found.data == recipe.data.table


def test_its_memory_and_arithmetic_are_planned(make_recipe: MakeRecipe, recipe: Recipe) -> None:
    tokenizer = TextTokenizer.train(["a b"], 60)

    def footprint(planned: Recipe, **options: Any) -> Any:
        lengths = TextLengths(longest=16, mean=12)
        return step_footprint(planned, tokenizer, lengths, pairs=8, **options)

    # CLIP's step has the same products, and keeps as much for its backward pass.
    clip = as_clip(make_recipe())
    for accelerator in (False, True):
        own, known = (footprint(each, accelerator=accelerator) for each in (recipe, clip))
        assert own.missing is None
        assert own.operations == pytest.approx(known.operations, rel=0.1)
        assert own.total == pytest.approx(known.total, rel=0.05)
    # The bias, and what AdamW remembers of it.
    assert own.parts[WEIGHTS] - known.parts[WEIGHTS] == 4
    assert 8 <= own.parts[MOMENTS] - known.parts[MOMENTS] <= 16


def test_a_step_that_cannot_be_simulated_is_planned_without_it(make_recipe: MakeRecipe) -> None:
    own = contrasting(make_recipe(), task=ReadsNumbers, objectives=Settings())
    tokenizer = TextTokenizer.train(["a b"], 60)
    found = step_footprint(own, tokenizer, TextLengths(longest=16, mean=12), pairs=4)
    assert found.missing is not None
    assert found.operations is None
    assert found.parts[MOMENTS] == 2 * found.parts[WEIGHTS]


def assembled(recipe: Recipe) -> Any:
    processes = Processes()
    tokenizer = TextTokenizer.train(["a b"], 60)
    whole = resolve(recipe, tokenizer)
    return assemble_task(whole, build_model(whole, processes), tokenizer, processes)


def test_weights_of_its_own_follow_from_the_seed(make_recipe: MakeRecipe) -> None:
    def head(seed: int) -> torch.Tensor:
        made = make_recipe(seed=seed)
        weight: torch.Tensor = assembled(
            contrasting(made, task=Headed, objectives=Settings())
        ).head.weight
        return weight

    before = torch.random.get_rng_state()
    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (SaysNoHeads, r"`trained_heads` are \(\); name those of itc"),
        (SaysOtherHeads, r"`trained_heads` are \('itc', 'lm'\)"),
        (OtherStudent, "its `student` is not the model"),
    ],
)
def test_what_it_says_of_the_student_is_checked(
    task: type[Headed], message: str, make_recipe: MakeRecipe
) -> None:
    with pytest.raises(RecipeError, match=message):
        assembled(contrasting(make_recipe(), task=task, objectives=Settings()))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Unfinished, "the class lacks forward"),
        (NeedsNothing, r"says no `needs = TaskNeeds\(settings=...\)`"),
        (NeedsThawed, r"give a class with @dataclass\(frozen=True"),
        (Settings, "no subclass of openblip.Task"),
        ("nothing", "choose one of pretrain, .* or name a class of your own as module:Class"),
        ("no_such_module:Task", "no module 'no_such_module'"),
        (Headed, "objectives are PretrainObjectives, but the task '.*:Headed' needs Settings"),
    ],
)
def test_what_is_no_task_is_refused_when_the_recipe_is_made(
    task: Any, message: str, make_recipe: MakeRecipe
) -> None:
    with pytest.raises(RecipeError, match=message):
        replace(make_recipe(), task=task)


def test_another_model_than_it_needs_is_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"model is AlbefConfig, but the task .* needs MedConfig"):
        replace(make_recipe(), task=Headed, objectives=Settings(), model=AlbefConfig())


def test_terms_do_not_take_the_names_of_the_log(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    own = contrasting(make_recipe(), task=TakesATakenName, objectives=Settings())
    with pytest.raises(TrainingError, match="a term 'step', which the log calls something else"):
        train(own, tmp_path, quiet=True)


def test_a_task_of_questions_gets_questions(make_finetuning: MakeRecipe, tmp_path: Path) -> None:
    own = replace(make_finetuning("vqa"), task=OwnVqa)
    assert isinstance(own.objectives, VqaObjectives)
    result = train(own, tmp_path, quiet=True)
    assert openblip.load(result.model_folder, device="cpu").kind == "vqa"


def test_the_queue_of_its_contrast_is_no_longer_than_the_data(make_recipe: MakeRecipe) -> None:
    own = contrasting(make_recipe(), task=ContrastsAnew, objectives=OwnContrast(queue_size=100))
    assert with_fitting_queue(own, 20).objectives.queue_size == 20


def test_it_starts_from_a_trained_model(pretrained: str, recipe: Recipe, tmp_path: Path) -> None:
    own = replace(recipe, model=None, tokenizer=None, init_from=pretrained)
    result = train(with_steps(own, 1), tmp_path, quiet=True)
    blip = openblip.load(result.model_folder, device="cpu")
    assert blip.trained == ("itc",)
    assert set(blip.med.config.heads) == {"itc", "itm", "lm"}


SMALL = [
    *("--tokenizer", "train:60", "--train.steps", "4", "--train.batch-size", "8"),
    *("--train.device", "cpu", "--train.log-every", "1", "--overrides.dropout", "0"),
    *("--overrides.drop-path", "0", "--data.num-threads", "1", "--train.threads", "1"),
    *("--model.vision.depth", "1", "--model.text.depth", "1", "--objectives.bias", "-3"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a module of its own in it."""
    module = (EXAMPLES / "siglip_objective.py").read_text()
    (tmp_path / "objective_here.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", ".")])
    monkeypatch.delitem(sys.modules, "objective_here", raising=False)
    return tmp_path


def test_the_command_trains_and_resumes_it(
    here: Path, table_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "objective_here:recipe", table_uri, str(here / "run"), *SMALL]
    assert main(words) == 0
    assert read_recipe(here / "run" / "recipe.yaml").objectives.bias == -3.0
    assert main(words) == 0
    assert "4 steps" in capsys.readouterr().out
    assert main(["plan", str(here / "run"), "--gpu", "l4", "--json"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)
    assert planned["fits"] is True
    assert planned["run"]["hours"] > 0


def test_its_settings_are_flags(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "objective_here:recipe", "t.lance", "run", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--objectives.bias" in shown
    assert "--objectives.min-temperature" in shown
    assert "--objectives.queue-size" not in shown


BROKEN = """
import openblip
made = openblip.recipes.tiny("none")
def gives_nothing(table): pass
def takes_two(table, other): pass
def fails(table):
    return {}[table]
number = 3
"""


@pytest.mark.parametrize("command", ["pretrain", "plan"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gives_nothing", "broken_here:gives_nothing: gives None, no openblip.Recipe"),
        ("takes_two", "broken_here:takes_two: cannot be called with"),
        ("fails", "broken_here.py, line 7: KeyError:"),
        ("number", "broken_here:number: this is no recipe and no function"),
        ("mad", "broken_here.py has no mad; did you mean made?"),
    ],
)
def test_what_gives_no_recipe_is_told_in_one_line(
    command: str, name: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "broken_here.py").write_text(BROKEN)
    rest = ["t.lance", "run"] if command == "pretrain" else ["--gpu", "cpu"]
    assert main([command, f"broken_here:{name}", *rest]) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "loading" not in x]
    assert message in line


@pytest.mark.parametrize("sharding", ["replicate", pytest.param("full", marks=pytest.mark.slow)])
def test_two_processes_compute_what_one_does(recipe: Recipe, tmp_path: Path, sharding: str) -> None:
    plain = replace(
        recipe,
        overrides=ModelOverrides(dropout=0.0, drop_path=0.0),
        train=replace(recipe.train, batch_size=8, log_every=1),
    )
    divided = replace(plain, train=replace(plain.train, sharding=sharding))
    write_recipe(divided, tmp_path / "together.yaml")
    script = str(Path(__file__).parent / "rank_script.py")
    path = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script, str(tmp_path), "ranks:2", "train:together"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    train(plain, tmp_path / "alone", quiet=True)
    alone, together = (learnt(tmp_path / name) for name in ("alone", "together"))
    assert together == [pytest.approx(line, rel=1e-4) for line in alone]


def learnt(run_dir: Path) -> list[dict[str, float]]:
    """What every step has computed."""
    lines = [line for line in read_metrics(run_dir) if line["kind"] == "train"]
    assert len(lines) == 4
    return [{name: line[name] for name in ("sigmoid", "bias", "grad_norm")} for line in lines]
