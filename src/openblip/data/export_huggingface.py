"""Parquet shards with typed images, also as a dataset folder of the Hugging Face hub."""

import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.data.export_formats import ExportedPair, ExportLayout, groups, shards
from openblip.data.text import json_text

if TYPE_CHECKING:
    import pyarrow as pa

DATA_FOLDER = "data"
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
"""The hub's word for each split."""
# Columns and their types, as `datasets` calls them; of a list the type of its items.
_VALUES = {
    "id": "string",
    "width": "int32",
    "height": "int32",
    "split": "string",
    "meta": "string",
}
_LISTS = {
    "captions": "string",
    "caption_sources": "string",
    "caption_itm": "float32",
    "caption_captioners": "string",
}
_ORDER = ("id", "image", "width", "height", *_LISTS, "split", "meta")


def write_parquet(folder: Path, pairs: Iterable[ExportedPair], layout: ExportLayout) -> None:
    """Files `00000.parquet`, ... with images and lists of texts, and `meta` as JSON."""
    for number, shard in enumerate(shards(pairs, layout.shard_size)):
        _write_shard(folder / f"{number:05d}.parquet", shard)


def write_huggingface(folder: Path, pairs: Iterable[ExportedPair], layout: ExportLayout) -> None:
    """Files `data/SPLIT-00000-of-00003.parquet`, which `datasets.load_dataset` reads.

    Pairs of one split come one after the other. The types of the columns, images included, stand
    in each file.
    """
    data = folder / DATA_FOLDER
    data.mkdir()
    for split, of_split in groupby(pairs, key=lambda pair: pair.split):
        written = []
        for number, shard in enumerate(shards(of_split, layout.shard_size)):
            path = data / f"{split}-{number}.unfinished"
            _write_shard(path, shard)
            written.append(path)
        for number, path in enumerate(written):
            name = f"{SPLIT_NAMES[split]}-{number:05d}-of-{len(written):05d}.parquet"
            path.rename(data / name)


def features() -> list[dict[str, Any]]:
    """The types of the columns as a dataset card has them."""
    kinds: dict[str, dict[str, Any]] = {"image": {"dtype": "image"}}
    kinds |= {name: {"dtype": kind} for name, kind in _VALUES.items()}
    kinds |= {name: {"sequence": kind} for name, kind in _LISTS.items()}
    return [{"name": name, **kinds[name]} for name in _ORDER]


def _write_shard(path: Path, pairs: Iterable[ExportedPair]) -> None:
    from pyarrow import parquet

    with parquet.ParquetWriter(path, _schema()) as writer:
        for group in groups(pairs):
            writer.write_table(_table(group))


def _table(pairs: list[ExportedPair]) -> "pa.Table":
    import pyarrow as pa

    rows = [
        {
            **pair.told,
            "image": {"bytes": pair.image, "path": f"{pair.key}{pair.suffix}"},
            "width": pair.width,
            "height": pair.height,
            "meta": json_text(dict(pair.meta)),
        }
        for pair in pairs
    ]
    return pa.Table.from_pylist(rows, schema=_schema())


def _schema() -> "pa.Schema":
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types: dict[str, pa.DataType] = {"image": image}
    types |= {name: pa.type_for_alias(kind) for name, kind in _VALUES.items()}
    types |= {name: pa.list_(pa.type_for_alias(kind)) for name, kind in _LISTS.items()}
    about = {"info": {"features": _feature_types()}}
    # Read by `datasets`, which would take the images for structs otherwise.
    schema = pa.schema([(name, types[name]) for name in _ORDER])
    return schema.with_metadata({"huggingface": json.dumps(about)})


def _feature_types() -> Mapping[str, Any]:
    kinds: dict[str, Any] = {"image": {"_type": "Image"}}
    kinds |= {name: {"dtype": kind, "_type": "Value"} for name, kind in _VALUES.items()}
    for name, kind in _LISTS.items():
        kinds[name] = {"feature": {"dtype": kind, "_type": "Value"}, "_type": "Sequence"}
    return {name: kinds[name] for name in _ORDER}
