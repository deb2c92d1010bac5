"""Fine-tuning a filter: contrast and matching on human captions (BLIP, section 3.3)."""

from dataclasses import dataclass

from openblip.tasks.contrastive import NegativeFeatures
from openblip.tasks.pretrain import Loss, PretrainObjectives, PretrainTask


@dataclass(frozen=True, kw_only=True)
class FilterObjectives(PretrainObjectives):
    """The objectives of pre-training as the original's retrieval fine-tuning sets them.

    With the loss "lm" added, one run trains captioner and filter in one model.
    """

    losses: tuple[Loss, ...] = ("itc", "itm")
    alpha_ramp_epochs: float = 1.0
    id_targets: bool = True
    negative_features: NegativeFeatures = "online"
    negative_floor: float = 0.0


class FilterTask(PretrainTask):
    """The pre-training step, set for telling true captions of an image from false ones.

    The teacher starts as a copy of the student, the queue with random directions. Arguments are
    those of `PretrainTask`, with `FilterObjectives`.
    """

    kind = "filter"
