"""Fine-tuning a filter: contrast and matching on human captions (BLIP, section 3.3)."""

from openblip.tasks.named import FILTER
from openblip.tasks.pretrain import PretrainTask


class FilterTask(PretrainTask):
    """The pre-training step, set for telling true captions of an image from false ones.

    The teacher starts as a copy of the student, the queue with random directions. Arguments are
    those of `PretrainTask`, with `FilterObjectives`.
    """

    needs = FILTER
    kind = "filter"
