"""Checkpoint layouts (ours, the original's, that of `transformers`), and how they are fetched."""
