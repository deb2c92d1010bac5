"""Training: recipes, the loop, checkpoints, and the processes of a run."""
