"""Scores of texts as columns, and the probability that is fitted to them."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openblip.capfilt.fit import FitReport, FitSettings, fit_table
from openblip.capfilt.job import NEW_COLUMNS
from openblip.capfilt.run import run_capfilt
from openblip.capfilt.scores import (
    ScoreSettings,
    TextScorer,
    filters_for,
    read_rows_of,
    score_table,
)
from openblip.capfilt.select import fit_report
from openblip.cli import main
from openblip.curation.duplicates import flag_duplicates
from openblip.curation.near_texts import overlap
from openblip.evaluation.filtering import evaluate_filter
from openblip.index.embeddings import embed_table
from openblip.inference.embedder import load_embedder
from openblip.runtime.errors import CheckpointError, DataError, OpenBlipWarning
from openblip.table.reviews import ReviewLog, ReviewRecord
from openblip.table.table import PairTable
from openblip.table.views import CaptionView
from openblip.world import WorldConfig, build_world

from ..inference.published_clip import save_clip
from .jobs import job_settings

WORLD = WorldConfig(seed=4, web_rows=70, human_rows=60, val_rows=2, test_rows=2)
# Where it is not asked how well it finds what is wrong: most of a fit's time are its folds.
FEW = FitSettings(images=55, folds=2)
SPAM = "buy cheap frames online now"
TABLE_SCORES = {"contrast", "agreement", "overlap", "common", "frequency", "length", "unknown"}


@pytest.fixture(scope="module")
def scored(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> PairTable:
    """A table that CapFilt has scored; a third of the web texts is one phrase of a shop."""
    rows = [
        replace(row, captions=[SPAM], meta={**row.meta, "noise": "boilerplate"})
        if row.origin == "web" and number % 3 == 0
        else row
        for number, row in enumerate(build_world(WORLD))
    ]
    rows[7] = replace(rows[7], id="broken", image=b"no image")
    table = PairTable.create(tmp_path_factory.mktemp("scored") / "pairs.lance", rows)
    run_capfilt(table.uri, job_settings(models), processes=1)
    return PairTable.open(table.uri)


@pytest.fixture
def table(scored: PairTable, tmp_path: Path) -> PairTable:
    """A copy of it that a test may change."""
    return PairTable.open(shutil.copytree(scored.uri, tmp_path / "pairs.lance"))


@pytest.fixture(scope="module")
def all_scored(scored: PairTable, tmp_path_factory: pytest.TempPathFactory) -> PairTable:
    """The table with every score of its texts."""
    place = tmp_path_factory.mktemp("all-scored") / "pairs.lance"
    table = PairTable.open(shutil.copytree(scored.uri, place))
    score_table(table, show_progress=False)
    return PairTable.open(table.uri)


@pytest.fixture
def with_scores(all_scored: PairTable, tmp_path: Path) -> PairTable:
    """A copy of it that a test may change."""
    return PairTable.open(shutil.copytree(all_scored.uri, tmp_path / "pairs.lance"))


def web_rows(table: PairTable) -> list[dict[str, object]]:
    opened = PairTable.open(table.uri)
    rows = opened.take(range(len(opened))).to_pylist()
    return [row for row in rows if row["captions_score_contrast"] is not None]


def test_every_web_text_gets_every_score_and_human_ones_get_none(with_scores: PairTable) -> None:
    rows = web_rows(with_scores)
    assert {row["origin"] for row in rows} == {"web"}
    assert "broken" not in {row["id"] for row in rows}
    for row in rows:
        for name in TABLE_SCORES:
            assert np.isfinite(row[f"captions_score_{name}"]).all()
            assert len(row[f"captions_score_{name}"]) == len(row["captions"])
        assert len(row["synthetic_score_length"]) == len(row["synthetic"])
    # A synthetic text agrees with itself, which says nothing.
    assert "synthetic_score_agreement" not in with_scores.columns


def test_what_many_images_have_is_common_and_what_one_has_is_not(with_scores: PairTable) -> None:
    rows = web_rows(with_scores)
    spam = [row for row in rows if row["captions"] == [SPAM]]
    assert len(spam) > 10
    for row in spam:
        # The others, not itself.
        assert row["captions_score_common"] == pytest.approx([np.log1p(len(spam) - 1)], abs=0.06)
        assert row["captions_score_length"] == [5.0]
    assert overlap("A red dog runs", "the dog, red!") == pytest.approx(0.8)
    assert overlap("a", "the") == 0.0


def test_a_contrast_is_a_cosine_less_those_of_the_neighbours(
    with_scores: PairTable, models: dict[str, str]
) -> None:
    model = load_embedder(models["filter"], "cpu")
    opened = PairTable.open(with_scores.uri)
    rows = [r for r in opened.take(range(len(opened))).to_pylist() if r["captions"]]
    rows = [r for r in rows if r["id"] != "broken"]
    images = model.embed_images([r["image"] for r in rows])
    texts = model.embed_texts([r["captions"][0] for r in rows])
    row = next(n for n, r in enumerate(rows) if r["captions_score_contrast"])

    def nearest(values: np.ndarray) -> float:
        return float(np.sort(np.delete(values, row))[-10:].mean())

    cosines = (images @ texts.T).numpy()
    around = (nearest(cosines[row]) + nearest(cosines[:, row])) / 2
    expected = cosines[row, row] - around
    assert rows[row]["captions_score_contrast"][0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("first_token", ["[ENC]", "[CLS]"])
def test_texts_of_a_fit_are_matched_as_the_job_has_matched_the_tables_own(
    uri: str, models: dict[str, str], first_token: str
) -> None:
    run_capfilt(uri, job_settings(models, first_token=first_token), processes=1)
    table = PairTable.open(uri)
    named = filters_for(table, ())
    scorer = TextScorer(table, ScoreSettings(), named, named, "cpu")
    rows = table.take(range(len(table)), ["captions_itm"])["captions_itm"].to_pylist()
    wanted = [number for number, own in enumerate(rows) if own]
    found = scorer.score(read_rows_of(scorer, table, wanted))["itm"]
    for number, own in zip(wanted, found, strict=True):
        assert own == pytest.approx(rows[number], abs=1e-5)


def test_scores_are_computed_once_and_anew_for_other_texts(
    with_scores: PairTable, models: dict[str, str]
) -> None:
    version = with_scores.version
    assert score_table(with_scores, show_progress=False).rows == 0
    assert PairTable.open(with_scores.uri).version == version
    run_capfilt(with_scores.uri, job_settings(models, seed=5), processes=1)
    opened = PairTable.open(with_scores.uri)
    assert not [name for name in opened.columns if "_score_" in name]
    assert score_table(opened, show_progress=False).rows == len(opened)


def test_vectors_of_an_index_save_the_images(
    with_scores: PairTable, models: dict[str, str]
) -> None:
    before = [row["captions_score_contrast"] for row in web_rows(with_scores)]
    embed_table(with_scores, models["filter"], show_progress=False)
    opened = PairTable.open(with_scores.uri)
    score_table(opened, ScoreSettings(seed=1), show_progress=False)
    score_table(opened, show_progress=False)
    after = [row["captions_score_contrast"] for row in web_rows(with_scores)]
    for one, other in zip(before, after, strict=True):
        assert one == pytest.approx(other, abs=2e-3)


def test_copies_and_further_filters_are_scores_too(table: PairTable, tmp_path: Path) -> None:
    clip = str(save_clip(tmp_path / "tiny-clip"))
    flag_duplicates(table, show_progress=False)
    opened = PairTable.open(table.uri)
    filters = (json.loads(opened.metadata["capfilt"])["filter"], clip)
    report = score_table(opened, ScoreSettings(filters=filters), show_progress=False)
    assert {"copies", "tiny_clip", "itm", "contrast"} <= set(report.scores)
    assert report.missing == ()
    assert all(len(r["captions_score_tiny_clip"]) == len(r["captions"]) for r in web_rows(table))
    # It is one of the scores that are combined.
    fit = fit_table(PairTable.open(table.uri), FEW, show_progress=False)
    assert "tiny_clip" in {name for name, *_ in fit.fits[0].told["importance"]}


def test_a_fit_finds_noise_that_no_single_score_finds(with_scores: PairTable) -> None:
    report = fit_table(with_scores, show_progress=False)

    assert report.images == 60
    assert {"true", "other_image", "boilerplate", "truncated"} <= set(report.texts)
    web, synthetic = report.fits
    assert (web.source, synthetic.source) == ("web", "synthetic")
    assert web.told["auc"] > 0.7
    assert web.told["auc"] >= web.told["single_auc"] - 0.05
    assert web.told["gain_low"] <= web.told["gain"] <= web.told["gain_high"]
    assert not {"agreement", "overlap"} & {name for name, *_ in synthetic.told["importance"]}
    opened = PairTable.open(with_scores.uri)
    spam, others = [], []
    for row in web_rows(opened):
        assert len(row["captions_score_right"]) == len(row["captions"])
        assert len(row["synthetic_score_right"]) == len(row["synthetic"])
        (spam if row["captions"] == [SPAM] else others).extend(row["captions_score_right"])
    assert 0 <= min(spam + others) <= max(spam + others) <= 1
    assert np.mean(spam) < np.mean(others)
    # A view compares it like any other score.
    index = CaptionView(sources=("web",), itm=0.5, score="right").resolve(opened)
    assert index.num_admitted["web"] == sum(value > 0.5 for value in spam + others)
    told = fit_report(opened)
    assert told is not None
    assert FitReport.of(told) == report


def test_a_fit_is_the_same_for_the_same_seed(with_scores: PairTable) -> None:
    first = fit_table(with_scores, FEW, show_progress=False)
    version = PairTable.open(with_scores.uri).version
    # Done once, it is not done again; and anew it comes to the same.
    assert first == fit_table(PairTable.open(with_scores.uri), FEW, show_progress=False)
    assert PairTable.open(with_scores.uri).version == version
    opened = PairTable.open(with_scores.uri)
    opened.update_metadata({"fit": "{}"})
    assert first == fit_table(opened, FEW, show_progress=False)
    opened = PairTable.open(with_scores.uri)
    assert first != fit_table(opened, replace(FEW, seed=1), show_progress=False)


def test_a_fit_and_its_report_and_the_places_of_models_are_noted_together(
    with_scores: PairTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit_table(with_scores, FEW, show_progress=False)
    # As a kill between the two has left a table, when they were two changes.
    PairTable.open(with_scores.uri).update_metadata({"fit_report": None})
    noted: list[tuple[bool, bool]] = []
    update = PairTable.update_metadata

    def followed(self: PairTable, values: dict[str, str | None]) -> None:
        update(self, values)
        told = PairTable.open(with_scores.uri).metadata
        noted.append((told.get("fit", "{}") != "{}", "fit_report" in told))

    with monkeypatch.context() as patched:
        patched.setattr(PairTable, "update_metadata", followed)
        assert first == fit_table(PairTable.open(with_scores.uri), FEW, show_progress=False)
    assert set(noted[:-1]) == {(False, False)}
    assert noted[-1] == (True, True)
    # Scores that are computed already are of the same models, wherever these lie now.
    places = PairTable.open(with_scores.uri).metadata["score_models"]
    PairTable.open(with_scores.uri).update_metadata({"score_models": None})
    score_table(PairTable.open(with_scores.uri), show_progress=False)
    assert PairTable.open(with_scores.uri).metadata["score_models"] == places


def test_a_fit_to_scores_that_were_computed_anew_since_is_told_wherever_it_decides(
    with_scores: PairTable, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = with_scores.uri
    fit_table(with_scores, FEW, show_progress=False)
    view = CaptionView(sources=("web",), itm=0.0, score="right")
    again = r"scores were computed anew.* run `openblip capfilt fit .*` again"
    view.resolve(PairTable.open(uri))
    assert main(["capfilt", "select", uri]) == 0
    assert not re.search(again, capsys.readouterr().err)

    assert main(["capfilt", "scores", uri, "--neighbours", "2"]) == 0
    assert re.search(again, capsys.readouterr().err)
    for more in ([], ["--score", "right"]):
        assert main(["capfilt", "select", uri, *more]) == 0
        assert len(re.findall(again, capsys.readouterr().err)) == 1
    assert main(["capfilt", "select", uri, "--score", "itm"]) == 0
    assert not re.search(again, capsys.readouterr().err)
    for asks in (view, CaptionView(sources=("web",), weights="calibrated")):
        with pytest.warns(OpenBlipWarning, match=again):
            asks.resolve(PairTable.open(uri))
    with pytest.warns(OpenBlipWarning, match=again):
        evaluate_filter(PairTable.open(uri), score="right")
    # A view that asks for no score, or for another one, is none of its concern.
    CaptionView(sources=("web",), score="right").resolve(PairTable.open(uri))
    CaptionView(sources=("web",), itm=0.0).resolve(PairTable.open(uri))

    fit_table(PairTable.open(uri), FEW, show_progress=False)
    view.resolve(PairTable.open(uri))


def judged(row: dict[str, Any], verdict: str, probability: float, sample: str) -> ReviewRecord:
    """A verdict on a row's given text, which was drawn with a probability."""
    return ReviewRecord(
        verdict=verdict,
        row=str(row["id"]),
        source="web",
        place=0,
        text=row["captions"][0],
        reviewer="ada",
        table_version=1,
        probability=probability,
        sample=sample,
    )


