"""Which kind of source a path is."""

import re
from collections.abc import Callable
from pathlib import Path

from openblip.data.importers.annotations import ANNOTATION_FORMATS, read_annotations
from openblip.data.importers.folder import (
    JSONL_NAMES,
    JsonlSource,
    SidecarSource,
    has_images,
)
from openblip.data.importers.source import PairSource, SourceOptions
from openblip.data.importers.tabular import TableSource
from openblip.data.importers.table_files import TABLE_SUFFIXES
from openblip.data.importers.webdataset import TAR_SUFFIXES, TarSource
from openblip.data.patterns import matching_paths
from openblip.errors import DataError

FORMATS = ("jsonl", "folder", "webdataset", "table", *ANNOTATION_FORMATS)
_ANNOTATION_PATTERN = re.compile(r"^(dataset|captions|annotations).*\.json$")
_KNOWN = (
    "a folder with captions.jsonl (or metadata.jsonl), images with .txt files of the same names, "
    ".tar shards, .parquet/.csv/.tsv tables, or JSON of COCO, Karpathy, NoCaps, VQA, Visual Genome "
    "or NLVR2"
)


def open_source(source: str, options: SourceOptions, wanted: str | None = None) -> PairSource:
    """The reader for `source`.

    Args:
        source: a file, a folder, a pattern such as `shards/*.tar`, or a range such as
            `shards/{00000..00041}.tar`.
        options: what the source does not say itself.
        wanted: one of `FORMATS`; None to find out from what is there.

    Raises:
        DataError: nothing is there, it is of no known kind, or of another kind than `wanted`.
    """
    if wanted is not None and wanted not in FORMATS:
        raise DataError(f"unknown format {wanted!r}: give one of {', '.join(FORMATS)}")
    files = matching_paths(source)
    if not files:
        raise DataError(f"{source} does not exist: give {_KNOWN}")
    openers: dict[str, Callable[[], PairSource | None]] = {
        "jsonl": lambda: _jsonl(files, options),
        "webdataset": lambda: _shards(files),
        "table": lambda: _tables(files, options),
        "annotations": lambda: _annotations(files, options),
        "folder": lambda: _images(files, is_wanted=wanted is not None),
    }
    # All kinds of annotation file open alike: which of them it is shows in its keys.
    first = "annotations" if wanted in ANNOTATION_FORMATS else wanted
    for name, opener in openers.items():
        if first in (None, name) and (opened := opener()) is not None:
            if wanted not in (None, opened.format):
                raise DataError(f"{source} holds {opened.format} annotations, not {wanted}")
            return opened
    kind = f"a source of the format {wanted!r}" if wanted else f"a known source: {_KNOWN}"
    raise DataError(f"{source} is not {kind}{_what_is_there(files)}")


def _jsonl(files: list[Path], options: SourceOptions) -> JsonlSource | None:
    path = files[0]
    if path.is_dir():
        named = (path / name for name in JSONL_NAMES)
        path = next((file for file in named if file.is_file()), path)
    if len(files) > 1 or path.suffix.lower() != ".jsonl":
        return None
    return JsonlSource(path, options)


def _shards(files: list[Path]) -> TarSource | None:
    shards = _with_suffix(files, TAR_SUFFIXES)
    return TarSource(shards) if shards else None


def _tables(files: list[Path], options: SourceOptions) -> TableSource | None:
    tables = _with_suffix(files, TABLE_SUFFIXES)
    if not tables and len(files) == 1:
        # A dataset folder of the Hugging Face hub has its tables one level below.
        inner = files[0] / "data"
        tables = _with_suffix([inner], TABLE_SUFFIXES) if inner.is_dir() else []
    return TableSource(tables, options) if tables else None


def _annotations(files: list[Path], options: SourceOptions) -> PairSource | None:
    path = files[0]
    if len(files) == 1 and path.is_dir():
        named = [file for file in path.iterdir() if _ANNOTATION_PATTERN.match(file.name)]
        path = named[0] if len(named) == 1 else path
    if len(files) > 1 or path.suffix.lower() not in (".json", ".jsonl"):
        return None
    return read_annotations(path, options)


def _images(files: list[Path], is_wanted: bool) -> SidecarSource | None:
    if len(files) > 1 or not files[0].is_dir() or not (is_wanted or has_images(files[0])):
        return None
    return SidecarSource(files[0])


def _with_suffix(files: list[Path], suffixes: tuple[str, ...]) -> list[Path]:
    """The files themselves if all have one of the suffixes, or those in the one folder."""
    if len(files) == 1 and files[0].is_dir():
        files = [file for file in files[0].iterdir() if file.name.lower().endswith(suffixes)]
    elif not all(file.name.lower().endswith(suffixes) for file in files):
        return []
    return sorted((file for file in files if file.is_file()), key=str)


def _what_is_there(files: list[Path]) -> str:
    if len(files) > 1 or not files[0].is_dir():
        return ""
    names = sorted(path.name for path in files[0].iterdir())[:5]
    return f"; in it are {', '.join(names)}" if names else "; it is empty"
