"""How exported pairs are written: WebDataset, Parquet, COCO and JSON lines."""

import io
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from openblip.data.ids import file_key
from openblip.data.importers.coco import COCO_ID
from openblip.data.text import json_text
from openblip.data.views import AdmittedText

# Rows and bytes of one row group, which is held in memory.
_GROUP_ROWS, _GROUP_BYTES = 1000, 64 << 20


@dataclass(frozen=True)
class ExportedPair:
    """An image with the texts that a view admits."""

    id: str
    """Its id in the table."""
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

    @property
    def told(self) -> dict[str, Any]:
        """Fields of all formats but the image and `meta`; lists are in the order of the texts."""
        return {
            "id": self.id,
            "captions": [text.text for text in self.texts],
            "caption_sources": [text.source for text in self.texts],
            "caption_itm": [text.itm for text in self.texts],
            "caption_captioners": [text.captioner for text in self.texts],
            "split": self.split,
        }


@dataclass(frozen=True)
class ExportLayout:
    """What is known before the first pair."""

    shard_size: int
    """Images in one file, where there are several files."""
    split: str
    """Of all pairs."""
    has_number_ids: bool
    """Whether all ids are whole numbers as they are usually written."""


Writer = Callable[[Path, Iterable[ExportedPair], ExportLayout], None]
"""Writes all pairs, as they come, into an empty folder."""


def write_webdataset(folder: Path, pairs: Iterable[ExportedPair], layout: ExportLayout) -> None:
    """Tars `00000.tar`, ...: an image, its first text as `.txt`, everything else as `.json`."""
    for number, shard in enumerate(shards(pairs, layout.shard_size)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for pair in shard:
                first = pair.texts[0].text
                record = {**pair.meta, "caption": first, **pair.told}
                _add_member(tar, f"{pair.key}{pair.suffix}", pair.image)
                _add_member(tar, f"{pair.key}.txt", first.encode())
                _add_member(tar, f"{pair.key}.json", _json(record).encode())


def write_parquet(folder: Path, pairs: Iterable[ExportedPair], layout: ExportLayout) -> None:
    """Files `00000.parquet`, ... with encoded images, lists of texts, and `meta` as JSON."""
    import pyarrow as pa
    from pyarrow import parquet

    types = {
        "id": pa.string(),
        "image": pa.binary(),
        "captions": pa.list_(pa.string()),
        "caption_sources": pa.list_(pa.string()),
        "caption_itm": pa.list_(pa.float32()),
        "caption_captioners": pa.list_(pa.string()),
        "split": pa.string(),
        "meta": pa.string(),
    }
    schema = pa.schema(list(types.items()))
    for number, shard in enumerate(shards(pairs, layout.shard_size)):
        with parquet.ParquetWriter(folder / f"{number:05d}.parquet", schema) as writer:
            for group in groups(shard):
                rows = [{**p.told, "image": p.image, "meta": _json(p.meta)} for p in group]
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def write_jsonl(folder: Path, pairs: Iterable[ExportedPair], layout: ExportLayout) -> None:
    """`captions.jsonl`, a line for each image, and the images in `images`."""
    (folder / "images").mkdir()
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as lines:
        for pair in pairs:
            name = f"images/{pair.key}{pair.suffix}"
            (folder / name).write_bytes(pair.image)
            lines.write(_json({**pair.meta, "image": name, **pair.told}) + "\n")


def write_coco(folder: Path, pairs: Iterable[ExportedPair], layout: ExportLayout) -> None:
    """`captions_SPLIT.json` with `images` and `annotations`, and the images in `images`.

    Image ids are those of the table if all are numbers; otherwise they count from 1, and the
    table's are in `openblip_id`: tools for COCO take a text for a list.
    """
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
            image = {**pair.meta, "id": number, "file_name": name, **size, COCO_ID: pair.id}
            if layout.has_number_ids:
                image["id"] = int(image.pop(COCO_ID))
            document.write((",\n" if number > 1 else "\n") + _json(image))
            for text in pair.texts:
                num_texts += 1
                annotation = {"id": num_texts, "image_id": image["id"], "caption": text.text}
                annotation |= {
                    "source": text.source,
                    "itm": text.itm,
                    "captioner": text.captioner,
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


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # Owner and time stay at their neutral defaults: equal exports are equal files.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _json(value: Mapping[str, Any]) -> str:
    return json_text(dict(value))