def test_verdicts_are_learnt_from_by_their_probability(with_scores: PairTable) -> None:
    rows = web_rows(with_scores)
    verdicts = [
        judged(row, "wrong", 0.5, "s")
        if row["captions"] == [SPAM]
        else judged(row, "right", 0.25, "s")
        for row in rows
        if row["captions"]
    ]
    ReviewLog.of(with_scores.uri).append(verdicts)
    report = fit_table(PairTable.open(with_scores.uri), FEW, show_progress=False)
    web = report.fits[0]
    assert web.told["reviewed"] == len(verdicts)
    assert web.share_from == "verdicts"
    num_wrong = sum(record.verdict == "wrong" for record in verdicts)
    num_right = len(verdicts) - num_wrong
    assert web.share == pytest.approx(num_right * 4 / (num_right * 4 + num_wrong * 2))
    assert report.fits[1].told["reviewed"] == 0


def test_verdicts_on_accepted_texts_alone_say_nothing_of_how_many_are_right(
    with_scores: PairTable,
) -> None:
    """They are learnt from; that all are right is what the filter had chosen them for."""
    rows = [row for row in web_rows(with_scores) if row["captions"] and row["captions"] != [SPAM]]
    verdicts = [judged(row, "right", 0.5, "accepted-0123") for row in rows]
    ReviewLog.of(with_scores.uri).append(verdicts)
    web = fit_table(PairTable.open(with_scores.uri), FEW, show_progress=False).fits[0]
    assert (web.told["reviewed"], web.share_from) == (len(verdicts), "scores")


