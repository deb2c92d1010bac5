"""A published CLIP in a comparison: measured beside models of ours, refused what it cannot do."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.batches.tokenizer import TextTokenizer
from openblip.cli import main
from openblip.comparison.run import Compared, compare, read_comparison
from openblip.comparison.spec import read_spec
from openblip.evaluation.classification import evaluate_classification
from openblip.evaluation.retrieval import evaluate_retrieval
from openblip.inference.blip import Blip
from openblip.inference.embedder import load_embedder
from openblip.runtime.errors import RecipeError
from openblip.table.table import PairTable
from openblip.world import WorldConfig, build_world

from ..inference.conftest import TEXTS, make_med
from ..inference.published_clip import save_clip
from .conftest import TINY, written
from .test_report import table_of

FILE = """\
title: Published
seeds: [0, 1]
data:
  labelled: {table: $PLACE/labelled.lance}
models:
  ours: {checkpoint: $PLACE/ours}
  clip: {label: CLIP, published_clip: $PLACE/clip}
tasks:
  retrieval: {task: retrieval, settings: {k: 3}}
  classification: {task: classification, settings: {templates: ["a {}"], k: 2}}
tables:
  - {title: Both, models: [ours, clip], figures: [retrieval.R@1, classification.top-1]}
claims:
  - {claim: ours > CLIP, better: ours, than: clip, figures: [retrieval.TR@1]}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a table of labelled images, a model of ours, and a CLIP."""
    rows = build_world(WorldConfig(seed=5, web_rows=2, human_rows=2, val_rows=2, test_rows=9))
    labels = ("ball", "cube", "tree")
    PairTable.create(
        tmp_path / "labelled.lance",
        [replace(row, meta={"label": labels[n % 3]}) for n, row in enumerate(rows)],
    )
    tokenizer = TextTokenizer.train(TEXTS, 90)
    Blip(make_med(tokenizer), tokenizer, "pretrain", 32, 30).save(tmp_path / "ours")
    save_clip(tmp_path / "clip")
    monkeypatch.setenv("PLACE", str(tmp_path))
    return tmp_path


def unfinished(place: Path) -> set[str]:
    stages = read_comparison(place / "tiny.yaml", place / "out").stages
    return {stage.name.partition(" on ")[0] for stage in stages if not stage.is_finished}


def value(compared: Compared, model: str, figure: str) -> float:
    scores = compared.findings.scores(model, figure)
    assert scores is not None
    return scores.interval()[0]


def test_it_is_measured_as_by_itself_and_again_only_when_it_has_changed(place: Path) -> None:
    path, out = written(place, FILE), place / "out"
    clip, table = load_embedder(place / "clip"), PairTable.open(place / "labelled.lance")
    found = evaluate_retrieval(clip, table).metrics
    named = evaluate_classification(clip, table, templates=["a {}"]).metrics

    compared = compare(path, out)

    assert value(compared, "clip", "retrieval.TR@1") == pytest.approx(found["TR@1"])
    assert value(compared, "clip", "retrieval.IR@1") == pytest.approx(found["IR@1"])
    assert value(compared, "clip", "classification.top-1") == pytest.approx(named["top-1"])
    header, _, ours, theirs = table_of(compared.text, "Both")
    assert header[-2:] == ["FLOP", "time"]
    assert theirs[0] == "CLIP"
    assert ours[-2:] == theirs[-2:] == ["-", "-"]
    # What is the same for all seeds is done once.
    assert len(list((out / "stages").iterdir())) == 2 * 2

    assert unfinished(place) == set()
    (place / "clip" / "README.md").write_text("Made of letters.")
    assert unfinished(place) == set()
    processor = place / "clip" / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace("32", "31"))
    assert unfinished(place) == {"clip"}


def refused(place: Path, text: str) -> tuple[int, str]:
    """Line and message of what is wrong, found by reading the file alone."""
    with pytest.raises(RecipeError) as error:
        read_spec(written(place, text))
    found = re.match(r".*tiny\.yaml, line (\d+): (.*)", str(error.value))
    assert found is not None, error.value
    return int(found[1]), found[2]


@pytest.mark.parametrize(
    ("kind", "figure"), [("caption", "CIDEr"), ("vqa", "accuracy"), ("nlvr", "accuracy")]
)
def test_a_task_that_contrast_cannot_do_is_refused(kind: str, figure: str, tmp_path: Path) -> None:
    asked = f"  other: {{task: {kind}}}\ntables:\n"
    beyond = FILE.replace("tables:\n", asked)
    message = f"'clip' is a published CLIP, which cannot do the task 'other' ({kind})"

    in_table = beyond.replace("classification.top-1]", f"other.{figure}]")
    line, why = refused(tmp_path, in_table)
    assert message in why
    assert "only retrieval and classification" in why
    assert in_table.splitlines()[line - 1].startswith("  - {title: Both")

    in_claim = beyond.replace("retrieval.TR@1]", f"other.{figure}]")
    line, why = refused(tmp_path, in_claim)
    assert message in why
    assert in_claim.splitlines()[line - 1].startswith("  - {claim: ours")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "recipe: world_filter\n    init: noise",
            "like: noise\n    init: lent",
            "models.filter.init",
        ),
        ("like: noise, trained_as: clip", "like: lent", "models.clip.like"),
        ("filter: filter", "filter: lent", "data.cleaned.capfilt.filter"),
    ],
)
def test_nothing_is_made_with_it(before: str, after: str, message: str, tmp_path: Path) -> None:
    text = TINY.replace("models:\n", "models:\n  lent: {published_clip: org/name}\n", 1)
    changed = text.replace(before, after, 1)
    assert changed != text
    _, why = refused(tmp_path, changed)
    assert f"{message} is 'lent', a published CLIP, which can only be evaluated" in why


@pytest.mark.parametrize(
    "change", ["settings: {train.steps: 2}", "init: ours", "data: labelled", "trained_as: clip"]
)
def test_it_is_taken_as_it_is(change: str, tmp_path: Path) -> None:
    _, why = refused(tmp_path, FILE.replace("label: CLIP,", f"{change},"))
    assert "taken as it is" in why


def test_models_in_the_wrong_field_are_named_before_anything_runs(place: Path) -> None:
    for before, after, message in (
        ("checkpoint: $PLACE/ours", "published_clip: $PLACE/ours", "give it as checkpoint"),
        ("published_clip: $PLACE/clip", "checkpoint: $PLACE/clip", "give it as published_clip"),
        ("$PLACE/clip", "open_clip:ViT-B-32", "give open_clip:ARCHITECTURE/PRETRAINED"),
        ("$PLACE/clip", "$PLACE/none", "no such file or folder"),
    ):
        with pytest.raises(RecipeError, match=rf"tiny\.yaml, line \d+: .*{message}"):
            read_comparison(written(place, FILE.replace(before, after)), place / "out")
    assert not (place / "out").exists()


def test_a_weight_of_what_it_cannot_do_is_told(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = str(place / "labelled.lance")
    words = ["evaluate", "retrieval", str(place / "clip"), table, "--ranking", "combined"]
    assert main([*words, "--weigh-on", "val"]) == 0
    told = capsys.readouterr()
    assert "does not match: contrast alone ranks, and --weigh-on weighs nothing" in told.err
    ours = ["evaluate", "retrieval", str(place / "ours"), table, "--ranking", "combined"]
    assert main([*ours, "--weigh-on", "test"]) == 1
    assert "the split that is evaluated" in capsys.readouterr().err
