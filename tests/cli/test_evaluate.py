"""One model that retrieves and captions, from `finetune shared` to both evaluations."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from openblip.cli import main
from openblip.table.table import PairRow, PairTable
from openblip.world import WorldConfig, build_world

TUNE = [
    *("--train.steps=2", "--train.epochs=None", "--train.batch-size=4", "--train.threads=1"),
    *("--objectives.queue-size=4", "--train.device=cpu"),
]


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Images whose ids are numbers; the test split has domains as NoCaps does."""
    rows = []
    world = WorldConfig(seed=3, web_rows=0, human_rows=8, val_rows=2, test_rows=4)
    for number, row in enumerate(build_world(world)):
        if row.origin == "human":
            domain = "in-domain" if number % 2 else "out-domain"
            rows.append(
                PairRow(
                    str(number),
                    row.image,
                    captions=row.captions,
                    origin="human",
                    split=row.split,
                    meta={"domain": domain},
                )
            )
    PairTable.create(tmp_path / "pairs.lance", rows)
    return str(tmp_path / "pairs.lance")


def answer(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, object]:
    capsys.readouterr()
    assert main([*map(str, words), "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_one_checkpoint_retrieves_and_captions(
    table: str,
    checkpoint: Callable[[str], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    words = ["finetune", "shared", table, str(run), "--init-from", checkpoint("pretrain"), *TUNE]
    assert main(words) == 0

    ranked = tmp_path / "ranked.json"
    found = answer(capsys, "evaluate", "retrieval", run, table, "--results", ranked)
    assert found["num_images"] == 4
    lists = json.loads(ranked.read_text())
    assert len(lists["texts_of_image"]) == 4
    assert len(lists["images_of_text"]) == found["num_texts"]

    captions = tmp_path / "captions.json"
    found = answer(capsys, "evaluate", "caption", run, table, "--results", captions)
    written = json.loads(captions.read_text())
    assert all(isinstance(row["image_id"], int) and row["caption"] for row in written)
    assert set(found["domains"]) == {"in-domain", "out-domain"}

    # Both stand in the card of what is made of the run.
    assert main(["convert", str(run), str(tmp_path / "out"), "--to", "huggingface"]) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    metrics = found["metrics"]
    assert isinstance(metrics, dict)
    assert f"CIDEr {100 * metrics['CIDEr']:.1f}" in card
    assert "| retrieval | pairs.lance | test | k 128, ranking original" in card
    assert found["domains"]["in-domain"].keys() == found["metrics"].keys()


def test_programs_that_are_missing_are_named_before_anything_is_computed(
    table: str,
    checkpoint: Callable[[str], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENBLIP_JAVA_METRICS", str(tmp_path / "nowhere"))
    assert main(["evaluate", "caption", checkpoint("captioner"), table]) == 1
    told = capsys.readouterr().err
    assert "meteor-1.5.jar" in told or "java" in told
    assert "captioning" not in told


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java")
def test_captions_outlive_a_program_that_fails(
    table: str, checkpoint: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jar = tmp_path / "meteor" / "meteor-1.5.jar"
    jar.parent.mkdir()
    jar.write_bytes(b"no archive")
    results = tmp_path / "captions.json"
    words = ["--java-metrics", str(tmp_path), "--results", str(results)]
    assert main(["evaluate", "caption", checkpoint("captioner"), table, *words]) == 0
    told = capsys.readouterr()
    assert f"METEOR is left out: {jar} failed" in told.err
    assert "METEOR" not in told.out
    assert json.loads(results.read_text())
