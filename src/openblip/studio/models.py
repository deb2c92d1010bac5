"""The models of a studio: each loaded when it is first used, and used by one request at a time."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from openblip.runtime.errors import CheckpointError, MissingHead, one_line

if TYPE_CHECKING:
    from openblip.inference.blip import Blip
    from openblip.inference.embedder import Embedder

Role = Literal["captioner", "filter", "vqa"]
ROLES: Mapping[Role, str] = {
    "captioner": "writes captions",
    "filter": "matches texts and pictures",
    "vqa": "answers questions",
}
State = Literal["not loaded", "loading", "ready", "failed"]
# As in `checkpoints.folder`, which is not imported: that loads PyTorch.
_CONFIGS = ("config.json", "checkpoints/best/config.json", "checkpoints/last/config.json")
# As `checkpoints.reading.BACKENDS`, likewise.
_BACKENDS = ("onnx", "onnx-int8", "openvino")
_TRAINED_AS = {"captioner": ["lm"], "filter": ["itc", "itm"], "dual_encoder": ["itc"]}


def without_backend(source: str) -> str:
    """A model's place: `onnx:models/filter` says who computes it, a folder may have a colon too."""
    prefix, _, rest = source.partition(":")
    return rest if prefix in _BACKENDS and rest else source


def declared_heads(source: str) -> frozenset[str] | None:
    """Heads that a model was trained for, as a folder of ours says; of any other nobody knows.

    Args:
        source: whatever `openblip.load` takes.
    """
    place = Path(without_backend(source))
    for name in _CONFIGS:
        try:
            told = json.loads((place / name).read_text(encoding="utf-8-sig"))
            if told["format"] != "openblip":
                return None
            known = told.get("trained") or _TRAINED_AS.get(told["kind"])
            return frozenset(told["model"].get("heads", ()) if known is None else known)
        except OSError:
            continue
        except (ValueError, LookupError, TypeError, AttributeError):  # JSON of another shape
            return None
    return None


@dataclass
class _Slot:
    """A model, or the place for it."""

    source: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    state: State = "not loaded"
    error: str = ""
    model: "Embedder | None" = None
    waiting: int = 0
    """Requests that compute with it, or wait for it."""


class Models:
    """Models by what they are for; one that is given for two things is loaded once."""

    def __init__(
        self,
        sources: Mapping[Role, str | None],
        device: str | None = None,
        published: Mapping[Role, str] | None = None,
    ) -> None:
        """Loads nothing.

        Args:
            sources: whatever `openblip.load` takes, or None.
            device: by default the best that there is.
            published: of the hub, for what none is given or suggested for.
        """
        self.device = device
        self._published = dict(published or {})
        self._sources: dict[Role, str] = {
            role: source for role, source in sources.items() if source is not None
        }
        self._slots: dict[str, _Slot] = {}
        self._guard = threading.Lock()

    def source_of(self, role: Role) -> str | None:
        """The model for something: given, suggested or published; None if there is none."""
        return self._sources.get(role) or self._published.get(role)

    def chosen_for(self, role: Role) -> str | None:
        """The model that was given or suggested for something, and not a published one."""
        return self._sources.get(role)

    def suggest(self, role: Role, source: str) -> None:
        """Take a model for something that none was given for."""
        self._sources.setdefault(role, source)

    @contextmanager
    def using(self, role: Role) -> "Iterator[Blip]":
        """The model for something, for this thread alone.

        Raises:
            MissingHead: none was given, or it is one that only embeds.
            CheckpointError: it cannot be read.
        """
        source = self.source_of(role)
        if source is None:
            raise MissingHead(
                f"no model that {ROLES[role]} was given: start the studio with "
                f"--{role} {role.upper()}"
            )
        with self.using_source(source) as model:
            from openblip.inference.blip import Blip

            if not isinstance(model, Blip):
                raise MissingHead(
                    f"{source} embeds pictures and texts and does nothing else: start the studio "
                    f"with --{role} {role.upper()}, one that {ROLES[role]}"
                )
            yield model

    @contextmanager
    def using_source(self, source: str) -> "Iterator[Embedder]":
        """A model by its name, for this thread alone.

        Raises:
            CheckpointError: it cannot be read.
        """
        slot = self._slot(source)
        with self._guard:
            # Before the lock, so that whoever waits for the model counts, too.
            slot.waiting += 1
        try:
            with slot.lock:
                yield self._loaded(slot)
        finally:
            with self._guard:
                slot.waiting -= 1

    def states(self) -> list[dict[str, object]]:
        """What is known of each model that was given or used, for the page."""
        with self._guard:
            slots = dict(self._slots)
        roles: dict[str, list[str]] = {source: [] for source in slots}
        for role in ROLES:
            if (source := self.source_of(role)) is not None:
                roles.setdefault(source, []).append(role)
        return [
            {
                "model": source,
                "roles": own,
                "published": source in self._published.values(),
                "state": slots[source].state if source in slots else "not loaded",
                "error": slots[source].error if source in slots else "",
                "waiting": slots[source].waiting if source in slots else 0,
            }
            for source, own in roles.items()
        ]

    def _slot(self, source: str) -> _Slot:
        with self._guard:
            return self._slots.setdefault(source, _Slot(source))

    def _loaded(self, slot: _Slot) -> "Embedder":
        """The model of a slot whose lock is held; one that could not be read is tried again."""
        if slot.model is None:
            # Before PyTorch is imported, which for the first model takes longer than the model.
            slot.state, slot.error = "loading", ""
            try:
                from openblip.inference.embedder import load_embedder

                slot.model = load_embedder(slot.source, self.device)
            # Ctrl-C too: else the page would say for ever that it is loading.
            except BaseException as error:
                slot.state, slot.error = "failed", one_line(error)
                if isinstance(error, OSError):
                    raise CheckpointError(f"{slot.source}: {error}") from error
                raise
            slot.state = "ready"
        return slot.model
