"""The models that score texts in a job: ours, which match, and any that puts both into one space.

A filter of ours gives two scores, the match probability and the cosine; a CLIP, a SigLIP or a dual
encoder gives its cosine alone. The first of ours is the one whose scores are called `itm` and
`itc`. Every other filter has a name, which its columns carry.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from PIL import Image
from torch import Tensor

from openblip.capfilt.captioners import WebRows
from openblip.checkpoints.reading import find_model, read_outline, with_backend
from openblip.inference.blip import Blip
from openblip.inference.embedder import (
    Embedder,
    embedder_fingerprint,
    is_published_clip,
    load_embedder,
    prepare_image,
)
from openblip.inference.encoding import EncodedImages, FirstTokenName
from openblip.model.dual import DualConfig
from openblip.runtime.errors import RecipeError, TextTruncated, UnknownWords
from openblip.table.scores import RIGHT

MATCH_SCORES = ("itm", "itc")
TABLE_SCORES = (
    "contrast",
    "agreement",
    "overlap",
    "common",
    "frequency",
    "length",
    "unknown",
    "copies",
)
"""Scores that `openblip capfilt scores` computes besides those of filters."""
RESERVED = (*MATCH_SCORES, *TABLE_SCORES, RIGHT)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
# Folders that say nothing of the model in them: checkpoints of a run.
_NAMELESS = {"best", "last", "model", "models", "final", "checkpoint"}


@dataclass(frozen=True)
class NamedFilter:
    """A filter before it is loaded: what it is, and which scores it gives."""

    source: str
    """What it is loaded from."""
    fingerprint: str
    scores: tuple[str, ...]
    """Names of its scores, in order: probability and cosine of one that matches, else a cosine."""

    @property
    def matches(self) -> bool:
        """Whether it gives match probabilities, and not cosines alone."""
        return len(self.scores) > 1


def name_filters(
    filters: Sequence[str], known: Mapping[str, tuple[str, ...]] = MappingProxyType({})
) -> tuple[NamedFilter, ...]:
    """What each filter is; reads configurations and hashes files, loads nothing.

    Args:
        filters: sources, or `NAME=SOURCE`.
        known: scores of filters that a table has already, by fingerprint; they keep their names.

    Raises:
        CheckpointError: a model is not there.
        RecipeError: a name cannot be one of a column, or two filters have the same.
    """
    named: list[NamedFilter] = []
    has_match = any(scores == MATCH_SCORES for scores in known.values())
    for text in filters:
        name, source = divided(text)
        fingerprint = embedder_fingerprint(source)
        # The name of its columns stays, whatever it is called now.
        if fingerprint in known:
            named.append(NamedFilter(source, fingerprint, known[fingerprint]))
            continue
        matches = _matches(source)
        # The plain names are those of the first that matches, in this job or an earlier one.
        if matches and not has_match and name is None:
            scores: tuple[str, ...] = MATCH_SCORES
            has_match = True
        else:
            name = name or name_of(source)
            scores = (name, f"{name}_itc") if matches else (name,)
        named.append(NamedFilter(source, fingerprint, scores))
    _check_names(named)
    return tuple(named)


def divided(text: str) -> tuple[str | None, str]:
    """Name and source of `NAME=SOURCE`; no name of a source alone, or of a path with such a sign.

    Raises:
        RecipeError: the name cannot be one of a column.
    """
    name, sign, source = text.partition("=")
    if not sign or "/" in name or Path(text).exists():
        return None, text
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"--filter {text}: the name {name!r} goes into a column's; give small letters, digits "
            "and _, a letter first"
        )
    return name, source


def on_backend(text: str, backend: str | None) -> str:
    """A filter as it is given, computed by a backend if it is one of ours.

    Raises:
        CheckpointError: it is not there.
        RecipeError: there is no such backend, or another one is named.
    """
    name, source = divided(text)
    if backend is None or is_published_clip(source):
        return text
    named = with_backend(source, backend)
    return named if name is None else f"{name}={named}"


def name_of(source: str) -> str:
    """A column-safe name of a model, by what it is called wherever it lies.

    `openai/clip-vit-base-patch32` and a folder of that name are `clip_vit_base_patch32`;
    `open_clip:ViT-B-32/laion2b_s34b_b79k` is `vit_b_32_laion2b_s34b_b79k`.
    """
    kind, _, rest = source.partition("open_clip:")
    path = rest if rest and not kind else source
    parts = [part for part in re.split(r"[/\\]", path.split("@")[0]) if part not in ("", ".")]
    if rest and len(parts) == 2 and not path.startswith(("/", ".")):
        words = parts
    else:
        words = [part for part in parts if Path(part).stem.lower() not in _NAMELESS][-1:]
    last = re.sub(r"\.(pth|pt|bin|safetensors)$", "", "_".join(words))
    # Within what `_NAME` allows; the cut may leave a `_` at the end.
    slug = re.sub(r"[^a-z0-9]+", "_", last.lower()).strip("_")[:40].strip("_")
    return slug if _NAME.fullmatch(slug) else f"filter_{slug}".strip("_")


def _matches(source: str) -> bool:
    if is_published_clip(source):
        return False
    return not isinstance(read_outline(find_model(source)).config, DualConfig)


def _check_names(named: Sequence[NamedFilter]) -> None:
    seen: dict[str, str] = {}
    for one in named:
        for score in one.scores:
            if score in RESERVED and one.scores != MATCH_SCORES:
                raise RecipeError(
                    f"--filter {one.source}: the score {score!r} is another one's name; give this "
                    f"filter one of its own: --filter NAME={one.source}"
                )
            if score in seen:
                raise RecipeError(
                    f"--filter: {seen[score]} and {one.source} would both give the score "
                    f"{score!r}; name one of them: --filter NAME={one.source}"
                )
            seen[score] = one.source


class Filter:
    """A loaded filter of a job.

    Attributes:
        named: what it is.
        model: what embeds, and matches where its scores are those of a match.
        input_key: images that are prepared under the same key serve all models of that key.
    """

    def __init__(self, named: NamedFilter, device: torch.device | str | None = None) -> None:
        """Loads it.

        Raises:
            CheckpointError, MissingHead: it cannot be loaded, or neither match nor embed.
        """
        self.named = named
        self.model: Embedder = load_embedder(named.source, device)
        if named.matches:
            self.blip.require("itm")
        is_ours = isinstance(self.model, Blip)
        # Ours differ in the size alone; others crop and normalise in ways of their own.
        self.input_key = str(self.blip.image_size) if is_ours else named.fingerprint

    @property
    def blip(self) -> Blip:
        """The model, if it is one of ours."""
        assert isinstance(self.model, Blip), f"{self.named.source} is none of ours"
        return self.model

    def prepared(self, rows: WebRows) -> Tensor:
        """The images of some rows as the model reads them; shared with others of its size."""
        if isinstance(self.model, Blip):
            return rows.images_at(self.model.image_size)
        images = [self.prepare(row.image) for row in rows.rows]
        return torch.stack(images) if images else torch.empty(0)

    def prepare(self, image: Image.Image) -> Tensor:
        """An RGB image as the model reads it; may be called from threads."""
        return prepare_image(self.model, image)

    def clean(self, text: str) -> str:
        """A text as the model's training had it; other libraries do what there is to do."""
        return self.model.tokenizer.cleaning.caption(text) if isinstance(self.model, Blip) else text

    def score(
        self,
        images: Tensor | EncodedImages,
        texts: Sequence[Sequence[str]],
        first_token: FirstTokenName = "[ENC]",
    ) -> dict[str, list[list[float | None]]]:
        """By score, for each image the values of its texts.

        Args:
            images: prepared by `prepare`, in one batch, at least one; of a filter of ours encoded
                ones, too.
            texts: per image any number, also none.
            first_token: of a text that is matched.
        """
        if self.named.matches:
            # Given and written texts of an image are scored together, against one image memory.
            encoded = self.blip.encode(images) if isinstance(images, Tensor) else images
            matches = self.blip.score(encoded, texts, first_token=first_token)
            itm, itc = self.named.scores
            return {
                itm: [[match.itm for match in own] for own in matches],
                itc: [[match.itc for match in own] for own in matches],
            }
        # A web text such as "image" stands with many images, and costs its tokens once.
        distinct = {text: 0 for own in texts for text in own}
        if not distinct:
            return {self.named.scores[0]: [[] for _ in texts]}
        distinct = {text: number for number, text in enumerate(distinct)}
        assert isinstance(images, Tensor)
        embeds = self.model.embed_prepared(images), self.embed_texts(list(distinct))
        cosines = (embeds[0] @ embeds[1].T).tolist()
        values: list[list[float | None]] = [
            [cosines[image][distinct[text]] for text in own] for image, own in enumerate(texts)
        ]
        return {self.named.scores[0]: values}

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit-length float32 embeddings (texts, embed) of texts, cleaned, on the CPU.

        What is cut, or has words that the vocabulary lacks, is no news here: a job looks at its
        texts as a whole, and says so once.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TextTruncated)
            warnings.simplefilter("ignore", UnknownWords)
            return self.model.embed_texts([self.clean(text) for text in texts])
