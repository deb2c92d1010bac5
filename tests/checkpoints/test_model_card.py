"""The card of a model folder says what is known of the model, and nothing else."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.huggingface import save_huggingface
from openblip.checkpoints.model_card import (
    CARD_FILE,
    EVALUATIONS_FILE,
    Evaluation,
    note_evaluation,
)
from openblip.model import Med, MedConfig
from openblip.runtime.errors import OpenBlipWarning


def card_of(folder: Path, tokenizer: TextTokenizer, source: str) -> str:
    sizes = MedConfig.preset("tiny", vocab_size=tokenizer.vocab_size, image_size=32)
    med = Med(MedConfig(vision=sizes.vision, text=sizes.text, heads=("lm",)))
    save_huggingface(folder, med, tokenizer, source=source)
    return (folder / CARD_FILE).read_text(encoding="utf-8")


def make_run(folder: Path) -> Path:
    """A training run with its recipe and its log; the folder of its checkpoint."""
    recipe = {
        "task": "captioner",
        "data": {"table": "/data/mine/pairs.lance", "view": {"sources": ["human"], "itm": 0.5}},
        "train": {"batch_size": 32, "seed": 7},
        "optimiser": {"lr": 0.0005},
        "init_from": "noisy/checkpoints/last",
    }
    checkpoint = folder / "checkpoints" / "step-00000400"
    checkpoint.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lines = [
        {"step": 380, "kind": "train", "loss": 1.5},
        {"step": 400, "kind": "train", "loss": 1.4614},
        {"step": 400, "kind": "validation", "loss": 1.61},
    ]
    log = "\n".join(map(json.dumps, lines)) + '\n{"step": 4'
    (folder / "metrics.jsonl").write_text(log)
    return checkpoint


def test_the_header_is_for_the_hub(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    card = card_of(tmp_path / "model", tokenizer, "")
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "unknown"
    assert header["library_name"] == "transformers"
    assert header["pipeline_tag"] == "image-to-text"
    assert "BlipForConditionalGeneration.from_pretrained" in card


def test_a_runs_data_steps_and_losses_are_told(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    checkpoint = make_run(tmp_path / "my-run")
    card = card_of(tmp_path / "model", tokenizer, str(checkpoint))
    assert "# my-run" in card
    assert "| data | pairs.lance |" in card
    assert "| least match probability | 0.5 |" in card
    assert "| batch size | 32 |" in card
    assert "| began as | noisy |" in card
    assert "| steps (train) | 400 |" in card
    assert "| loss (train, last) | 1.4614 |" in card
    assert "| loss (validation, last) | 1.6100 |" in card


def found(value: float, **more: Any) -> Evaluation:
    facts: dict[str, Any] = {"task": "retrieval", "data": "/data/mine/pairs.lance", "split": "test"}
    facts |= {"metrics": {"TR@1": value, "IR@1": 40.0}, "settings": {"k": 16}, **more}
    return Evaluation(**facts)


def test_what_evaluations_of_this_checkpoint_found_is_told(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    checkpoint = make_run(tmp_path / "my-run")
    other = tmp_path / "my-run" / "checkpoints" / "step-00000200"
    for folder in (checkpoint, other):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
    (tmp_path / "my-run" / "checkpoints" / "last").symlink_to(checkpoint.name)
    note_evaluation(str(other), found(10.0))
    note_evaluation(str(checkpoint), found(50.0))
    # The run stands for its checkpoint; told the same, the last one counts.
    note_evaluation(str(tmp_path / "my-run"), found(52.25))
    note_evaluation(str(checkpoint), found(51.0, backend="onnx-int8"))
    note_evaluation(str(checkpoint), found(math.nan, split="val"))
    card = card_of(tmp_path / "model", tokenizer, str(tmp_path / "my-run"))
    assert "## What it reached" in card
    assert "| retrieval | pairs.lance | test | k 16 | TR@1 52.2, IR@1 40.0 |" in card
    assert "| k 16, computed by onnx-int8 | TR@1 51.0, IR@1 40.0 |" in card
    assert "| val | k 16 | TR@1 none, IR@1 40.0 |" in card
    assert "TR@1 10.0" not in card
    assert "TR@1 50.0" not in card
    assert "/data/mine" not in card


def test_figures_of_steps_after_the_checkpoint_are_not_its_own(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    checkpoint = make_run(tmp_path / "my-run")
    (checkpoint / "config.json").write_text("{}")
    log = tmp_path / "my-run" / "metrics.jsonl"
    log.write_text(log.read_text() + '\n{"step": 800, "kind": "train", "loss": 0.5}\n')
    card = card_of(tmp_path / "model", tokenizer, str(checkpoint))
    assert "| steps (train) | 400 |" in card
    assert "| loss (train, last) | 1.4614 |" in card


def test_an_evaluation_of_no_run_is_noted_nowhere(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    note_evaluation(str(tmp_path), found(50.0))
    note_evaluation("organisation/name", found(50.0))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_that_cannot_be_written_to_is_told_and_nothing_else(tmp_path: Path) -> None:
    checkpoint = make_run(tmp_path / "my-run")
    (tmp_path / "my-run" / EVALUATIONS_FILE).mkdir()
    with pytest.warns(OpenBlipWarning, match="card will not say"):
        note_evaluation(str(checkpoint), found(50.0))


def test_paths_of_a_machine_stay_there(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    checkpoint = make_run(tmp_path / "my-run")
    card = card_of(tmp_path / "model", tokenizer, str(checkpoint))
    assert "/data/mine" not in card
    assert str(tmp_path) not in card


def test_what_nobody_noted_is_left_open(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    card = card_of(tmp_path / "model", tokenizer, "Salesforce/blip-image-captioning-base")
    assert "# blip-image-captioning-base" in card
    assert "Nothing was noted" in card
    assert "parameters" in card


def test_a_folder_with_a_card_can_be_written_again(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    card_of(tmp_path / "model", tokenizer, "first")
    assert "# second" in card_of(tmp_path / "model", tokenizer, "second")
