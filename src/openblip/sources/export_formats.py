"""How exported pairs are written: WebDataset, COCO, JSON lines, and Parquet of the hub's kind.

Programs that guess the type of a field from the first rows that have it get metadata in which each
field has one type (`MetaFields`).
"""

import io
import json
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.runtime.documents import json_text
from openblip.sources.coco import CocoIds
from openblip.sources.source import META_FIELD
from openblip.table.judging import AdmittedText
from openblip.table.rows import file_key

if TYPE_CHECKING:
    import pyarrow as pa

# Rows and bytes of one row group, which is held in memory.
_GROUP_ROWS, _GROUP_BYTES = 1000, 64 << 20


@dataclass(frozen=True)
class ToldFields:
    """What is told of each text besides its source, match probability and captioner."""

    verdicts: bool = False
    """Whether the view asks for what people have judged, so that their verdicts are told."""
    scores: tuple[str, ...] = ()
    """Further scores that the table has (`openblip capfilt scores`, `fit`, other filters)."""

    @property
    def lists(self) -> dict[str, str]:
        """Columns of lists, and the types of their items."""
        scores = dict.fromkeys((f"caption_score_{name}" for name in self.scores), "float32")
        return {**_LISTS, **scores, **(_VERDICTS if self.verdicts else {})}


@dataclass(frozen=True)
class ExportedPair:
    """An image with the texts that a view admits."""

    id: str
    """Its id in the table."""
    row: int
    """Its place in the table, from 0."""
    image: bytes
    """Encoded bytes as stored."""
    suffix: str
    """Ending of file names that the format of the bytes asks for, such as `.jpg`."""
    width: int | None
    """Pixels, where the table knows them."""
    height: int | None
    """Pixels, where the table knows them."""
    texts: Sequence[AdmittedText]
    """At least one."""
    split: str
    """`train`, `val` or `test`."""
    meta: Mapping[str, Any]
    """What the source said besides."""

    @property
    def key(self) -> str:
        """A name for its files."""
        return file_key(self.id)

    def told(self, fields: ToldFields) -> dict[str, Any]:
        """Fields of all formats but the image and `meta`; lists are in the order of the texts."""
        told: dict[str, Any] = {
            "id": self.id,
            "captions": [text.text for text in self.texts],
            "caption_sources": [text.source for text in self.texts],
            "caption_itm": [text.itm for text in self.texts],
            "caption_captioners": [text.captioner for text in self.texts],
        }
        for name in fields.scores:
            told[f"caption_score_{name}"] = [text.scores.get(name) for text in self.texts]
        if fields.verdicts:
            said = [verdict_fields(text) for text in self.texts]
            told["caption_verdicts"] = [one["verdict"] for one in said]
            told["caption_given"] = [one["given"] for one in said]
            told["caption_reviewers"] = [one["reviewers"] for one in said]
        return {**told, "split": self.split}


def verdict_fields(text: AdmittedText) -> dict[str, Any]:
    """What people say of a text; nulls for one that they have not judged."""
    agreed = text.agreed
    return {
        "verdict": agreed and agreed.verdict,
        "given": agreed.text if agreed and agreed.is_edited else None,
        "reviewers": agreed and len(agreed.deciding),
    }


