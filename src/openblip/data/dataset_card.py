"""The card of an exported dataset: what is in it, by which thresholds, written by which models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.data.export_huggingface import DATA_FOLDER, SPLIT_NAMES, features
from openblip.data.export_report import ExportReport

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
_CAPFILT = "bootstrapped with CapFilt ([BLIP](https://arxiv.org/abs/2201.12086), section 3.3) and "


def write_card(folder: Path, report: ExportReport) -> None:
    """Writes `README.md` into an exported folder; licence and description are left to its owner.

    Args:
        folder: with the files of `write_huggingface`.
        report: of the export.
    """
    import yaml

    header = yaml.safe_dump(_header(folder, report), sort_keys=False, allow_unicode=True)
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
        _table(["column", "meaning"], [list(row) for row in _COLUMNS]),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _header(folder: Path, report: ExportReport) -> dict[str, Any]:
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
    size = sum(split["num_bytes"] for split in splits)
    return {
        "license": "unknown",
        "task_categories": ["image-to-text", "text-to-image"],
        "tags": ["blip", "capfilt"] if _is_bootstrapped(report) else [],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {
            "features": features(),
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
    return _table(header, rows)


def _thresholds(report: ExportReport) -> str:
    view = report.view
    rows = [["sources of texts", ", ".join(view.sources)]]
    rows.append(["least match probability", "none" if view.itm is None else f"{view.itm:g}"])
    rows += [[f"of {name}", f"{value:g}"] for name, value in view.thresholds.items()]
    rows.append(["left out besides", ", ".join(view.without) or "nothing"])
    rows.append(["table", f"{report.table}, version {report.version}"])
    return _table(["setting", "value"], rows)


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
    return ["## Rejected texts", _table(["split", "source", "reason", "texts"], rows)]


def _is_bootstrapped(report: ExportReport) -> bool:
    """Whether CapFilt has run on the table."""
    return isinstance(report.table_metadata.get("capfilt"), Mapping)


def _capfilt(report: ExportReport) -> list[str]:
    if not _is_bootstrapped(report):
        return []
    rows = [[name, value] for name, value in _flat(report.table_metadata["capfilt"])]
    about = "Captioner and filter are named by the SHA-256 of their configuration and weights."
    return ["## CapFilt", about, _table(["setting", "value"], rows)]


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
    return ["## Duplicates and leaks", _table(header, rows)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", str(value)))
    return flat


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
