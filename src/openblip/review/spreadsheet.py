"""A review in a spreadsheet: the drawn texts as CSV, with a column for verdicts to fill in."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from openblip.review.sampling import SampleStore
from openblip.review.session import ReviewItem, ReviewSession
from openblip.runtime.atomic import replace_file
from openblip.runtime.documents import read_text
from openblip.runtime.errors import DataError
from openblip.sources.delimited import guarded, unguarded
from openblip.sources.images import image_suffix
from openblip.table.reviews import Verdict
from openblip.table.rows import file_key, listed

_COLUMNS = ("key", "image", "source", "text", "verdict", "edited", "itm", "others", "review")
_READ = ("key", "verdict", "edited", "text", "review")
_DELIMITERS = ",;\t"
_IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class SheetReport:
    """What came of a file that was read."""

    recorded: int
    """Verdicts that are new."""
    unchanged: int
    """That were recorded before, as they are."""
    blank: int
    """Texts without a verdict."""
    cleared: int = 0
    """Those among them that have one from before, which stands: an empty cell takes none back."""

    def __str__(self) -> str:
        """One line for people."""
        told = f"{self.recorded:,} verdicts recorded, {self.unchanged:,} were there"
        told = f"{told}, {self.blank:,} texts have none"
        if not self.cleared:
            return told
        return f"{told}; {self.cleared:,} of these had one before, which an empty cell leaves"


def write_sheet(session: ReviewSession, path: Path, reviewer: str, size: int | None = None) -> int:
    """The number of texts that were written, in the order in which they were drawn.

    The images lie beside the file, in `NAME.images/`. What the reviewer has judged already stands
    in the column `verdict`.

    Args:
        session: the review.
        path: of the file.
        reviewer: whoever judges.
        size: only so many, the first; as those are drawn by chance, too. None for all.

    Raises:
        UnwritableError: it cannot be written.
    """
    own = session.standing(reviewer)
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(_COLUMNS)
    items = session.items[:size]
    for item, image in _with_images(session, items, path.with_name(f"{path.stem}.images")):
        record = own.get(item.key)
        others = "; ".join(f"{source}: {text}" for source, text, _ in item.others)
        verdict, edited = (record.verdict, record.edited) if record else (None, None)
        cells = [item.key, image, item.source, item.text, verdict or "", edited or ""]
        # Whoever wrote a caption must not be the author of a formula.
        first, last = ([guarded(cell, numbers=True) for cell in some] for some in (cells, [others]))
        writer.writerow([*first, f"{item.itm:.4f}", *last, session.sample.name])
    with replace_file(path) as unfinished:
        # With the mark by which a spreadsheet knows UTF-8.
        unfinished.write_text(stream.getvalue(), encoding="utf-8-sig", newline="")
    return len(items)


def read_sheet(session: ReviewSession, path: Path, reviewer: str) -> SheetReport:
    """Records the verdicts of a file, all of them or none.

    Raises:
        DataError: a line is not as it should be, or there is no verdict in any; names it and the
            remedy.
        UnwritableError, StorageError: they cannot be recorded.
    """
    own = session.standing(reviewer)
    fresh: list[tuple[str, str, Verdict, str | None]] = []
    lines: dict[str, int] = {}
    unchanged = blank = cleared = 0
    for line, cells in _lines(path):
        where = f"{path}, line {line}"
        _check_review(session, path, cells, where)
        item = _item(session, cells["key"], where)
        if lines.setdefault(item.key, line) != line:
            raise DataError(f"{where}: {item.key} is in line {lines[item.key]} too; remove one")
        # A file of the key and the verdict alone is one, too: there nothing can have been changed.
        if "text" in cells and cells["text"] != item.text:
            raise DataError(
                f"{where}: the text was changed, so it is not known what was judged: leave that "
                "column as it is, and write corrections into `edited`"
            )
        verdict = _verdict(cells["verdict"], where)
        edited = cells.get("edited", "").strip() or None
        if verdict is None:
            if edited:
                raise DataError(f"{where}: a correction needs a verdict beside it")
            blank += 1
            cleared += item.key in own
            continue
        edited = None if edited == item.text else edited
        before = own.get(item.key)
        if before is not None and (before.verdict, before.edited) == (verdict, edited):
            unchanged += 1
        else:
            fresh.append((reviewer, item.key, verdict, edited))
    if not lines:
        raise DataError(
            f"{path}: no text stands below its first line; export the sample again "
            "(--export-sample) and fill in its column verdict"
        )
    if not fresh and not unchanged:
        raise DataError(
            f"{path}: none of its {blank:,} texts has a verdict; write "
            f"{' or '.join(get_args(Verdict))} into its column verdict, and save it"
        )
    return SheetReport(session.record_all(fresh), unchanged, blank, cleared)


def _check_review(session: ReviewSession, path: Path, cells: Mapping[str, str], where: str) -> None:
    # Another review has drawn its texts otherwise: what follows from them would be wrong.
    if cells.get("review", "").strip() not in ("", session.sample.name):
        raise DataError(
            f"{where}: it is of the review {cells['review']}, and these flags mean "
            f"{session.sample.name}: give the flags that were given with --export-sample"
            f"{_score_of(session, cells['review'].strip())}"
        )
    if "review" not in cells and len(SampleStore(session.table.uri).names()) > 1:
        raise DataError(
            f"{path}: it has no column review, so that it is not known of which of the reviews "
            "of this table it is: export the sample again (--export-sample), and fill in that"
        )


def _score_of(session: ReviewSession, name: str) -> str:
    """Which score another review of the table went by, where that is why it is another one."""
    store = SampleStore(session.table.uri)
    if name not in store.names():
        return ""
    score = store.settings(name).score
    return "" if score == session.sample.settings.score else f", and --score {score}"


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and cells of each line below the header."""
    text = read_text(path)
    header = text.partition("\n")[0]
    # A spreadsheet writes the one that its language has.
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name.strip().lower() for name in next(reader, [])]
        if missing := [name for name in _READ[:2] if name not in names]:
            raise DataError(
                f"{path}: its first line has no column {missing[0]}; export the sample again "
                "(--export-sample) and fill in its column verdict"
            )
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, but the first line has "
                    f"{len(names)}; save the file as CSV again"
                )
            found = dict(zip(names, cells, strict=True))
            yield reader.line_num, {n: unguarded(found[n]) for n in _READ if n in found}
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: is no CSV ({error})") from error


