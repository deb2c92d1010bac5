"""A stage: a unit of work with a folder of its own, which is named by all that decides its result.

The fingerprint of a stage covers its settings and the fingerprints of its inputs, so that a changed
setting gives new folders to what depends on it and to nothing else.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from openblip.runtime.atomic import replace_file
from openblip.runtime.documents import read_json
from openblip.runtime.errors import DataError

StageKind = Literal["data", "train", "capfilt", "evaluate"]
RESULT_FILE = "result.json"
ORDER_FILE = "stage.json"
LOG_FILE = "log.txt"
# A change of what stages of a kind compute at equal settings makes its number larger.
_VERSIONS: dict[StageKind, int] = {"data": 1, "train": 1, "capfilt": 1, "evaluate": 2}


@dataclass(frozen=True)
class Given:
    """Something that is there already: a table or a checkpoint."""

    place: str
    """Path or address."""
    fingerprint: str
    """Of its content."""
    version: int | None = None
    """Of a table: the one that is read, whatever is added to the table meanwhile."""


@dataclass(frozen=True, eq=False)
class Stage:
    """Work of one kind with its settings, on the results of other stages."""

    kind: StageKind
    name: str
    """For people: what the comparison file calls it, with the seed."""
    settings: Mapping[str, Any]
    """Plain JSON values; together with the inputs they decide the result."""
    inputs: Mapping[str, "Stage | Given"] = field(default_factory=dict)
    """By their role, such as `table` and `init`."""

    @cached_property
    def fingerprint(self) -> str:
        """12 hexadecimal digits."""
        values = {
            "version": _VERSIONS[self.kind],
            "kind": self.kind,
            "settings": self.settings,
            "inputs": {role: stage.fingerprint for role, stage in self.inputs.items()},
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def needs(self) -> list["Stage"]:
        """The stages whose results it reads."""
        return [stage for stage in self.inputs.values() if isinstance(stage, Stage)]

    def folder(self, root: Path) -> Path:
        """Where it works."""
        return root / f"{self.kind}-{self.fingerprint}"

    def result(self, root: Path) -> dict[str, Any] | None:
        """What it found; None before it is finished.

        Raises:
            DataError: the file that says it is damaged.
        """
        file = self.folder(root) / RESULT_FILE
        if not file.exists():
            return None
        result = read_json(file)
        if not isinstance(result, dict):
            raise DataError(f"{file}: no JSON object; remove the file, and the stage is done again")
        return result

    def write_order(self, root: Path) -> Path:
        """Its folder, with all that a process needs to carry it out."""
        places = {
            role: stage.place if isinstance(stage, Given) else str(place_of(stage, root))
            for role, stage in self.inputs.items()
        }
        order = {
            "kind": self.kind,
            "name": self.name,
            "settings": self.settings,
            "inputs": places,
            "of": {role: stage.fingerprint for role, stage in self.inputs.items()},
            "versions": {
                role: stage.version
                for role, stage in self.inputs.items()
                if isinstance(stage, Given) and stage.version is not None
            },
        }
        folder = self.folder(root)
        with replace_file(folder / ORDER_FILE, durable=False) as unfinished:
            unfinished.write_text(json.dumps(order, indent=2), encoding="utf-8")
        return folder


def place_of(stage: Stage, root: Path) -> Path:
    """What a stage makes: a table, or the model at the end of a run."""
    if stage.kind == "train":
        # Not the one of the lowest loss: all have learnt equally long.
        return stage.folder(root) / "run" / "checkpoints" / "last"
    return stage.folder(root) / "pairs.lance"


def rows_of(table: Stage | Given) -> str:
    """Fingerprint of the table that a table has its rows from: CapFilt adds columns alone."""
    if isinstance(table, Stage) and table.kind == "capfilt":
        return rows_of(table.inputs["table"])
    return table.fingerprint


def closure(stages: Iterable[Stage]) -> dict[str, Stage]:
    """The stages and all that they need, by fingerprint; what is needed comes first."""
    found: dict[str, Stage] = {}
    for stage in stages:
        if stage.fingerprint not in found:
            found |= {k: v for k, v in closure(stage.needs).items() if k not in found}
            found[stage.fingerprint] = stage
    return found
