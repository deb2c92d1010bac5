"""`train`: from a recipe and a directory to a trained model in it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from openblip.data.loader import Batch
from openblip.errors import TrainingError
from openblip.progress import Progress
from openblip.training.build import (
    build_model,
    build_task,
    compile_parts,
    open_tables,
    training_loader,
    validation_loader,
)
from openblip.training.checkpoint import (
    CheckpointStore,
    RunState,
    read_checkpoint,
    step_name,
    write_checkpoint,
)
from openblip.training.config import Recipe
from openblip.training.distributed import Processes, join_processes
from openblip.training.loop import Loop, Reporting
from openblip.training.metrics_log import MetricsLog
from openblip.training.optimiser import build_optimiser, trained_parameters
from openblip.training.plan import Plan, learning_rates
from openblip.training.run_dir import check_same_data, fingerprint, prepare
from openblip.training.step_flops import task_flops
from openblip.training.trainer import NonFiniteLoss, Trainer
from openblip.training.utilisation import Meter, measure_peak

CHECKPOINT_FOLDER = "checkpoints"
FAILED_BATCH_FILE = "failed_batch.json"
# Ids that an error names before it points to the file with all of them.
_NAMED_IDS = 8


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    run_dir: Path
    """Where everything of the run lies."""
    model_folder: Path
    """The latest checkpoint, which is a model folder."""
    steps: int
    """Optimiser steps done, over all starts of the run."""
    seconds: float
    """Time spent in them, validation included."""
    terms: dict[str, float]
    """Losses by name: means over the steps of the latest log line."""
    interrupted: bool
    """Whether Ctrl-C or SIGTERM ended the run early; the same call goes on."""


def train(
    recipe: Recipe, run_dir: str | Path, *, resume: bool = True, quiet: bool = False
) -> TrainResult:
    """The result of a run, which goes on where an earlier start of it stopped.

    With `torchrun` every process calls this with the same arguments.

    Args:
        recipe: what to train.
        run_dir: made if it is absent. Holds `recipe.yaml`, `metrics.jsonl`, `tensorboard/`,
            `tokenizer/` and `checkpoints/` with the links `last` and `best`.
        resume: False refuses a directory that has checkpoints.
        quiet: show no progress.

    Raises:
        RecipeError: settings contradict each other, the data or the machine.
        DataError: table or view cannot be used, or an image cannot be read.
        CheckpointError: a model or checkpoint is missing or damaged.
        TrainingError: the directory belongs to another recipe, or a loss is not finite.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.train.threads or threads)
    try:
        processes = join_processes(recipe.train.device)
        return _Run(recipe, Path(run_dir), processes, resume).carry_out(quiet)
    finally:
        torch.set_num_threads(threads)


