"""Sentences about two images: judged as `compare` judges each pair alone."""

import io
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.batches.image_pairs import ImagePairIndex
from openblip.cli import main
from openblip.evaluation.nlvr import evaluate_nlvr
from openblip.inference.blip import Blip
from openblip.model.vqa import Nlvr, NlvrConfig
from openblip.runtime.errors import DataError, MissingHead
from openblip.sources import import_pairs
from openblip.table.table import PairRow, PairTable

SENTENCES = ["There is a red ball in both.", "The left one: two trees", "a house and a dog!"]


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official dev.json of three sets, with two pairs each, and its images."""
    folder = tmp_path_factory.mktemp("nlvr2")
    (folder / "dev").mkdir()
    lines = []
    for number in range(3):
        for pair in range(2):
            for side in range(2):
                seed = number * 4 + pair * 2 + side
                name = f"dev-{number}-{pair}-img{side}.png"
                (folder / "dev" / name).write_bytes(picture(seed))
            for sentence in range(2):
                key = f"dev-{number}-{pair}-{sentence}"
                text = SENTENCES[(number + sentence) % 3]
                label = str((number + pair * sentence) % 2 == 0)
                lines.append({"identifier": key, "sentence": text, "label": label})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "dev.json").write_text(text)
    return folder / "dev.json"


@pytest.fixture(scope="module")
def pairs(official: Path) -> PairTable:
    import_pairs(official, official.parent / "p.lance", origin="human", show_progress=False)
    return PairTable.open(official.parent / "p.lance")


@pytest.fixture(scope="module")
def nlvr(blip: Blip) -> Blip:
    sizes = blip.med.config
    text = replace(sizes.text, dropout=0.0)
    torch.manual_seed(0)
    model = Nlvr(NlvrConfig(vision=sizes.vision, text=text, merge_from_layer=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return Blip(model, blip.tokenizer, "nlvr", 32, 48)


def official_metrics(annotations: Path, predictions: Path) -> tuple[float, float]:
    """Accuracy and consistency of the written file, counted apart from our code."""
    given = dict(line.split(",") for line in predictions.read_text().splitlines())
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for line in annotations.read_text().splitlines():
        example = json.loads(line)
        _, number, _, sentence = example["identifier"].split("-")
        hit = given[example["identifier"]].lower() == example["label"].lower()
        right[number, sentence].append(hit)
    hits = [hit for own in right.values() for hit in own]
    return 100 * float(np.mean(hits)), 100 * float(np.mean([all(own) for own in right.values()]))


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_each_pair_is_judged_as_compare_judges_it(
    nlvr: Blip, pairs: PairTable, batch_size: int
) -> None:
    index = ImagePairIndex.resolve(pairs, "val")
    images = [
        pairs.take(rows, ["image"])["image"].to_pylist()
        for rows in (index.first_rows, index.second_rows)
    ]
    expected = nlvr.compare(*images, [pair.sentence for pair in index.pairs]).tolist()

    found = evaluate_nlvr(nlvr, pairs, split="val", batch_size=batch_size)

    assert list(found.predictions) == [pair.key for pair in index.pairs]
    assert list(found.predictions.values()) == pytest.approx(expected, abs=1e-5)
    assert {value > 0.5 for value in expected} == {True, False}
    assert found.num_pairs == 12


def test_the_written_file_has_the_metrics_that_are_told(
    nlvr: Blip, pairs: PairTable, official: Path, tmp_path: Path
) -> None:
    found = evaluate_nlvr(nlvr, pairs, split="val")

    found.save_official(tmp_path / "predictions.csv")

    accuracy, consistency = official_metrics(official, tmp_path / "predictions.csv")
    assert found.metrics == pytest.approx({"accuracy": accuracy, "consistency": consistency})
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 12


def test_units_are_sets_of_images_and_add_up(nlvr: Blip, pairs: PairTable) -> None:
    found = evaluate_nlvr(nlvr, pairs, split="val")
    assert found.units["accuracy"].weights.tolist() == [4, 4, 4]
    assert found.units["consistency"].weights.tolist() == [2, 2, 2]
    for name, units in found.units.items():
        assert units.estimate == pytest.approx(found.metrics[name])


def test_an_image_is_encoded_once_in_a_batch(nlvr: Blip, pairs: PairTable) -> None:
    images = 0

    def count(_module: object, inputs: tuple[torch.Tensor], _output: object) -> None:
        nonlocal images
        images += len(inputs[0])

    hook = nlvr.nlvr.image_encoder.register_forward_hook(count)
    evaluate_nlvr(nlvr, pairs, split="val")
    hook.remove()

    assert images == 12


def test_pairs_without_official_identifiers_have_accuracy_alone(nlvr: Blip, tmp_path: Path) -> None:
    pair = {"second": "b", "sentence": "s", "label": True}
    rows = [
        PairRow("a", picture(0), split="test", meta={"pairs": [pair, pair | {"label": False}]}),
        PairRow("b", picture(1), split="test", meta={"pairs": [pair]}),
    ]
    found = evaluate_nlvr(nlvr, PairTable.create(tmp_path / "p.lance", rows))
    assert found.metrics.keys() == found.units.keys() == {"accuracy"}
    assert found.units["accuracy"].weights.tolist() == [2, 1]
    assert found.units["accuracy"].estimate == pytest.approx(found.metrics["accuracy"])


def test_what_cannot_be_evaluated_is_named(
    nlvr: Blip, blip: Blip, pairs: PairTable, tmp_path: Path
) -> None:
    with pytest.raises(MissingHead, match="two-image"):
        evaluate_nlvr(blip, pairs, split="val")
    with pytest.raises(DataError, match="'test'"):
        evaluate_nlvr(nlvr, pairs)
    pair = {"second": "a", "sentence": "s", "label": True, "pair_id": "x"}
    twice = PairRow("a", picture(0), split="test", meta={"pairs": [pair, pair]})
    with pytest.raises(DataError, match="pair_id x occurs twice"):
        evaluate_nlvr(nlvr, PairTable.create(tmp_path / "twice.lance", [twice]))
    broken = PairRow("a", b"no image", split="test", meta={"pairs": [pair]})
    with pytest.raises(DataError, match="row 0 of"):
        evaluate_nlvr(nlvr, PairTable.create(tmp_path / "broken.lance", [broken]))


def test_the_command_prints_and_writes(
    nlvr: Blip, pairs: PairTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nlvr.save(tmp_path / "model")
    results = tmp_path / "p.csv"
    words = ["evaluate", "nlvr", str(tmp_path / "model"), pairs.uri, "--split", "val"]

    assert main([*words, "--json", "--results", str(results)]) == 0

    shown = json.loads(capsys.readouterr().out)
    assert shown["metrics"] == pytest.approx(evaluate_nlvr(nlvr, pairs, split="val").metrics)
    assert set(shown["intervals"]) == {"accuracy", "consistency"}
    assert {line.split(",")[1] for line in results.read_text().splitlines()} == {"True", "False"}
    assert main(words) == 0
    assert "consistency" in capsys.readouterr().out
