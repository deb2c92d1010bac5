"""Whoever writes the captions of a job: our models, those of others, servers, texts made elsewhere.

| `--captioner` | what writes | its name in `synthetic_captioner` |
| --- | --- | --- |
| a model folder, run or repository | a captioner of ours | its fingerprint |
| `hf:NAME` | an image-to-text model of `transformers` (`library_captioner.py`) | its fingerprint |
| `openai:URL#MODEL` | a server of chat completions (`endpoint.py`) | `openai:MODEL` |
| `texts:NAME` | nobody: texts that `capfilt add-texts` has brought (`texts.py`) | `NAME` |

Each of them begins a batch in the thread that reads it, and finishes it where the filter computes:
what needs no model (transforms, requests) is under way before the batch's turn comes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from openblip.capfilt.endpoint import parse_address
from openblip.capfilt.texts import texts_column, texts_digest
from openblip.runtime.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from openblip.capfilt.job import CapFiltJob, CapFiltSettings
    from openblip.inference.captions import Prompt
    from openblip.inference.decoding import Decoding

Kind = Literal["ours", "hf", "openai", "texts"]
_PREFIXES: dict[str, Kind] = {"hf": "hf", "openai": "openai", "texts": "texts"}
INSTRUCTION = "Describe the image in one sentence."
"""What a model that is talked to is told, if the job says nothing."""


@dataclass(frozen=True)
class WebRow:
    """A row whose image can be described."""

    id: str
    seed: int
    """Of its draws: neither batch nor worker nor place in the table decides it."""
    captions: tuple[str, ...]
    """The given texts, as they stand in the table."""
    image: "Image.Image"
    """RGB, upright, of its full size."""
    values: Mapping[str, Any]
    """Of the columns that a captioner reads besides (`Captioner.columns`)."""


class WebRows:
    """The rows of a batch that are captioned, and their images as models of ours take them."""

    def __init__(self, rows: Sequence[WebRow]) -> None:
        self.rows = list(rows)
        # Read before something is written; a job may empty some until `Pending.finish`.
        self.given = [given_text(row.captions) for row in self.rows]
        self._at: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def images_at(self, size: int) -> "Tensor":
        """Transformed images, (rows, 3, size, size); made once for all models of a size."""
        import torch

        from openblip.batches.transforms import eval_transform

        # Without a lock: the thread that reads a batch begins it with all captioners, one by one.
        if size not in self._at:
            made = [eval_transform(row.image, size) for row in self.rows]
            self._at[size] = torch.stack(made) if made else torch.empty(0, 3, size, size)
        return self._at[size]


@dataclass(frozen=True)
class Usage:
    """What texts have cost, where that is known."""

    tokens_read: int = 0
    tokens_written: int = 0
    cut: int = 0
    """Texts that ended at `max_new_tokens`, most likely in the middle of a sentence."""
    refused: int = 0
    """Rows about which a captioner has written nothing."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.tokens_read + other.tokens_read,
            self.tokens_written + other.tokens_written,
            self.cut + other.cut,
            self.refused + other.refused,
        )


@dataclass(frozen=True)
class Written:
    """What a captioner has for an image."""

    texts: Sequence[str]
    logprobs: Sequence[float | None] = ()
    """Of each text, where the captioner tells it; else empty."""
    reason: str | None = None
    """Why there is no text; None where there is one, or where none was to be expected."""
    usage: Usage = Usage()


@dataclass(frozen=True)
class Pending:
    """The texts of a batch that a captioner has begun with."""

    finish: Callable[[], list[Written]]
    """What was written about each row; computes it, or waits for it.

    Raises `OpenBlipError` where the job cannot go on."""
    wait: Callable[[float], str | None] = field(default=lambda seconds: None)
    """Waits for what `finish` would wait for, but at most so many seconds. None: it is there. Else
    what is waited for, to be told to people; empty where that is nothing unusual."""


