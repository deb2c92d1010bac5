"""What the original layout has no place for, as a note beside the weights in its files.

The originals' code reads `checkpoint["model"]` alone, and does not see it. No shape shows how many
heads attention has, and no key holds the vocabulary.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar, cast

from openblip.data.tokenizer import TextTokenizer
from openblip.errors import CheckpointError, RecipeError
from openblip.interop.assembly import reason_of
from openblip.interop.models import AnyConfig, AnyModel
from openblip.model.config import check_size

NOTE_KEY = "openblip"
"""Name of the note: beside "model" in a `.pth`, in the metadata of a `.safetensors` file."""

_VISION = ("heads", "drop_path", "norm_eps")
_TEXT = ("heads", "dropout", "norm_eps")
ConfigT = TypeVar("ConfigT", bound=AnyConfig)


@dataclass(frozen=True, kw_only=True)
class OriginalNote:
    """What a file in the original layout says besides its weights."""

    vision: Mapping[str, Any]
    """Fields of the image encoder's configuration that no weight shows."""
    text: Mapping[str, Any]
    """The same of the text stack."""
    temperature: float | None = None
    """Of the contrast, which some kinds do not store; None where there is none."""
    max_tokens: int | None = None
    """Longest text, special tokens included; None, as long as the kind's usually are."""
    tokenizer: str | None = None
    """What `tokenizer.json` holds; None, the vocabulary is elsewhere."""

    @staticmethod
    def of(
        model: AnyModel, tokenizer: TextTokenizer | None = None, max_tokens: int | None = None
    ) -> "OriginalNote":
        """The note of a model."""
        temperature = model.state_dict().get("temperature")
        return OriginalNote(
            vision={name: getattr(model.config.vision, name) for name in _VISION},
            text={name: getattr(model.config.text, name) for name in _TEXT},
            temperature=None if temperature is None else temperature.item(),
            max_tokens=max_tokens,
            tokenizer=None if tokenizer is None else tokenizer.to_json(),
        )

    @staticmethod
    def from_json(text: object, source: str) -> "OriginalNote":
        """The note that `to_json` wrote.

        Raises:
            CheckpointError: if it is damaged.
        """
        try:
            note = OriginalNote(**json.loads(cast("str", text)))
            _check(note)
        except (RecipeError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{source}: its note {NOTE_KEY!r} is damaged ({error!s:.80}); convert the model "
                "again"
            ) from error
        return note

    def to_json(self) -> str:
        """The note as text."""
        return json.dumps(asdict(self))

    def added_to(self, config: ConfigT, source: str) -> ConfigT:
        """A configuration that was told from shapes, with what they do not show.

        Raises:
            CheckpointError: if the two contradict each other.
        """
        try:
            return replace(
                config,
                vision=replace(config.vision, **self.vision),
                text=replace(config.text, **self.text),
            )
        except (RecipeError, TypeError) as error:
            raise CheckpointError(f"{source}: {reason_of(error)}") from error


def _check(note: OriginalNote) -> None:
    for names, values in ((_VISION, note.vision), (_TEXT, note.text)):
        if set(values) != set(names):
            raise ValueError(f"expected the fields {', '.join(names)}")
        check_size("heads", values["heads"])
    if note.temperature is not None:
        float(note.temperature)
    if note.max_tokens is not None and not int(note.max_tokens) > 1:
        raise ValueError(f"max_tokens is {note.max_tokens}")
    if not isinstance(note.tokenizer, str | None):
        raise TypeError("the tokenizer is no text")
