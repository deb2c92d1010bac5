"""`train`: from a recipe and a directory to a trained model in it."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch

from openblip.batches.loader import PairLoader
from openblip.batches.tokenizer import pack_tokens
from openblip.checkpoints.beginnings import KeyReport
from openblip.model.kernels import Products, machine_key, products, use_products
from openblip.runtime.atomic import replace_file
from openblip.runtime.errors import OpenBlipError, TrainingError, one_line
from openblip.runtime.memory import keep_freed_memory, return_freed_memory
from openblip.runtime.progress import Progress
from openblip.runtime.threads import threads_for
from openblip.training.build import build_model, build_task, compile_stacks
from openblip.training.checkpoint import (
    CheckpointStore,
    CheckpointWriter,
    RunState,
    read_checkpoint,
    read_run_state,
    step_name,
)
from openblip.training.guard import joined, rewind
from openblip.training.ignored import tell_ignored
from openblip.training.loaders import (
    frozen_states,
    judged_texts,
    open_tables,
    share_verdicts,
    training_loader,
    validation_loader,
)
from openblip.training.loop import Loop, NonFiniteLoss, Reporting, Trainer
from openblip.training.metrics_log import MetricsLog, without_tensorboard
from openblip.training.optimiser import (
    RunSteps,
    build_optimiser,
    learning_rates,
    trained_parameters,
)
from openblip.training.parallelism import Processes, join_processes, recorded
from openblip.training.rank_log import RankLog, open_rank_log
from openblip.training.recipe import Recipe
from openblip.training.recipe_file import flattened
from openblip.training.run_dir import CHECKPOINT_FOLDER, check_same_data, prepare, settle
from openblip.training.trackers import Trackers, open_trackers
from openblip.training.utilisation import Meter, measure_peak, task_flops

BEGINNINGS_FILE = "initial_weights.json"
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
    flops: float | None
    """Arithmetic of their forward and backward passes and the teacher's, as `task_flops` counts;
    None of a task that it does not know."""
    terms: dict[str, float]
    """Losses by name: means over the steps of the latest log line."""
    interrupted: bool
    """Whether Ctrl-C or SIGTERM ended the run early; the same call goes on."""
    trained_weights: int
    """Numbers that the optimiser changes: all of the student's, or fewer (`Recipe.lora`)."""
    skipped: tuple[tuple[int, int], ...] = ()
    """Steps that were left out after rewinds, as sorted (first, end) ranges."""