class Captioner(Protocol):
    """What writes texts about images. A job has one or several of them.

    Attributes:
        name: what `synthetic_captioner` says of its texts.
        columns: of the table, that it reads besides the given texts and the image.
    """

    name: str
    columns: tuple[str, ...]

    def begin(self, rows: WebRows) -> Pending:
        """Begin with a batch; called in reading threads, of which there may be several.

        What is returned holds no image of full size.
        """
        ...

    def close(self) -> None:
        """Let go of threads and connections."""
        ...


def divided(source: str) -> tuple[Kind, str]:
    """Kind of a captioner, and what is behind the colon; of ours the whole.

    Raises:
        RecipeError: nothing is behind it.
    """
    prefix, colon, place = source.partition(":")
    # Known ones alone: a path may have a colon of its own.
    if not colon or prefix not in _PREFIXES:
        return "ours", source
    if not place:
        raise RecipeError(
            f"--captioner {source}: give hf:NAME, openai:URL#MODEL, texts:NAME or a model folder"
        )
    return _PREFIXES[prefix], place


def captioner_print(source: str, table_uri: str) -> str:
    """What a captioner is, wherever it lies: equal prints write equal texts, as far as they can.

    Of a model its fingerprint; of a server the name of its model, since it says no more; of texts
    their name and the digest of all of them.

    Raises:
        CheckpointError, DataError, RecipeError: there is no such captioner.
    """
    kind, place = divided(source)
    if kind == "openai":
        return f"openai:{parse_address(place).model}"
    if kind == "texts":
        return f"{place}@{texts_digest(table_uri, place)}"
    if kind == "hf":
        from openblip.capfilt.library_captioner import library_fingerprint

        return library_fingerprint(place)
    from openblip.checkpoints.reading import model_fingerprint

    return model_fingerprint(source)


def column_name(source: str, planned: str) -> str:
    """What `synthetic_captioner` says of a captioner, given its print."""
    # Without the digest, which tells jobs apart, and not texts.
    return divided(source)[1] if divided(source)[0] == "texts" else planned


def check_captioners(settings: "CapFiltSettings") -> None:
    """Nothing, if the captioners can be those of one job.

    Raises:
        RecipeError: there is none, one stands twice, or one cannot do what the settings say.
    """
    names = [
        # Of one model on two servers nobody could tell the texts apart: they have one name.
        f"openai:{parse_address(place).model}" if kind == "openai" else f"{kind}:{place}"
        for kind, place in map(divided, settings.captioners)
    ]
    if not names or len(set(names)) < len(names):
        raise RecipeError(f"give one or several captioners, each once: {settings.captioner}")
    if settings.decoding.method == "beam" and (served := _served(settings)):
        raise RecipeError(
            f"--captioner {served[0]}: a server of chat completions has no beam search; give "
            "--method nucleus or greedy"
        )
    check_count(settings.decoding, settings.num_captions)


def check_count(
    decoding: "Decoding",
    count: int,
    names: tuple[str, str, str] = ("--num-captions", "--method", "--num-beams"),
) -> None:
    """Nothing, if the method finds as many texts for an image as are asked for.

    Here, and not by each captioner: models of others and servers would write the same text again,
    or fewer, or fail when the job has long begun.

    Args:
        decoding: the method.
        count: texts for an image.
        names: of count, method and beams where they are given.

    Raises:
        RecipeError: it finds fewer; names the settings.
    """
    own, method, beams = names
    if decoding.method == "greedy" and count > 1:
        raise RecipeError(
            f"{own} {count}: {method} greedy finds one text for an image; give {method} nucleus, "
            "or beam for captioners that are no servers"
        )
    if decoding.method == "beam" and count > decoding.num_beams:
        raise RecipeError(
            f"{own} {count}: beam search with {beams} {decoding.num_beams} finds no more than "
            f"{decoding.num_beams} texts for an image; give {beams} {count}, or {method} nucleus"
        )


def unrepeatable(settings: "CapFiltSettings") -> list[str]:
    """Which captioners may write something else when they are asked again, and why."""
    why = "a server, which may write something else when it is asked again, in spite of the seed"
    return [f"{source}: {why}" for source in _served(settings)]


