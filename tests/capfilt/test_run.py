"""A CapFilt job: what it writes, and that nothing but table, models and settings decides it."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from openblip.batches.shuffle import named_seed
from openblip.capfilt.computer import CapFiltComputer
from openblip.capfilt.job import (
    CAPFILT,
    METADATA_KEY,
    NEW_COLUMNS,
    CapFiltJob,
    CapFiltSettings,
    job_status,
)
from openblip.capfilt.run import run_capfilt
from openblip.inference.blip import Blip
from openblip.inference.decoding import Decoding
from openblip.inference.loading import load
from openblip.jobs.pools import RayCluster
from openblip.model import Med, VisionConfig
from openblip.runtime.errors import CheckpointError, DataError, RecipeError, UnknownWords
from openblip.table.table import PairRow, PairTable

from .. import foreign_encoders


def settings(models: dict[str, str], **changes: object) -> CapFiltSettings:
    """Settings of a job with the small models."""
    plain = CapFiltSettings(
        captioner=models["captioner"],
        filter=models["filter"],
        decoding=Decoding(method="nucleus", max_length=12, min_length=5),
        batch_size=5,
    )
    return replace(plain, **changes)


def columns(table: PairTable) -> pa.Table:
    return PairTable.open(table.uri).take(range(len(table)), NEW_COLUMNS)


def copy_of(table: PairTable, folder: Path) -> PairTable:
    rows = table.take(range(len(table))).to_pylist()
    return PairTable.create(
        folder / "copy.lance",
        (PairRow(**{**row, "meta": json.loads(row["meta"])}) for row in rows),
    )


def test_web_rows_get_captions_and_scores_and_others_get_nothing(
    table: PairTable, models: dict[str, str]
) -> None:
    result = run_capfilt(table.uri, settings(models, num_captions=2), processes=1)

    assert (result.rows, result.computed, result.errors) == (len(table), len(table), 1)
    for row in PairTable.open(table.uri).take(range(len(table))).to_pylist():
        if row["origin"] == "human" or row["id"] == "broken":
            assert all(row[name] is None for name in NEW_COLUMNS[:-1])
            continue
        assert len(row["synthetic"]) == len(row["synthetic_logprob"]) == 2
        assert len(row["captions_itm"]) == len(row["captions_itc"]) == len(row["captions"])
        assert len(row["synthetic_itm"]) == len(row["synthetic_itc"]) == 2
        assert all(0.0 <= score <= 1.0 for score in row["captions_itm"] + row["synthetic_itm"])
        assert all(-1.0 <= score <= 1.0 for score in row["captions_itc"] + row["synthetic_itc"])


def test_an_unreadable_image_is_recorded_with_its_reason(
    table: PairTable, models: dict[str, str]
) -> None:
    run_capfilt(table.uri, settings(models), processes=1)

    rows = PairTable.open(table.uri).take(range(len(table)), ["id", "capfilt_error"]).to_pylist()
    reasons = {row["id"]: row["capfilt_error"] for row in rows if row["capfilt_error"]}
    assert list(reasons) == ["broken"]
    assert "broken" in reasons["broken"]


def test_scores_are_those_of_the_filter(table: PairTable, models: dict[str, str]) -> None:
    from openblip.batches.text import clean_caption
    from openblip.sources.row_images import row_image

    run_capfilt(table.uri, settings(models), processes=1)

    row = PairTable.open(table.uri).take([0]).to_pylist()[0]
    filter_ = load(models["filter"], device="cpu")
    match = filter_.match(row_image(row), clean_caption(row["captions"][0]))[0]
    assert row["captions_itm"][0] == pytest.approx(match.itm, abs=1e-5)
    assert row["captions_itc"][0] == pytest.approx(match.itc, abs=1e-5)


def test_the_number_of_processes_changes_no_byte(
    table: PairTable, models: dict[str, str], tmp_path: Path
) -> None:
    other = copy_of(table, tmp_path)
    run_capfilt(table.uri, settings(models), processes=1)
    run_capfilt(other.uri, settings(models), processes=2)

    assert columns(table).equals(columns(other))


def test_another_batch_size_gives_the_same_texts_and_nearly_the_same_scores(
    table: PairTable, models: dict[str, str], tmp_path: Path
) -> None:
    other = copy_of(table, tmp_path)
    run_capfilt(table.uri, settings(models), processes=1)
    run_capfilt(other.uri, settings(models, batch_size=3), processes=1)

    one, two = columns(table).to_pydict(), columns(other).to_pydict()
    assert one["synthetic"] == two["synthetic"]
    for name in ("captions_itm", "captions_itc", "synthetic_itm", "synthetic_itc"):
        for left, right in zip(one[name], two[name], strict=True):
            assert left == pytest.approx(right, abs=1e-5)


def test_a_complete_job_is_not_done_again(table: PairTable, models: dict[str, str]) -> None:
    run_capfilt(table.uri, settings(models), processes=1)
    version = PairTable.open(table.uri).version

    result = run_capfilt(table.uri, settings(models), processes=1)

    assert result.computed == 0
    assert PairTable.open(table.uri).version == version


def test_a_column_that_was_dropped_is_made_again(table: PairTable, models: dict[str, str]) -> None:
    run_capfilt(table.uri, settings(models), processes=1)
    before = columns(table)
    PairTable.open(table.uri).drop_columns(["synthetic_itc"])
    assert not job_status(table.uri).is_finished

    assert run_capfilt(table.uri, settings(models), processes=1).computed == 0
    assert columns(table).equals(before)

    PairTable.open(table.uri).drop_columns(["captions_itm", "capfilt_error"])
    image = table.take([0], ["image"])["image"][0].as_py()
    PairTable.open(table.uri).append([PairRow(id="later", image=image, captions=["a thing"])])

    assert run_capfilt(table.uri, settings(models), processes=1).computed == 1
    assert columns(table).equals(before)
    assert PairTable.open(table.uri).take([len(table)], ["captions_itm"])[0][0].is_valid
    assert job_status(table.uri).is_finished


def test_a_kill_before_the_metadata_empties_no_row_of_a_table_that_grew(
    table: PairTable, models: dict[str, str]
) -> None:
    run_capfilt(table.uri, settings(models), processes=1)
    before = columns(table)
    killed = PairTable.open(table.uri)
    killed.update_metadata({METADATA_KEY: None})
    image = table.take([0], ["image"])["image"][0].as_py()
    killed.append([PairRow(id="later", image=image, captions=["a thing"])])

    assert run_capfilt(table.uri, settings(models), processes=1).computed == 1

    for version in range(killed.version, PairTable.open(table.uri).version + 1):
        seen = PairTable.open(table.uri, version=version)
        assert seen.take(range(len(table)), NEW_COLUMNS).equals(before)


def test_a_job_is_finished_when_its_files_stand_in_the_table(
    table: PairTable, models: dict[str, str]
) -> None:
    run_capfilt(table.uri, settings(models), processes=1)
    grown = PairTable.open(table.uri)
    image = table.take([0], ["image"])["image"][0].as_py()
    grown.append([PairRow(id="later", image=image, captions=["a thing"])])
    run_capfilt(table.uri, settings(models), processes=1)
    assert job_status(table.uri).is_finished

    # As if it had been killed between the last fragment and the commit.
    PairTable.open(table.uri, version=grown.version).dataset.restore()
    assert not job_status(table.uri).is_finished

    assert run_capfilt(table.uri, settings(models), processes=1).computed == 0
    assert job_status(table.uri).is_finished


@pytest.mark.filterwarnings("ignore::openblip.runtime.errors.UntrainedHead")
def test_a_worker_whose_model_is_another_one_does_not_begin(
    table: PairTable, models: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "filter"
    shutil.copytree(models["filter"], folder)
    job = CapFiltJob.prepare(table.uri, settings(models, filter=str(folder)))
    CapFiltComputer(job, "cpu")
    shutil.rmtree(folder)
    shutil.copytree(models["captioner"], folder)
    with pytest.raises(CheckpointError, match=rf"{folder} on .* the job began with"):
        CapFiltComputer(job, "cpu")


def test_another_seed_replaces_the_columns(table: PairTable, models: dict[str, str]) -> None:
    run_capfilt(table.uri, settings(models), processes=1)
    before = columns(table)
    run_capfilt(table.uri, settings(models, seed=1), processes=1)

    assert not columns(table)["synthetic"].equals(before["synthetic"])
    assert columns(table)["captions_itm"].equals(before["captions_itm"])


def test_metadata_tells_models_and_settings(table: PairTable, models: dict[str, str]) -> None:
    run_capfilt(table.uri, settings(models, seed=7), processes=1)

    stored = json.loads(PairTable.open(table.uri).metadata[METADATA_KEY])
    assert stored["seed"] == 7
    assert stored["decoding"]["method"] == "nucleus"
    assert len(stored["captioner_fingerprint"]) == len(stored["filter_fingerprint"]) == 16
    assert stored["captioner_fingerprint"] != stored["filter_fingerprint"]


def test_the_first_token_changes_scores_but_not_captions(
    table: PairTable, models: dict[str, str]
) -> None:
    run_capfilt(table.uri, settings(models), processes=1)
    before = columns(table)
    run_capfilt(table.uri, settings(models, first_token="[CLS]"), processes=1)

    assert columns(table)["synthetic"].equals(before["synthetic"])
    assert not columns(table)["captions_itm"].equals(before["captions_itm"])


def test_a_row_keeps_its_captions_when_other_rows_are_added(
    table: PairTable, models: dict[str, str], tmp_path: Path
) -> None:
    assert named_seed(0, "a") != named_seed(0, "b") != named_seed(1, "b")
    longer = copy_of(table, tmp_path)
    image = table.take([0], ["image"])["image"][0].as_py()
    longer.append([PairRow(id="later", image=image, captions=["a thing"])])
    run_capfilt(table.uri, settings(models), processes=1)
    run_capfilt(longer.uri, settings(models), processes=1)

    assert columns(longer)["synthetic"].to_pylist()[: len(table)] == (
        columns(table)["synthetic"].to_pylist()
    )


def test_missing_models_and_wrong_settings_are_named(
    table: PairTable, models: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        run_capfilt(table.uri, settings(models, captioner=str(tmp_path / "nowhere")))
    with pytest.raises(RecipeError, match="num_captions"):
        settings(models, num_captions=0)
    with pytest.raises(RecipeError, match="--processes -2"):
        run_capfilt(table.uri, settings(models), processes=-2)
    with pytest.raises(RecipeError, match="--workers 0"):
        RayCluster(workers=0)


def test_a_table_without_rows_is_refused_and_left_as_it_is(
    models: dict[str, str], tmp_path: Path
) -> None:
    empty = PairTable.create(tmp_path / "empty.lance")
    with pytest.raises(DataError, match="has no rows"):
        run_capfilt(empty.uri, settings(models), processes=1)
    assert PairTable.open(empty.uri).version == empty.version
    assert not Path(CAPFILT.folder(empty.uri)).exists()


def test_a_job_tells_once_which_words_the_filter_does_not_know(
    table: PairTable, models: dict[str, str], tmp_path: Path
) -> None:
    rows = table.take(range(6)).to_pylist()
    uri = str(tmp_path / "unknown.lance")
    texts = [["собака на столе"], ["кошка на улице"], ["a red circle"]] * 2
    PairTable.create(
        uri,
        (
            PairRow(row["id"], row["image"], captions=own, origin="web")
            for row, own in zip(rows, texts, strict=True)
        ),
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run_capfilt(uri, settings(models, prompt="картина "), processes=1)
    found = [str(each.message) for each in told if each.category is UnknownWords]
    assert len(found) == 2
    assert "4 of 6 captions of 6 rows have no word that it knows" in found[0]
    assert "of the prompts (100%) are [UNK]: the model's vocabulary lacks 'картина'" in found[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_capfilt(uri, settings(models, prompt="картина "), processes=1)


def test_a_setting_that_is_off_leaves_the_fingerprint_of_earlier_jobs(
    table: PairTable, models: dict[str, str]
) -> None:
    plain = settings(models)
    assert "no_repeat_ngram_size" not in plain.decoding.stored()
    used = replace(plain, decoding=replace(plain.decoding, no_repeat_ngram_size=3))
    jobs = [CapFiltJob.prepare(table.uri, each) for each in (plain, used)]
    assert jobs[0].fingerprint != jobs[1].fingerprint


def test_models_with_an_image_encoder_of_others_do_the_job(
    table: PairTable, models: dict[str, str], tmp_path: Path
) -> None:
    folders = {}
    for kind in ("captioner", "filter"):
        blip = load(models[kind], device="cpu")
        config = replace(
            blip.med.config,
            vision=VisionConfig(image_size=32, backbone=f"{foreign_encoders.__name__}:wide"),
        )
        Blip(Med(config), blip.tokenizer, kind, 32, 32).save(tmp_path / kind)
        folders[kind] = str(tmp_path / kind)
    result = run_capfilt(table.uri, settings(folders), processes=1)
    assert (result.computed, result.errors) == (len(table), 1)
