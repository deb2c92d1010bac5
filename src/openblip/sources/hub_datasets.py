"""Datasets of the Hugging Face hub, and those that its `datasets` library has saved."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from openblip.runtime.errors import DataError, one_line
from openblip.sources import datasets_library as library
from openblip.sources.columns import Columns, Place, arrow_kinds, find_columns, row_entry
from openblip.sources.datasets_library import DatasetName, Namer, OpenedDataset, Part
from openblip.sources.records import ImageFolder, folder_told, merged
from openblip.sources.report import Reason
from openblip.sources.source import (
    Cursor,
    Entry,
    Found,
    Refused,
    Shard,
    SourceOptions,
    UnsafePath,
    is_address,
)
from openblip.sources.splits import split_in_name

FORMAT = "datasets"
_END = -1
"""The row of a cursor behind the last of a part."""
_NUM_TRIED = 100
# A split of such a name is not training data, though its name is no split's: testA, minival.
_NOT_TRAINING = re.compile("test|val|dev", re.IGNORECASE)
# What the library calls a split of which nothing says what it is.
_DEFAULT_SPLIT = "train"


class DatasetSource:
    """Rows of a dataset, in the order of its splits and shards, fetched as they are read.

    Columns are found as in tables: `Image` features are bytes, class labels are the names of the
    classes. The name of a split counts as that of a file.
    """

    format = FORMAT

    def __init__(self, dataset: DatasetName, options: SourceOptions) -> None:
        """Opens nothing yet.

        Args:
            dataset: of the hub, or a folder.
            options: what it does not say itself.

        Raises:
            DataError: the library is not installed, a saved dataset is to have configurations, or
                something is said that is for files of text.
        """
        library.check_installed(str(dataset))
        folder = dataset.folder
        self._is_saved = folder is not None and library.is_saved(folder)
        if self._is_saved and dataset.config:
            raise DataError(f"{folder} is a saved dataset, which has no configurations")
        if options.columns or options.encoding:
            raise DataError(f"{dataset} says itself how it is read: no --columns or --encoding")
        self._dataset, self._options = dataset, options
        self._root = options.image_root or folder
        self._opened: OpenedDataset | None = None

    def total(self) -> int | None:
        """Number of rows where the dataset says it."""
        return self._open("").num_rows

    def listed(self) -> Iterator[Entry]:
        """Nothing."""
        return iter(())

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields one entry for each image, or row.

        Raises:
            DataError: it cannot be opened, is another one than when the import was begun, or the
                hub fails.
        """
        at = cursor or {}
        opened = self._open(str(at.get("revision", "")))
        names = [part.name for part in opened.parts]
        if cursor is not None and at["part"] not in names:
            raise DataError(
                f"{self._dataset} has no {at['part']} any more: it has changed since its import "
                "was stopped; import it into a new table"
            )
        first = names.index(str(at["part"])) if cursor is not None else 0
        done = int(at.get("row", 0))
        with library.quietly() as kept:
            for part in opened.parts[first:]:
                if done != _END:
                    start = Cursor(revision=opened.revision, part=part.name, row=done)
                    yield from merged(self._entries_of(part, start, kept))
                done = 0

    def shards(self) -> list[Shard]:
        """The parts that the dataset is in: files, or shards of a split."""
        opened = self._open("")
        return [
            Shard(part.name, {"revision": opened.revision, "part": part.name, "row": 0}, 1)
            for part in opened.parts
        ]

    def entries_of(self, shard: Shard) -> Iterator[Entry]:
        """Yields those of one part, of the dataset as it was when `shards` was called."""
        parts = self._open(str(shard.cursor["revision"])).parts
        part = next(part for part in parts if part.name == shard.cursor["part"])
        with library.quietly() as kept:
            yield from merged(self._entries_of(part, shard.cursor, kept))

    def __getstate__(self) -> dict[str, Any]:
        # What is open stays here: each process opens it for itself.
        return {**self.__dict__, "_opened": None}

    def _open(self, revision: str) -> OpenedDataset:
        """The dataset as it is, or as it was at `revision`, from where an import goes on."""
        if self._opened is None or revision not in ("", self._opened.revision):
            self._opened = (
                library.open_saved(Path(self._dataset.name))
                if self._is_saved
                else library.open_named(self._dataset, revision)
            )
        return self._opened

    def _split_of(self, part: Part) -> str | None:
        assert self._opened is not None
        is_local = self._dataset.folder is not None and not self._is_saved
        # Of plain files whose names tell no split the library calls all "train".
        is_default = is_local and {other.split for other in self._opened.parts} == {_DEFAULT_SPLIT}
        return None if is_default else part.split

    def _entries_of(self, part: Part, start: Cursor, kept: library.Kept) -> Iterator[Entry]:
        number = done = int(start["row"])
        try:
            rows = part.open()
            reader = _RowReader(
                self._dataset, self._options, self._root, rows, self._split_of(part)
            )
            for table in library.tables_after(rows, done):
                cursor = start | {"row": number + 1}
                entry = reader.entry(table, f"{part.name} row {number + 1}", cursor)
                number += 1
                yield entry
            if number == 0:
                end = start | {"row": _END}
                yield Refused(part.name, end, Reason.EMPTY_FILE, "it has columns, but no rows")
        except Exception as error:
            detail = library.said_with(error, kept)
            if not library.is_damage(error, self._dataset):
                raise DataError(
                    f"{self._dataset}, {part.name} row {number + 1}: {detail}; what is imported "
                    "is kept, run the same again"
                ) from error
            # One damaged part must not keep the others out.
            detail = detail.removeprefix(f"{self._dataset}: ").removeprefix(f"{self._dataset} ")
            if number:
                detail = f"cannot be read from here on: {detail}"
            where = part.name + (f" row {number + 1}" if number else "")
            yield Refused(where, start | {"row": _END}, Reason.BAD_RECORD, detail)


