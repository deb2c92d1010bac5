"""Fingerprints of models of others: of what decides what they compute."""

from pathlib import Path

import pytest

from openblip.checkpoints.reading import model_fingerprint
from openblip.inference.embedder import embedder_fingerprint
from openblip.runtime.errors import CheckpointError

from .published_clip import save_clip


@pytest.mark.parametrize(
    "file",
    ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"],
)
def test_of_a_clip_it_covers_configuration_weights_processor_and_tokenizer(
    file: str, tmp_path: Path
) -> None:
    folder = save_clip(tmp_path / "clip")
    before = embedder_fingerprint(str(folder))
    assert len(before) == 16

    (folder / "README.md").write_text("Made of letters.")
    assert embedder_fingerprint(str(folder)) == before
    moved = folder.rename(tmp_path / "moved")
    assert embedder_fingerprint(str(moved)) == before

    content = (moved / file).read_bytes()
    (moved / file).write_bytes(content + b" ")
    assert embedder_fingerprint(str(moved)) != before


def test_of_a_model_of_ours_it_is_the_same_as_ever(model: str) -> None:
    assert embedder_fingerprint(model) == model_fingerprint(model)


def test_of_open_clip_it_covers_a_tags_name_or_what_is_on_this_machine(tmp_path: Path) -> None:
    tags = ("ViT-B-32/openai", "ViT-B-32/laion2b_s34b_b79k", "ViT-B-16/openai")
    assert len({embedder_fingerprint(f"open_clip:{tag}") for tag in tags}) == 3

    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"1")
    of_file = embedder_fingerprint(f"open_clip:ViT-B-32/{weights}")
    assert embedder_fingerprint(f"open_clip:ViT-B-16/{weights}") != of_file
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text("{}")
    of_folder = embedder_fingerprint(f"open_clip:{folder}")
    weights.rename(folder / "weights.pt")
    assert embedder_fingerprint(f"open_clip:ViT-B-32/{folder / 'weights.pt'}") == of_file
    assert embedder_fingerprint(f"open_clip:{folder}") != of_folder

    with pytest.raises(CheckpointError, match="ARCHITECTURE/PRETRAINED"):
        embedder_fingerprint("open_clip:ViT-B-32")
