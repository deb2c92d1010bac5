"""`openblip convert` between the layouts."""

from collections.abc import Callable
from pathlib import Path

import pytest

import openblip
from openblip.cli import main

Checkpoint = Callable[[str], str]


@pytest.mark.parametrize(
    ("kind", "layout", "destination"),
    [
        ("captioner", "huggingface", "theirs"),
        ("filter", "huggingface", "theirs"),
        ("vqa", "huggingface", "theirs"),
        ("pretrain", "openblip", "ours"),
    ],
)
def test_a_model_is_written_in_another_layout(
    photo: str,
    checkpoint: Checkpoint,
    kind: str,
    layout: str,
    destination: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["convert", checkpoint(kind), destination, "--to", layout]) == 0
    assert f"{destination}: {kind}, 32 px" in capsys.readouterr().out
    assert openblip.load(destination, "cpu").kind == kind


def test_there_and_back_through_every_layout(photo: str, checkpoint: Checkpoint) -> None:
    assert main(["convert", checkpoint("captioner"), "theirs", "--to", "huggingface"]) == 0
    assert main(["convert", "theirs", "back"]) == 0
    first, last = (openblip.load(f, "cpu") for f in (checkpoint("captioner"), "back"))
    for name, tensor in first.model.state_dict().items():
        assert tensor.equal(last.model.state_dict()[name]), name


def test_the_originals_file(photo: str, checkpoint: Checkpoint) -> None:
    assert main(["convert", checkpoint("filter"), "itm.pth", "--to", "original"]) == 0
    assert Path("itm.pth").stat().st_size > 10_000


def test_another_image_size(photo: str, checkpoint: Checkpoint) -> None:
    words = ["convert", checkpoint("captioner"), "larger", "--image-size", "64"]
    assert main(words) == 0
    assert openblip.load("larger", "cpu").image_size == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "out", "--to", "huggingface"], "caption and as retrieval"),
        (["captioner", "out.pth", "--to", "original", "--kind", "vqa"], "Med"),
        (["captioner", "out.pth", "--to", "original", "--kind", "vaq"], "no kind 'vaq'"),
        (["captioner", "out", "--image-size", "40"], "image_size 40"),
        (["captioner", "photos", "--to", "huggingface"], "photos"),
    ],
)
def test_what_cannot_be_written_is_named(
    photo: str,
    checkpoint: Checkpoint,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("photos").mkdir()
    Path("photos/mine.jpg").touch()
    assert main(["convert", checkpoint(words[0]), *words[1:]]) == 1
    assert message in capsys.readouterr().err
    assert Path("photos/mine.jpg").exists()


def test_a_name_says_the_layout(tmp_path: Path, checkpoint: Checkpoint) -> None:
    for name in ("model.pth", "model.safetensors"):
        assert main(["convert", checkpoint("filter"), str(tmp_path / name)]) == 0
        assert (tmp_path / name).is_file()
        assert openblip.load(tmp_path / name).kind == "filter"


@pytest.mark.parametrize("layout", ["openblip", "original", "huggingface"])
def test_a_model_that_is_there_is_replaced_only_if_that_is_asked_for(
    tmp_path: Path, checkpoint: Checkpoint, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "model.pth")
    assert main(["convert", checkpoint("filter"), place, "--to", layout]) == 0
    words = ["convert", checkpoint("captioner"), place, "--to", layout]
    assert main(words) == 1
    assert f"{place} is there: give another name, or --overwrite" in capsys.readouterr().err
    assert openblip.load(place).kind == "filter"
    assert main([*words, "--overwrite"]) == 0
    assert openblip.load(place).kind == "captioner"