class _RowReader:
    """Makes entries of the rows of one part."""

    def __init__(
        self,
        dataset: DatasetName,
        options: SourceOptions,
        root: Path | None,
        rows: Any,
        split: str | None,
    ) -> None:
        self._dataset, self._options, self._root, self._rows = dataset, options, root, rows
        self._features: Mapping[str, Any] = rows.features or {}
        self._namers: dict[str, Namer] = library.label_names(self._features)
        self._split, self._unknown_split = split, None
        if split and split_in_name(split) is None and _NOT_TRAINING.search(split):
            # Given as a card's word it is refused as unknown; as a name it would count for nothing,
            # and what nothing says anything about is training data.
            self._unknown_split = split
        self._schema: Any = None
        self._columns: Columns
        self._place: Place

    def entry(self, table: Any, where: str, cursor: Cursor) -> Entry:
        """The entry of a table of one row.

        Raises:
            NoColumn: it has no images, or no texts.
        """
        # A dataset that declares no features finds them out anew in each file.
        if self._schema is None or table.schema != self._schema:
            self._look_at(table.schema)
        try:
            record = self._record(table)
            if (image := record[self._columns.image]) is not None:
                record[self._columns.image] = self._image(image)
        except UnsafePath as error:
            return Refused(where, cursor, Reason.UNSAFE_PATH, str(error))
        except FileNotFoundError as error:
            return Refused(where, cursor, Reason.MISSING_IMAGE, one_line(error))
        except (ValueError, OverflowError) as error:
            return Refused(where, cursor, Reason.BAD_RECORD, one_line(error))
        entry = row_entry(record, self._columns, self._place, where, cursor)
        if isinstance(entry, Found) and self._unknown_split is not None:
            return replace(entry, card_split=self._unknown_split)
        return entry

    def _look_at(self, schema: Any) -> None:
        kinds = dict(zip(schema.names, arrow_kinds(schema), strict=True))
        labels = [name for name, of in self._features.items() if library.is_label(of)]
        kinds |= {name: "text" for name in labels if name in kinds}
        self._columns = find_columns(kinds, self._options, str(self._dataset))
        # In the place of a file, whose name tells the split.
        self._place = Place(Path(self._split or "_"), self._images())
        self._schema = schema

    def _images(self) -> ImageFolder:
        if self._options.image_root is None:
            return ImageFolder(self._root or Path())
        column = self._columns.image
        tables = library.tables_after(self._rows.select_columns([column]), 0)
        values = (table[column][0].as_py() for table in islice(tables, _NUM_TRIED))
        paths = [path for value in values if (path := _path_of(value)) is not None]
        return folder_told(self._options.image_root, paths)

    def _record(self, table: Any) -> dict[str, Any]:
        record: dict[str, Any] = table.to_pylist()[0]
        for name, namer in self._namers.items():
            if name in record:
                record[name] = namer(record[name])
        return record

    def _image(self, value: Any) -> Any:
        """An image as `row_entry` takes it: what lies in the repository or in archives is bytes."""
        if isinstance(value, list):
            if len(value) > 1:
                raise ValueError(f"{self._columns.image} has {len(value)} images; a row has one")
            value = value[0] if value else None
        if (path := _path_of(value)) is None or is_address(path):
            return value
        if (found := library.fetched(path, self._dataset, self._root)) is not None:
            return found
        if self._root is None:
            raise FileNotFoundError(
                f"{path!r} is not in the dataset: fetch its images, and name their folder with "
                "--image-root"
            )
        return value


def _path_of(value: Any) -> str | None:
    """The path of an image that has no bytes."""
    with suppress(AttributeError):
        value = None if value.get("bytes") else value.get("path")
    return value if isinstance(value, str) and value else None
