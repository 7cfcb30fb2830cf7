"""Decoders that keep to themselves: what is wrong with an image is an error of ours, with its name and what to do.

libtiff writes everything that it finds wrong to the process's stderr, several lines a damaged file, into progress bars
and without saying which file it was; so does Pillow's logger where logging is not configured. Importing this silences
both. Nothing is redirected: stderr is also where Python, PyTorch and drivers say why they end. The other decoders that
are used (libjpeg-turbo in Pillow and simplejpeg, libspng, libwebp) say nothing, and a test with damaged files of every
format watches that.
"""

import contextlib
import ctypes
import logging

from PIL import Image

__all__: list[str] = []


def _silence_libtiff() -> None:
    """Take away its handlers: those of the libtiff that Pillow is linked with, wherever that is."""
    with contextlib.suppress(OSError, AttributeError):  # a Pillow without libtiff, or that hides its symbols
        libtiff = ctypes.CDLL(Image.core.__file__)  # a symbol is looked for in what a library is linked with, too
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            handler = getattr(libtiff, name)
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)


_silence_libtiff()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # a program that configures logging still gets it