class _Run:
    """The objects of one start of a run."""

    def __init__(self, recipe: Recipe, run_dir: Path, processes: Processes, resume: bool) -> None:
        self.run_dir, self.processes = run_dir, processes
        self.store = CheckpointStore(run_dir / CHECKPOINT_FOLDER)
        checkpoint = self.store.latest()
        if checkpoint is not None and not resume:
            raise TrainingError(
                f"{run_dir} holds a run that stands at {checkpoint.name}: choose another run "
                "directory, or let it be resumed"
            )
        tables = open_tables(recipe.data)
        recipe, self.tokenizer = prepare(recipe, tables, run_dir, processes, checkpoint)
        self.recipe = recipe
        self.loader = training_loader(recipe, tables, self.tokenizer, processes)
        self.validation = validation_loader(recipe, tables, self.tokenizer, processes)
        self.plan = Plan.of(recipe.train, self.loader.batches_per_epoch)
        self.task = build_task(recipe, build_model(recipe), self.tokenizer, processes)
        self.optimiser = build_optimiser(trained_parameters(self.task), recipe.optimiser)
        self.state = self._state_at(checkpoint)
        if recipe.train.compile:
            compile_parts(self.task.student)
        self.trainer = Trainer(
            self.task,
            self.optimiser,
            processes,
            seed=recipe.train.seed,
            precision=recipe.train.precision,
            clip_norm=recipe.optimiser.clip_norm,
            find_unused=not self.task.trains_all_weights,
        )

    def carry_out(self, quiet: bool) -> TrainResult:
        """Train until the end, or until someone asks to stop."""
        finished = self.state.step == self.plan.total_steps
        if not finished:
            with self.loader, self._reporting(quiet) as reporting:
                loop = Loop(
                    self.trainer,
                    self.loader,
                    self.plan,
                    learning_rates(self.recipe, self.plan),
                    self._validate if self.validation is not None else None,
                    self._save,
                    reporting,
                )
                try:
                    finished = loop.run(self.state)
                except NonFiniteLoss as failure:
                    raise self._failed(failure) from None
        self.processes.wait_for_all()
        return TrainResult(
            self.run_dir,
            self.store.folder / "last",
            self.state.step,
            self.state.seconds,
            self.state.terms,
            interrupted=not finished,
        )

    def _state_at(self, checkpoint: Path | None) -> RunState:
        if checkpoint is None:
            return RunState(data_fingerprint=fingerprint(self.loader.mixture))
        state = read_checkpoint(checkpoint, self.task, self.optimiser)
        check_same_data(self.loader.mixture, state.data_fingerprint, self.run_dir)
        if self.processes.is_first:
            # The process may have been killed between writing and linking.
            self.store.point(state.step, state.best_step)
        return state

    @contextmanager
    def _reporting(self, quiet: bool) -> Iterator[Reporting]:
        device = self.processes.device
        dtype = getattr(torch, self.recipe.train.precision)
        progress = Progress(
            f"training {self.recipe.task}",
            total=self.plan.total_steps,
            unit="steps",
            start=self.state.step,
            enabled=self.processes.is_first and not quiet,
        )
        meter = Meter(measure_peak(device, dtype))
        with ExitStack() as stack:
            stack.enter_context(progress)
            for line in self.loader.mixture.summary():
                progress.note(line)
            log = None
            if self.processes.is_first:
                log = stack.enter_context(MetricsLog(self.run_dir, self.state.step))
            yield Reporting(progress=progress, log=log, meter=meter, flops_of=self._flops_of)

    def _flops_of(self, batch: Batch) -> float:
        return task_flops(self.task, batch)

    def _validate(self) -> dict[str, float]:
        assert self.validation is not None
        with self.validation as loader:
            num_batches = min(self.recipe.train.validation_batches, int(loader.batches_per_epoch))
            return self.trainer.evaluate(islice(loader.iterate(), num_batches))

    def _save(self, state: RunState) -> None:
        if self.processes.is_first:
            self._write(step_name(state.step))
            self.store.point(state.step, state.best_step)

    def _write(self, name: str, notes: Mapping[str, str] | None = None) -> None:
        write_checkpoint(
            self.store.folder / name,
            self.task,
            self.tokenizer,
            self.recipe.data.max_tokens,
            self.optimiser,
            self.state,
            notes,
        )

    def _failed(self, failure: NonFiniteLoss) -> TrainingError:
        folder = self.store.folder / f"failed-{step_name(failure.step)}"
        if self.processes.is_first:
            report = {"step": failure.step, "terms": failure.terms, "ids": failure.ids}
            self._write(folder.name, {FAILED_BATCH_FILE: json.dumps(report, indent=2)})
        terms = ", ".join(f"{name} {value:.4g}" for name, value in failure.terms.items())
        named = ", ".join(failure.ids[:_NAMED_IDS])
        more = f" and {n} more" if (n := len(failure.ids) - _NAMED_IDS) > 0 else ""
        return TrainingError(
            f"step {failure.step} is not finite ({terms}). Its pairs: {named}{more} (all in "
            f"{folder / FAILED_BATCH_FILE}). The weights before it are in {folder}. Look at those "
            "pairs, or start anew in another run directory, from these weights with init_from, "
            "with a lower optimiser.lr, optimiser.clip_norm=1, or train.precision=float32"
        )
