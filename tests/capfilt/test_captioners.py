"""Several captioners in one job: who wrote what, and that each writes what it writes alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.batches.shuffle import named_seed
from openblip.batches.transforms import eval_transform
from openblip.capfilt.captioners import given_text
from openblip.capfilt.job import CapFiltSettings
from openblip.capfilt.run import run_capfilt
from openblip.checkpoints.reading import model_fingerprint
from openblip.cli import main
from openblip.inference.captions import GivenPrompt
from openblip.inference.decoding import Decoding
from openblip.inference.loading import load
from openblip.runtime.errors import RecipeError
from openblip.sources.row_images import row_image
from openblip.table.table import PairTable
from openblip.table.views import CaptionView

from .jobs import job_settings
from .test_run import copy_of

SCORES = ("synthetic_logprob", "synthetic_itm", "synthetic_itc")


def rows_of(table: PairTable) -> list[dict[str, object]]:
    opened = PairTable.open(table.uri)
    return [row for row in opened.take(range(len(opened))).to_pylist() if row["synthetic"]]


@pytest.mark.filterwarnings("ignore::openblip.runtime.errors.UntrainedHead")
def test_texts_of_each_captioner_are_those_that_it_writes_alone(
    table: PairTable, models: dict[str, str], tmp_path: Path
) -> None:
    both = (models["captioner"], models["filter"])
    together = job_settings(models, captioner=both, num_captions=2)
    run_capfilt(table.uri, together, processes=1)
    alone = []
    for number, captioner in enumerate(both):
        other = copy_of(table, tmp_path / str(number))
        run_capfilt(
            other.uri, job_settings(models, captioner=captioner, num_captions=2), processes=1
        )
        alone.append(rows_of(other))

    names = [model_fingerprint(captioner) for captioner in both]
    for row, first, second in zip(rows_of(table), *alone, strict=True):
        assert row["synthetic_captioner"] == [names[0]] * 2 + [names[1]] * 2
        assert first["synthetic_captioner"] == [names[0]] * 2
        assert row["synthetic"] == first["synthetic"] + second["synthetic"]
        assert row["captions_itm"] == pytest.approx(first["captions_itm"], abs=1e-6)
        for name in SCORES:
            assert row[name] == pytest.approx(first[name] + second[name], abs=1e-5)
    stored = json.loads(PairTable.open(table.uri).metadata["capfilt"])
    assert stored["captioner_fingerprint"] == names
    # All of an image's texts may be trained on.
    view = CaptionView(sources=("synthetic",))
    assert view.resolve(PairTable.open(table.uri)).num_admitted == {
        "synthetic": 4 * len(rows_of(table))
    }


@pytest.mark.filterwarnings("ignore::openblip.runtime.errors.UntrainedHead")
def test_the_command_takes_several(table: PairTable, models: dict[str, str]) -> None:
    words = ["capfilt", "run", table.uri, "--filter", models["filter"], "--processes", "1"]
    assert main([*words, "--captioner", models["captioner"], models["filter"]]) == 0
    assert {len(row["synthetic"]) for row in rows_of(table)} == {2}


@pytest.mark.parametrize("captioner", [(), ("a", "b", "a")])
def test_no_captioner_and_one_twice_are_refused(captioner: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match="each once"):
        CapFiltSettings(captioner=captioner, filter="f")


@pytest.mark.parametrize("captioner", ["runs/captioner", "hf:model", "openai:http://gpu/v1#model"])
def test_more_texts_than_the_method_finds_are_refused_before_the_job_begins(captioner: str) -> None:
    plain = CapFiltSettings(captioner=captioner, filter="f", num_captions=4)
    with pytest.raises(RecipeError, match=r"--num-captions 4: --method greedy finds one text.*nuc"):
        replace(plain, decoding=Decoding(method="greedy"))
    assert replace(plain, decoding=Decoding(method="greedy"), num_captions=1)
    if captioner.startswith("openai"):
        return
    with pytest.raises(RecipeError, match=r"--num-captions 4: .*--num-beams 3.*give --num-beams 4"):
        replace(plain, decoding=Decoding(method="beam", num_beams=3))
    assert replace(plain, decoding=Decoding(method="beam", num_beams=4))


def test_the_command_refuses_them_too(
    table: PairTable, models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["capfilt", "run", table.uri, "--filter", models["filter"], "--processes", "1"]
    words += ["--captioner", models["captioner"], "--num-captions", "2", "--method", "greedy"]
    assert main(words) != 0
    assert "--method greedy finds one text" in capsys.readouterr().err
    assert not Path(f"{table.uri}.capfilt").exists()


@pytest.fixture(scope="module")
def reader(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The captioner, as if it had been trained to read nine tokens of a given text."""
    blip = load(models["captioner"], device="cpu")
    blip.given_tokens = 9
    folder = tmp_path_factory.mktemp("models") / "reader"
    blip.save(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore:.*are longer, and are cut")
def test_a_captioner_reads_the_first_text_of_a_row_whatever_batch_it_is_in(
    uri: str, models: dict[str, str], reader: str, tmp_path: Path
) -> None:
    settings = job_settings(models, captioner=reader, given="web")
    table = PairTable.open(uri)
    run_capfilt(uri, settings, processes=1)
    written = rows_of(table)

    other = copy_of(table, tmp_path / "one")
    run_capfilt(other.uri, replace(settings, batch_size=3), processes=1)
    assert [row["synthetic"] for row in written] == [row["synthetic"] for row in rows_of(other)]
    again = copy_of(table, tmp_path / "alone")
    run_capfilt(again.uri, replace(settings, given=None), processes=1)
    assert [row["synthetic"] for row in written] != [row["synthetic"] for row in rows_of(again)]
    blip = load(reader, device="cpu")
    for row in written[:3]:
        encoded = blip.encode(eval_transform(row_image(row), blip.image_size)[None])
        prompt, seed = GivenPrompt(row["captions"][0]), named_seed(settings.seed, row["id"])
        ((caption,),) = blip.generate(encoded, settings.decoding, prompt, [seed])
        assert row["synthetic"] == [caption.text]
    assert json.loads(PairTable.open(uri).metadata["capfilt"])["given"] == "web"


@pytest.mark.filterwarnings("ignore:.*are longer, and are cut")
def test_a_text_that_the_filter_rejects_is_not_read(
    uri: str, models: dict[str, str], reader: str, tmp_path: Path
) -> None:
    settings = job_settings(models, captioner=reader, given="web")

    def rows_by(own: CapFiltSettings) -> list[dict[str, object]]:
        table = copy_of(PairTable.open(uri), tmp_path / str(own.given_above) / str(own.given))
        run_capfilt(table.uri, own, processes=1)
        return rows_of(table)

    every, none = rows_by(settings), rows_by(replace(settings, given=None))
    scores = [row["captions_itm"][0] for row in every]
    above = sorted(scores)[len(scores) // 2]
    some = rows_by(replace(settings, given_above=above))
    for own, read, unread, score in zip(some, every, none, scores, strict=True):
        assert own["synthetic"] == (read if score > above else unread)["synthetic"]
        # The image is encoded once for both, and the scores are those of any job.
        assert own["captions_itm"] == read["captions_itm"]
    for wrong in ({"given_above": 1.0}, {"given_above": 0.5, "given": None}):
        with pytest.raises(RecipeError, match="given_above is"):
            replace(settings, **wrong)


def test_a_row_without_a_text_is_captioned_without() -> None:
    assert given_text([]) == ""
    assert given_text([" ", "a dog", "two"]) == "a dog"


@pytest.mark.filterwarnings("ignore:.*are longer, and are cut")
def test_a_captioner_that_reads_nothing_writes_beside_one_that_does(
    table: PairTable, models: dict[str, str], reader: str, tmp_path: Path
) -> None:
    both = (models["captioner"], reader)
    run_capfilt(table.uri, job_settings(models, captioner=both, given="web"), processes=1)
    alone = copy_of(table, tmp_path)
    run_capfilt(alone.uri, job_settings(models), processes=1)
    for row, own in zip(rows_of(table), rows_of(alone), strict=True):
        assert row["synthetic"][:1] == own["synthetic"]
    # Nothing of what a job without given texts has noted is another, so that it goes on.
    assert "given" not in json.loads(PairTable.open(alone.uri).metadata["capfilt"])


@pytest.mark.filterwarnings("always::openblip.runtime.errors.OpenBlipWarning")
def test_cut_texts_are_told_of_and_captioners_that_read_nothing_refused(
    table: PairTable,
    models: dict[str, str],
    reader: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["capfilt", "run", table.uri, "--filter", models["filter"], "--processes=1"]
    words += ["--max-length=12", "--given=web"]
    assert main([*words, "--captioner", reader]) == 0
    assert "reads the first 9 tokens of a given text; of 16 that were" in capsys.readouterr().err
    with pytest.raises(RecipeError, match=r"none of .* was fine-tuned to read a given text"):
        run_capfilt(table.uri, job_settings(models, given="web"), processes=1)
    with pytest.raises(RecipeError, match="given is 'page'; there is web, or nothing"):
        job_settings(models, given="page")