def _served(settings: "CapFiltSettings") -> list[str]:
    return [source for source in settings.captioners if divided(source)[0] == "openai"]


def open_captioners(job: "CapFiltJob", device: str | None) -> list[Captioner]:
    """The captioners of a job in their order, loaded.

    Raises:
        CheckpointError, MissingHead, RecipeError: one cannot be used.
    """
    names = zip(job.settings.captioners, job.captioner_names, strict=True)
    return [_opened(source, name, job, device) for source, name in names]


def _opened(source: str, name: str, job: "CapFiltJob", device: str | None) -> Captioner:
    kind, place = divided(source)
    told = job.settings.instructions.get(source)
    if kind == "openai":
        # Imported where they are wanted: a job needs no package of a captioner that it has not.
        from openblip.capfilt.endpoint import Endpoint

        return Endpoint(parse_address(place), name, job.settings, job.requests, told)
    if kind == "texts":
        return TextsOfTable(name)
    if kind == "hf":
        from openblip.capfilt.library_captioner import LibraryCaptioner

        return LibraryCaptioner(place, name, job.settings, device, told)
    return Ours(source, name, job.settings, device)


def given_text(captions: Sequence[str]) -> str:
    """The text of a row that a captioner reads before it writes: the first one that says anything.

    Empty where there is none.
    """
    return next((text for text in captions if text.strip()), "")


class Ours:
    """A captioner of ours."""

    columns: tuple[str, ...] = ()

    def __init__(
        self, source: str, name: str, settings: "CapFiltSettings", device: str | None
    ) -> None:
        """Loads it.

        Raises:
            CheckpointError, MissingHead: it is not there, or cannot write.
        """
        from openblip.inference.loading import load

        self.name, self._settings = name, settings
        self.model = load(source, device=device)
        self.model.require("lm")

    def begin(self, rows: WebRows) -> Pending:
        """See `Captioner.begin`: the images are transformed."""
        # What waits for its turn are small tensors: batches of photographs would fill the memory.
        images = rows.images_at(self.model.image_size)
        seeds = [row.seed for row in rows.rows]
        given = rows.given
        return Pending(lambda: self._write(images, [self._prompt(text) for text in given], seeds))

    def _prompt(self, given: str) -> "Prompt":
        from openblip.inference.captions import GivenPrompt

        prompt = self._settings.prompt
        # It is 0 of a model that has not learnt to read a text before it writes.
        reads = self._settings.given and self.model.given_tokens
        return GivenPrompt(given, prompt) if reads else prompt

    def close(self) -> None:
        """See `Captioner.close`."""

    def _write(self, images: "Tensor", prompts: "list[Prompt]", seeds: list[int]) -> list[Written]:
        settings = self._settings
        captions = self.model.generate(
            self.model.encode(images),
            settings.decoding,
            prompt=prompts,
            seeds=seeds,
            num_captions=settings.num_captions,
        )
        return [
            Written([caption.text for caption in own], [caption.logprob for caption in own])
            for own in captions
        ]


class TextsOfTable:
    """Texts made elsewhere, which `add_texts` has put beside the rows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.columns: tuple[str, ...] = (texts_column(name),)

    def begin(self, rows: WebRows) -> Pending:
        """See `Captioner.begin`. A row for which no text was brought has none, and no error."""
        found = [Written(row.values[self.columns[0]] or ()) for row in rows.rows]
        return Pending(lambda: found)

    def close(self) -> None:
        """See `Captioner.close`."""


def check_prints(job: "CapFiltJob", where: str) -> None:
    """Nothing, if the captioners on this machine are those that the job began with.

    Args:
        job: with the prints that were planned.
        where: what this machine is called.

    Raises:
        CheckpointError: one is another.
    """
    for source, planned in zip(job.settings.captioners, job.captioners, strict=True):
        if (found := captioner_print(source, job.table_uri)) != planned:
            raise CheckpointError(
                f"{source} on {where} is {found}, but the job began with {planned}: put the same "
                "files there on every machine, or start the job anew"
            )
