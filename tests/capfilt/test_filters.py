"""Filters of any kind in one job: what each is called, what it writes, and what is left out."""

import json
from pathlib import Path

import numpy as np
import pytest

from openblip.capfilt.filters import divided, name_filters, name_of
from openblip.capfilt.job import NEW_COLUMNS, CapFiltSettings, job_status
from openblip.capfilt.run import run_capfilt
from openblip.inference.embedder import load_embedder
from openblip.runtime.errors import DataError, RecipeError
from openblip.sources.row_images import row_image
from openblip.table.scores import check_scored
from openblip.table.table import PairTable

from ..inference.published_clip import save_clip, save_siglip
from .jobs import job_settings


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_clip(tmp_path_factory.mktemp("filters") / "clip-vit-tiny"))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("openai/clip-vit-base-patch32", "clip_vit_base_patch32"),
        ("/models/clip-vit-base-patch32/", "clip_vit_base_patch32"),
        ("google/siglip-base-patch16-224@main", "siglip_base_patch16_224"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "vit_b_32_laion2b_s34b_b79k"),
        ("open_clip:/models/mine", "mine"),
        ("runs/filter/best", "filter"),
        ("runs/7b", "filter_7b"),
        ("weights/model_base_retrieval.pth", "model_base_retrieval"),
    ],
)
def test_a_name_says_which_model_it_is_wherever_it_lies(source: str, name: str) -> None:
    assert name_of(source) == name


def test_a_name_may_be_given(tmp_path: Path) -> None:
    assert divided("mine=runs/filter") == ("mine", "runs/filter")
    assert divided("runs/filter") == (None, "runs/filter")
    assert divided("runs/a=b") == (None, "runs/a=b")
    with pytest.raises(RecipeError, match="small letters, digits and _"):
        divided("My Filter=runs/filter")


def test_names_that_would_meet_are_refused(clip: str, models: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=r"both give the score 'a'; name one of them"):
        name_filters([f"a={clip}", f"a={models['filter']}"])
    with pytest.raises(RecipeError, match=r"'right' is another one's name"):
        name_filters([f"right={clip}"])
    with pytest.raises(RecipeError, match="each once"):
        CapFiltSettings(captioner="c", filter=("f", "f"))


def test_each_filter_has_columns_of_its_own(
    table: PairTable, models: dict[str, str], clip: str, tmp_path: Path
) -> None:
    siglip = str(save_siglip(tmp_path / "siglip"))
    both = (clip, models["filter"], f"second={models['captioner']}", f"lip={siglip}")
    assert [plan.scores for plan in name_filters(both)] == [
        ("clip_vit_tiny",),
        ("itm", "itc"),
        ("second", "second_itc"),
        ("lip",),
    ]
    with pytest.warns(match="this captioner was trained"):
        result = run_capfilt(table.uri, job_settings(models, filter=both), processes=1)

    assert result.errors == 1
    assert job_status(table.uri).is_finished
    opened = PairTable.open(table.uri)
    rows = [r for r in opened.take(range(len(opened))).to_pylist() if r["synthetic"]]
    row = rows[0]
    texts = row["captions"] + row["synthetic"]
    embedder = load_embedder(clip, "cpu")
    image = embedder.embed_images(row_image(row))
    expected = (image @ embedder.embed_texts(texts).T)[0].tolist()
    found = row["captions_score_clip_vit_tiny"] + row["synthetic_score_clip_vit_tiny"]
    assert found == pytest.approx(expected, abs=1e-5)
    for name in ("second", "second_itc", "lip"):
        assert len(row[f"captions_score_{name}"]) == len(row["captions"])
        assert np.isfinite(row[f"synthetic_score_{name}"]).all()
    # The scores of ours are those that it gives alone.
    run_capfilt(table.uri, job_settings(models), processes=1)
    alone = PairTable.open(table.uri)
    again = next(r for r in alone.take(range(len(alone))).to_pylist() if r["synthetic"])
    assert again["captions_itm"] == pytest.approx(row["captions_itm"], abs=1e-6)
    # Scores of texts that were replaced do not stay beside the new ones.
    assert not [name for name in alone.columns if "_score_" in name]


def test_without_a_filter_that_matches_there_is_no_match_probability(
    table: PairTable, models: dict[str, str], clip: str
) -> None:
    run_capfilt(table.uri, job_settings(models), processes=1)
    settings = job_settings(models, filter=clip)
    run_capfilt(table.uri, settings, processes=1)

    opened = PairTable.open(table.uri)
    assert "captions_score_clip_vit_tiny" in opened.columns
    assert not {"captions_itm", "synthetic_itm", "captions_itc"} & set(opened.columns)
    assert json.loads(opened.metadata["capfilt"])["filter"] == clip
    with pytest.raises(DataError, match="clip_vit_tiny"):
        check_scored(opened)
    version = opened.version
    assert run_capfilt(table.uri, settings, processes=1).computed == 0
    assert PairTable.open(table.uri).version == version


def test_the_columns_of_a_job_with_one_filter_of_ours_are_as_ever() -> None:
    assert NEW_COLUMNS == (
        "synthetic",
        "synthetic_logprob",
        "synthetic_captioner",
        "captions_itm",
        "captions_itc",
        "synthetic_itm",
        "synthetic_itc",
        "capfilt_error",
    )
