"""Zero-shot classification against scores computed pair by pair, with each kind of matcher."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from openblip.batches.transforms import eval_transform
from openblip.cli import main
from openblip.evaluation.classification import class_prompts, evaluate_classification, read_labels
from openblip.evaluation.results import save_records
from openblip.inference.blip import Blip
from openblip.inference.embedder import load_embedder
from openblip.model import Med
from openblip.model.albef import Albef, AlbefConfig
from openblip.runtime.errors import DataError, MissingHead, RecipeError
from openblip.sources.images import open_image
from openblip.table.table import PairRow, PairTable
from openblip.world import build_world

from ..inference.published_clip import save_clip, transformers_embeds
from .conftest import WORLD

LABELS = ["red ball", "a blue cube", "tree", "house", "Dog.", "cat"]
TEMPLATES = ("a photo of {}.", "there is a {} here")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> PairTable:
    """Nine test images with five labels, one of them with two and one with "todo"."""
    rows = []
    for number, row in enumerate(build_world(WORLD)):
        meta = {"label": LABELS[number % 5], "labels": [LABELS[number % 5], LABELS[number % 3]]}
        rows.append(replace(row, meta=meta))
    rows[0] = replace(rows[0], meta={"label": "cat", "labels": []})
    tests = [place for place, row in enumerate(rows) if row.split == "test"]
    rows[tests[0]] = replace(rows[tests[0]], meta={"label": "todo"})
    rows[tests[1]] = replace(rows[tests[1]], meta={"labels": ["todo", "tree"]})
    return PairTable.create(tmp_path_factory.mktemp("labelled") / "l.lance", rows)


@pytest.fixture
def albef(blip: Blip) -> Blip:
    config = AlbefConfig(
        vision=blip.med.config.vision, text=blip.med.config.text, embed_dim=8, fusion_layer=1
    )
    torch.manual_seed(1)
    return Blip(Albef(config), blip.tokenizer, "albef", 32, 32)


@pytest.fixture
def clip(blip: Blip) -> Blip:
    torch.manual_seed(2)
    config = replace(blip.med.config, heads=("itc",))
    return Blip(Med(config), blip.tokenizer, "pretrain", 32, 32)


def images_of(table: PairTable, rows: np.ndarray) -> list[bytes]:
    return table.take(rows, ["image"])["image"].to_pylist()


def expected_cosines(blip: Blip, table: PairTable, rows: np.ndarray) -> torch.Tensor:
    prompts = class_prompts(read_labels(table, "test", "label", ["todo"]).classes, TEMPLATES)
    classes = [F.normalize(blip.embed_texts(own).mean(0), dim=0) for own in prompts]
    return blip.embed_images(images_of(table, rows)) @ torch.stack(classes).T


@pytest.mark.parametrize("kind", ["blip", "albef", "clip"])
def test_contrast_ranks_the_mean_of_the_prompts(
    kind: str, labelled: PairTable, request: pytest.FixtureRequest
) -> None:
    model: Blip = request.getfixturevalue(kind)
    images = read_labels(labelled, "test", "label", ["todo"])
    cosines = expected_cosines(model, labelled, images.rows)
    best = cosines.argmax(dim=1).tolist()
    right = [first in own for first, own in zip(best, images.classes_of_image, strict=True)]

    found = evaluate_classification(
        model, labelled, templates=TEMPLATES, exclude=["todo"], batch_size=3
    )

    assert found.num_images == len(images.rows) == 7
    assert found.metrics == found.contrastive
    assert found.metrics["top-1"] == pytest.approx(100 * np.mean(right))
    assert [row["predictions"][0] for row in found.predictions] == [
        found.classes[first] for first in best
    ]
    assert [row["correct"] for row in found.predictions] == right


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return save_clip(tmp_path / "published")


def test_a_published_clip_scores_as_transformers_does(published: Path, labelled: PairTable) -> None:
    images = read_labels(labelled, "test", "label", ["todo"])
    # Short ones: a word is as many tokens of this CLIP as it has letters.
    templates = ("a {}", "{} here")
    prompts = class_prompts(images.classes, templates)
    pictures = [open_image(image) for image in images_of(labelled, images.rows)]
    texts = [prompt for own in prompts for prompt in own]
    of_images, of_texts = transformers_embeds(published, pictures, texts)
    of_classes = F.normalize(of_texts.view(len(prompts), len(templates), -1).mean(dim=1), dim=-1)
    expected = (of_images @ of_classes.T).numpy()

    found = evaluate_classification(
        load_embedder(published), labelled, templates=templates, exclude=["todo"], batch_size=3
    )

    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-5)
    assert found.metrics == found.contrastive
    assert [row["predictions"][0] for row in found.predictions] == [
        images.classes[first] for first in expected.argmax(axis=1)
    ]


def test_the_command_takes_a_published_clip_and_ranks_by_contrast_alone(
    published: Path, labelled: PairTable, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "classify", str(published), labelled.uri, "--exclude", "todo"]

    assert main([*words, "--json"]) == 0
    found = evaluate_classification(load_embedder(published), labelled, exclude=["todo"])
    assert json.loads(capsys.readouterr().out)["metrics"] == pytest.approx(found.metrics)

    assert main([*words, "--k", "3"]) == 1
    assert "leave --k out" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_is_named(blip: Blip, tmp_path: Path) -> None:
    rows = [PairRow(id=key, image=b"no image", split="test", meta={"label": key}) for key in "ab"]
    table = PairTable.create(tmp_path / "t.lance", rows)
    for k in (0, 1):
        with pytest.raises(DataError, match="row 'a'"):
            evaluate_classification(blip, table, k=k)


def match_score(model: Blip, image: bytes, prompts: list[str]) -> float:
    """Mean logit of "match" over the prompts, one pass each."""
    first = "enc" if isinstance(model.model, Med) else "cls"
    logits = []
    with torch.no_grad():
        pixels = eval_transform(open_image(image), model.image_size)[None]
        memory = model.matcher.text.remember(model.matcher.encode_images(pixels))
        for prompt in prompts:
            tokens = model.tokenizer.encode([prompt], model.max_tokens, first=first)
            logits.append(float(model.matcher.match(tokens.ids, tokens.mask, memory)[0, 1]))
    return float(np.mean(logits))


@pytest.mark.parametrize("kind", ["blip", "albef"])
def test_matching_ranks_the_best_classes_again(
    kind: str, labelled: PairTable, request: pytest.FixtureRequest
) -> None:
    model: Blip = request.getfixturevalue(kind)
    images = read_labels(labelled, "test", "label", ["todo"])
    prompts = class_prompts(images.classes, TEMPLATES)
    cosines = expected_cosines(model, labelled, images.rows)
    expected = []
    for image, row in zip(images_of(labelled, images.rows), cosines, strict=True):
        first = row.argsort(descending=True).tolist()
        # BLIP adds the cosine, ALBEF does not.
        added = row if kind == "blip" else torch.zeros_like(row)
        scores = {
            name: match_score(model, image, prompts[name]) + float(added[name])
            for name in first[:3]
        }
        best = sorted(scores, key=lambda name: -scores[name])
        expected.append([images.classes[name] for name in [*best, *first[3:5]]])

    found = evaluate_classification(
        model, labelled, templates=TEMPLATES, exclude=["todo"], k=3, batch_size=3
    )

    assert [row["predictions"] for row in found.predictions] == expected
    assert expected != [
        [images.classes[name] for name in row.argsort(descending=True)[:5]] for row in cosines
    ]


def test_classes_are_those_of_all_splits_and_excluded_ones_do_not_count(
    labelled: PairTable,
) -> None:
    images = read_labels(labelled, "test", "label", ["todo"])
    assert images.classes == sorted(["red ball", "a blue cube", "tree", "house", "Dog.", "cat"])
    # Of nine test images one is "todo" and one has no label.
    assert len(images.rows) == 7
    assert "todo" in read_labels(labelled, "test", "label").classes


def test_an_image_with_several_labels_is_a_hit_at_any(blip: Blip, labelled: PairTable) -> None:
    found = evaluate_classification(
        blip, labelled, label_field="labels", exclude=["todo"], batch_size=4
    )
    assert ["tree"] in [row["labels"] for row in found.predictions]
    assert max(len(row["labels"]) for row in found.predictions) == 2
    for row in found.predictions:
        assert row["correct"] == (row["predictions"][0] in row["labels"])


def test_units_add_up_to_the_metrics(blip: Blip, labelled: PairTable) -> None:
    found = evaluate_classification(blip, labelled, exclude=["todo"], k=3)
    assert found.units.keys() == found.metrics.keys()
    for name, units in found.units.items():
        assert units.estimate == pytest.approx(found.metrics[name])
        assert len(units.scores) == found.num_images
    mean = np.mean(list(found.per_class.values()))
    assert found.metrics["mean per class"] == pytest.approx(mean)


def test_results_are_a_table_or_a_list(blip: Blip, labelled: PairTable, tmp_path: Path) -> None:
    found = evaluate_classification(blip, labelled, label_field="labels", exclude=["todo"])

    save_records(tmp_path / "r.json", found.predictions)
    save_records(tmp_path / "r.csv", found.predictions)

    assert json.loads((tmp_path / "r.json").read_text()) == found.predictions
    with (tmp_path / "r.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == [row["id"] for row in found.predictions]
    assert [row["labels"].split("; ") for row in rows] == [r["labels"] for r in found.predictions]
    assert {row["correct"] for row in rows} <= {"True", "False"}


def test_what_cannot_be_evaluated_is_named(
    blip: Blip, clip: Blip, world: PairTable, labelled: PairTable, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="fields are label, labels"):
        evaluate_classification(blip, labelled, label_field="class")
    with pytest.raises(DataError, match="did you mean 'todo'"):
        evaluate_classification(blip, labelled, exclude=["todos"])
    with pytest.raises(RecipeError, match=r"write \{\} where"):
        evaluate_classification(blip, labelled, templates=["a photo"])
    with pytest.raises(RecipeError, match="no template"):
        evaluate_classification(blip, labelled, templates=[])
    with pytest.raises(RecipeError, match="k is -1"):
        evaluate_classification(blip, labelled, k=-1)
    with pytest.raises(MissingHead, match=r"no itm head .* leave --k out"):
        evaluate_classification(clip, labelled, k=2)
    with pytest.raises(RecipeError, match=r"\.csv or \.json"):
        save_records(tmp_path / "r.txt", [])
    other = {"label": None, "box": {"x": 1}, "url": "a"}
    others = [PairRow(id=name, image=b"x", split="test", meta=other) for name in "ab"]
    with pytest.raises(DataError, match="fields are box, label, url"):
        evaluate_classification(blip, PairTable.create(tmp_path / "others.lance", others))
    alone = PairTable.create(
        tmp_path / "one.lance",
        [PairRow(id="a", image=b"x", split="test", meta={"label": "cat", "box": {"x": 1}})],
    )
    with pytest.raises(DataError, match="'cat' is the only label"):
        evaluate_classification(blip, alone)
    with pytest.raises(DataError, match=r"row 0 .* not a label"):
        evaluate_classification(blip, alone, label_field="box")


@pytest.mark.parametrize(
    ("name", "label_field", "exclude", "num_classes"),
    [
        ("medical_covid_cxr", "label", ["todo"], 16),
        ("industrial_deeppcb", "labels", [], 6),
        ("art_wikiart7", "label", [], 7),
    ],
)
def test_labels_of_real_collections_are_read(
    shared_data: Path,
    tmp_path: Path,
    name: str,
    label_field: str,
    exclude: list[str],
    num_classes: int,
) -> None:
    source = shared_data / name / "captions.jsonl"
    if not source.is_file():
        pytest.skip(f"reference data not found: {source}")
    records = [json.loads(line) for line in source.read_text().splitlines()]
    rows = [
        PairRow(id=record["image"], image=b"", split=record["split"], meta=record)
        for record in records
    ]
    table = PairTable.create(tmp_path / "t.lance", rows)

    images = read_labels(table, "test", label_field, exclude)

    assert len(images.classes) == num_classes
    wanted = [
        record["image"]
        for record in records
        if record["split"] == "test" and record[label_field] not in (*exclude, [])
    ]
    assert images.ids == wanted


def test_the_command_prints_and_writes(
    blip: Blip, labelled: PairTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blip.save(tmp_path / "model")
    words = ["evaluate", "classify", str(tmp_path / "model"), labelled.uri, "--exclude", "todo"]
    results = tmp_path / "r.json"

    assert main([*words, "--k", "2", "--json", "--results", str(results)]) == 0

    shown = json.loads(capsys.readouterr().out)
    found = evaluate_classification(blip, labelled, exclude=["todo"], k=2)
    assert shown["metrics"] == pytest.approx(found.metrics)
    assert json.loads(results.read_text()) == found.predictions
    assert main(words) == 0
    assert "mean per class" in capsys.readouterr().out
    assert main([*words, "--results", "r.txt"]) == 1
    assert "ends in .csv or .json" in capsys.readouterr().err
