"""How exported pairs are written: WebDataset, COCO and JSON lines."""

import io
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from openblip.data.coco_ids import CocoIds
from openblip.data.export_fields import MetaFields
from openblip.data.ids import file_key
from openblip.data.text import json_text
from openblip.data.views import AdmittedText

# Rows and bytes of one row group, which is held in memory.
_GROUP_ROWS, _GROUP_BYTES = 1000, 64 << 20


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
    fields: MetaFields
    """What the metadata of all pairs are like, for WebDataset."""
    coco_ids: CocoIds | None
    """What numbers the images have, for COCO."""


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
                told = {name: value for name, value in pair.told.items() if not _is_null(value)}
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
            lines.write(_json({**pair.meta, "image": name, **pair.told}) + "\n")


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
