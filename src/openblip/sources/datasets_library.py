"""The `datasets` library of Hugging Face: what it opens, in parts that are read one after another.

The only file that imports it, and only when something is read. The hub's settings hold: HF_HOME,
HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN.
"""

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from openblip.runtime.errors import DataError, install_extra, one_line
from openblip.sources.source import UnsafePath, inside

_PREFIX = "hf:"
_DICT_FILE, _STATE_FILE, _INFO_FILE = "dataset_dict.json", "state.json", "dataset_info.json"
_MAX_NAMED = 20
_CACHE = "cache"
"""Stands for a commit where the library's cache is read and the hub not asked."""
_LOGIN = "set HF_TOKEN or run `hf auth login`"

Namer = Callable[[Any], Any]


@dataclass(frozen=True)
class DatasetName:
    """A dataset of the hub, or a folder that the library reads as one."""

    name: str
    """As in `organisation/name`, or the absolute path of the folder."""
    config: str | None = None
    folder: Path | None = None
    """The folder, if it is one."""

    def __str__(self) -> str:
        return f"{_PREFIX}{self.name}" + (f":{self.config}" if self.config else "")


def is_dataset_name(source: str) -> bool:
    """Whether a source is given as `hf:NAME`."""
    return source.startswith(_PREFIX)