class MetaFields:
    """Which fields of metadata are of one type in all rows of an export.

    These stand beside the others; the rest becomes a text, which is of one type whatever it says.
    """

    def __init__(self) -> None:
        """Knows of no row yet."""
        self._kinds: dict[str, set[str]] = defaultdict(set)

    def add(self, meta: Mapping[str, Any]) -> None:
        """Takes note of a row."""
        for name, value in meta.items():
            if value is not None:
                self._kinds[name].add(_kind(value))

    def typed(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a row that was added, and the rest as JSON; one that is null is absent."""
        known = {name: value for name, value in meta.items() if value is not None}
        rest = {name: known.pop(name) for name in list(known) if not self._is_plain(name)}
        fields = {name: self._number(name, value) for name, value in known.items()}
        return fields | ({META_FIELD: json_text(rest)} if rest else {})

    def _is_plain(self, name: str) -> bool:
        kinds = self._kinds[name]
        is_one = len(kinds) == 1 and _MIXED not in kinds
        return name != META_FIELD and (is_one or kinds in _NUMBERS)

    def _number(self, name: str, value: Any) -> Any:
        if self._kinds[name].isdisjoint(("float", "list of float")):
            return value
        return [float(item) for item in value] if isinstance(value, list) else float(value)


@dataclass(frozen=True)
class ExportLayout:
    """What is known before the first pair."""

    shard_size: int
    """Images in one file, where there are several files."""
    split: str
    """Of all pairs."""
    fields: MetaFields
    """What the metadata of all pairs are like, for WebDataset."""
    coco_ids: CocoIds | None
    """What numbers the images have, for COCO."""
    told: ToldFields
    """What is told of each text besides its source, match probability and captioner."""


Writer = Callable[[Path, Iterable[ExportedPair], ExportLayout], None]
"""Writes all pairs, as they come, into an empty folder."""


def write_webdataset(folder: Path, pairs: Iterable[ExportedPair], layout: ExportLayout) -> None:
    """Tars `00000.tar`, ...: an image, its first text as `.txt`, everything else as `.json`.

    `datasets` takes the names and the types of all samples from the first few. So the images have
    one ending, that of the first, and what would be null is left out.
    """
    suffix: str | None = None
    for number, shard in enumerate(shards(pairs, layout.shard_size)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for pair in shard:
                first, suffix = pair.texts[0].text, suffix or pair.suffix
                told = pair.told(layout.told)
                told = {name: value for name, value in told.items() if not _is_null(value)}
                record = {**layout.fields.typed(pair.meta), "caption": first, **told}
                _add_member(tar, f"{pair.key}{suffix}", pair.image)
                _add_member(tar, f"{pair.key}.txt", first.encode())
                _add_member(tar, f"{pair.key}.json", _json(record).encode())


def write_jsonl(folder: Path, pairs: Iterable[ExportedPair], layout: ExportLayout) -> None:
    """`captions.jsonl`, a line for each image, and the images in `images`."""
    (folder / "images").mkdir()
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as lines:
        for pair in pairs:
            name = f"images/{pair.key}{pair.suffix}"
            (folder / name).write_bytes(pair.image)
            told = pair.told(layout.told)
            lines.write(_json({**pair.meta, "image": name, **told}) + "\n")


def write_coco(folder: Path, pairs: Iterable[ExportedPair], layout: ExportLayout) -> None:
    """`captions_SPLIT.json` with `images` and `annotations`, and the images in `images`.

    Image ids are those of the table if all of the split are numbers; otherwise they are places in
    the table, from 1, and the table's are in `openblip_id`.
    """
    assert layout.coco_ids is not None
    (folder / "images").mkdir()
    # The two lists of the document grow at the same time, and need not fit into memory.
    unfinished = folder / "annotations.unfinished"
    with (
        (folder / f"captions_{layout.split}.json").open("w", encoding="utf-8") as document,
        unfinished.open("w+", encoding="utf-8") as annotations,
    ):
        document.write('{"images": [')
        num_texts = 0
        for number, pair in enumerate(pairs, 1):
            name = f"{pair.key}{pair.suffix}"
            (folder / "images" / name).write_bytes(pair.image)
            size = {"width": pair.width, "height": pair.height}
            ids = layout.coco_ids.fields(pair.id, pair.row, "id")
            image = {**pair.meta, "file_name": name, **size, **ids}
            document.write((",\n" if number > 1 else "\n") + _json(image))
            for text in pair.texts:
                num_texts += 1
                annotation = {"id": num_texts, "image_id": image["id"], "caption": text.text}
                annotation |= {
                    "source": text.source,
                    "itm": text.itm,
                    "captioner": text.captioner,
                    **(verdict_fields(text) if layout.told.verdicts else {}),
                    **{name: text.scores.get(name) for name in layout.told.scores},
                }
                annotations.write((",\n" if num_texts > 1 else "\n") + _json(annotation))
        document.write('\n],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, document)
        document.write("\n]}\n")
    unfinished.unlink()


def shards(pairs: Iterable[ExportedPair], size: int) -> Iterator[Iterator[ExportedPair]]:
    """Runs of at most `size` pairs; each must be read to its end before the next is taken."""
    rest = iter(pairs)
    for first in rest:
        yield chain([first], islice(rest, size - 1))


def groups(pairs: Iterable[ExportedPair]) -> Iterator[list[ExportedPair]]:
    """Lists of pairs that may be held in memory; each is a row group."""
    group: list[ExportedPair] = []
    num_bytes = 0
    for pair in pairs:
        group.append(pair)
        num_bytes += len(pair.image)
        if len(group) >= _GROUP_ROWS or num_bytes >= _GROUP_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _is_null(value: object) -> bool:
    return isinstance(value, list) and all(item is None for item in value)


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # Owner and time stay at their neutral defaults: equal exports are equal files.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _json(value: Mapping[str, Any]) -> str:
    return json_text(dict(value))


_NUMBERS = ({"int", "float"}, {"list of int", "list of float"})
# What an int64 no longer holds, which is the largest whole number of Arrow and `datasets`.
_LARGEST = 1 << 63
_MIXED = "mixed"


def _kind(value: Any) -> str:
    if isinstance(value, list):
        kinds = {_kind(item) for item in value}
        kind = "float" if kinds == _NUMBERS[0] else kinds.pop() if len(kinds) == 1 else _MIXED
        is_plain = kind != _MIXED and not kind.startswith("list")
        return f"list of {kind}" if is_plain else _MIXED
    # Before numbers: in Python a bool is an int.
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -_LARGEST <= value < _LARGEST else _MIXED
    return {str: "text", float: "float"}.get(type(value), _MIXED)


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
_VERDICTS = {
    "caption_verdicts": "string",
    "caption_given": "string",
    "caption_reviewers": "int32",
}


def write_parquet(folder: Path, pairs: Iterable[ExportedPair], layout: ExportLayout) -> None:
    """Files `00000.parquet`, ... with images and lists of texts, and `meta` as JSON."""
    for number, shard in enumerate(shards(pairs, layout.shard_size)):
        _write_shard(folder / f"{number:05d}.parquet", shard, layout.told)


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
            _write_shard(path, shard, layout.told)
            # How many shards there are stands in every name, and shows at the end.
            written.append(path)
        for number, path in enumerate(written):
            name = f"{SPLIT_NAMES[split]}-{number:05d}-of-{len(written):05d}.parquet"
            path.rename(data / name)


def features(told: ToldFields) -> list[dict[str, Any]]:
    """The types of the columns as a dataset card has them."""
    lists = told.lists
    kinds: dict[str, dict[str, Any]] = {"image": {"dtype": "image"}}
    kinds |= {name: {"dtype": kind} for name, kind in _VALUES.items()}
    kinds |= {name: {"sequence": kind} for name, kind in lists.items()}
    return [{"name": name, **kinds[name]} for name in _order(lists)]


def _order(lists: Iterable[str]) -> list[str]:
    return ["id", "image", "width", "height", *lists, "split", "meta"]


def _write_shard(path: Path, pairs: Iterable[ExportedPair], told: ToldFields) -> None:
    from pyarrow import parquet

    with parquet.ParquetWriter(path, _schema(told)) as writer:
        for group in groups(pairs):
            writer.write_table(_table(group, told))


def _table(pairs: list[ExportedPair], told: ToldFields) -> "pa.Table":
    import pyarrow as pa

    rows = [
        {
            **pair.told(told),
            "image": {"bytes": pair.image, "path": f"{pair.key}{pair.suffix}"},
            "width": pair.width,
            "height": pair.height,
            "meta": json_text(dict(pair.meta)),
        }
        for pair in pairs
    ]
    # With the schema: of a group of nulls or empty lists Arrow would guess another type.
    return pa.Table.from_pylist(rows, schema=_schema(told))


def _schema(told: ToldFields) -> "pa.Schema":
    import pyarrow as pa

    lists = told.lists

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types: dict[str, pa.DataType] = {"image": image}
    types |= {name: pa.type_for_alias(kind) for name, kind in _VALUES.items()}
    types |= {name: pa.list_(pa.type_for_alias(kind)) for name, kind in lists.items()}
    about = {"info": {"features": _feature_types(lists)}}
    # Read by `datasets`, which would take the images for structs otherwise.
    schema = pa.schema([(name, types[name]) for name in _order(lists)])
    return schema.with_metadata({"huggingface": json.dumps(about)})


def _feature_types(lists: Mapping[str, str]) -> Mapping[str, Any]:
    kinds: dict[str, Any] = {"image": {"_type": "Image"}}
    kinds |= {name: {"dtype": kind, "_type": "Value"} for name, kind in _VALUES.items()}
    for name, kind in lists.items():
        kinds[name] = {"feature": {"dtype": kind, "_type": "Value"}, "_type": "Sequence"}
    return {name: kinds[name] for name in _order(lists)}
