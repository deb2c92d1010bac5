"""Commands on a table that is not quite as they need it: what they say, and when they say it."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from openblip.cli import main
from openblip.model.vision import ImageEncoder
from openblip.table.table import PairRow, PairTable

Checkpoint = Callable[[str], str]
Jpeg = Callable[..., bytes]
# Every evaluation of a table: its model, and what makes it quick.
EVALUATIONS = {
    "retrieval": ("pretrain", ["--k", "2"]),
    "caption": ("captioner", ["--num-beams", "1"]),
    "vqa": ("vqa", []),
    "nlvr": ("nlvr", []),
    "classify": ("pretrain", []),
}
TUNE = ["--train.steps=1", "--train.epochs=None", "--train.batch-size=2", "--train.device=cpu"]


def row(number: int, jpeg: Jpeg, word: str = "dog", split: str = "test") -> PairRow:
    """A row that every evaluation can use."""
    key = f"{split}{number}"
    return PairRow(
        id=key,
        image=jpeg(number),
        captions=[f"a {word} in the grass"],
        origin="human" if split == "test" else "web",
        split=split,
        meta={
            "label": (word, "cat")[number % 2],
            "questions": [{"question": f"a {word}", "answer": "yes", "question_id": number}],
            "pairs": [{"sentence": f"a {word}", "second": key, "label": "True", "pair_id": key}],
        },
    )


@pytest.fixture
def in_a_store(tmp_path: Path, jpeg: Jpeg) -> PairTable:
    """Nine test images and five others; the last of either lies in an object store."""
    rows = [*(row(n, jpeg) for n in range(9)), *(row(n, jpeg, split="train") for n in range(5))]
    for place in (8, 13):
        rows[place] = replace(rows[place], image=None, image_uri="s3://bucket/x.jpg")
    return PairTable.create(tmp_path / "t.lance", rows)


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("without_cloud")
class TestAnImageThatCannotBeReached:
    """A table with images in an object store, for which packages are missing."""

    @pytest.mark.parametrize("task", EVALUATIONS)
    def test_is_told_before_an_evaluation_computes(
        self,
        in_a_store: PairTable,
        checkpoint: Checkpoint,
        task: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def compute(*_: object) -> None:
            raise AssertionError("an image was encoded")

        monkeypatch.setattr(ImageEncoder, "forward", compute)
        kind, words = EVALUATIONS[task]
        words = ["evaluate", task, checkpoint(kind), in_a_store.uri, "--batch-size", "2", *words]
        assert main(words) == 1
        told = capsys.readouterr().err.splitlines()[-1]
        assert f"row 8 of {in_a_store.uri}, s3://bucket/x.jpg: " in told
        assert "pip install 'openblip[cloud]'" in told

    @pytest.mark.parametrize("task", EVALUATIONS)
    def test_of_another_split_is_nothing_to_an_evaluation(
        self, in_a_store: PairTable, jpeg: Jpeg, checkpoint: Checkpoint, task: str
    ) -> None:
        rows = [*(row(n, jpeg, split="val") for n in range(2)), row(2, jpeg, split="val")]
        in_a_store.append(replace(one, origin="human") for one in rows)
        kind, words = EVALUATIONS[task]
        assert (
            main(["evaluate", task, checkpoint(kind), in_a_store.uri, "--split=val", *words]) == 0
        )

    def test_is_told_before_a_training_run_begins(
        self,
        in_a_store: PairTable,
        checkpoint: Checkpoint,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        words = [in_a_store.uri, str(tmp_path / "run"), *TUNE]
        for command in (
            ["pretrain", "tiny", *words],
            ["finetune", "captioner", *words, "--init-from", checkpoint("captioner")],
        ):
            assert main(command) == 1
            told = capsys.readouterr().err.splitlines()[-1]
            assert f"row 8 of {in_a_store.uri}, s3://bucket/x.jpg: " in told
        assert not (tmp_path / "run" / "recipe.yaml").exists()

    @pytest.mark.parametrize("command", ["run", "scores"])
    def test_is_told_before_capfilt_looks_for_its_models(
        self, in_a_store: PairTable, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = files_of(Path(in_a_store.uri))
        words = ["capfilt", command, in_a_store.uri, "--filter", "nowhere"]
        words += ["--captioner", "nowhere", "--processes", "1"] if command == "run" else []
        assert main(words) == 1
        told = capsys.readouterr().err.splitlines()[-1]
        assert f"row 8 of {in_a_store.uri}, s3://bucket/x.jpg: " in told
        assert files_of(Path(in_a_store.uri)) == before

    def test_costs_its_row_alone_in_captions_and_an_export(
        self,
        in_a_store: PairTable,
        checkpoint: Checkpoint,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        captions = tmp_path / "c.jsonl"
        words = ["caption", in_a_store.uri, "--model", checkpoint("captioner"), "-o", str(captions)]
        assert main([*words, "--split", "test"]) == 1
        told = capsys.readouterr().err
        assert told.count("s3://bucket/x.jpg: ") == 1
        assert "8 captioned, 1 failed" in told
        assert len(captions.read_text().splitlines()) == 8

        main(["data", "export", in_a_store.uri, str(tmp_path / "e"), "--split=test", "--json"])
        found = json.loads(capsys.readouterr().out)
        assert (found["num_images"], found["num_unreadable"]) == (8, 1)
        assert found["unreadable"][0]["detail"].startswith("s3://bucket/x.jpg: ")


@pytest.mark.filterwarnings("always::openblip.runtime.errors.OpenBlipWarning")
@pytest.mark.parametrize("task", EVALUATIONS)
def test_words_that_a_model_does_not_know_are_told_once_in_an_evaluation(
    tmp_path: Path,
    jpeg: Jpeg,
    checkpoint: Checkpoint,
    task: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = PairTable.create(tmp_path / "t.lance", [row(n, jpeg, "собака") for n in range(5)])
    kind, words = EVALUATIONS[task]
    prompt = ["--prompt", "собака"] if task == "caption" else []
    words = ["evaluate", task, checkpoint(kind), table.uri, "--batch-size", "2", *words, *prompt]
    assert main(words) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "[UNK]" in line]
    assert len(told) == 1
    assert "собака" in told[0]


@pytest.mark.parametrize("command", ["evaluate caption", "data duplicates"])
def test_weights_that_are_no_numbers_end_a_command_over_a_table(
    tmp_path: Path,
    jpeg: Jpeg,
    checkpoint: Checkpoint,
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = PairTable.create(tmp_path / "t.lance", [row(n, jpeg) for n in range(3)])
    model = tmp_path / "model"
    shutil.copytree(checkpoint("pretrain"), model)
    weights = load_file(model / "model.safetensors")
    next(each for name, each in weights.items() if name.startswith("image_encoder"))[0] = math.nan
    save_file(weights, model / "model.safetensors")
    given = [str(model), table.uri] if command.startswith("evaluate") else [table.uri, "--model"]
    given += [] if command.startswith("evaluate") else [str(model)]
    assert main([*command.split(), *given]) == 1
    output = capsys.readouterr()
    assert "NaN or infinite" in output.err.splitlines()[-1]
    assert not output.out
