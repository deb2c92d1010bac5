"""Readers for the layouts that image-text pairs come in, and the import that drives them."""

from openblip.data.importers.driver import import_pairs

__all__ = ["import_pairs"]
