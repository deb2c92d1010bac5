"""The protocols by which models are compared: their settings, metrics, and how they run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from openblip.evaluation.captioning import evaluate_caption
from openblip.evaluation.classification import ClassificationResult, evaluate_classification
from openblip.evaluation.filtering import NOISE_KINDS, NOISE_METRICS, FilterResult, evaluate_filter
from openblip.evaluation.nlvr import evaluate_nlvr
from openblip.evaluation.retrieval import can_match, evaluate_retrieval
from openblip.evaluation.settings import (
    CaptionSettings,
    ClassificationSettings,
    FilterSettings,
    NlvrSettings,
    RetrievalSettings,
    VqaSettings,
)
from openblip.evaluation.vqa import evaluate_vqa
from openblip.inference.embedder import Embedder
from openblip.table.table import PairTable

ProtocolName = Literal["retrieval", "caption", "classification", "filter", "vqa", "nlvr"]
_SHARES = ("recall", "precision")
_WUPS = ("WUPS@0.9", "WUPS@0.0")
# Metrics that are the mean of others.
_MEANS: dict[str, tuple[str, ...]] = {f"R@{k}": (f"TR@{k}", f"IR@{k}") for k in (1, 5, 10)}
_RECALLS = tuple(name for names in _MEANS.values() for name in names)
# Behind `_RECALLS`, of which it is no part.
_MEANS["mean"] = _RECALLS


@dataclass(frozen=True)
class Protocol:
    """How models are evaluated."""

    settings: type[Any]
    """Dataclass of its settings."""
    metrics: tuple[str, ...]
    """What it gives image by image, and the means of these."""
    evaluate: Callable[..., Any]
    """Takes a model, a table, `split`, and the fields of the settings; gives a result with `units`.
    Raises `MissingHead` where the model cannot do it."""
    switches: Mapping[str, str] = field(default_factory=dict)
    """Metrics that a setting must switch on, and its name."""
    needs_contrast_alone: bool = False
    """Whether any `Embedder` can do it, and so a published CLIP; otherwise a `Blip` is needed."""


def parts_of(metric: str) -> tuple[str, ...]:
    """The metrics that a metric is the mean of; itself if it is none of several."""
    return _MEANS.get(metric, (metric,))


def _classified(
    model: Embedder, table: PairTable, *, k: int, **settings: Any
) -> ClassificationResult:
    """By contrast alone where the model cannot match: so a CLIP stands beside a BLIP."""
    # With k=0 no class is ranked anew by matching.
    return evaluate_classification(model, table, k=k if can_match(model) else 0, **settings)


def _found_noise(_: Embedder, table: PairTable, **settings: Any) -> FilterResult:
    """Of scores that the table has: the model, which every protocol is given, is not asked."""
    return evaluate_filter(table, **settings)


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "retrieval": Protocol(
        RetrievalSettings,
        (*_MEANS, *_RECALLS),
        evaluate_retrieval,
        needs_contrast_alone=True,
    ),
    "caption": Protocol(CaptionSettings, ("CIDEr", "ROUGE-L"), evaluate_caption),
    "classification": Protocol(
        ClassificationSettings,
        ("top-1", "top-5", "mean per class"),
        _classified,
        needs_contrast_alone=True,
    ),
    "filter": Protocol(
        FilterSettings,
        (*NOISE_METRICS, *(f"{word} of {kind}" for word in _SHARES for kind in NOISE_KINDS)),
        _found_noise,
        needs_contrast_alone=True,
    ),
    "vqa": Protocol(
        VqaSettings,
        ("accuracy", "overall", *_WUPS),
        evaluate_vqa,
        switches=dict.fromkeys(_WUPS, "wups"),
    ),
    "nlvr": Protocol(NlvrSettings, ("accuracy", "consistency"), evaluate_nlvr),
}
