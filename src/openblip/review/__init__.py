"""Verdicts of people on a filter: what they are shown, what follows from it, and certificates."""
