"""Which kind of source a path is."""

from collections.abc import Callable
from pathlib import Path

from openblip.data.archives import TAR_SUFFIXES, UNREAD_ARCHIVES
from openblip.data.importers.annotation_files import annotation_source
from openblip.data.importers.annotations import ANNOTATION_FORMATS, has_annotation_lines
from openblip.data.importers.folder import KINDS, FolderSource, holds_pairs
from openblip.data.importers.jsonl import JsonlSource
from openblip.data.importers.source import PairSource, SourceOptions
from openblip.data.importers.tabular import TABLE_SUFFIXES, TableSource
from openblip.data.importers.webdataset import TarSource
from openblip.data.patterns import matching_paths
from openblip.errors import DataError

FORMATS = ("jsonl", "folder", "webdataset", "table", *ANNOTATION_FORMATS)
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
        "jsonl": lambda: _jsonl(files, options) or _folder(files, options, "jsonl", wanted),
        "webdataset": lambda: _shards(files) or _folder(files, options, "webdataset", wanted),
        "table": lambda: _tables(files, options, is_wanted=wanted is not None),
        "annotations": lambda: annotation_source(files, options),
        "folder": lambda: _folder(files, options, "folder", wanted),
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
    if len(files) > 1 or files[0].is_dir() or files[0].suffix.lower() != ".jsonl":
        return None
    if has_annotation_lines(files[0]):
        return None
    return JsonlSource(files[0], options)


def _shards(files: list[Path]) -> TarSource | None:
    are_shards = all(file.name.lower().endswith(TAR_SUFFIXES) and file.is_file() for file in files)
    return TarSource(sorted(files, key=str)) if are_shards else None


def _folder(
    files: list[Path], options: SourceOptions, kind: str, wanted: str | None
) -> FolderSource | None:
    """A folder that has this kind at its top, or is said to be of it."""
    if len(files) > 1 or not files[0].is_dir() or not any(files[0].iterdir()):
        return None
    source = FolderSource(files[0], options, wanted)
    if wanted is not None:
        return source if kind == "folder" or source.holds(kind) else None
    # Without a kind of its own, a folder is read for whatever is in it, or it is said what that is.
    return source if kind in (source.format, KINDS[-1]) else None


def _tables(files: list[Path], options: SourceOptions, *, is_wanted: bool) -> TableSource | None:
    if not is_wanted and len(files) == 1 and files[0].is_dir() and holds_pairs(files[0]):
        return None  # tables beside them are read with them
    tables = _with_suffix(files, TABLE_SUFFIXES)
    if not tables and len(files) == 1:
        # A dataset folder of the Hugging Face hub has its tables one level below.
        inner = files[0] / "data"
        tables = _with_suffix([inner], TABLE_SUFFIXES) if inner.is_dir() else []
    return TableSource(tables, options) if tables else None


def _with_suffix(files: list[Path], suffixes: tuple[str, ...]) -> list[Path]:
    """The files themselves if all have one of the suffixes, or those in the one folder."""
    if len(files) == 1 and files[0].is_dir():
        files = [file for file in files[0].iterdir() if file.name.lower().endswith(suffixes)]
    elif not all(file.name.lower().endswith(suffixes) for file in files):
        return []
    return sorted((file for file in files if file.is_file()), key=str)


def _what_is_there(files: list[Path]) -> str:
    if files[0].name.lower().endswith(UNREAD_ARCHIVES):
        return f"; {files[0].name} is an archive of a kind that is not read: pack it as .tar"
    if len(files) > 1 or not files[0].is_dir():
        return ""
    names = sorted(path.name for path in files[0].iterdir())[:5]
    return f"; in it are {', '.join(names)}" if names else "; it is empty"
