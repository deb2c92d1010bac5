"""Which kind of source a path is."""

from collections.abc import Callable
from pathlib import Path

from openblip.runtime.errors import DataError
from openblip.sources.annotations import ANNOTATION_FORMATS, annotation_source, has_annotation_lines
from openblip.sources.bucket import BucketSource
from openblip.sources.caption_lists import JsonlSource
from openblip.sources.cards import Card, CardedSource, card_above, read_card
from openblip.sources.datasets_library import DatasetName, dataset_name, is_dataset_name, is_saved
from openblip.sources.folder import KINDS, FolderSource
from openblip.sources.hub_datasets import FORMAT as DATASETS
from openblip.sources.hub_datasets import DatasetSource
from openblip.sources.paths import matching_paths
from openblip.sources.source import PairSource, SourceOptions
from openblip.sources.tables import TableSource, is_table_file
from openblip.sources.tars import TAR_SUFFIXES, UNREAD_ARCHIVES, TarSource
from openblip.sources.text_files import plain_name
from openblip.table.storage import is_object_address

FORMATS = ("jsonl", "folder", "webdataset", "table", DATASETS, *ANNOTATION_FORMATS)
_KNOWN = (
    "a folder with captions.jsonl (or metadata.jsonl), images with .txt files of the same names, "
    ".tar shards, .parquet/.csv/.tsv tables, or JSON of COCO, Karpathy, NoCaps, VQA, Visual Genome "
    "or NLVR2"
)


def open_source(source: str, options: SourceOptions, wanted: str | None = None) -> PairSource:
    """The reader for `source`.

    Args:
        source: a file, a folder, a pattern such as `shards/*.tar`, a range such as
            `shards/{00000..00041}.tar`, or what the library `datasets` reads: `hf:NAME` or
            `hf:NAME:CONFIG` for a dataset of the Hugging Face hub, `hf:FOLDER` for a folder; or an
            `s3://` or `gs://` address of shards.
        options: what the source does not say itself.
        wanted: one of `FORMATS`; None to find out from what is there.

    Raises:
        DataError: nothing is there, it is of no known kind, or of another kind than `wanted`.
    """
    if wanted is not None and wanted not in FORMATS:
        raise DataError(f"unknown format {wanted!r}: give one of {', '.join(FORMATS)}")
    if is_dataset_name(source):
        if wanted not in (None, DATASETS):
            raise DataError(f"{source} is read by the library `datasets`, not as {wanted}")
        return DatasetSource(dataset_name(source), options)
    if is_object_address(source):
        return BucketSource(source, options, wanted)
    files = matching_paths(source)
    if not files:
        raise DataError(f"{source} does not exist: give {_KNOWN}")
    card = _card(files)
    # In the order in which they are tried: "folder" takes whatever is left.
    openers: dict[str, Callable[[], PairSource | None]] = {
        DATASETS: lambda: _dataset(files, options, wanted),
        "jsonl": lambda: _jsonl(files, options) or _folder(files, options, "jsonl", wanted, card),
        "webdataset": lambda: (
            _shards(files, options) or _folder(files, options, "webdataset", wanted, card)
        ),
        "table": lambda: _tables(files, options) or _folder(files, options, "table", wanted, card),
        "annotations": lambda: annotation_source(files, options, card),
        "folder": lambda: _folder(files, options, "folder", wanted, card),
    }
    # All kinds of annotation file open alike: which of them it is shows in its keys.
    first = "annotations" if wanted in ANNOTATION_FORMATS else wanted
    for name, opener in openers.items():
        if first in (None, name) and (opened := opener()) is not None:
            if wanted not in (None, opened.format):
                raise DataError(f"{source} holds {opened.format} annotations, not {wanted}")
            return opened if card is None else CardedSource(opened, card)
    kind = f"a source of the format {wanted!r}" if wanted else f"a known source: {_KNOWN}"
    raise DataError(f"{source} is not {kind}{_what_is_there(files)}")


def _dataset(files: list[Path], options: SourceOptions, wanted: str | None) -> DatasetSource | None:
    """A folder that the library has saved, or is said to read."""
    if len(files) > 1 or not files[0].is_dir() or not (wanted or is_saved(files[0])):
        return None
    return DatasetSource(DatasetName(str(files[0]), folder=files[0]), options)


def _jsonl(files: list[Path], options: SourceOptions) -> JsonlSource | None:
    if len(files) > 1 or files[0].is_dir() or not plain_name(files[0]).endswith(".jsonl"):
        return None
    # NLVR2 and localized narratives have a record a line, too.
    if has_annotation_lines(files[0]):
        return None
    return JsonlSource(files[0], options)


def _shards(files: list[Path], options: SourceOptions) -> TarSource | None:
    are_shards = all(file.name.lower().endswith(TAR_SUFFIXES) and file.is_file() for file in files)
    # Its cursor compares paths, whatever order the user has named them in.
    return TarSource(sorted(files, key=str), options) if are_shards else None


def _folder(
    files: list[Path], options: SourceOptions, kind: str, wanted: str | None, card: Card | None
) -> FolderSource | None:
    """A folder that has this kind at its top, or is said to be of it."""
    if len(files) > 1 or not files[0].is_dir() or not any(files[0].iterdir()):
        return None
    source = FolderSource(files[0], options, wanted, card)
    if wanted is not None:
        return source if kind == "folder" or source.holds(kind) else None
    # Without a kind of its own, a folder is read for whatever is in it, or it is said what that is.
    return source if kind in (source.format, KINDS[-1]) else None


def _tables(files: list[Path], options: SourceOptions) -> TableSource | None:
    are_tables = all(file.is_file() and is_table_file(file, options) for file in files)
    return TableSource(files, options) if are_tables else None


def _card(files: list[Path]) -> Card | None:
    """The card of a folder, or the one that speaks of a file; it must say what is meant."""
    if len(files) != 1 or not files[0].is_dir():
        return card_above(files)
    card = read_card(files[0])
    if card is not None and card.default is None:
        first = next(iter(card.configs.values()))[0][1]
        raise DataError(
            f"{files[0]} has the configurations {', '.join(card.configs)}, and no default: "
            f"give the files of one, as '{files[0] / first}', or hf:{files[0]}:NAME"
        )
    return card


def _what_is_there(files: list[Path]) -> str:
    if files[0].name.lower().endswith(UNREAD_ARCHIVES):
        return f"; {files[0].name} is an archive of a kind that is not read: pack it as .tar"
    if len(files) > 1 or not files[0].is_dir():
        return ""
    names = sorted(path.name for path in files[0].iterdir())[:5]
    return f"; in it are {', '.join(names)}" if names else "; it is empty"
