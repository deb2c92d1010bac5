"""What each process does for test_rank_log.py; started by torchrun, and killed from outside.

The loss of the steps in `POISONED_STEPS` is no number on the last process.
"""

import math
import os
import sys
from dataclasses import replace
from pathlib import Path

from openblip.batches.loader import Batch
from openblip.objectives.pretrain import PretrainTask
from openblip.objectives.task import StepOutput, StepPosition
from openblip.training.recipe_file import read_recipe
from openblip.training.run import train

POISONED = [int(step) for step in os.environ.get("POISONED_STEPS", "").split()]
FORWARD = PretrainTask.forward


def poisoned(self: PretrainTask, batch: Batch, position: StepPosition) -> StepOutput:
    output = FORWARD(self, batch, position)
    is_bad = position.step in POISONED and os.environ["RANK"] == "1"
    return replace(output, loss=output.loss * (math.nan if is_bad else 1.0))


PretrainTask.forward = poisoned  # type: ignore[method-assign]
for run in sys.argv[1:]:
    folder = Path(run)
    train(read_recipe(folder.with_suffix(".yaml")), folder, quiet=True)