def test_what_is_missing_is_named(table: PairTable, models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no score 'contrast'.*openblip capfilt scores"):
        fit_table(table, show_progress=False)
    few = PairTable.create(tmp_path / "few.lance", list(build_world(replace(WORLD, human_rows=3))))
    with pytest.raises(DataError, match=r"no filter has scored it yet"):
        score_table(few, show_progress=False)
    run_capfilt(few.uri, job_settings(models), processes=1)
    few = PairTable.open(few.uri)
    score_table(few, show_progress=False)
    with pytest.raises(DataError, match=r"has 3 human images .* needs 50: import annotated pairs"):
        fit_table(few, show_progress=False)
    few.append([replace(row, id=f"{row.id}-new") for row in build_world(WORLD)][:2])
    with pytest.raises(DataError, match=r"has changed since its scores were computed"):
        fit_table(PairTable.open(few.uri), show_progress=False)


def test_models_that_have_moved_are_asked_for(
    with_scores: PairTable, models: dict[str, str], tmp_path: Path
) -> None:
    place = json.dumps({"gone": str(tmp_path / "nowhere")})
    with_scores.update_metadata({"score_models": place})
    with pytest.raises(CheckpointError, match="nowhere"):
        fit_table(with_scores, show_progress=False)
    moved = shutil.copytree(models["filter"], tmp_path / "moved")
    fit_table(with_scores, replace(FEW, filters=(str(moved),)), show_progress=False)
    with pytest.raises(CheckpointError, match="name where it lies now with --filter"):
        fit_table(with_scores, FitSettings(filters=(models["captioner"],)), show_progress=False)


def test_the_commands_say_what_they_did(
    table: PairTable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["capfilt", "scores", table.uri]) == 0
    told = capsys.readouterr().out
    assert "contrast" in told
    assert "copies: images were not compared" in told
    assert main(["capfilt", "fit", table.uri, "--folds", "2"]) == 0
    told = capsys.readouterr().out
    assert "best single score" in told
    assert "AUC lost" in told
    assert main(["capfilt", "select", table.uri, "--score", "right"]) == 0
    assert "right" in capsys.readouterr().out
    assert set(NEW_COLUMNS) <= set(PairTable.open(table.uri).columns)
