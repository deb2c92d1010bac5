"""Where the index of a table or a folder is, and of which model: read without loading PyTorch."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from openblip.curation.marks import EMBEDDING_KEY
from openblip.jobs.units import Kind
from openblip.runtime.errors import DataError
from openblip.sources.paths import INDEX_FOLDER, is_table
from openblip.table.columns import column_state
from openblip.table.table import PairTable

FOLDER_TABLE = Path(INDEX_FOLDER, "index.lance")
"""Where the table of a folder is; hidden, so that nothing takes it for a part of the collection."""
EMBEDDING = Kind(name="embedding", title="embedding")
"""Jobs that embed the images of a table."""
ERROR_KEY = "embedding_error"
"""Column of a table: why the image of a row could not be embedded."""
_KEY = "search_index"


@dataclass(frozen=True)
class IndexState:
    """What the metadata of a table says of its index."""

    model: str
    """Name of the model, as it was given; a path is absolute."""
    fingerprint: str
    """Of the model whose embeddings stand in the table; empty where there are none."""
    folder: str | None
    """Absolute path of the folder whose files the rows are; None in other tables."""

    @classmethod
    def of(cls, table: PairTable) -> Self | None:
        """That of a table; None if it has no index."""
        noted, state = column_state(table, _KEY), column_state(table, EMBEDDING_KEY)
        # A column of that name from another program says of no model.
        if EMBEDDING_KEY not in table.columns or not (noted or state):
            return None
        fingerprint = state.get("settings", {}).get("model", "")
        return cls(noted.get("model", ""), fingerprint, noted.get("folder"))

    def note(self, table: PairTable) -> None:
        """Write it into the metadata, where it is read from."""
        # Rows may have come to a table since its job has noted how many it has embedded.
        noted = column_state(table, EMBEDDING_KEY) if self.folder is None else {}
        rows = noted.get("rows", len(table))
        settings = {"settings": {"model": self.fingerprint}, "rows": rows}
        own = {"model": self.model, "folder": self.folder}
        entries = {_KEY: json.dumps(own), EMBEDDING_KEY: json.dumps(settings)}
        # Each writing is a version of the table, of which readers would take notice for nothing.
        if any(table.metadata.get(name) != entry for name, entry in entries.items()):
            table.update_metadata(entries)


def open_index(place: str, model: str | None = None) -> tuple[PairTable, IndexState]:
    """The table that has the embeddings of a folder or a table.

    Args:
        place: the folder or the table.
        model: that was asked for, which the remedy names.

    Raises:
        DataError: there is none.
    """
    uri = place if is_table(place) else str(folder_named(place) / FOLDER_TABLE)
    table = PairTable.open(uri) if uri == place else PairTable.open_if_any(uri)
    state = None if table is None else IndexState.of(table)
    if table is None or state is None:
        command = f"openblip index build {shlex.quote(place)}"
        command += f" --model {shlex.quote(model)}" if model else ""
        raise DataError(f"{place} has no index: make one (`{command}`)")
    return table, state


def folder_named(place: str) -> Path:
    """The absolute path of a folder.

    Raises:
        DataError: there is none of that name.
    """
    path = Path(place)
    if not path.is_dir():
        kind = "is a file" if path.exists() else "does not exist"
        raise DataError(f"{place} {kind}: give a folder of images or a pair table")
    return path.absolute()
