"""Search: an index of embeddings over a table or a folder, and queries by text and image.

`openblip.search` is this room and a function: Python gives a package and a name in its parent one
place. So the module can be called, and calls `openblip.search.search.search`.
"""

import sys
from types import ModuleType
from typing import Any


class _CalledRoom(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        from openblip.search.search import search

        return search(*args, **settings)


sys.modules[__name__].__class__ = _CalledRoom
