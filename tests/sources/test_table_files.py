"""Files with rows: what is damaged in them costs as little as may be."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from openblip.runtime.errors import DataError
from openblip.sources.columns import find_columns
from openblip.sources.source import SourceOptions
from openblip.sources.tables import is_table_file, num_parquet_rows, open_table
from openblip.sources.text_files import FILE_DAMAGE

_OPTIONS = SourceOptions()


def _rows(file: Path, done: int = 0) -> list[Any]:
    table = open_table(file, _OPTIONS)
    found = table.records(find_columns(table.kinds, _OPTIONS, file.name), done)
    return [dict(row) if isinstance(row, Mapping) else str(row) for row in found]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.parquet"


def test_columns_of_one_name_are_told_apart(file: Path) -> None:
    columns = [pa.array([text]) for text in ("0.jpg", "first", "second", "1.jpg")]
    names = ["image", "caption", "caption", "image"]
    parquet.write_table(pa.Table.from_arrays(columns, names=names), file)
    assert open_table(file, _OPTIONS).repeated == ["image", "caption"]
    assert _rows(file) == [
        {"image": "0.jpg", "caption": "first", "caption_2": "second", "image_2": "1.jpg"}
    ]


def test_classes_of_the_hub_say_the_split_by_their_names(file: Path) -> None:
    features = {
        "split": {"names": ["train", "test"], "_type": "ClassLabel"},
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    }
    table = pa.table(
        {
            "image": ["a", "b", "c"],
            "caption": ["x", "y", "z"],
            "split": [0, 1, -1],
            "label": [1, 0, 1],
        }
    )
    told = {b"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(told), file)
    assert [row["split"] for row in _rows(file)] == ["train", "test", -1]
    assert [row["label"] for row in _rows(file)] == [1, 0, 1]
    for damaged in ("", "[]", '{"info": {"features": {"split": 3}}}'):
        parquet.write_table(table.replace_schema_metadata({b"huggingface": damaged}), file)
        assert [row["split"] for row in _rows(file)] == [0, 1, -1]


def test_a_time_that_python_cannot_hold_costs_its_row(file: Path) -> None:
    far = 1 << 60
    for kind, zone in ((pa.timestamp("us"), None), (pa.timestamp("s", "UTC"), "UTC")):
        times = pa.array([0, far if zone is None else 1 << 40, 5], kind)
        parquet.write_table(
            pa.table({"image": list("abc"), "caption": list("xyz"), "t": times}), file
        )
        rows = _rows(file)
        assert [row["image"] if isinstance(row, dict) else None for row in rows] == ["a", None, "c"]
        assert isinstance(rows[1], str)
        assert _rows(file, 2) == rows[2:]


def test_times_of_an_unknown_zone_cost_no_other_file_its_rows(file: Path) -> None:
    times = pa.array([0], pa.timestamp("us", "Mars/Phobos"))
    parquet.write_table(pa.table({"image": ["a"], "caption": ["x"], "t": times}), file)
    (row,) = _rows(file)
    assert isinstance(row, str)


@pytest.mark.parametrize("size", [0, 3, 8, 100, -1])
def test_a_file_that_is_empty_or_cut_is_named(file: Path, size: int) -> None:
    parquet.write_table(pa.table({"image": ["a"], "caption": ["x"]}), file)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DataError, match=r"a\.parquet cannot be read: "):
        open_table(file, _OPTIONS)
    assert num_parquet_rows([file]) is None


def test_damage_anywhere_in_a_file_is_told_and_never_an_error_of_arrow(file: Path) -> None:
    images = [{"bytes": bytes([number]) * 40, "path": f"{number}.jpg"} for number in range(20)]
    texts = pa.array([f"text {number % 3}" for number in range(20)]).dictionary_encode()
    tags = [[f"t{number}"] for number in range(20)]
    table = pa.table({"image": images, "caption": texts, "tags": tags})
    parquet.write_table(table, file, row_group_size=7)
    whole, draw = file.read_bytes(), random.Random(0)
    # Of these seeds some raised `ArrowNotImplementedError`, which is no `ValueError`.
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 2, 20))):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        file.write_bytes(damaged)
        try:
            _rows(file)
        except (DataError, *FILE_DAMAGE):
            pass


def test_a_file_with_names_takes_no_others(file: Path) -> None:
    parquet.write_table(pa.table({"image": ["a"], "caption": ["x"]}), file)
    with pytest.raises(DataError, match="names its columns itself: --columns is for CSV and TSV"):
        open_table(file, SourceOptions(columns=("image", "caption")))


@pytest.mark.parametrize(
    ("name", "text", "is_table"),
    [
        ("a.CSV", "", True),
        ("a.tsv.gz", "", True),
        ("captions.txt", "image,caption\n", True),
        ("captions.txt", "a dog on a beach, and a cat\n", False),
        ("Flickr8k.token.txt", "0.jpg#0\ta dog\n", True),
        ("results.token", "0.jpg#0\ta dog\n", True),
        ("a.txt", "a dog\n", False),
        ("a.json", "image,caption\n", False),
    ],
)
def test_a_text_is_a_table_if_its_first_line_says_so(
    tmp_path: Path, name: str, text: str, is_table: bool
) -> None:
    (tmp_path / name).write_text(text)
    assert is_table_file(tmp_path / name, _OPTIONS) is is_table
