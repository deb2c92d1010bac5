"""Files in the original's layout: what is read, and what is refused, by name."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from openblip.checkpoints.original import from_original, read_original, to_original, write_original
from openblip.model import Med
from openblip.runtime.errors import CheckpointError


@pytest.fixture
def original(med: Med) -> dict[str, Tensor]:
    return to_original(med, "caption")


def assert_same(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(tensors) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(tensors[key], tensor), key


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "in/a/folder/model.pth"])
def test_what_is_written_is_read(tmp_path: Path, original: dict[str, Tensor], name: str) -> None:
    write_original(tmp_path / name, original)
    assert_same(read_original(tmp_path / name), original)


def test_a_pth_stores_tied_weights_once(tmp_path: Path, original: dict[str, Tensor]) -> None:
    write_original(tmp_path / "model.pth", original)
    distinct = {tensor.data_ptr(): tensor.nbytes for tensor in original.values()}
    overhead = 400 * len(original)
    assert (tmp_path / "model.pth").stat().st_size < sum(distinct.values()) + overhead


def test_a_file_that_was_there_is_replaced_and_nothing_is_left_beside(
    tmp_path: Path, original: dict[str, Tensor]
) -> None:
    (tmp_path / "model.pth").write_text("old")
    write_original(tmp_path / "model.pth", original)
    assert_same(read_original(tmp_path / "model.pth"), original)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/model\.pth: cannot be written"):
        write_original(tmp_path / "file" / "model.pth", {})


@pytest.mark.parametrize(
    "save",
    [
        lambda tensors, path: torch.save({"model": tensors, "epoch": 3, "config": {}}, path),
        lambda tensors, path: torch.save(tensors, path),
        lambda tensors, path: torch.save(
            {"model": tensors}, path, _use_new_zipfile_serialization=False
        ),
    ],
    ids=["as the training scripts save", "flat", "before torch 1.6"],
)
def test_every_way_to_save_a_state_dict(
    tmp_path: Path, original: dict[str, Tensor], save: Callable[[Any, Path], None]
) -> None:
    save(original, tmp_path / "model.pth")
    assert_same(read_original(tmp_path / "model.pth"), original)


def test_a_read_model_can_be_trained_without_touching_its_file(
    tmp_path: Path, original: dict[str, Tensor]
) -> None:
    path = tmp_path / "model.pth"
    write_original(path, original)
    before = path.read_bytes()
    med = from_original(read_original(path), str(path)).med()
    with torch.no_grad():
        for parameter in med.parameters():
            parameter.add_(1.0)
    assert path.read_bytes() == before


class TestRefusing:
    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"nothing\.pth: no such file"):
            read_original(tmp_path / "nothing.pth")

    @pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
    @pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
    def test_a_truncated_file(
        self, tmp_path: Path, original: dict[str, Tensor], name: str, part: float
    ) -> None:
        path = tmp_path / name
        write_original(path, original)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(CheckpointError, match=name):
            read_original(path)

    def test_a_pickle_that_would_run_code(self, tmp_path: Path) -> None:
        marker = tmp_path / "code was run"

        class Harmful:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (marker,)

        torch.save({"model": {"weight": Harmful()}}, tmp_path / "model.pth")
        with pytest.raises(CheckpointError, match=r"model\.pth: holds more than tensors"):
            read_original(tmp_path / "model.pth")
        (tmp_path / "plain.pth").write_bytes(pickle.dumps({"weight": Harmful()}, protocol=2))
        with pytest.raises(CheckpointError, match=r"plain\.pth"):
            read_original(tmp_path / "plain.pth")
        assert not marker.exists()

    def test_values_that_are_no_tensors(self, tmp_path: Path) -> None:
        torch.save({"model": {"temp": 0.07}}, tmp_path / "model.pth")
        with pytest.raises(CheckpointError, match=r"model\.pth: temp in 'model' is a float"):
            read_original(tmp_path / "model.pth")

    def test_no_model(self, tmp_path: Path) -> None:
        torch.save({"epoch": 3}, tmp_path / "model.pth")
        with pytest.raises(CheckpointError, match=r"model\.pth: epoch .* no 'model',.* is a int"):
            read_original(tmp_path / "model.pth")

    @pytest.mark.parametrize("content", [{"model": None}, {"model": {}}, {}])
    def test_an_empty_model(self, tmp_path: Path, content: dict[str, Any]) -> None:
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(CheckpointError, match=r"model\.pth: .*no dictionary of tensors"):
            read_original(tmp_path / "model.pth")

    def test_a_lone_tensor(self, tmp_path: Path) -> None:
        torch.save(torch.zeros(2), tmp_path / "model.pth")
        with pytest.raises(CheckpointError, match=r"model\.pth: holds a Tensor"):
            read_original(tmp_path / "model.pth")

    def test_a_picture(self, tmp_path: Path) -> None:
        (tmp_path / "cat.pth").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        with pytest.raises(CheckpointError, match=r"cat\.pth: truncated, or no checkpoint"):
            read_original(tmp_path / "cat.pth")

    def test_a_pth_named_safetensors(self, tmp_path: Path, original: dict[str, Tensor]) -> None:
        torch.save(original, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"model\.safetensors: .*no safetensors file"):
            read_original(tmp_path / "model.safetensors")

    def test_another_models_safetensors(self, tmp_path: Path) -> None:
        save_file({"conv.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
        tensors = read_original(tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"here: no original BLIP"):
            from_original(tensors, "here")