def _item(session: ReviewSession, key: str, where: str) -> ReviewItem:
    try:
        return session.item(key)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _verdict(cell: str, where: str) -> Verdict | None:
    word = cell.strip().lower()
    known: tuple[Verdict, ...] = get_args(Verdict)
    for verdict in known:
        if word == verdict:
            return verdict
    if word:
        raise DataError(f"{where}: the verdict is {cell!r:.40}, none of {listed(known)}")
    return None


def _with_images(
    session: ReviewSession, items: Sequence[ReviewItem], folder: Path
) -> Iterator[tuple[ReviewItem, str]]:
    """Each item, and where its image lies: a file in the folder, or the address it has."""
    for first in range(0, len(items), _IMAGES_AT_ONCE):
        some = items[first : first + _IMAGES_AT_ONCE]
        numbers = [item.row_number for item in some]
        rows = session.table.take(numbers, ["image", "image_uri"]).to_pylist()
        for item, row in zip(some, rows, strict=True):
            if row["image"] is None:
                yield item, row["image_uri"] or ""
            else:
                yield item, _image_file(item, row["image"], folder)


def _image_file(item: ReviewItem, image: bytes, folder: Path) -> str:
    try:
        name = f"{file_key(item.row)}{image_suffix(image, item.row)}"
    except DataError as error:
        return str(error)  # in its place: there is nothing to see
    with replace_file(folder / name, durable=False) as path:
        path.write_bytes(image)
    return f"{folder.name}/{name}"
