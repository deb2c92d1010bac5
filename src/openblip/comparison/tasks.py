"""The tasks that models can be compared by: settings, metrics, and how each is evaluated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from openblip.evaluation.captioning import evaluate_caption
from openblip.evaluation.classification import TEMPLATES, check_templates, evaluate_classification
from openblip.evaluation.nlvr import evaluate_nlvr
from openblip.evaluation.results import UnitScores
from openblip.evaluation.retrieval import MAX_WORDS, can_match, evaluate_retrieval
from openblip.evaluation.vqa import evaluate_vqa
from openblip.inference import Blip, Decoding, Embedder
from openblip.runtime.errors import RecipeError
from openblip.table.table import PairTable

TaskKind = Literal["retrieval", "caption", "classification", "vqa", "nlvr"]
Units = dict[str, UnitScores]
_WUPS = ("WUPS@0.9", "WUPS@0.0")
# Metrics that are the mean of others.
_MEANS = {f"R@{k}": (f"TR@{k}", f"IR@{k}") for k in (1, 5, 10)}


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """Settings of `evaluate_retrieval`."""

    k: int = 128
    """Candidates that matching ranks again, where the model can match."""
    max_words: int = MAX_WORDS
    """Captions are cut to so many."""
    batch_size: int = 32
    """Images that are encoded together."""

    def __post_init__(self) -> None:
        _check_at_least(1, self, "k", "max_words", "batch_size")


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Settings of `evaluate_caption`."""

    prompt: str = "a picture of "
    """What the model continues; a pre-trained model has seen none."""
    decoding: Decoding = field(default_factory=Decoding)
    """How captions are written."""
    seed: int = 0
    """Of nucleus sampling: with a row's id it decides the row's caption."""
    batch_size: int = 32
    """Images that are encoded together."""

    def __post_init__(self) -> None:
        _check_at_least(1, self, "batch_size")


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings:
    """Settings of `evaluate_classification`."""

    label_field: str = "label"
    """Where a row's metadata has its label."""
    templates: tuple[str, ...] = TEMPLATES
    """Prompts, with `{}` for the name of a class."""
    exclude: tuple[str, ...] = ()
    """Labels that do not count."""
    k: int = 0
    """Classes that matching ranks again, where the model can match."""
    batch_size: int = 32
    """Images that are encoded together."""

    def __post_init__(self) -> None:
        _check_at_least(0, self, "k")
        _check_at_least(1, self, "batch_size")
        check_templates(self.templates)


@dataclass(frozen=True, kw_only=True)
class VqaSettings:
    """Settings of `evaluate_vqa`."""

    candidates: tuple[str, ...] | None = None
    """Answers that are ranked; without them answers are generated."""
    k: int = 128
    """Candidates that are ranked in full."""
    wups: bool = False
    """Also compute WUPS."""
    batch_size: int = 32
    """Images that are encoded together."""

    def __post_init__(self) -> None:
        _check_at_least(1, self, "k", "batch_size")
        if self.candidates == ():
            raise RecipeError("candidates is empty; name answers, or leave it out")


@dataclass(frozen=True, kw_only=True)
class NlvrSettings:
    """Settings of `evaluate_nlvr`."""

    max_words: int = 40
    """Sentences are cut to so many."""
    batch_size: int = 32
    """Pairs at a time."""

    def __post_init__(self) -> None:
        _check_at_least(1, self, "max_words", "batch_size")


@dataclass(frozen=True)
class Protocol:
    """How a task is evaluated."""

    settings: type[Any]
    """Dataclass of its settings."""
    metrics: tuple[str, ...]
    """What it gives unit by unit, and the means of these."""
    evaluate: Callable[[Any, PairTable, str, Any], Units]
    """Of a model on a split of a table; raises `MissingHead` where the model cannot do it."""
    switches: Mapping[str, str] = field(default_factory=dict)
    """Metrics that a setting must switch on, and its name."""
    needs_contrast_alone: bool = False
    """Whether any `Embedder` can do it, and so a published CLIP; otherwise a `Blip` is needed."""


def parts_of(metric: str) -> tuple[str, ...]:
    """The metrics that a metric is the mean of; itself if it is none of several."""
    return _MEANS.get(metric, (metric,))


def _check_at_least(least: int, settings: object, *names: str) -> None:
    for name in names:
        if (value := getattr(settings, name)) < least:
            raise RecipeError(f"{name} is {value}; give at least {least}")


def _retrieval(model: Embedder, table: PairTable, split: str, settings: RetrievalSettings) -> Units:
    return evaluate_retrieval(
        model,
        table,
        split=split,
        k=settings.k,
        max_words=settings.max_words,
        batch_size=settings.batch_size,
    ).units


def _caption(blip: Blip, table: PairTable, split: str, settings: CaptionSettings) -> Units:
    return evaluate_caption(
        blip,
        table,
        split=split,
        decoding=settings.decoding,
        prompt=settings.prompt,
        seed=settings.seed,
        batch_size=settings.batch_size,
    ).units


def _classification(
    model: Embedder, table: PairTable, split: str, settings: ClassificationSettings
) -> Units:
    return evaluate_classification(
        model,
        table,
        split=split,
        label_field=settings.label_field,
        templates=settings.templates,
        exclude=settings.exclude,
        k=settings.k if can_match(model) else 0,
        batch_size=settings.batch_size,
    ).units


def _vqa(blip: Blip, table: PairTable, split: str, settings: VqaSettings) -> Units:
    return evaluate_vqa(
        blip,
        table,
        split=split,
        candidates=settings.candidates,
        k=settings.k,
        wups=settings.wups,
        batch_size=settings.batch_size,
    ).units


def _nlvr(blip: Blip, table: PairTable, split: str, settings: NlvrSettings) -> Units:
    return evaluate_nlvr(
        blip, table, split=split, batch_size=settings.batch_size, max_words=settings.max_words
    ).units


PROTOCOLS: dict[TaskKind, Protocol] = {
    "retrieval": Protocol(
        RetrievalSettings,
        (*_MEANS, *(name for names in _MEANS.values() for name in names)),
        _retrieval,
        needs_contrast_alone=True,
    ),
    "caption": Protocol(CaptionSettings, ("CIDEr", "ROUGE-L"), _caption),
    "classification": Protocol(
        ClassificationSettings,
        ("top-1", "top-5", "mean per class"),
        _classification,
        needs_contrast_alone=True,
    ),
    "vqa": Protocol(
        VqaSettings,
        ("accuracy", "overall", *_WUPS),
        _vqa,
        switches=dict.fromkeys(_WUPS, "wups"),
    ),
    "nlvr": Protocol(NlvrSettings, ("accuracy", "consistency"), _nlvr),
}
