"""A dataset folder as the `datasets` library reads it, and its card."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from PIL import Image

from openblip.cli import main
from openblip.sources import import_pairs
from openblip.sources.export import export_pairs
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView

datasets = pytest.importorskip("datasets")
CAPFILT = (
    '{"captioner_fingerprint": "cafe0123", "filter_fingerprint": "f00d4567",'
    ' "decoding": {"method": "nucleus", "top_p": 0.9}, "fingerprint": "abcd"}'
)


@pytest.fixture
def table(tmp_path: Path, jpeg: Callable[..., bytes]) -> PairTable:
    """A human row, two web rows with scores, and one of the validation split."""
    rows = [
        PairRow("h", jpeg(0), width=24, height=16, captions=["human text"], origin="human"),
        PairRow("w0", jpeg(1), captions=["kept", "bad"], meta={"url": "there"}),
        PairRow("w1", jpeg(2), captions=["poor"]),
        PairRow("v", jpeg(3), captions=["of validation"], origin="human", split="val"),
    ]
    table = PairTable.create(tmp_path / "pairs.lance", rows, {"capfilt": CAPFILT})
    table.add_columns(
        pa.table(
            {
                "captions_itm": [None, [0.75, 0.25], [0.125], None],
                "synthetic": [None, ["made"], ["made up"], None],
                "synthetic_itm": [None, [0.625], [0.5], None],
            }
        )
    )
    return table


@pytest.fixture
def loaded(table: PairTable, tmp_path: Path) -> tuple[object, Path]:
    folder = tmp_path / "dataset"
    view = CaptionView(sources=("human", "web", "synthetic"), itm=0.5, itm_of=("synthetic=0.4",))
    export_pairs(
        table, folder, "huggingface", view, splits=("train", "val"), shard_size=2,
        show_progress=False,
    )  # fmt: skip
    return datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache")), folder


def test_images_and_texts_are_read_by_the_library(
    loaded: tuple[dict[str, list[dict[str, object]]], Path], jpeg: Callable[..., bytes]
) -> None:
    splits, _ = loaded
    assert set(splits) == {"train", "validation"}
    human, first, second = splits["train"]
    assert isinstance(first["image"], Image.Image)
    assert first["image"].tobytes() == Image.open(io.BytesIO(jpeg(1))).tobytes()
    assert (human["width"], human["height"], human["captions"]) == (24, 16, ["human text"])
    assert first["captions"] == ["kept", "made"]
    assert first["caption_sources"] == ["web", "synthetic"]
    assert first["caption_itm"] == [0.75, 0.625]
    assert second["captions"] == ["made up"]
    assert [row["id"] for row in splits["validation"]] == ["v"]


def test_a_shard_says_which_of_how_many_it_is(loaded: tuple[object, Path]) -> None:
    _, folder = loaded
    assert sorted(path.name for path in (folder / "data").iterdir()) == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "validation-00000-of-00001.parquet",
    ]


def test_the_card_states_counts_thresholds_and_fingerprints(loaded: tuple[object, Path]) -> None:
    _, folder = loaded
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    splits = yaml.safe_load(header)["dataset_info"]["splits"]
    assert {s["name"]: s["num_examples"] for s in splits} == {"train": 3, "validation": 1}
    assert yaml.safe_load(header)["license"] == "unknown"
    for line in (
        "| train | 3 | 1 | 1 | 2 | 0 |",
        "| least match probability | 0.5 |",
        "| of synthetic | 0.4 |",
        "| train | web | below the threshold | 2 |",
        "| captioner_fingerprint | cafe0123 |",
        "| filter_fingerprint | f00d4567 |",
        "| decoding.top_p | 0.9 |",
    ):
        assert line in text
    assert "bootstrapped with CapFilt" in text


def test_the_card_of_a_table_without_capfilt_does_not_name_it(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    rows = [PairRow("h", jpeg(0), captions=["human text"], origin="human")]
    table = PairTable.create(tmp_path / "human.lance", rows)
    export_pairs(table, tmp_path / "out", "huggingface", CaptionView(), show_progress=False)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Image-text pairs, exported by OpenBLIP." in card
    assert "capfilt" not in card.lower()


def test_the_command_writes_rejected_texts_beside(table: PairTable, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = ["data", "export", table.uri, str(folder), "--format", "huggingface", "--itm", "0.5"]
    assert main([*words, "--split", "train", "val", "--rejected"]) == 0
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    assert [line.split('"text": ')[1].split(",")[0] for line in lines] == ['"bad"', '"poor"']
    # The other formats hold one split.
    words = ["data", "export", table.uri, str(tmp_path / "coco"), "--format", "coco"]
    assert main([*words, "--split", "train", "val"]) == 1


def test_images_of_a_parquet_export_open_as_images(table: PairTable, tmp_path: Path) -> None:
    view = CaptionView(sources=("web",))
    export_pairs(table, tmp_path / "out", "parquet", view, show_progress=False)
    for place in (
        {"path": str(tmp_path / "out")},
        {"path": "parquet", "data_files": f"{tmp_path}/out/*.parquet"},
    ):
        read = datasets.load_dataset(**place, split="train", cache_dir=str(tmp_path / "cache"))
        assert [row["image"].size for row in read] == [(24, 16), (24, 16)]
        assert read["captions"] == [["kept", "bad"], ["poor"]]


class TestTarsAsTheLibraryReadsThem:
    """It takes the type of a field from the first five samples that have it, and casts the rest."""

    def read(self, table: PairTable, tmp_path: Path) -> datasets.Dataset:
        view = CaptionView(sources=("web",))
        export_pairs(table, tmp_path / "out", "webdataset", view, show_progress=False)
        return datasets.load_dataset(
            "webdataset", data_files=f"{tmp_path}/out/*.tar", split="train",
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip

    @pytest.mark.parametrize("scored", [range(0), range(7, 12), range(3), range(2, 12, 3)])
    def test_scores_may_begin_and_end_anywhere(
        self, tmp_path: Path, jpeg: Callable[..., bytes], scored: range
    ) -> None:
        rows = [PairRow(str(n), jpeg(n), captions=[f"text {n}", "b"]) for n in range(12)]
        table = PairTable.create(tmp_path / "pairs.lance", rows)
        itm = [[None, 0.5] if n in scored else None for n in range(12)]
        table.add_columns(pa.table({"captions_itm": pa.array(itm, pa.list_(pa.float32()))}))
        read = self.read(table, tmp_path)
        assert [row["captions"] for row in read["json"]] == [[f"text {n}", "b"] for n in range(12)]
        if scored and scored[0] < 5:
            assert [row["caption_itm"] for row in read["json"]] == itm

    @pytest.mark.parametrize(
        ("values", "told"),
        [
            ([1] * 7 + [0.31], [1.0] * 7 + [0.31]),
            ([None] * 7 + ["CC0"], None),
            ([[1], [0.5], [2]], [[1.0], [0.5], [2.0]]),
            ([["a"], ["b", "c"]], [["a"], ["b", "c"]]),
            ([True, False], [True, False]),
        ],
    )
    def test_fields_of_one_type_stand_beside_the_others(
        self, tmp_path: Path, jpeg: Callable[..., bytes], values: list[object], told: object
    ) -> None:
        read = self.read(self.table_of(values, tmp_path, jpeg), tmp_path)
        assert told is None or [row["field"] for row in read["json"]] == told
        assert not any(row.get("meta") for row in read["json"])

    @pytest.mark.parametrize(
        "values",
        [
            [{"a": 1}, "text", {"b": [None]}],
            [[], ["a"]],
            [[1, "a"], [None]],
            [2**70, 1],
            [1, True],
            [1, "1"],
        ],
    )
    def test_a_field_of_several_types_is_a_text(
        self, tmp_path: Path, jpeg: Callable[..., bytes], values: list[object]
    ) -> None:
        table = self.table_of(values, tmp_path, jpeg)
        read = self.read(table, tmp_path)
        assert [json.loads(row["meta"])["field"] for row in read["json"]] == values
        import_pairs(tmp_path / "out", tmp_path / "again.lance", show_progress=False)
        again = PairTable.open(tmp_path / "again.lance").take(range(len(values)), ["meta"])
        assert [json.loads(text)["field"] for text in again["meta"].to_pylist()] == values

    def test_images_of_several_formats_are_all_read(
        self, tmp_path: Path, jpeg: Callable[..., bytes]
    ) -> None:
        stream = io.BytesIO()
        Image.new("RGB", (5, 7), "teal").save(stream, "PNG")
        images = [jpeg(0), stream.getvalue(), *map(jpeg, range(1, 7)), stream.getvalue()]
        rows = [PairRow(str(n), image, captions=["a"]) for n, image in enumerate(images)]
        read = self.read(PairTable.create(tmp_path / "pairs.lance", rows), tmp_path)
        assert [row["jpg"].size for row in read] == [
            (5, 7) if n in (1, 8) else (24, 16) for n in range(9)
        ]

    def table_of(
        self, values: list[object], tmp_path: Path, jpeg: Callable[..., bytes]
    ) -> PairTable:
        rows = [
            PairRow(str(n), jpeg(n), captions=["a"], meta={"field": value})
            for n, value in enumerate(values)
        ]
        return PairTable.create(tmp_path / "pairs.lance", rows)
