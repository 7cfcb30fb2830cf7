"""Files that other people may have made: regular ones only, and no larger than they may be.

A name in a third party's folder may be a pipe, which blocks a process that opens it, or a link to a device that never
ends. Links to regular files are followed where a file is read, for people link to their data, and never where one is
written: another file would be changed.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """A file to read. OSError where it is missing, cannot be read, or is a folder, pipe, socket or device."""
    return os.fdopen(regular_descriptor(path, os.O_RDONLY), "rb")


def regular_descriptor(path: Path, flags: int, mode: int = 0o666) -> int:
    """A descriptor of a regular file. OSError as of `open_regular`; with O_NOFOLLOW among the flags also for a link.

    flags: as of `os.open`.  mode: of a file that is made.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, mode)  # a pipe opens at once, and is refused
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_regular(path: Path, most_bytes: int) -> bytes:
    """All of a small file. OSError as of `open_regular`, and where it is larger than `most_bytes`."""
    with open_regular(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size  # read(most_bytes) would allocate as many
        if num_bytes > most_bytes:
            raise OSError(errno.EFBIG, f"larger than the {most_bytes:,} bytes that it may have", str(path))
        return file.read(num_bytes)
