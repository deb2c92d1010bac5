"""Checkpoints are complete or absent, and few."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.folder import read_folder
from openblip.model import Med, MedConfig
from openblip.objectives.pretrain import PretrainObjectives, PretrainTask
from openblip.runtime.errors import CheckpointError
from openblip.training.checkpoint import (
    STATE_FOLDER,
    CheckpointStore,
    CheckpointWriter,
    RunState,
    read_checkpoint,
    step_name,
)
from openblip.training.parallelism import Processes

ReadStored = Callable[[Path], dict[str, torch.Tensor]]
TOKENIZER = TextTokenizer.train(["a wall", "a red wall"] * 3, 40)


def make_task(seed: int, queue_size: int = 4) -> PretrainTask:
    torch.manual_seed(seed)
    config = MedConfig.preset("tiny", vocab_size=TOKENIZER.vocab_size, image_size=32)
    objectives = PretrainObjectives(queue_size=queue_size)
    return PretrainTask(Med(config), TOKENIZER.special, objectives, seed)


def stepped_optimiser(task: PretrainTask) -> torch.optim.Optimizer:
    parameters = list(task.student.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    optimiser.step()
    return optimiser


def write(
    folder: Path, task: PretrainTask, optimiser: torch.optim.Optimizer, state: RunState
) -> None:
    with CheckpointWriter(Processes(), TOKENIZER, max_tokens=20) as writer:
        writer.write(folder, task, optimiser, state)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PretrainTask]:
    folder, task = tmp_path_factory.mktemp("run") / step_name(3), make_task(seed=1)
    state = RunState(step=3, best_loss=2.5, best_step=2, terms={"lm": 1.0})
    write(folder, task, stepped_optimiser(task), state)
    return folder, task


def test_a_checkpoint_restores_everything(written: tuple[Path, PretrainTask]) -> None:
    folder, task = written
    other = make_task(seed=2)
    optimiser = torch.optim.AdamW(other.student.parameters(), lr=1e-3)
    state = read_checkpoint(folder, other, optimiser)
    assert state == RunState(step=3, best_loss=2.5, best_step=2, terms={"lm": 1.0})
    expected, restored = task.state_dict(), other.state_dict()
    assert expected.keys() == restored.keys()
    assert all(torch.equal(expected[name], restored[name]) for name in expected)
    moments = optimiser.state_dict()["state"]
    assert torch.allclose(moments[0]["exp_avg"], torch.tensor(0.05))


def test_it_is_a_model_folder(written: tuple[Path, PretrainTask]) -> None:
    folder, task = written
    loaded = read_folder(folder)
    assert (loaded.kind, loaded.max_tokens, loaded.image_size) == ("pretrain", 20, 32)
    assert torch.equal(loaded.med.itm_head.weight, task.student.itm_head.weight)


def test_training_goes_on_while_it_is_written(tmp_path: Path, read_stored: ReadStored) -> None:
    task = make_task(seed=1)
    optimiser, state = stepped_optimiser(task), RunState(step=1)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    order: list[str] = []
    with CheckpointWriter(Processes(), TOKENIZER, max_tokens=20) as writer:
        writer.write(tmp_path / "a", task, optimiser, state, then=lambda: order.append("a"))
        with torch.no_grad():
            for tensor in task.state_dict().values():
                tensor.zero_()
        optimiser.step()
        state.step = 2
        writer.write(tmp_path / "b", task, optimiser, state, then=lambda: order.append("b"))
    assert order == ["a", "b"]
    stored = read_stored(tmp_path / "a")
    assert all(torch.equal(stored[f"task.{name}"], before[name]) for name in before)
    assert torch.equal(stored["optimiser.student.temperature.step"], torch.tensor(1.0))
    student = read_folder(tmp_path / "a").med.state_dict()
    assert all(torch.equal(student[name], before[f"student.{name}"]) for name in student)
    other = make_task(seed=2)
    assert read_checkpoint(tmp_path / "a", other, stepped_optimiser(other)).step == 1


def test_one_that_cannot_be_written_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    task, folder = make_task(seed=1), tmp_path / step_name(1)
    writer = CheckpointWriter(Processes(), TOKENIZER, max_tokens=20)
    writer.write(folder, task, stepped_optimiser(task), RunState(), {"no/such/folder": ""})
    with pytest.raises(CheckpointError, match=rf"{folder}: cannot be written .* goes on"):
        writer.wait()
    assert not list(tmp_path.iterdir())
    # The next one may succeed.
    write(folder, task, stepped_optimiser(task), RunState())
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_another_recipe_is_refused(written: tuple[Path, PretrainTask]) -> None:
    task = make_task(seed=1, queue_size=6)
    with pytest.raises(CheckpointError, match=r"queue.image_embed has shape \(4, 64\), expected"):
        read_checkpoint(written[0], task, torch.optim.AdamW(task.student.parameters()))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    task = make_task(seed=1)
    optimiser = stepped_optimiser(task)
    folder = tmp_path / step_name(1)
    write(folder, task, optimiser, RunState(step=1))
    for file in (".metadata", "__0_0.distcp"):
        path = folder / STATE_FOLDER / file
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match=rf"{STATE_FOLDER}: cannot be read.*; remove"):
            read_checkpoint(folder, task, optimiser)
        path.write_bytes(whole)
    (folder / "run_state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run_state.json: cannot be read.*; remove"):
        read_checkpoint(folder, task, optimiser)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    folder, task = tmp_path / step_name(1), make_task(seed=1)
    optimiser = stepped_optimiser(task)
    write(folder, task, optimiser, RunState(step=1))
    harmful = tmp_path / "harm"

    class Harm:
        def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
            return Path.touch, (harmful,)

    (folder / STATE_FOLDER / ".metadata").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(CheckpointError, match="has no place in it"):
        read_checkpoint(folder, task, optimiser)
    assert not harmful.exists()


def test_one_of_an_earlier_version_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "training_state.pt").touch()
    task = make_task(seed=1)
    with pytest.raises(CheckpointError, match=r"earlier version.*init_from"):
        read_checkpoint(tmp_path, task, stepped_optimiser(task))


def steps_in(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_best_and_last_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (1, 2, 3, 4):
        (tmp_path / step_name(step)).mkdir()
    store.point(last=4, best=2)
    assert steps_in(store) == ["best", "last", step_name(2), step_name(4)]
    assert (tmp_path / "last").readlink() == Path(step_name(4))
    assert (tmp_path / "best").resolve() == (tmp_path / step_name(2)).resolve()
    store.point(last=4, best=4)
    assert steps_in(store) == ["best", "last", step_name(4)]


def test_of_a_run_that_was_copied_without_its_links_they_stand_again(tmp_path: Path) -> None:
    # As scp and the clients of object stores copy: what a link names comes as a folder.
    store = CheckpointStore(tmp_path)
    for name in (step_name(4), "last", "best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    assert store.latest() == tmp_path / step_name(4)
    (tmp_path / step_name(6)).mkdir()
    store.point(last=6, best=4)
    assert steps_in(store) == ["best", "last", step_name(4), step_name(6)]
    assert (tmp_path / "last").readlink() == Path(step_name(6))
    assert (tmp_path / "best").readlink() == Path(step_name(4))


def test_a_best_that_was_copied_goes_with_its_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for name in (step_name(4), "best"):
        (tmp_path / name).mkdir()
    store.point(last=4, best=None)
    assert steps_in(store) == ["last", step_name(4)]


def test_a_last_without_its_checkpoint_is_told_and_stays(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    with pytest.raises(CheckpointError, match=r"last: .* rename it to step-"):
        CheckpointStore(tmp_path).latest()
    assert (tmp_path / "last").is_dir()


def test_before_the_first_judgement_there_is_no_best(tmp_path: Path) -> None:
    (tmp_path / step_name(1)).mkdir()
    store = CheckpointStore(tmp_path)
    store.point(last=1, best=None)
    assert steps_in(store) == ["last", step_name(1)]


def test_after_a_rewind_no_later_checkpoint_stays_not_even_as_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, num_last=2)
    for step in (3, 6, 9):
        (tmp_path / step_name(step)).mkdir()
    store.point(last=9, best=9)
    assert steps_in(store) == ["best", "last", step_name(6), step_name(9)]
    store.point(last=6, best=None)
    assert steps_in(store) == ["last", step_name(6)]


def test_a_kill_within_a_removal_leaves_no_half_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        next(Path(path).iterdir()).unlink()
        raise KeyboardInterrupt

    store = CheckpointStore(tmp_path)
    for step in (3, 6, 9):
        (tmp_path / step_name(step)).mkdir()
        for name in ("weights", "state"):
            (tmp_path / step_name(step) / name).touch()
    with monkeypatch.context() as patch:
        patch.setattr("openblip.training.checkpoint.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            store.point(last=9, best=None)
    assert all(len(list(path.iterdir())) == 2 for path in store.by_step().values())
    store.point(last=9, best=None)
    assert steps_in(store) == ["last", step_name(9)]


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    assert store.latest() is None
    for name in (step_name(8), step_name(12), f".{step_name(16)}.77.unfinished", "failed-step-9"):
        (tmp_path / name).mkdir()
    assert store.latest() == tmp_path / step_name(12)
    store.point(last=12, best=12)
    assert steps_in(store) == ["best", "failed-step-9", "last", step_name(12)]
