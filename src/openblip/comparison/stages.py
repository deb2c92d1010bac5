"""A stage: a unit of work with a folder of its own, which is named by all that decides its result.

The fingerprint of a stage covers its settings and the fingerprints of its inputs, so that a changed
setting gives new folders to what depends on it and to nothing else.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from openblip.runtime.atomic import replace_file
from openblip.runtime.documents import read_json
from openblip.runtime.errors import DataError
from openblip.table.reviews import verdicts_digest
from openblip.table.table import PairTable
from openblip.training.recipe import Recipe

StageKind = Literal["data", "train", "capfilt", "evaluate"]
RESULT_FILE = "result.json"
_ORDER_FILE = "stage.json"
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
    placed: Mapping[str, Any] | None = None
    """The settings with the places that variables of the environment stand for: these decide
    nothing, and what lies there counts by its content."""

    @cached_property
    def fingerprint(self) -> str:
        """12 hexadecimal digits."""
        values = {
            "version": _VERSIONS[self.kind],
            "kind": self.kind,
            "settings": self.settings,
            "inputs": {role: stage.fingerprint for role, stage in self.inputs.items()},
        }
        # Names are for people, and places may be elsewhere tomorrow: neither decides a result.
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
        # Written last, and whole: with it a stage is finished, without it begun at most.
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
            role: stage.place if isinstance(stage, Given) else str(_place_of(stage, root))
            for role, stage in self.inputs.items()
        }
        order = {
            "kind": self.kind,
            "name": self.name,
            "settings": self.settings if self.placed is None else self.placed,
            "inputs": places,
            "of": {role: stage.fingerprint for role, stage in self.inputs.items()},
            "versions": {
                role: stage.version
                for role, stage in self.inputs.items()
                if isinstance(stage, Given) and stage.version is not None
            },
        }
        folder = self.folder(root)
        # Whoever asks for the stage again writes it again.
        with replace_file(folder / _ORDER_FILE, durable=False) as unfinished:
            unfinished.write_text(json.dumps(order, indent=2), encoding="utf-8")
        return folder


@dataclass(frozen=True)
class Order:
    """What a stage's folder says is to be done in it."""

    folder: Path
    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Places by role."""
    of: Mapping[str, str]
    """Fingerprints of these."""
    versions: Mapping[str, int]
    """Of the tables among them that were there already."""

    @classmethod
    def read(cls, folder: Path) -> "Order":
        """The order that `Stage.write_order` wrote."""
        order = json.loads((folder / _ORDER_FILE).read_text(encoding="utf-8"))
        parts = ("kind", "settings", "inputs", "of", "versions")
        return cls(folder, *(order[part] for part in parts))

    def table(self, role: str = "table") -> PairTable:
        """A table as it was when the comparison was planned.

        Raises:
            DataError: it was removed or replaced since.
        """
        table = PairTable.open(self.inputs[role], self.versions.get(role))
        if role in self.versions and table.fingerprint != self.of[role]:
            raise _changed(table)
        return table

    def latest_table(self, role: str = "table") -> str:
        """Place of a table for those who read its latest version.

        Raises:
            DataError: that is not the planned one any more, or people have judged it differently
                since, and the stage asks for what they say.
        """
        table = self.table(role)
        # A training opens tables by itself, at their latest version.
        if PairTable.open(table.uri).version != table.version:
            raise _changed(table)
        verdicts = self.settings.get("verdicts", {}).get(role)
        if verdicts is not None and verdicts_digest(table.verdicts()) != verdicts:
            raise _changed(table)
        return table.uri


def _changed(table: PairTable) -> DataError:
    return DataError(f"{table.uri} was changed during the comparison: run the same command again")


def mix_role(place: int) -> str:
    """What a training's input is called that is a further table of `data.mix`."""
    return f"mix.{place}"


def reading_from(recipe: Recipe, places: Mapping[str, str]) -> Recipe:
    """The recipe of a training with its inputs in other places, by role.

    Roles are `table`, `mix.0` and so on for further tables, `init` and `tokenizer`; what has no
    place in `places` of the latter two stays as it is.
    """
    mix = tuple(
        replace(part, table=places[mix_role(at)]) for at, part in enumerate(recipe.data.mix)
    )
    data = replace(recipe.data, table=places["table"], mix=mix)
    init = recipe.init_from and places.get("init", recipe.init_from)
    tokenizer = places.get("tokenizer", recipe.tokenizer)
    return replace(recipe, data=data, init_from=init, tokenizer=tokenizer)


def undone(every: dict[str, Stage], root: Path) -> dict[str, Stage]:
    """The stages that are to be carried out.

    These are the ones without a result, and those with one of which somebody has removed what they
    made (a table or a model), as far as a stage that is to be carried out reads it.

    Args:
        every: by fingerprint; what is needed stands first, as in `closure`.
        root: folder of the stages' folders.
    """
    found = {key for key, stage in every.items() if stage.result(root) is None}
    # From the last to the first: whether a stage is needed again is known before its own turn.
    for key in reversed(every):
        if key in found:
            found |= {s.fingerprint for s in every[key].needs if not _place_of(s, root).exists()}
    return {key: stage for key, stage in every.items() if key in found}


def _place_of(stage: Stage, root: Path) -> Path:
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
        # Depth first: what a stage needs is in before the stage itself.
        if stage.fingerprint not in found:
            found |= {k: v for k, v in closure(stage.needs).items() if k not in found}
            found[stage.fingerprint] = stage
    return found