def dataset_name(source: str) -> DatasetName:
    """The dataset that `hf:NAME`, `hf:NAME:CONFIG`, `hf:FOLDER` or `hf:FOLDER:CONFIG` names.

    Raises:
        DataError: it names nothing, a file, or a folder that does not exist.
    """
    rest = os.path.expanduser(source.removeprefix(_PREFIX))  # noqa: PTH111 - may be no path
    head, _, tail = rest.rpartition(":")
    for name, config in ((rest, None), (head, tail)):
        if name and (folder := Path(name).absolute()).is_dir():
            return DatasetName(str(folder), config or None, folder)
    if Path(rest).is_file():
        raise DataError(f"{source} is a file: give it without {_PREFIX}")
    name, _, config = rest.partition(":")
    if not name.strip():
        raise DataError(f"{source} names no dataset: give hf:organisation/name or hf:FOLDER")
    if name.startswith(("/", ".")) or name.count("/") > 1:
        raise DataError(f"{name} does not exist: give hf:organisation/name or hf:FOLDER")
    return DatasetName(name, config or None)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` has written a folder."""
    is_one = (folder / _STATE_FILE).is_file() and (folder / _INFO_FILE).is_file()
    return is_one or (folder / _DICT_FILE).is_file()


def check_installed(source: str) -> None:
    """Looks whether the library is there, without importing it.

    Raises:
        DataError: it is not.
    """
    spec = importlib.util.find_spec("datasets")
    # A folder of that name in the working directory is no library.
    if spec is None or spec.origin is None:
        raise DataError(f"{source} needs the library `datasets`: {install_extra('datasets')}")


@dataclass(frozen=True)
class Part:
    """Rows that are read in one go: a file of a saved dataset, or a shard of a split."""

    name: str
    """Tells it from the others of the dataset, in a later call too."""
    split: str | None
    """The split in the words of the dataset; None if it says nothing."""
    open: Callable[[], Any]
    """Returns its `Dataset` or `IterableDataset`; raises where it is damaged."""


@dataclass(frozen=True)
class OpenedDataset:
    """A dataset whose rows are not yet read."""

    parts: list[Part]
    num_rows: int | None
    """None where it would have to be read."""
    revision: str = ""
    """Which of the versions of the hub it is; empty for a folder."""


def open_saved(folder: Path) -> OpenedDataset:
    """What `save_to_disk` has written; a damaged split is a part that does not open.

    Raises:
        DataError: the list of its splits is damaged, or empty.
    """
    path = folder / _DICT_FILE
    if not path.is_file():
        return OpenedDataset(_saved_parts(folder, ""), None)
    try:
        splits = [str(name) for name in json.loads(path.read_bytes())["splits"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    if not splits:
        raise DataError(f"{folder} is a saved dataset without any split")
    return OpenedDataset([part for name in splits for part in _saved_parts(folder, name)], None)


def _saved_parts(folder: Path, split: str) -> list[Part]:
    below = folder / Path(split).name
    try:
        state = json.loads((below / _STATE_FILE).read_bytes())
        # Only the names: what a stranger has saved must not lead out of its folder.
        files = [Path(file["filename"]).name for file in state["_data_files"]]
        said = split or state.get("_split")
    except (OSError, ValueError, LookupError, TypeError) as error:
        message = f"{below / _STATE_FILE} cannot be read: {one_line(error)}"
        return [Part(split or folder.name, split or None, partial(_fail, message))]
    if not files:
        return [Part(split or folder.name, split or None, partial(_fail, "it has no rows"))]
    prefix = f"{split}/" if split else ""
    return [
        Part(prefix + file, str(said) if said else None, partial(_saved_rows, below / file))
        for file in files
    ]


def _saved_rows(file: Path) -> Any:
    from datasets import Dataset

    # Mapped into memory, not read.
    return Dataset.from_file(str(file))


def tables_after(rows: Any, done: int) -> Iterator[Any]:
    """Yields a table of one row for each row of a part after the first `done`, nothing decoded."""
    from datasets import Dataset

    # `skip` refuses to skip all of them.
    if not (isinstance(rows, Dataset) and done >= len(rows)):
        yield from rows.skip(done).with_format("arrow")


def _fail(message: str) -> NoReturn:
    raise DataError(message)


def open_named(dataset: DatasetName, revision: str = "") -> OpenedDataset:
    """What `load_dataset` gives in streaming; of the rows nothing is fetched yet.

    Args:
        dataset: the name.
        revision: what an earlier call opened; empty for the newest.

    Raises:
        DataError: there is none of that name or configuration, it may not be read, the hub is out
            of reach, or the library cannot read it.
    """
    import datasets

    if dataset.folder is None:
        revision = _commit(dataset, revision)
    commit = None if revision in ("", _CACHE) else revision
    with quietly() as kept:
        try:
            builder = datasets.load_dataset_builder(dataset.name, dataset.config, revision=commit)
            splits = builder.as_streaming_dataset()
        # The library, the hub's client and the readers of files have no error class in common.
        except Exception as error:
            text = said_with(error, kept)
            reason = _reason(dataset, commit, error, text)
            raise DataError(f"{dataset}: {reason}") from error
    sizes = builder.info.splits or {}
    known = [sizes[name].num_examples for name in splits if name in sizes]
    return OpenedDataset(
        [part for name, rows in splits.items() for part in _shards(dataset, str(name), rows)],
        sum(known) if len(known) == len(splits) and all(known) else None,
        revision,
    )


def _shards(dataset: DatasetName, split: str, rows: Any) -> Iterator[Part]:
    # Else an image that lies in a file of its own comes decoded, and encoded once more.
    rows = rows.decode(False) if rows.features else rows
    number = rows.num_shards
    for index in range(number):
        name = split if number == 1 else f"{split}, shard {index + 1} of {number}"
        yield Part(name, split, partial(rows.shard, number, index))


def _commit(dataset: DatasetName, revision: str) -> str:
    """The newest commit of a repository, or `revision` if it is there; `_CACHE` where offline.

    It is asked for first because the library tries for half a minute where there is no network.
    """
    from huggingface_hub import HfApi, constants, errors

    hub, begun = constants.ENDPOINT, "an import goes on with what it was begun with"
    if revision == _CACHE and not constants.HF_HUB_OFFLINE:
        raise DataError(f"{dataset}: {begun}, the library's cache: set HF_HUB_OFFLINE=1")
    try:
        found = HfApi().dataset_info(dataset.name, revision=revision or None, timeout=10)
    except errors.OfflineModeIsEnabled as error:
        if revision not in ("", _CACHE):
            raise DataError(
                f"{dataset}: {begun}, a commit of {hub}: unset HF_HUB_OFFLINE"
            ) from error
        return _CACHE
    except Exception as error:
        raise DataError(f"{dataset}: {_refused(error, revision)}") from error
    return found.sha or ""


def _refused(error: Exception, revision: str) -> str:
    """What the hub's client says of a dataset that it does not find."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such dataset on {hub}, nor a folder; for a private one {_LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"its commit {revision} is gone from {hub}: import it into a new table"
    if isinstance(error, errors.HFValidationError):
        return "no name of a dataset; give hf:organisation/name or hf:FOLDER"
    if isinstance(error, errors.HfHubHTTPError):
        return f"{hub} refuses it ({one_line(error)}); {_LOGIN}, or try again later"
    return (
        f"{hub} cannot be reached ({one_line(error)}); with HF_HUB_OFFLINE=1 what the library has "
        "in its cache is read"
    )


def _reason(dataset: DatasetName, commit: str | None, error: Exception, text: str) -> str:
    if "Dataset scripts" in text:
        return (
            f"{text}: of many the hub has Parquet files, `hf download {dataset.name} --repo-type "
            "dataset --revision refs/convert/parquet`"
        )
    if "OfflineModeIsEnabled" in text:
        return (
            "HF_HUB_OFFLINE is set, and the library has it not in its cache: unset it, or load it "
            "once online with datasets.load_dataset"
        )
    if isinstance(error, ValueError) and (others := _other_configs(dataset, commit)):
        return others
    return text


