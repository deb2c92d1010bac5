"""Training images and texts that stand in an evaluation split, flagged and kept."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openblip.curation.marks import Marks, embedding_model, mark_images
from openblip.curation.near_texts import seen_texts
from openblip.curation.nearness import Nearness, seen_images
from openblip.runtime.errors import DataError
from openblip.table.agreement import AgreedTexts
from openblip.table.flags import (
    IMAGE_FLAGS,
    LEAKS,
    TableTexts,
    normalised,
    row_ids,
    string_column,
    text_column,
    text_flags,
    write_flags,
)
from openblip.table.table import PairTable
from openblip.table.views import split_rows

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_EXAMPLES = 10
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Leak:
    """One training image, or text, that an evaluation sees again."""

    row: str
    """Id of the training row."""
    of: str
    """Id of the row of the evaluation split."""
    text: str = ""
    """The text of the training row; empty for an image."""


@dataclass
class LeakReport:
    """What was found; stored under `leaks` in the metadata of the training table."""

    table: str
    evaluation: str
    """Address of the table with the evaluation split."""
    split: str
    """The evaluation split."""
    nearness: Nearness
    """When two things counted as the same."""
    model: str | None = None
    """Fingerprint of the model whose embeddings were compared."""
    num_images: int = 0
    """Training images."""
    num_evaluation_images: int = 0
    num_leaking_images: int = 0
    """Training images that stand in the evaluation split."""
    num_same_file: int = 0
    """Those of them that are byte for byte the same."""
    num_leaked_images: int = 0
    """Images of the evaluation split that stand among the training images."""
    num_texts: dict[str, int] = field(default_factory=dict)
    """Texts of training rows, by column."""
    leaking_texts: dict[str, int] = field(default_factory=dict)
    """Those of them that stand in the evaluation split, at whatever image, by column."""
    examples: list[Leak] = field(default_factory=list)
    """The first few images, and texts."""
    corrected: dict[str, str | None] = field(default_factory=dict)
    """Words that reviewers have corrected training texts to, normalised, and the id of the row of
    the evaluation split that has them; None where none has."""

    @property
    def name(self) -> str:
        """What the flags begin with: `TABLE#SPLIT`."""
        return f"{self.evaluation}#{self.split}"

    def to_text(self) -> str:
        """The report for people, several lines."""
        lines = [
            f"{self.num_leaking_images:,} of {self.num_images:,} training images of {self.table} "
            f"stand in {self.name} ({self.num_same_file:,} as the same file); "
            f"{self.num_leaked_images:,} of its {self.num_evaluation_images:,} images are seen"
        ]
        lines += [
            f"{column}: {self.leaking_texts[column]:,} of {count:,} texts are also there"
            for column, count in self.num_texts.items()
        ]
        if self.corrected:
            number = sum(found is not None for found in self.corrected.values())
            told = f"{number:,} of {len(self.corrected):,} as reviewers have corrected them"
            lines.append(f"texts: {told} are also there")
        lines += [
            f"  {leak.row} <- {leak.of}" + (f": {leak.text}" if leak.text else "")
            for leak in self.examples
        ]
        return "\n".join(lines)


def flag_leaks(
    table: PairTable,
    evaluation: PairTable,
    split: str = "test",
    nearness: Nearness | None = None,
    *,
    num_threads: int | None = None,
    show_progress: bool = True,
) -> LeakReport:
    """Finds training images and texts that stand in an evaluation split, and notes where.

    The columns `leak_of`, `captions_leak_of` and `synthetic_leak_of` of the training table get
    `EVALUATION#SPLIT:ID`, null for what does not leak, and for rows of other splits. Findings of
    checks against other evaluations stay. No row is removed: a view with `without` leaves it out.

    Args:
        table: whose rows of the split train are checked; gets the columns.
        evaluation: table with the evaluation split; may be the same one.
        split: `val` or `test`; of another table also `train`.
        nearness: thresholds; those of an embedding need `embed_table` on both tables first.
        num_threads: that read images; None for one for each core, 2 to 16.
        show_progress: on stderr.

    Raises:
        DataError: a split has no row, the two are the same, or embeddings are missing or of two
            models.
    """
    nearness = nearness or Nearness()
    if split == "train" and table.uri == evaluation.uri:
        raise DataError("the evaluation split is the training split: give --split test or val")
    if evaluation.uri == table.uri:
        evaluation = table  # one object: it is going to be changed
    rows, references = split_rows(table, "train"), split_rows(evaluation, split)
    mark_images(table, num_threads=num_threads, show_progress=show_progress)
    mark_images(evaluation, num_threads=num_threads, show_progress=show_progress)
    report = LeakReport(table.uri, evaluation.uri, split, nearness)
    report.num_images, report.num_evaluation_images = len(rows), len(references)
    if nearness.needs_embeddings:
        report.model = _same_model(table, evaluation)
    images = _leaking_images(table, rows, evaluation, references, report)
    texts = TableTexts.read(table)
    known = _known_texts(TableTexts.read(evaluation, ["captions"]), references)
    leaking = _leaking_texts(texts, rows, known, report)
    report.corrected = _corrected(table, evaluation, known, nearness)
    report.examples = _examples(table, evaluation, texts, images, leaking)
    columns = _columns(table, evaluation, texts, images, leaking, report)
    write_flags(table, LEAKS, report.name, columns, asdict(report))
    return report


def _same_model(table: PairTable, evaluation: PairTable) -> str:
    mine, theirs = embedding_model(table), embedding_model(evaluation)
    if mine != theirs:
        raise DataError(
            f"{table.uri} and {evaluation.uri} have embeddings of two models: give --model"
        )
    return str(mine["model"])


def _leaking_images(
    table: PairTable, rows: Rows, evaluation: PairTable, references: Rows, report: LeakReport
) -> dict[int, int]:
    with_embeddings = report.nearness.needs_embeddings
    marks = Marks.read(table, with_embeddings).take(rows)
    others = Marks.read(evaluation, with_embeddings).take(references)
    seen = seen_images(marks, others, report.nearness)
    report.num_leaking_images = len(seen)
    report.num_leaked_images = len(set(seen.values()))
    same = [marks.digests[place] == others.digests[at] for place, at in seen.items()]
    report.num_same_file = int(sum(same))
    return {int(rows[place]): int(references[at]) for place, at in seen.items()}


def _known_texts(texts: TableTexts, references: Rows) -> dict[str, int]:
    """The first row of each text of the evaluation split."""
    rows = texts.rows("captions")
    inside = np.isin(rows, references) & (texts.numbers["captions"] >= 0)
    # The index is that of the first place where a text stands.
    numbers, first = np.unique(texts.numbers["captions"][inside], return_index=True)
    at = rows[inside][first]
    return {texts.distinct[n]: row for n, row in zip(numbers.tolist(), at.tolist(), strict=True)}


def _leaking_texts(
    texts: TableTexts, rows: Rows, known: dict[str, int], report: LeakReport
) -> dict[str, Rows]:
    """For each text of each column the evaluation row that has it, or -1."""
    of_text = _rows_with(texts.distinct, known, report.nearness)
    # The last one is for the number -1, of a text without a word.
    of_number = np.array([*(of_text.get(text, -1) for text in texts.distinct), -1])
    found = {}
    for column in texts.columns:
        is_train = np.isin(texts.rows(column), rows)
        found[column] = np.where(is_train, of_number[texts.numbers[column]], -1)
        report.num_texts[column] = int(is_train.sum())
        report.leaking_texts[column] = int((found[column] >= 0).sum())
    return found


def _rows_with(texts: Sequence[str], known: dict[str, int], nearness: Nearness) -> dict[str, int]:
    """The evaluation rows of some normalised texts and of the known ones."""
    # Equal ones are looked up; to compare the others for likeness is what takes the time.
    own = [text for text in texts if text not in known]
    references = list(known)
    seen = seen_texts(own, references, nearness.text)
    return known | {own[place]: known[references[at]] for place, at in seen.items()}


def _corrected(
    table: PairTable, evaluation: PairTable, known: dict[str, int], nearness: Nearness
) -> dict[str, str | None]:
    """What became of the words that reviewers agree on in the place of training texts."""
    agreed, words = AgreedTexts.of(table), dict[str, None]()
    for batch in table.scan(["id", "split"]):
        for place in agreed.places_in(batch["id"]).tolist():
            if batch["split"][place].as_py() == "train":
                texts = agreed.of_row(batch["id"][place].as_py())
                words |= {normalised(text.words or ""): None for text in texts if text.is_edited}
    # Nothing is like a text without a word.
    rows = _rows_with([text for text in words if text], known, nearness)
    found = [rows[text] for text in words if text in rows]
    ids = row_ids(evaluation, np.array(found, dtype=np.int64))
    return {text: ids[rows[text]] if text in rows else None for text in words}


def _columns(
    table: PairTable,
    evaluation: PairTable,
    texts: TableTexts,
    images: dict[int, int],
    leaking: dict[str, Rows],
    report: LeakReport,
) -> "pa.Table":
    """The columns of flags; what other checks found stays in them."""
    import pyarrow as pa

    of = [np.array(list(images.values()), dtype=np.int64), *leaking.values()]
    ids = row_ids(evaluation, np.concatenate([rows[rows >= 0] for rows in of]))
    names = {row: f"{report.name}:{key}" for row, key in ids.items()}
    flags = {row: names[at] for row, at in images.items()}
    before = _found_by_others(table, IMAGE_FLAGS[LEAKS], report.name)
    flags = {row: value for row, value in enumerate(before) if value is not None} | flags
    columns = {IMAGE_FLAGS[LEAKS]: string_column(len(table), flags)}
    for column, rows in leaking.items():
        name = text_flags(column, LEAKS)
        values = [names.get(row) for row in rows.tolist()]
        before = _found_by_others(table, name, report.name)
        # The texts are others than then: those flags say nothing, and a view asks for those checks
        # again (`what_is_unchecked`).
        if len(before) == len(values):
            values = [value or old for value, old in zip(values, before, strict=True)]
        columns[name] = text_column(texts, column, values)
    return pa.table(columns)


def _found_by_others(table: PairTable, column: str, name: str) -> list[str | None]:
    """The flags that checks against other evaluations left, one after the other."""
    import pyarrow as pa

    if column not in table.columns:
        return []
    flags: list[str | None] = []
    for batch in table.scan([column]):
        values = batch[column]
        flags += (values.flatten() if pa.types.is_list(values.type) else values).to_pylist()
    return [None if flag is None or flag.startswith(f"{name}:") else flag for flag in flags]


def _examples(
    table: PairTable,
    evaluation: PairTable,
    texts: TableTexts,
    images: dict[int, int],
    leaking: dict[str, Rows],
) -> list[Leak]:
    """The first few images, and the first few texts of each column."""
    places: list[tuple[int, int, int | None]] = [
        (row, images[row], None) for row in sorted(images)[:_MAX_EXAMPLES]
    ]
    for column, of in leaking.items():
        chosen = np.flatnonzero(of >= 0)[:_MAX_EXAMPLES]
        found = zip(
            texts.rows(column)[chosen], of[chosen], texts.numbers[column][chosen], strict=True
        )
        places += [(int(row), int(at), int(number)) for row, at, number in found]
    mine = row_ids(table, np.array([row for row, _, _ in places], dtype=np.int64))
    theirs = row_ids(evaluation, np.array([at for _, at, _ in places], dtype=np.int64))
    return [
        Leak(mine[row], theirs[at], "" if number is None else texts.distinct[number])
        for row, at, number in places
    ]
