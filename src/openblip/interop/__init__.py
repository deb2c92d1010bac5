"""Checkpoint layouts: our model folder, and conversion from and to others."""
