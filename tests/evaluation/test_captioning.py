"""Captioning a split and judging it."""

import json
from pathlib import Path

import pytest

from openblip.evaluation.captioning import evaluate_caption
from openblip.inference.blip import Blip
from openblip.inference.decoding import Decoding
from openblip.metrics import caption
from openblip.runtime.errors import DataError
from openblip.sources.export import export_pairs
from openblip.table.table import PairTable
from openblip.table.views import CaptionView


def test_every_image_gets_its_best_caption_and_metrics_are_those_of_the_captions(
    blip: Blip, world: PairTable
) -> None:
    decoding = Decoding(method="beam", num_beams=2, max_length=12)

    result = evaluate_caption(blip, world, decoding=decoding, batch_size=4)

    rows = [r for r in world.take(range(len(world))).to_pylist() if r["split"] == "test"]
    assert list(result.captions) == [row["id"] for row in rows]
    images = [row["image"] for row in rows]
    written = blip.caption(images, num_beams=2, max_length=12)
    assert list(result.captions.values()) == [choices[0].text for choices in written]
    references = {row["id"]: row["captions"] for row in rows}
    assert result.metrics == caption(result.captions, references)
    assert set(result.metrics) >= {"BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr"}


def test_a_seed_and_the_row_decide_what_is_sampled(blip: Blip, world: PairTable) -> None:
    nucleus = Decoding(method="nucleus", top_p=1.0, max_length=12)
    one, two, other = (
        evaluate_caption(blip, world, decoding=nucleus, seed=seed, batch_size=size).captions
        for seed, size in ((0, 4), (0, 3), (1, 4))
    )
    assert one == two != other


def test_results_are_written_as_coco_does(blip: Blip, world: PairTable, tmp_path: Path) -> None:
    result = evaluate_caption(blip, world, decoding=Decoding(method="greedy", max_length=10))

    result.save_coco(tmp_path / "results.json")

    values = json.loads((tmp_path / "results.json").read_text())
    assert {v["openblip_id"]: v["caption"] for v in values} == result.captions
    assert [v["image_id"] for v in values] == [row + 1 for row in result.rows.tolist()]


def test_results_are_about_the_images_of_an_export(
    blip: Blip, world: PairTable, tmp_path: Path
) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    view = CaptionView(sources=("human",), split="test")
    export_pairs(world, tmp_path / "coco", "coco", view, show_progress=False)
    result = evaluate_caption(blip, world, decoding=Decoding(method="greedy", max_length=10))
    result.save_coco(tmp_path / "results.json")

    truth = coco.COCO(str(tmp_path / "coco" / "captions_test.json"))
    found = truth.loadRes(str(tmp_path / "results.json"))
    for number, image in truth.imgs.items():
        (written,) = found.imgToAnns[number]
        assert written["caption"] == result.captions[image["openblip_id"]]
        references = [note["caption"] for note in truth.imgToAnns[number]]
        assert references == result.references[image["openblip_id"]]


def test_a_split_without_captions_is_named(blip: Blip, empty_split: PairTable) -> None:
    with pytest.raises(DataError, match="caption"):
        evaluate_caption(blip, empty_split)
