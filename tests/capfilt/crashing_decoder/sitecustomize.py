"""Found through PYTHONPATH: Pillow then dies, as a decoder with a fault would, on marked bytes."""

import os
import signal

from PIL import Image

_open = Image.open


def _open_or_die(stream, *words, **named):
    start = stream.read()
    stream.seek(0)
    if b"SEGFAULT" in start:
        os.kill(os.getpid(), signal.SIGSEGV)
    return _open(stream, *words, **named)


Image.open = _open_or_die