def _other_configs(dataset: DatasetName, commit: str | None) -> str | None:
    """What to say where a configuration is not named, or not there; None if that is not it."""
    import datasets

    try:
        names = datasets.get_dataset_config_names(dataset.name, revision=commit)
    except Exception:
        return None
    if dataset.config in names or (dataset.config is None and len(names) < 2):
        return None
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    listed = f"{', '.join(names[:_MAX_NAMED])}{more}"
    example = f"name one, as {_PREFIX}{dataset.name}:{names[0]}"
    if dataset.config is None:
        return f"it has the configurations {listed}, and no default: {example}"
    return f"it has no configuration {dataset.config!r}, but {listed}: {example}"


class Kept(logging.Handler):
    """Keeps the last line that the library logs, which names the file that an error does not."""

    said = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the line instead of writing it."""
        self.said = record.getMessage()


@contextmanager
def quietly() -> Iterator[Kept]:
    """Without the library's own bars and log lines: what fails is reported once, by us."""
    from datasets.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    logger, kept = logging.getLogger("datasets"), Kept()
    handlers, were_disabled = logger.handlers, are_progress_bars_disabled()
    logger.handlers = [kept]
    disable_progress_bars()
    try:
        yield kept
    finally:
        logger.handlers = handlers
        if not were_disabled:
            enable_progress_bars()


def said_with(error: Exception, kept: Kept) -> str:
    """What an error says, and the library has said about it."""
    text = one_line(error) or type(error).__name__
    # Its last line is about the error where it has the same words in it.
    return one_line(kept.said) if text[:40] in one_line(kept.said) else text


def is_damage(error: Exception, dataset: DatasetName) -> bool:
    """Whether a part is damaged, so that the others can be read; else the way to it failed."""
    from datasets.exceptions import DatasetGenerationError

    if dataset.folder is not None:
        return True
    damage = (ValueError, TypeError, LookupError, DatasetGenerationError, DataError)
    # Arrow says so of a damaged Parquet file; what the network raises is of a class of its own.
    is_arrow = type(error) is OSError and error.errno is None
    return is_arrow or (isinstance(error, damage) and not isinstance(error, OSError))


def label_names(features: Mapping[str, Any] | None) -> dict[str, Namer]:
    """For each column with class labels what puts their names in the place of numbers."""
    found = {name: _namer(feature) for name, feature in (features or {}).items()}
    return {name: namer for name, namer in found.items() if namer is not None}


def is_label(feature: Any) -> bool:
    """Whether a column is of class labels itself."""
    from datasets import ClassLabel

    return isinstance(feature, ClassLabel)


def _namer(feature: Any) -> Namer | None:
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        return partial(_label, feature.names)
    if isinstance(feature, Mapping):
        inner = label_names(feature)
        return partial(_labels_within, inner) if inner else None
    of_items = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    item = None if of_items is None else _namer(of_items)
    return None if item is None else partial(_labels_of, item)


def _label(names: list[str], value: Any) -> Any:
    # What is no label, as the -1 of tests whose labels are secret, stays what it is.
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _labels_of(namer: Namer, values: Any) -> Any:
    return [namer(value) for value in values] if isinstance(values, list) else values


def _labels_within(namers: Mapping[str, Namer], values: Any) -> Any:
    if not isinstance(values, Mapping):
        return values
    return {key: namers[key](item) if key in namers else item for key, item in values.items()}


def fetched(path: str, dataset: DatasetName, root: Path | None) -> bytes | None:
    """The bytes of an image in the repository or an archive; None for a path of another kind.

    Raises:
        UnsafePath: it lies outside of the dataset.
        FileNotFoundError: it is not there.
    """
    place = path.rpartition("::")[2]
    is_on_hub = place.startswith("hf://")
    if not is_on_hub and place == path:
        return None
    if is_on_hub and dataset.folder is None:
        own = f"hf://datasets/{dataset.name}"
        is_inside = place.startswith((f"{own}@", f"{own}/"))
    else:
        is_inside = not is_on_hub and root is not None and inside(root, place).is_file()
    if not is_inside:
        raise UnsafePath(f"{path!r} lies outside of the dataset")
    import pyarrow as pa
    from datasets import Image

    image = pa.array([{"bytes": None, "path": path}], Image.pa_type)
    found: bytes = Image().embed_storage(image)[0].as_py()["bytes"]
    return found
