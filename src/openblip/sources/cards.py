"""The card of a dataset folder: read where somebody brings one, written with an export.

Of a card that is read, the files of each split count. One that is written says what is in the
dataset, by which thresholds, and which models wrote and judged the texts.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from openblip.runtime.documents import markdown_table
from openblip.runtime.errors import DataError
from openblip.sources.export_formats import DATA_FOLDER, SPLIT_NAMES, ToldFields, features
from openblip.sources.paths import matches_below
from openblip.sources.report import ExportReport, Reason
from openblip.sources.source import (
    Cursor,
    DividedSource,
    Entry,
    Found,
    PairSource,
    Refused,
    Shard,
)
from openblip.sources.splits import split_in_name

_MARKS = re.compile(r"[*?\[]")
CARD_NAME = "README.md"
# What the hub calls a configuration that has no name.
_DEFAULT = "default"
# Characters that are read: a card may be long, and the header is at its beginning.
_MAX_HEADER = 1 << 20
# A card lies at most so many folders above the files that it speaks of.
_MAX_ABOVE = 3


@dataclass(frozen=True)
class Card:
    """What the `configs` in the header of a card say."""

    folder: Path
    configs: dict[str, tuple[tuple[str | None, str], ...]]
    """For each configuration the split, if it is said, and the pattern of its files."""
    default: str | None
    """The configuration that is meant where none is named; None if nothing says which."""

    @cached_property
    def _files(self) -> dict[Path, list[tuple[str, str | None]]]:
        """The configurations and splits of each file."""
        found: dict[Path, list[tuple[str, str | None]]] = defaultdict(list)
        for config, patterns in self.configs.items():
            for split, pattern in patterns:
                for file in _matching(self.folder, pattern):
                    found[file].append((config, split))
        return found

    def speaks_of(self, file: Path) -> bool:
        """Whether it names a file."""
        return file in self._files

    def split_of(self, file: Path) -> str | None:
        """The split of a file by the card; None if it says nothing.

        Raises:
            DataError: it says two.
        """
        said = dict.fromkeys(split for _, split in self._files.get(file, ()) if split is not None)
        if len(said) > 1:
            both = " and ".join(repr(split) for split in said)
            raise DataError(
                f"{self.folder / CARD_NAME} puts {file.name} into {both}: say which with --split"
            )
        return next(iter(said), None)

    def other_config(self, file: Path) -> str | None:
        """The configuration of a file that does not belong to the default; None if it does."""
        configs = [config for config, _ in self._files.get(file, ())]
        return None if not configs or self.default in configs else configs[0]


class CardedSource:
    """A source of which a card says the splits."""

    def __init__(self, source: PairSource, card: Card) -> None:
        """Reads nothing yet."""
        self._source, self._card = source, card
        self.format = source.format

    def total(self) -> int | None:
        """That of the source."""
        return self._source.total()

    def entries(self, cursor: Cursor | None) -> Iterator[Entry]:
        """Yields those of the source."""
        yield from map(self._told, self._source.entries(cursor))

    def listed(self) -> Iterator[Entry]:
        """Yields those of the source."""
        yield from map(self._told, self._source.listed())

    def shards(self) -> list[Shard]:
        """Those of the source."""
        return self._source.shards() if isinstance(self._source, DividedSource) else []

    def entries_of(self, shard: Shard) -> Iterator[Entry]:
        """Yields those of the source."""
        assert isinstance(self._source, DividedSource)
        return map(self._told, self._source.entries_of(shard))

    def _told(self, entry: Entry) -> Entry:
        if not isinstance(entry, Found) or entry.place is None:
            return entry
        try:
            return replace(entry, card_split=self._card.split_of(entry.place))
        except DataError as error:
            # The rows of this file alone: what the card says of others may be clear.
            number, reason = entry.num_records, Reason.CONTRADICTION
            return Refused(entry.where, entry.cursor, reason, str(error), number)


def read_card(folder: Path) -> Card | None:
    """The card of a folder; None if it has none, or one that says nothing about its files.

    Raises:
        DataError: its header is no YAML.
    """
    path = folder / CARD_NAME
    try:
        # The text below the header may be in any encoding, and does not count.
        with path.open(encoding="utf-8-sig", errors="replace") as stream:
            text = stream.read(_MAX_HEADER)
    except OSError:
        return None
    header = _header(path, text)
    configs: dict[str, tuple[tuple[str | None, str], ...]] = {}
    default = None
    listed = header.get("configs")
    for config in listed if isinstance(listed, list) else ():
        patterns = tuple(_patterns(config)) if isinstance(config, dict) else ()
        if patterns:
            name = str(config.get("config_name", _DEFAULT))
            configs[name] = patterns
            default = name if config.get("default") is True else default
    if not configs:
        return None
    if default is None:
        default = _DEFAULT if _DEFAULT in configs else None
    return Card(folder, configs, default if len(configs) > 1 else next(iter(configs)))


def card_above(files: Sequence[Path]) -> Card | None:
    """The nearest card that speaks of some files, in the folder of the first or a few above it."""
    for folder in list(files[0].parents)[:_MAX_ABOVE]:
        try:
            card = read_card(folder)
        except DataError:
            return None
        if card is not None:
            # The nearest ends the search: one further up would be about another dataset.
            return card if any(map(card.speaks_of, files)) else None
    return None


def _header(path: Path, text: str) -> dict[str, Any]:
    if not text.startswith("---"):
        return {}
    import yaml

    header = text[3:].partition("\n---")[0]
    try:
        found = yaml.safe_load(header)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        first = str(error).splitlines()[:1]
        raise DataError(f"the header of {path} is no YAML ({''.join(first)}): mend it") from error
    return found if isinstance(found, dict) else {}


def _patterns(config: dict[str, Any]) -> Iterator[tuple[str | None, str]]:
    files = config.get("data_files")
    folder = config.get("data_dir")
    prefix = f"{folder.strip('/')}/" if isinstance(folder, str) and folder.strip("./") else ""
    if files is None and prefix:
        yield None, f"{prefix}**"
    entries = files if isinstance(files, list) else [files]
    if isinstance(files, dict) and "path" not in files:
        entries = [{"split": split, "path": path} for split, path in files.items()]
    for entry in entries:
        split, paths = None, entry
        if isinstance(entry, dict):
            word, paths = entry.get("split"), entry.get("path")
            # As the file names it: `train_sft` is training.
            split = (split_in_name(str(word)) or str(word)) if word is not None else None
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str):
                yield split, prefix + path.removeprefix("./")


def _matching(folder: Path, pattern: str) -> Iterator[Path]:
    path = PurePosixPath(pattern)
    # A stranger's card must not lead out of its folder; addresses are not read here.
    if path.is_absolute() or ".." in path.parts or ":" in pattern or not path.parts:
        return
    # A folder stands for what is in it where it is named, not where a pattern meets it.
    is_folder = path.parts[-1] == "**" or not _MARKS.search(pattern)
    try:
        for found in matches_below(folder, pattern):
            if not found.is_dir():
                yield found
            elif is_folder:
                yield from (file for file in found.rglob("*") if file.is_file())
    except ValueError as error:
        raise DataError(f"{folder / CARD_NAME}: {pattern} is no pattern ({error})") from error


_COLUMNS = (
    ("id", "key of the image in the table that it was exported from"),
    ("image", "the encoded bytes as they were received"),
    ("width, height", "pixels, where known"),
    ("captions", "the texts that the view admits"),
    ("caption_sources", "of each text: human, web (given) or synthetic (written by a captioner)"),
    ("caption_itm", "of each text: the filter's probability of a match, null if not judged"),
    ("caption_captioners", "of each text: the fingerprint of the captioner that wrote it, or null"),
    ("split", "train, val or test"),
    ("meta", "what the source said besides, as JSON"),
)
_VERDICT_COLUMNS = (
    ("caption_verdicts", "of each text whose source is reviewed: right, partly or wrong"),
    ("caption_given", "of each reviewed text that people have corrected: as it was before"),
    ("caption_reviewers", "of each reviewed text: how many people agree on it"),
)
_CAPFILT = "bootstrapped with CapFilt ([BLIP](https://arxiv.org/abs/2201.12086), section 3.3) and "


def write_card(folder: Path, report: ExportReport) -> None:
    """Writes `README.md` into an exported folder; licence and description are left to its owner.

    Args:
        folder: with the files of `write_huggingface`.
        report: of the export.
    """
    import yaml

    header = yaml.safe_dump(_card_header(folder, report), sort_keys=False, allow_unicode=True)
    name = Path(report.table.rstrip("/")).stem
    parts = [
        f"---\n{header}---\n",
        f"# {name}",
        f"Image-text pairs, {_CAPFILT if _is_bootstrapped(report) else ''}exported by OpenBLIP. To "
        "be filled in by whoever publishes it: the licence (`license` above), where the images "
        "come from, and what they may be used for.",
        "## Images and texts",
        _counts(report),
        "## What counts",
        _thresholds(report),
        *_rejections(report),
        *_capfilt(report),
        *_checks(report.table_metadata),
        "## Columns",
        markdown_table(["column", "meaning"], [list(row) for row in _columns(report)]),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _columns(report: ExportReport) -> Sequence[tuple[str, str]]:
    place = [name for name, _ in _COLUMNS].index("split")
    further = [
        (f"caption_score_{name}", f"of each text: the score {name}, null where it has none")
        for name in report.scores
    ]
    verdicts = _VERDICT_COLUMNS if "reviewed" in report.view.sources else ()
    return (*_COLUMNS[:place], *further, *verdicts, *_COLUMNS[place:])


def _card_header(folder: Path, report: ExportReport) -> dict[str, Any]:
    splits: list[dict[str, Any]] = []
    files: list[dict[str, str]] = []
    for split, counts in report.splits.items():
        name = SPLIT_NAMES[split]
        sizes = [path.stat().st_size for path in (folder / DATA_FOLDER).glob(f"{name}-*")]
        if counts.num_images:
            splits.append(
                {"name": name, "num_bytes": sum(sizes), "num_examples": counts.num_images}
            )
            files.append({"split": name, "path": f"{DATA_FOLDER}/{name}-*"})
    # Bytes on the disk stand for both: nearly all are encoded images, which unpacking leaves alone.
    size = sum(split["num_bytes"] for split in splits)
    return {
        "license": "unknown",
        "task_categories": ["image-to-text", "text-to-image"],
        "tags": ["blip", "capfilt"] if _is_bootstrapped(report) else [],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {
            "features": features(ToldFields("reviewed" in report.view.sources, report.scores)),
            "splits": splits,
            "download_size": size,
            "dataset_size": size,
        },
    }


def _counts(report: ExportReport) -> str:
    sources = report.view.sources
    header = ["split", "images", *(f"{source} texts" for source in sources), "images left out"]
    rows = [
        [
            SPLIT_NAMES[split],
            str(counts.num_images),
            *(str(counts.num_texts.get(source, 0)) for source in sources),
            str(counts.num_without_text),
        ]
        for split, counts in report.splits.items()
    ]
    return markdown_table(header, rows)


def _thresholds(report: ExportReport) -> str:
    view = report.view
    rows = [["sources of texts", ", ".join(view.sources)]]
    score = "match probability" if view.score == "itm" else f"score {view.score}"
    rows.append([f"least {score}", "none" if view.itm is None else f"{view.itm:g}"])
    rows += [[f"of {name}", f"{value:g}"] for name, value in view.thresholds.items()]
    rows.append(["left out besides", ", ".join(view.without) or "nothing"])
    rows.append(["table", f"{report.table}, version {report.version}"])
    return markdown_table(["setting", "value"], rows)


def _rejections(report: ExportReport) -> list[str]:
    rows = [
        [SPLIT_NAMES[split], source, reason, str(count)]
        for split, counts in report.splits.items()
        for source, reasons in counts.rejected.items()
        for reason, count in reasons.items()
    ]
    if report.num_unreadable:
        rows.append(["all", "all", "image unreadable when exported", str(report.num_unreadable)])
    if not rows:
        return []
    return ["## Rejected texts", markdown_table(["split", "source", "reason", "texts"], rows)]


def _is_bootstrapped(report: ExportReport) -> bool:
    """Whether CapFilt has run on the table."""
    return isinstance(report.table_metadata.get("capfilt"), Mapping)


def _capfilt(report: ExportReport) -> list[str]:
    if not _is_bootstrapped(report):
        return []
    rows = [[name, value] for name, value in _flat(report.table_metadata["capfilt"])]
    about = "Captioner and filter are named by the SHA-256 of their configuration and weights."
    return ["## CapFilt", about, markdown_table(["setting", "value"], rows)]


def _checks(metadata: Mapping[str, Any]) -> list[str]:
    """What was looked for, and by which measure; the counts are those of the whole table."""
    rows = []
    for check in ("duplicates", "leaks"):
        for against, note in metadata.get(check, {}).items():
            nearness = ", ".join(f"{name} {value}" for name, value in note["nearness"].items())
            found = note.get("num_leaking_images", sum(note.get("duplicates", {}).values()))
            rows.append([check, against, str(found), nearness, note["model"] or ""])
    if not rows:
        return []
    header = ["check", "against", "images found", "measure", "model"]
    return ["## Duplicates and leaks", markdown_table(header, rows)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", str(value)))
    return flat
