"""What a CapFilt job is, and the part files in which its finished work is kept."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openblip.data.table import PairTable
from openblip.errors import RecipeError
from openblip.inference import Decoding
from openblip.inference.fingerprint import model_fingerprint

if TYPE_CHECKING:
    import pyarrow as pa

METADATA_KEY = "capfilt"


def _nucleus() -> Decoding:
    return Decoding(method="nucleus", top_p=0.9)


@dataclass(frozen=True, kw_only=True)
class CapFiltSettings:
    """Everything besides the table that decides what a job writes."""

    captioner: str
    """Model folder or run directory of the captioner."""
    filter: str
    """Model folder or run directory of the filter."""
    decoding: Decoding = field(default_factory=_nucleus)
    """How captions are written: nucleus sampling with p = 0.9 in the paper (section 3.3)."""
    prompt: str = "a picture of "
    """What the captioner was fine-tuned to continue."""
    num_captions: int = 1
    """Synthetic captions per image."""
    first_token: Literal["[ENC]", "[CLS]"] = "[ENC]"
    """First token of a text that is matched: `[ENC]` as trained; `[CLS]` as some releases do."""
    batch_size: int = 32
    """Consecutive rows that are read, captioned and scored together."""
    seed: int = 0
    """With a row's id it decides the row's sampled captions."""

    def __post_init__(self) -> None:
        if self.num_captions < 1 or self.batch_size < 1:
            raise RecipeError("num_captions and batch_size must be at least 1")


@dataclass(frozen=True)
class CapFiltJob:
    """A job on one table; its fingerprint names the folder of its parts.

    Part p holds the new columns of rows p * batch_size to (p + 1) * batch_size. It is there whole
    or not at all, so a restarted job goes on with the parts that are missing.
    """

    settings: CapFiltSettings
    table_uri: str
    num_rows: int
    fingerprint: str

    @classmethod
    def plan(cls, table: PairTable, settings: CapFiltSettings) -> "CapFiltJob":
        """The job of these settings on the table as it is."""
        return cls(settings, table.uri, len(table), job_fingerprint(table, settings))

    @property
    def num_parts(self) -> int:
        """Batches of the table, the short last one included."""
        return -(-self.num_rows // self.settings.batch_size)

    @property
    def folder(self) -> Path:
        """Where the parts lie until they become columns of the table."""
        return Path(f"{self.table_uri.rstrip('/')}.capfilt") / self.fingerprint

    def rows(self, part: int) -> range:
        """The table's rows that a part covers."""
        size = self.settings.batch_size
        return range(part * size, min((part + 1) * size, self.num_rows))

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{part:08d}.parquet"

    def finished(self) -> set[int]:
        """Numbers of the parts that are done."""
        return {int(p.stem.removeprefix("part-")) for p in self.folder.glob("part-*.parquet")}

    def write(self, part: int, columns: "pa.Table") -> None:
        """Store a part; after this returns it survives a crash."""
        import pyarrow.parquet as pq

        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{os.getpid()}-{part}.tmp"
        pq.write_table(columns, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(self.path(part))

    def read_all(self) -> "Iterator[pa.RecordBatch]":
        """The parts in the order of the table's rows."""
        import pyarrow.parquet as pq

        for part in range(self.num_parts):
            yield from pq.read_table(self.path(part)).to_batches()

    def remove_parts(self) -> None:
        """Delete the parts, once the table holds them."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def description(self) -> str:
        """Settings and fingerprints as JSON, for the table's metadata."""
        return json.dumps(
            {
                **asdict(self.settings),
                "captioner_fingerprint": model_fingerprint(self.settings.captioner),
                "filter_fingerprint": model_fingerprint(self.settings.filter),
                "fingerprint": self.fingerprint,
            }
        )


def job_fingerprint(table: PairTable, settings: CapFiltSettings) -> str:
    """16 hexadecimal digits that change when the table's ids, a model or a setting changes.

    Where a model lies does not count, only what it is.
    """
    digest = hashlib.sha256()
    values = asdict(settings)
    values["captioner"] = model_fingerprint(settings.captioner)
    values["filter"] = model_fingerprint(settings.filter)
    digest.update(json.dumps(values, sort_keys=True).encode())
    for batch in table.scan(["id"], batch_size=65536):
        digest.update("\n".join(batch["id"].to_pylist()).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]
