"""A comparison from its file to its report; what is finished is not done again."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openblip.batches.image_states import STATES_FOLDER
from openblip.cli import main
from openblip.comparison.run import Compared, ComparisonError, compare, read_comparison
from openblip.runtime.errors import OpenBlipError
from openblip.runtime.locks import only_here
from openblip.table.table import PairTable
from openblip.training.recipe_file import read_recipe

from .conftest import TINY, written


def finished_at(folder: Path) -> dict[str, int]:
    results = (folder / "stages").glob("*/result.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in results}


def test_every_stage_is_finished_and_every_figure_measured(compared: Compared) -> None:
    assert all(stage.is_finished for stage in compared.findings.stages)
    scores = compared.findings.scores("both", "caption.CIDEr")
    assert scores is not None
    assert (len(scores.seeds), scores.num_images) == (2, 16)


def test_queues_fit_the_data_by_themselves(compared: Compared) -> None:
    runs = [s for s in compared.findings.stages if s.kind == "train" and not s.name.startswith("c")]
    sizes = [
        read_recipe(
            compared.folder / "stages" / run.folder / "run" / "recipe.yaml"
        ).objectives.queue_size  # type: ignore[union-attr]
        for run in runs
    ]
    assert sizes
    assert max(sizes) <= 40


def test_what_a_model_cannot_do_has_no_figure(compared: Compared) -> None:
    assert compared.findings.scores("clip", "caption.CIDEr") is None
    why = compared.findings.why_missing("clip", "caption.CIDEr")
    assert why is not None
    assert "has no lm head" in why


def test_a_model_costs_what_it_and_all_that_it_needs_cost(compared: Compared) -> None:
    noise, both, clip = (compared.findings.compute(m) for m in ("noise", "both", "clip"))
    assert noise is not None
    assert both is not None
    assert clip is not None
    # Two trainings of equal steps, captioner and filter, and the job.
    assert both.flops > 2 * noise.flops > 2 * clip.flops > 0
    assert both.seconds > noise.seconds > 0


def test_capfilt_leaves_the_table_of_the_others_as_it_was(compared: Compared) -> None:
    stages = {(s.kind, s.name): s.folder for s in compared.findings.stages}
    place = compared.folder / "stages"
    given = PairTable.open(place / stages["data", "pairs, seed 0"] / "pairs.lance")
    cleaned = PairTable.open(place / stages["capfilt", "cleaned, seed 0"] / "pairs.lance")
    assert "synthetic" not in given.columns
    assert "synthetic" in cleaned.columns


@pytest.fixture(scope="module")
def further(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """A comparison of one seed with a fitted probability, frozen encoders, and noise to find."""
    pytest.importorskip("sklearn", reason="openblip[fit]")
    folder = tmp_path_factory.mktemp("further")
    text = (
        TINY.replace("seeds: [0, 1]", "seeds: [0]")
        .replace("human_rows: 24", "human_rows: 60")
        .replace("{max_length: 10}}", "{max_length: 10}, fit: true}")
        .replace("itm: 0.0}", "score: right, weights: calibrated}")
        .replace("train.steps: 2\n", "train.steps: 2\n      train.freeze: [image_encoder]\n", 1)
        .replace(
            "tables:\n",
            "  found: {task: filter, data: cleaned, split: train, settings: {threshold: 0.5}}\n"
            "tables:\n"
            "  - {title: Noise, models: [filter], figures: [found.recall, found.true kept]}\n",
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(STATES_FOLDER, raising=False)
        return compare(written(folder, text), folder / "out", jobs=1)


def test_a_job_can_make_one_probability_of_all_scores(further: Compared) -> None:
    (job,) = (stage for stage in further.findings.stages if stage.kind == "capfilt")
    table = PairTable.open(further.folder / "stages" / job.folder / "pairs.lance")
    given = [batch["captions_score_right"].to_pylist() for batch in table.scan()]
    probabilities = [right for batch in given for row in batch if row for right in row]
    assert len(probabilities) >= 16
    assert all(0 <= right <= 1 for right in probabilities)
    assert further.findings.scores("both", "retrieval.R@1") is not None


def test_frozen_encoders_share_their_states(further: Compared) -> None:
    # The models on the noise and on its judged copy, the CLIP: one encoder, the same images.
    (states,) = (further.folder / "states").iterdir()
    # Trained on are 16 + 60 images, and 8 are evaluated: each has one record of 36 bytes.
    assert (states / "index.bin").stat().st_size == 36 * (16 + 60 + 8)


def test_noise_is_looked_for(further: Compared) -> None:
    recall = further.findings.scores("filter", "found.recall")
    assert recall is not None
    assert 0.0 <= recall.estimate <= 100.0


def test_a_second_call_does_nothing_and_says_the_same(compared: Compared) -> None:
    before, path = finished_at(compared.folder), compared.folder.parent / "tiny.yaml"
    again = compare(path, compared.folder)
    assert again.text == compared.text
    assert finished_at(compared.folder) == before


def test_the_verdicts_are_for_programs_too(
    compared: Compared, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(compared.folder.parent / "tiny.yaml")
    assert main(["compare", path, "-o", str(compared.folder), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["report"] == str(compared.folder / "report.html")
    (claim,) = said["claims"]
    assert (claim["claim"], claim["figure"]) == ("CapFilt > none", "retrieval.R@1")


def test_a_change_does_only_that_again(
    compared: Compared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, TINY.replace("k: 4", "k: 5"))
    missing = [s for s in read_comparison(path, compared.folder).stages if not s.is_finished]
    assert {stage.kind for stage in missing} == {"evaluate"}
    assert len(missing) == 2 * 3
    assert main(["compare", str(path), "-o", str(compared.folder), "--plan"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert sum(line[-1] == "no" for line in lines) == len(missing)


def test_what_a_finished_stage_made_is_made_again_where_it_is_needed_and_gone(
    compared: Compared, tmp_path: Path
) -> None:
    # Results without tables and models: what is passed on, or left after tidying up.
    for result in (compared.folder / "stages").glob("*/result.json"):
        kept = tmp_path / "out" / "stages" / result.parent.name
        kept.mkdir(parents=True)
        shutil.copy(result, kept)
    path = written(tmp_path, TINY)
    before = finished_at(tmp_path / "out")
    assert compare(path, tmp_path / "out").text == compared.text
    assert finished_at(tmp_path / "out") == before
    # Of one more evaluation the table and the model are made again, and no other model.
    asked = written(tmp_path, TINY.replace("k: 4", "k: 5").replace("seeds: [0, 1]", "seeds: [0]"))
    again = read_comparison(asked, tmp_path / "out").stages
    assert {(s.kind, s.name) for s in again if not s.is_finished} >= {
        ("data", "pairs, seed 0"),
        ("train", "noise, seed 0"),
        ("evaluate", "noise on retrieval, seed 0"),
    }
    lone = TINY.replace("k: 4", "k: 5").replace("seeds: [0, 1]", "seeds: [0]")
    lone = lone[: lone.index("tables:")] + (
        "tables:\n  - {title: A, models: [noise], figures: [retrieval.R@1]}\n"
    )
    found = compare(written(tmp_path, lone), tmp_path / "out").findings
    assert found.scores("noise", "retrieval.R@1") is not None
    after = finished_at(tmp_path / "out")
    made = {s.folder for s in found.stages if s.kind != "evaluate"}
    assert {name for name in before if after[name] != before[name]} == made


def test_a_stage_that_fails_is_named_with_its_log_and_stops_no_other(tmp_path: Path) -> None:
    poor = "  poor:\n    world: {num_kinds: 2, num_colours: 1, group_weights: [1.0]}\n"
    text = TINY.replace("seeds: [0, 1]", "seeds: [0]").replace("models:\n", f"{poor}models:\n", 1)
    text = text.replace("  clip: {", "  lost: {like: noise, data: poor}\n  clip: {")
    text = text[: text.index("tables:")] + (
        "tables:\n  - {title: A, models: [noise, lost], figures: [retrieval.R@1]}\n"
    )
    with pytest.raises(ComparisonError, match="too few distinct scenes") as error:
        compare(written(tmp_path, text), tmp_path / "out")
    log = Path(str(error.value).rpartition("(log: ")[2].removesuffix(")"))
    assert "too few distinct scenes" in log.read_text()
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| the noise | " in report
    assert "| lost | ? | ? | ? |" in report
    assert "| lost | ? |\n" in report


def test_one_process_at_a_time(tmp_path: Path, compared: Compared) -> None:
    path = compared.folder.parent / "tiny.yaml"
    with only_here(compared.folder, "comparison"), pytest.raises(OpenBlipError, match="another"):
        compare(path, compared.folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(
    number: signal.Signals, tmp_path: Path
) -> None:
    text = TINY.replace("seeds: [0, 1]", "seeds: [0]").replace("train.steps: 2", "train.steps: 90")
    path = written(tmp_path, text)
    whole = compare(path, tmp_path / "whole", jobs=2)
    output = str(tmp_path / "killed")
    command = [sys.executable, "-m", "openblip", "compare", str(path), "-o", output, "--jobs", "2"]
    for moment in ("begin: train noise", "begin: train captioner", "begin: train both"):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert any(line.startswith(moment) for line in process.stderr)
        time.sleep(1)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == (130 if number == signal.SIGINT else -number)
        # Workers that have lost their parent end by themselves.
        time.sleep(5)
    resumed = compare(path, tmp_path / "killed", jobs=2)
    for model in ("noise", "both", "clip"):
        one, two = (c.findings.scores(model, "retrieval.R@5") for c in (whole, resumed))
        assert one is not None
        assert two is not None
        assert (one.seeds[0] == two.seeds[0]).all()
        costs = [c.findings.compute(model) for c in (whole, resumed)]
        assert costs[0] is not None
        assert costs[1] is not None
        assert costs[0].flops == pytest.approx(costs[1].flops)


def test_some_seeds_may_come_first(compared: Compared) -> None:
    path = compared.folder.parent / "tiny.yaml"
    before = finished_at(compared.folder)
    one = compare(path, compared.folder, seeds=[1]).findings
    assert one.spec.seeds == (1,)
    assert all(stage.is_finished for stage in one.stages)
    assert finished_at(compared.folder) == before
    more = read_comparison(path, compared.folder, seeds=[0, 1, 2])
    assert {s.is_finished for s in more.stages} == {True, False}
    assert {s.folder for s in one.stages} < {s.folder for s in more.stages}
    # The report is again that of the file.
    compare(path, compared.folder)
