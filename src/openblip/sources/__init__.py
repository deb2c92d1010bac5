"""Other people's files, read and written: images, folders, tars, tables, annotations, exports."""

from openblip.sources.importing import import_pairs

__all__ = ["import_pairs"]
