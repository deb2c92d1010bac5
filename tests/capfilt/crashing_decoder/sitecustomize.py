"""Found through PYTHONPATH: Pillow then dies, as native code with a fault would, on some images."""

import os
import signal

from PIL import Image

_open, _resize = Image.open, Image.Image.resize
DEADLY = (1, 2, 3)


def _open_or_die(stream, *words, **named):
    start = stream.read()
    stream.seek(0)
    if b"SEGFAULT" in start:
        os.kill(os.getpid(), signal.SIGSEGV)
    return _open(stream, *words, **named)


def _resize_or_die(image, *words, **named):
    if image.mode == "RGB" and image.getpixel((0, 0)) == DEADLY:
        os.kill(os.getpid(), signal.SIGSEGV)
    return _resize(image, *words, **named)


Image.open = _open_or_die
Image.Image.resize = _resize_or_die
