"""Files appear whole: written under a temporary name, flushed to the disk, renamed. One writer a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hjepa_shards.errors import InputError


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name only if the block ends well; otherwise nothing is left.

    InputError where the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(_advice(path, error)) from error
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """`data` as the whole content of `path`."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def exclusive(folder: Path, otherwise: str) -> Iterator[None]:
    """One process at a time in `folder`; the lock goes with the process, whatever kills it.

    InputError with `otherwise` where another process holds it.
    """
    path = folder / ".lock"
    try:
        file = path.open("w")
    except OSError as error:
        raise InputError(_advice(path, error)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{folder}: {otherwise}") from error
        yield


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _advice(path: Path, error: OSError) -> str:
    folder = path.parent
    try:
        stat = os.statvfs(folder)
        free = f"{stat.f_bavail * stat.f_frsize / 2**20:.1f} MiB free"
    except OSError:
        free = "the folder cannot be read"
    return (
        f"{path}: cannot be written: {error.strerror or error} ({free} in {folder}); make room or choose another "
        "folder, then run the same command again"
    )
