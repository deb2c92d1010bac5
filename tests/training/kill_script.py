"""What each process does for test_rank_log.py; started by torchrun, and killed from outside."""

import sys
from pathlib import Path

from openblip.training.recipe_file import read_recipe
from openblip.training.run import train

for run in sys.argv[1:]:
    folder = Path(run)
    train(read_recipe(folder.with_suffix(".yaml")), folder, quiet=True)
