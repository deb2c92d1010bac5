"""Other people's files, read and written: images, folders, tars, tables, annotations, exports.

The name below is loaded when it is first used: most who need this room need one kind of file.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openblip.sources.importing import import_pairs

__all__ = ["import_pairs"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from openblip.sources import importing

        return getattr(importing, name)
    raise AttributeError(f"module 'openblip.sources' has no attribute {name!r}")
