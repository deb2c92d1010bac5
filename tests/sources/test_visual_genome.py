"""Regions of Visual Genome; its questions are tested with the others."""

import json
from collections.abc import Callable
from pathlib import Path

from openblip.sources.importing import import_pairs
from openblip.table.table import PairTable


def test_phrases_of_regions_are_captions_and_their_boxes_are_kept(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    (tmp_path / "VG_100K_2").mkdir()
    (tmp_path / "VG_100K_2" / "1.jpg").write_bytes(jpeg(0))
    box = {"x": 421, "y": 57, "width": 82, "height": 139}
    region = {"region_id": 1382, "image_id": 1, "phrase": "the clock is green", **box}
    records = [
        {"id": 1, "regions": [region, {**region, "phrase": None}, "x"]},
        {"id": 2, "regions": []},
        None,
    ]
    file = tmp_path / "region_descriptions.json"
    file.write_text(json.dumps(records))
    report = import_pairs(file, tmp_path / "t", origin="human", show_progress=False)
    assert (report.format, report.num_seen, report.num_used) == ("visual_genome", 3, 1)
    assert (report.skipped, report.noted) == ({"bad record": 2}, {"bad record": 2})
    (row,) = PairTable.open(tmp_path / "t").take([0]).to_pylist()
    assert (row["id"], row["captions"]) == ("visual_genome/1", ["the clock is green"])
    assert json.loads(row["meta"]) == {"regions": [box]}