def train(
    recipe: Recipe, run_dir: str | Path, *, resume: bool = True, quiet: bool = False
) -> TrainResult:
    """The result of a run, which goes on where an earlier start of it stopped.

    With `torchrun` every process calls this with the same arguments.

    Args:
        recipe: what to train.
        run_dir: made if it is absent. Holds `recipe.yaml`, `metrics.jsonl`, `tokenizer/`,
            `tensorboard/` (extra `tensorboard`), `logs/` of each process, and `checkpoints/` with
            the links `last` and `best`.
        resume: False refuses a directory that has checkpoints.
        quiet: show no progress.

    Raises:
        RecipeError: settings contradict each other, the data or the machine.
        DataError: table or view cannot be used, or an image cannot be read.
        CheckpointError: a model or checkpoint is missing or damaged.
        TrainingError: the directory belongs to another recipe or a run that lives, or a loss is
            not finite.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.train.threads or threads)
    try:
        return recorded(_train)(recipe, Path(run_dir), resume, quiet)
    finally:
        torch.set_num_threads(threads)


def _train(recipe: Recipe, run_dir: Path, resume: bool, quiet: bool) -> TrainResult:
    processes = join_processes(recipe.train.device)
    with ExitStack() as stack:
        if processes.device.type == "cpu" and keep_freed_memory():
            stack.callback(return_freed_memory)
        # Before anything else is written: the directory may be that of a run that lives.
        rank_log = stack.enter_context(open_rank_log(run_dir, processes))
        return _Run(recipe, run_dir, processes, resume, rank_log).carry_out(quiet)


class _Run:
    """The objects of one start of a run, whose directory this process holds."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        processes: Processes,
        resume: bool,
        rank_log: RankLog,
    ) -> None:
        self.run_dir, self.processes, self.rank_log = run_dir, processes, rank_log
        # The one before the last may be wanted, see `rewind`.
        num_last = 2 if recipe.stability.rewinds else 1
        self.store = CheckpointStore(run_dir / CHECKPOINT_FOLDER, num_last)
        # One process looks, so that all see the same.
        checkpoint = processes.gather_objects(self.store.latest())[0]
        if checkpoint is not None and not resume:
            raise TrainingError(
                f"{run_dir} holds a run that stands at {checkpoint.name}: choose another run "
                "directory, or let it be resumed"
            )
        if checkpoint is None and processes.is_first:
            tell_ignored(recipe)
        tables = open_tables(recipe.data)
        share_verdicts(recipe.data, tables, processes)
        recipe, self.tokenizer = prepare(recipe, tables, run_dir, processes, checkpoint)
        self.loader = training_loader(recipe, tables, self.tokenizer, processes)
        if checkpoint is not None:
            check_same_data(self.loader, read_run_state(checkpoint).data_fingerprint, run_dir)
        recipe = settle(recipe, self.loader.num_examples, run_dir, processes, checkpoint)
        self.recipe = recipe
        self.texts = judged_texts(recipe, self.loader)
        self.validation = validation_loader(recipe, tables, self.tokenizer, processes)
        self.steps = RunSteps.of(recipe.train, self.loader.batches_per_epoch)
        self.begun: list[KeyReport] = []
        model = build_model(recipe, processes, self.begun)
        self._note_beginnings()
        self.task = build_task(recipe, model, self.tokenizer, processes)
        if recipe.train.freeze:
            states_of = frozen_states(recipe, self.task.student)
            for loader in filter(None, (self.loader, self.validation)):
                loader.use_states(states_of)
        # After the task was moved and divided: an optimiser keeps the very parameters that it gets.
        self.optimiser = build_optimiser(trained_parameters(self.task), recipe.optimiser)
        self.state, self.is_new = self._state_at(checkpoint), checkpoint is None
        self._settle_products()
        if recipe.train.compile:
            compile_stacks(self.task.student)
            # Half of a step's forward passes are the teacher's.
            if (teacher := getattr(self.task, "teacher", None)) is not None:
                compile_stacks(teacher)
        self.trainer = Trainer(
            self.task,
            self.optimiser,
            processes,
            seed=recipe.train.seed,
            precision=recipe.train.precision,
            clip_norm=recipe.optimiser.clip_norm,
            find_unused=self._may_leave_weights_out(),
        )
        self.checkpoints = CheckpointWriter(
            processes,
            self.tokenizer,
            recipe.data.max_tokens,
            recipe.data.given_tokens if recipe.data.given else 0,
            self._name_tokens(),
        )

    def _name_tokens(self) -> str:
        """What a captioner that reads writes from its given text alone, packed."""
        if not isinstance(self.loader, PairLoader) or not (found := self.loader.name_tokens()):
            return ""
        return pack_tokens(found, self.tokenizer.vocab_size)

    def _settle_products(self) -> None:
        """Take the products that the run has taken on this machine before, else note today's."""
        if self.processes.device.type != "cpu":
            return
        # The first process's machine decides: a step's parts shall be rounded alike.
        key, here = self.processes.gather_objects((machine_key(), str(products())))[0]
        kept = self.state.products.setdefault(key, here)
        if kept != here:
            self.rank_log.note(f"products: {kept}, as the run began; of this machine now: {here}")
        use_products(Products.of(kept))

    def _note_beginnings(self) -> None:
        """Write what became of every key of the weights that a fresh model begins with."""
        for report in self.begun:
            self.rank_log.note(f"{report}, see {BEGINNINGS_FILE}")
        if self.begun and self.processes.is_first:
            with replace_file(self.run_dir / BEGINNINGS_FILE) as unfinished:
                text = json.dumps([asdict(report) for report in self.begun], indent=2)
                unfinished.write_text(f"{text}\n", encoding="utf-8")

    def _may_leave_weights_out(self) -> bool:
        """Whether some weights get no gradient; of a backbone's nobody knows."""
        # DDP waits for the gradient of every weight, unless it is told to look which get none.
        has_backbone = self.task.student.config.vision.backbone is not None
        return has_backbone or not self.task.trains_all_weights

    def carry_out(self, quiet: bool) -> TrainResult:
        """Train until the end, or until someone asks to stop."""
        finished = self.state.step == self.steps.total_steps
        if not finished:
            self.rank_log.begin(self.state.step, self.steps.total_steps)
            with self._threads(), self.loader, self._trackers() as trackers:
                with self.checkpoints, self._reporting(quiet, trackers) as reporting:
                    finished = self._run_to_the_end(reporting)
                trackers.state = "finished" if finished else "interrupted"
                trackers.results = self._results()
                self.rank_log.end("finished" if finished else "interrupted", self.state.step)
        self.processes.wait_for_all()
        return TrainResult(
            self.run_dir,
            self.store.folder / "last",
            self.state.step,
            self.state.seconds,
            self.state.flops,
            self.state.terms,
            interrupted=not finished,
            trained_weights=self._num_trained(),
            skipped=tuple(joined(self.state.skipped)),
        )

    def _run_to_the_end(self, reporting: Reporting) -> bool:
        """Whether the run came to its end; it goes back as often as it must and may."""
        if self.recipe.stability.rewinds and self.is_new:
            # Something to go back to before the first regular checkpoint.
            self._save(self.state)
        while True:
            # A new one each time: the sums of the old one are of steps that were undone.
            loop = Loop(
                self.trainer,
                self.loader,
                self.steps,
                learning_rates(self.recipe, self.steps),
                self.recipe.stability,
                self._validate if self.validation is not None else None,
                self._save,
                reporting,
            )
            try:
                return loop.run(self.state)
            except NonFiniteLoss as failure:
                if self.state.rewinds >= self.recipe.stability.rewinds:
                    raise self._failed(failure) from None
                self._rewind(failure, reporting)

    def _threads(self) -> AbstractContextManager[None]:
        """As many as the recipe says, or else as are worth it for the layers' products."""
        if self.recipe.train.threads is not None or self.processes.device.type != "cpu":
            return nullcontext()
        # The smallest product of an image layer, which has four times as large ones: measured, two
        # threads lose where it is 18 million (docs/log.md).
        vision = self.task.student.config.vision
        rows = self.recipe.train.batch_size * vision.num_patches
        return threads_for(rows * vision.width**2)

    def _rewind(self, failure: NonFiniteLoss, reporting: Reporting) -> None:
        """Go back to a good checkpoint, and leave out the failed step and some before it."""
        # Its threads have made batches ahead.
        self.loader.close()
        self.checkpoints.wait()
        self.processes.wait_for_all()
        stability, stood_at = self.recipe.stability, self.state.step
        self.state = rewind(
            self.store,
            self.task,
            self.optimiser,
            self.processes,
            self.state,
            failure.step,
            stability,
        )
        self.processes.wait_for_all()
        self._save(self.state)
        first, end = next(r for r in self.state.skipped if r[0] <= failure.step < r[1])
        text = (
            f"{_what_failed(failure)}: back to step "
            f"{self.state.step}, leaving out steps {first} to {end - 1} (rewind "
            f"{self.state.rewinds} of {stability.rewinds})"
        )
        self.rank_log.warn(text)
        reporting.progress.update(self.state.step - stood_at)
        if reporting.log is not None:
            reporting.log.go_back(self.state.step)
            values = {"failed_step": failure.step, "skipped": [first, end], "ids": failure.ids}
            reporting.log.event("rewind", self.state.step, values, text)

    @contextmanager
    def _trackers(self) -> Iterator[Trackers]:
        names = self.recipe.train.trackers if self.processes.is_first else ()
        settings = flattened(self.recipe)
        with open_trackers(names, self.run_dir, settings, self.rank_log.warn) as trackers:
            yield trackers

    def _results(self) -> dict[str, float]:
        state = self.state
        values = {"steps": state.step, "seconds": state.seconds, "rewinds": state.rewinds}
        if state.best_step is not None:
            values["best_loss"] = state.best_loss
        return {**{f"final/{name}": value for name, value in state.terms.items()}, **values}

    def _state_at(self, checkpoint: Path | None) -> RunState:
        if checkpoint is None:
            return RunState(data_fingerprint=self.loader.fingerprint())
        state = read_checkpoint(checkpoint, self.task, self.optimiser)
        if state.step > self.steps.total_steps:
            raise TrainingError(
                f"{self.run_dir} has done {state.step} steps, and the recipe asks for "
                f"{self.steps.total_steps}: choose another run directory for a shorter run"
            )
        if self.processes.is_first:
            # The process may have been killed between writing and linking.
            self.store.point(state.step, state.best_step)
        return state

    @contextmanager
    def _reporting(self, quiet: bool, trackers: Trackers) -> Iterator[Reporting]:
        device = self.processes.device
        dtype = getattr(torch, self.recipe.train.precision)
        progress = Progress(
            f"training {self.recipe.task}",
            total=self.steps.total_steps,
            unit="steps",
            start=self.state.step,
            enabled=self.processes.is_first and not quiet,
        )
        with ExitStack() as stack:
            stack.enter_context(progress)
            self.rank_log.note(f"texts: {self.texts}")
            if device.type == "cpu":
                self.rank_log.note(f"threads: {_threads_told(self.recipe.train.threads)}")
            begun = [f"{report}, see {BEGINNINGS_FILE}" for report in self.begun]
            for line in (*begun, *self.loader.summary(), f"texts: {self.texts}"):
                progress.note(line)
            if self.recipe.train.freeze:
                progress.note("the image encoder is frozen: images are not augmented")
            if self.recipe.lora.rank or self.recipe.train.freeze:
                trained, every = self._num_trained(), _count(self.task.student.parameters())
                progress.note(f"trains {trained:,} of {every:,} weights ({trained / every:.2%})")
            log = None
            if self.processes.is_first:
                log = MetricsLog(self.run_dir, self.state.step, trackers.threads)
                stack.enter_context(log)

            def note(line: str) -> None:
                self.rank_log.note(line)
                progress.note(line)
                if log is not None:
                    log.note(self.state.step, line)

            if log is not None and (lack := without_tensorboard()):
                note(lack)
            figures = _Figures(note)
            yield Reporting(
                progress=progress,
                log=log,
                rank_log=self.rank_log,
                meter=Meter(figures.known(lambda: measure_peak(device, dtype))),
                flops_of=lambda batch: figures.known(lambda: task_flops(self.task, batch)),
            )

    def _num_trained(self) -> int:
        return _count(trained_parameters(self.task))

    def _validate(self) -> dict[str, float]:
        assert self.validation is not None
        with self.validation as loader:
            num_batches = min(self.recipe.train.validation_batches, int(loader.batches_per_epoch))
            return self.trainer.evaluate(islice(loader.iterate(), num_batches))

    def _save(self, state: RunState) -> None:
        last, best = state.step, state.best_step
        self._write(step_name(last), then=lambda: self.store.point(last, best))

    def _write(
        self,
        name: str,
        notes: Mapping[str, str] | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        folder = self.store.folder / name
        self.checkpoints.write(folder, self.task, self.optimiser, self.state, notes, then)

    def _failed(self, failure: NonFiniteLoss) -> TrainingError:
        folder = self.store.folder / f"failed-{step_name(failure.step)}"
        report = {"step": failure.step, "terms": failure.terms, "ids": failure.ids}
        self._write(folder.name, {FAILED_BATCH_FILE: json.dumps(report, indent=2)})
        named = ", ".join(failure.ids[:_NAMED_IDS])
        more = f" and {n} more" if (n := len(failure.ids) - _NAMED_IDS) > 0 else ""
        if failure.is_learnt:
            return TrainingError(
                f"{_what_failed(failure)}. They are in {folder}, and in no checkpoint. "
                "Start anew in another run directory, with a lower optimiser.lr or "
                "optimiser.clip_norm=1"
            )
        return TrainingError(
            f"{_what_failed(failure)}. Its pairs: {named}{more} "
            f"(all in {folder / FAILED_BATCH_FILE}). The weights before it are in {folder}. Look "
            "at those pairs; or go on without them with stability.rewinds="
            f"{self.recipe.stability.rewinds + 1}; or start anew in another run directory, from "
            "these weights with init_from, with a lower optimiser.lr, optimiser.clip_norm=1, or "
            "train.precision=float32"
        )


class _Figures:
    """Figures about a run, of which none is worth the run: what cannot be had is noted, once."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._missed: set[str] = set()

    def known(self, count: Callable[[], float]) -> float | None:
        """The figure, or None."""
        try:
            return count()
        except Exception as why:
            reason = one_line(why)
            if not isinstance(why, OpenBlipError):
                reason = f"{type(why).__name__}: {reason}"
            if reason not in self._missed:
                self._missed.add(reason)
                self._note(f"no utilisation is told: {reason}")
            return None


def _threads_told(asked: int | None) -> str:
    """How many threads compute, and why so many: the last bits of what is learnt depend on it."""
    count = torch.get_num_threads()
    if asked is not None:
        return f"{count}, as train.threads says"
    return f"{count}, for products of this size (train.threads says otherwise)"


def _count(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _what_failed(failure: NonFiniteLoss) -> str:
    terms = ", ".join(f"{name} {value:.4g}" for name, value in failure.terms.items())
    if failure.is_learnt:
        shown = f" ({terms})" if terms else ""
        return f"the weights after step {failure.step} are not finite or have exploded{shown}"
    return f"step {failure.step} is not finite ({terms})"
