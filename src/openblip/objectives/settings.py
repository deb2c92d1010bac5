"""The settings of every task's losses; light, so that a recipe is read without torch."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from openblip.runtime.errors import RecipeError

NegativesFrom = Literal["rank", "all_ranks"]
NegativeFeatures = Literal["teacher", "online"]
Loss = Literal["itc", "itm", "lm"]
AlbefLoss = Literal["itc", "itm", "mlm"]


@dataclass(frozen=True, kw_only=True)
class ContrastObjectives:
    """Settings of the contrast and of the negatives that it finds."""

    queue_size: int = 57600
    """Pairs of earlier batches that serve as keys of the contrast; 0 uses the batch alone."""
    momentum: float = 0.995
    """Part of the teacher that a step keeps."""
    alpha: float = 0.4
    """Weight of the teacher's similarities in the targets of the contrast."""
    alpha_ramp_epochs: float = 2.0
    """Epochs over which alpha rises from 0."""
    min_temperature: float = 0.001
    """The temperature is not learnt below this. The original's bound; with few pairs or a high
    learning rate it falls so low that the hardest negatives are wrong ones: give about 0.05."""
    max_temperature: float = 0.5
    """Nor above this."""
    negatives: NegativesFrom = "rank"
    """Whether the keys and negatives that a batch gives come from its rank or from all ranks."""
    id_targets: bool = False
    """Whether every text of the same image counts as a positive of the contrast; in the original
    only in retrieval fine-tuning."""
    negative_features: NegativeFeatures = "teacher"
    """Whose features are compared with the student's to find hard negatives."""
    negative_floor: float = 1e-4
    """Added to the weight of every negative, so that easy ones come up too."""

    def __post_init__(self) -> None:
        # Files and flags are checked against these types already, objects made in Python are not.
        for name, known in (
            ("negatives", get_args(NegativesFrom)),
            ("negative_features", get_args(NegativeFeatures)),
        ):
            if getattr(self, name) not in known:
                raise RecipeError(
                    f"objectives.{name} {getattr(self, name)!r} is not one of {', '.join(known)}"
                )
        for name in ("momentum", "alpha"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise RecipeError(f"objectives.{name} {getattr(self, name)} is not in [0, 1]")
        # Similarities are divided by the temperature, which therefore must not reach 0. Without an
        # upper bound it is infinite, as in the original ALBEF.
        if not 0.0 < self.min_temperature < math.inf or not (
            self.min_temperature <= self.max_temperature
        ):
            raise RecipeError(
                f"objectives.min_temperature {self.min_temperature} and max_temperature "
                f"{self.max_temperature}: need 0 < min_temperature <= max_temperature"
            )
        for name in ("queue_size", "alpha_ramp_epochs", "negative_floor"):
            # A comparison with NaN is False.
            if not 0 <= getattr(self, name) < math.inf:
                raise RecipeError(
                    f"objectives.{name} {getattr(self, name)}: give a finite number, 0 or more"
                )


def _check_losses(losses: tuple[str, ...], known: tuple[str, ...]) -> None:
    if not losses or set(losses) - set(known):
        raise RecipeError(f"objectives.losses {losses!r}: name at least one of {', '.join(known)}")


def _check_smoothing(share: float) -> None:
    # With 1 the target would be the same whatever the label is, and nothing would be learnt.
    if not 0.0 <= share < 1.0:
        raise RecipeError(f"objectives.label_smoothing {share} is not in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class PretrainObjectives(ContrastObjectives):
    """Which losses a step has, and their settings; the defaults are those of the paper."""

    losses: tuple[Loss, ...] = ("itc", "itm", "lm")
    """What is added up; without "itc" the negatives of "itm" are drawn uniformly."""
    label_smoothing: float = 0.1
    """Probability that language modelling spreads over the vocabulary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_losses(self.losses, get_args(Loss))
        _check_smoothing(self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class FilterObjectives(PretrainObjectives):
    """The objectives of pre-training as the original's retrieval fine-tuning sets them.

    With the loss "lm" added, one run trains captioner and filter in one model.
    """

    losses: tuple[Loss, ...] = ("itc", "itm")
    typed_negatives: float = 0.0
    """Share of the negative texts of matching that are corruptions of the image's own text (a text
    of another image, a wrong attribute, boilerplate, a beginning) instead of hard negatives."""
    alpha_ramp_epochs: float = 1.0
    id_targets: bool = True
    negative_features: NegativeFeatures = "online"
    negative_floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.typed_negatives <= 1.0:
            raise RecipeError(f"objectives.typed_negatives {self.typed_negatives} is not in [0, 1]")
        if self.typed_negatives and "itm" not in self.losses:
            raise RecipeError(
                f"objectives.typed_negatives is {self.typed_negatives}, but objectives.losses "
                f"{', '.join(self.losses)} have no itm, whose negatives they are"
            )


@dataclass(frozen=True, kw_only=True)
class CaptionerObjectives:
    """Language modelling alone; the default is that of the paper."""

    label_smoothing: float = 0.1
    """Probability that is spread over the vocabulary."""

    def __post_init__(self) -> None:
        _check_smoothing(self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class ClipObjectives:
    """The contrast of every pair with the others of the batch, over all ranks."""

    min_temperature: float = 0.01
    """The temperature is not learnt below this (CLIP, section 2.5: logits scaled by 100 at
    most)."""

    def __post_init__(self) -> None:
        if not 0.0 < self.min_temperature < math.inf:
            raise RecipeError(
                f"objectives.min_temperature {self.min_temperature}: give a finite number above 0"
            )


@dataclass(frozen=True, kw_only=True)
class AlbefObjectives(ContrastObjectives):
    """Which losses a step has, and their settings; the defaults are those of its pre-training.

    For retrieval the original trains ("itc", "itm") with `id_targets`, and does not bound the
    temperature.
    """

    losses: tuple[AlbefLoss, ...] = ("itc", "itm", "mlm")
    """What is added up; "itc" is always among them: images and texts are aligned, then fused."""
    queue_size: int = 65536
    alpha_ramp_epochs: float = 1.0
    negative_floor: float = 0.0
    mask_probability: float = 0.15
    """Share of the words that are masked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_losses(self.losses, get_args(AlbefLoss))
        # Every step contrasts: its similarities choose the hard negatives of matching.
        if "itc" not in self.losses:
            raise RecipeError(f"objectives.losses {self.losses!r}: ALBEF needs itc among them")
        if not 0.0 < self.mask_probability < 1.0:
            raise RecipeError(
                f"objectives.mask_probability {self.mask_probability} is not in (0, 1)"
            )


@dataclass(frozen=True, kw_only=True)
class VqaObjectives:
    """Language modelling of answers; the default is that of the paper."""

    label_smoothing: float = 0.1
    """Probability that is spread over the vocabulary."""

    def __post_init__(self) -> None:
        _check_smoothing(self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class NlvrObjectives:
    """Cross-entropy of true and false; it has no settings."""
