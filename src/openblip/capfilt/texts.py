"""Texts made elsewhere: matched with the rows of a table, and kept beside them in a column.

The column is `texts_NAME`, a list of texts for each row; a job names it as `texts:NAME`.
The table's metadata have the digest of all texts under the same name, so that a job on other texts
is another job.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from openblip.jobs.ledger import open_store
from openblip.jobs.lock import JobLock
from openblip.runtime.errors import DataError, RecipeError
from openblip.sources.caption_lists import CAPTION_FIELDS
from openblip.sources.json_files import json_records
from openblip.sources.source import IMAGE_FIELDS, first_texts, id_text
from openblip.table.columns import column_state
from openblip.table.rows import in_utf8, listed
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_EXAMPLES = 3
_ID_FIELDS = ("id", "image_id")


def texts_column(name: str) -> str:
    """The column of the texts of this name, and the entry of the metadata about it.

    Raises:
        RecipeError: it cannot be a name.
    """
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"{name!r} cannot be the name of texts, which becomes that of a column: give letters, "
            "digits, - and _, such as captioner2"
        )
    return f"texts_{name}"


def texts_digest(table_uri: str, name: str) -> str:
    """16 hexadecimal digits that change with any of the texts of this name.

    Raises:
        DataError: the table has none, or they were not written to the end.
    """
    table, column = PairTable.open(table_uri), texts_column(name)
    state = column_state(table, column)
    if "digest" not in state:
        there = [known[len("texts_") :] for known in table.columns if known.startswith("texts_")]
        has = f"it has {listed(there)}" if there else "it has none"
        raise DataError(
            f"{table_uri} has no texts of the name {name} ({has}): `openblip capfilt add-texts "
            f"{table_uri} FILE.jsonl --name {name}` adds them"
        )
    if not state.get("is_whole") or column not in table.columns:
        raise DataError(
            f"{table_uri}: adding the texts {name} was broken off: run `openblip capfilt add-texts "
            f"{table_uri} {state.get('file')} --name {name} --replace` again"
        )
    return str(state["digest"])


def check_only_texts(table_uri: str, name: str) -> None:
    """Nothing, if a job with these texts alone replaces no text of another captioner.

    Raises:
        DataError: the table has some; names the command that keeps them.
    """
    from openblip.capfilt.job import METADATA_KEY

    told = column_state(PairTable.open(table_uri), METADATA_KEY).get("captioner", [])
    captioners = [told] if isinstance(told, str) else told
    if others := [source for source in captioners if source != f"texts:{name}"]:
        raise DataError(
            f"{table_uri} has texts of {listed(others)}, which a job with texts:{name} alone would "
            f"replace: leave out --filter, then `openblip capfilt run {table_uri} --captioner "
            f"{' '.join(others)} texts:{name} --filter FILTER`"
        )


@dataclass(frozen=True)
class Left:
    """What was left out for one reason."""

    count: int = 0
    examples: tuple[str, ...] = ()
    """The first ones."""

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count:,} ({'; '.join(self.examples)}{more})"


@dataclass(frozen=True, kw_only=True)
class AddedTexts:
    """What became of a file of texts."""

    name: str
    rows: int
    """Rows that have texts now."""
    texts: int
    without: int
    """Rows from the web for which the file has no text."""
    of_people: int
    """Rows with texts whose origin is human; a job adds nothing to these."""
    repeated: int
    """Texts that the file gives twice for a row, and that were taken once."""
    unknown: Left
    """Ids and names of images that no row has."""
    ambiguous: Left
    """Names of files that several rows have."""
    refused: Left
    """Records without an id or a text."""


@dataclass
class _Found:
    """What a file says, before it is matched with a table."""

    of_id: dict[str, list[str]] = field(default_factory=dict)
    """Texts of records that give an id."""
    of_image: dict[str, list[str]] = field(default_factory=dict)
    """Texts of records that name an image."""
    repeated: int = 0
    refused: list[str] = field(default_factory=list)


def add_texts(table: str | Path, file: Path, name: str, *, replace: bool = False) -> AddedTexts:
    """Put texts made elsewhere beside the rows of a table, for jobs with `texts:NAME`.

    All of it becomes visible in one step; a row that the file does not name has a null.

    Args:
        table: where the `PairTable` lies.
        file: JSON lines, or an array, of objects with `id` (or a field of the image's name, as
            `openblip caption` writes it) and `text`, `texts`, `caption` or `captions`. An image's
            name is a row's id, or its address, or the last part of one of them.
        name: of the captioner, as `synthetic_captioner` will say it.
        replace: texts of the same name.

    Raises:
        DataError: nothing in the file fits the table, or the table has texts of this name.
        JobLockedError: a job works on the table.
        RecipeError: it cannot be a name.
    """
    uri, column = str(table).rstrip("/"), texts_column(name)
    from openblip.capfilt.job import CAPFILT

    opened = PairTable.open(uri)
    if "digest" in column_state(opened, column) and not replace:
        raise DataError(
            f"{uri} has texts of the name {name} already (column {column}): give another name, or "
            "--replace"
        )
    found = _read(file)
    # No job may read some rows before the change, and others after it.
    with JobLock(open_store(CAPFILT.folder(uri)), CAPFILT):
        texts, added = _matched(opened, file, name, found)
        _write(opened, column, texts, {"file": str(file), "rows": added.rows})
    return added


def _read(file: Path) -> _Found:
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    found = _Found()
    for where, _, record in json_records(file, None, None):
        try:
            if isinstance(record, ValueError):
                raise record
            key, of = _key(record, found)
            texts, _ = first_texts(record, ("texts", *CAPTION_FIELDS))
            # As an import stores them: half of a surrogate pair is no text.
            texts = [in_utf8(text) for text in texts if text.strip()]
            if not texts:
                raise ValueError(f"{key} has no text")
        except ValueError as error:
            found.refused.append(f"{where}: {error}")
            continue
        own = of.setdefault(key, [])
        for text in texts:
            # A text counts once for an image, however often it stands there.
            found.repeated += text in own
            own += [text] if text not in own else []
    return found


def _key(record: dict[str, Any], found: _Found) -> tuple[str, dict[str, list[str]]]:
    for name in _ID_FIELDS:
        if (key := id_text(record.get(name))) is not None:
            return key, found.of_id
    for name in IMAGE_FIELDS:
        if (key := id_text(record.get(name))) is not None:
            return key, found.of_image
    raise ValueError(f"none of its fields ({', '.join(list(record)[:8])}) is an id or an image")


def _matched(
    table: PairTable, file: Path, name: str, found: _Found
) -> "tuple[pa.ChunkedArray, AddedTexts]":
    rows, ambiguous, matched = _rows_of(table, found)
    unknown = [key for key in (*found.of_id, *found.of_image) if key not in matched]
    if not (found.of_id or found.of_image):
        why = found.refused[0] if found.refused else "it is empty"
        raise DataError(f"{file}: no record in it has an id or an image, and a text: {why}")
    if not rows:
        ids = table.take([0], ["id"])["id"].to_pylist() if len(table) else []
        raise DataError(
            f"{file}: none of its {len(unknown):,} ids and names of images is one of {table.uri}, "
            f"such as {listed(unknown[:_EXAMPLES]) or 'none'}; a row's id there is {ids}"
            + (f"; {found.refused[0]}" if found.refused else "")
        )
    origins = _origins(table)
    of_people = sum(origins[row] == "human" for row in rows)
    return _array(rows, len(table)), AddedTexts(
        name=name,
        rows=len(rows),
        texts=sum(map(len, rows.values())),
        without=sum(origin != "human" for origin in origins) - (len(rows) - of_people),
        of_people=of_people,
        repeated=found.repeated,
        unknown=_left(unknown),
        ambiguous=_left(ambiguous),
        refused=_left(found.refused),
    )


def _rows_of(table: PairTable, found: _Found) -> tuple[dict[int, list[str]], list[str], set[str]]:
    """Texts by row; names that several rows have; and all ids and names that some row has."""
    by_name: dict[str, list[int]] = defaultdict(list)
    rows: dict[int, list[str]] = {}
    matched: set[str] = set()
    for row, key, uri in _keys(table):
        exact = [(found.of_id, key), (found.of_image, key)]
        exact += [(found.of_image, uri)] if uri and uri != key else []
        hits = [(of, name) for of, name in exact if name in of]
        if hits:
            # Of a row that stands there by its id and by its image, each text counts once.
            rows[row] = _once([text for of, name in hits for text in of[name]], found)
            matched.update(name for _, name in hits)
        # Also of a row that was found: what its file is called may be what another one's is. In an
        # order, since texts are kept in it: that of a set is another in each process.
        for name in dict.fromkeys(PurePosixPath(full).name for full in (key, uri) if full):
            if name in found.of_image:
                by_name[name].append(row)
    fitting = {name: own for name, own in by_name.items() if name not in matched}
    ambiguous = [name for name, own in fitting.items() if len(own) > 1]
    for name, own in fitting.items():
        matched.add(name)
        if len(own) == 1:
            # A row may be meant by several names, those of its id, of its address and of its file.
            rows[own[0]] = _once([*rows.get(own[0], ()), *found.of_image[name]], found)
    return rows, ambiguous, matched


def _once(texts: list[str], found: _Found) -> list[str]:
    """The texts of a row without those that it has already, which are counted."""
    unique = list(dict.fromkeys(texts))
    found.repeated += len(texts) - len(unique)
    return unique


def _keys(table: PairTable) -> Iterator[tuple[int, str, str | None]]:
    row = 0
    for batch in table.scan(["id", "image_uri"]):
        for key, uri in zip(batch["id"].to_pylist(), batch["image_uri"].to_pylist(), strict=True):
            yield row, key, uri
            row += 1


def _origins(table: PairTable) -> list[str]:
    return [origin for batch in table.scan(["origin"]) for origin in batch["origin"].to_pylist()]


def _left(items: list[str]) -> Left:
    return Left(len(items), tuple(items[:_EXAMPLES]))


# Arrow's arrays of strings end at 2 GiB, which the texts of all rows may exceed.
_ROWS_AT_ONCE = 65_536


def _array(rows: dict[int, list[str]], num_rows: int) -> "pa.ChunkedArray":
    import pyarrow as pa

    kind = pa.list_(pa.string())
    parts = [
        pa.array([rows.get(n) for n in range(start, min(start + _ROWS_AT_ONCE, num_rows))], kind)
        for start in range(0, num_rows, _ROWS_AT_ONCE)
    ]
    return pa.chunked_array(parts, kind)


def _write(table: PairTable, column: str, texts: "pa.ChunkedArray", about: dict[str, Any]) -> None:
    import pyarrow as pa

    digest = hashlib.sha256()
    for own in texts.to_pylist():
        digest.update(json.dumps(own, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    note = {**about, "digest": digest.hexdigest()[:16]}
    # Said before and after: a kill in between leaves a note that no job takes for whole, so that
    # none computes with texts of one file and the digest of another.
    table.update_metadata({column: json.dumps({**note, "is_whole": False})})
    table.add_columns(pa.table({column: texts}), overwrite=True)
    table.update_metadata({column: json.dumps({**note, "is_whole": True})})
