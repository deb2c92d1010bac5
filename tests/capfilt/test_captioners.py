"""Several captioners in one job: who wrote what, and that each writes what it writes alone."""

import json
from pathlib import Path

import pytest

from openblip.capfilt.job import CapFiltSettings
from openblip.capfilt.run import run_capfilt
from openblip.checkpoints.reading import model_fingerprint
from openblip.cli import main
from openblip.runtime.errors import RecipeError
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
