"""Files appear whole: written under a temporary name, flushed to the disk, renamed. One writer a folder.

Others may write to the folder too: what is opened here under a name that they can guess is no link and is never
emptied, and what is new was not there before.
"""

import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hjepa_shards.base.regular_files import regular_descriptor
from hjepa_shards.errors import InputError

_SEND_EVERY_S = 0.25


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name only if the block ends well; otherwise nothing is left.

    InputError where the disk is full or the folder cannot be written.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:  # follows no link
            with _sent_to_disk_meanwhile(file.fileno()):
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


@contextmanager
def _sent_to_disk_meanwhile(descriptor: int) -> Iterator[None]:
    """A large file goes to the disk while it is written, so that there is little left to wait for at its end.

    Whatever goes wrong there is raised after the block: the kernel reports an error to one flush only.
    """
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(_SEND_EVERY_S):
            os.fsync(descriptor)

    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(send)
        try:
            yield
        finally:
            ended.set()
        sending.result()


def write_atomically(path: Path, data: bytes) -> None:
    """`data` as the whole content of `path`."""
    with whole_file(path) as file:
        file.write(data)


def create_atomically(path: Path, data: bytes) -> bool:
    """`data` as the whole content of `path`, unless it exists already. Whether it was this call that made it."""
    temporary = _temporary(path)
    with writing(path):
        try:
            write_atomically(temporary, data)
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links, such as exFAT
            if path.exists():
                return False
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    return True


@contextmanager
def exclusive(folder: Path, otherwise: str) -> Iterator[None]:
    """One process at a time in `folder`; the lock goes with the process, whatever kills it.

    InputError with `otherwise` where another process holds it.
    """
    with _locked(folder / ".lock", fcntl.LOCK_EX | fcntl.LOCK_NB, otherwise):
        yield


@contextmanager
def shared(folder: Path, part: Path, otherwise: str) -> Iterator[None]:
    """Several processes in `folder`, none of which has it `exclusive`, each alone with its file `part`, which stays."""
    with (
        _locked(folder / ".lock", fcntl.LOCK_SH | fcntl.LOCK_NB, otherwise),
        _locked(part, fcntl.LOCK_EX | fcntl.LOCK_NB, otherwise),
    ):
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around whatever writes `path`: InputError with the free space where that fails."""
    try:
        yield
    except OSError as error:
        raise InputError(_advice(path, error)) from error


def require_writable(folder: Path) -> None:
    """InputError where no file can be made: before hours of work rather than after them."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: a folder that can be written expected, it cannot; choose another location")


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path, operation: int, otherwise: str) -> Iterator[None]:
    with writing(path):
        descriptor = _lock_to_hold(path)
    if descriptor is None:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError as error:
            raise InputError(f"{path.parent}: {otherwise}") from error
        except OSError:
            pass  # a file system without locks, as clusters have them: then no one is kept out
        yield
    finally:
        os.close(descriptor)


def _lock_to_hold(path: Path) -> int | None:
    """None in a folder that can only be read: what is to be written there fails by itself, and a finished one is."""
    try:
        return open_lock(path)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return None


def open_lock(path: Path) -> int:
    """A descriptor of the file `path`, to be locked; made where it is missing, and nothing is written to it.

    OSError where it cannot be opened, where it is a link, and where it is no file.
    """
    return regular_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)


def _temporary(path: Path) -> Path:
    """A hidden name beside `path` that no other process on any machine has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _advice(path: Path, error: OSError) -> str:
    folder = path.parent
    if error.errno == errno.ELOOP:
        return f"{path}: a file of our own expected, a link found; look at who made it, remove it, then run it again"
    if isinstance(error, PermissionError | NotADirectoryError | FileNotFoundError | IsADirectoryError):
        return f"{path}: cannot be written: {error.strerror or error}; choose another location, then run it again"
    try:
        stat = os.statvfs(folder)
        free = f"{stat.f_bavail * stat.f_frsize / 2**20:.1f} MiB free"
    except OSError:
        free = "the folder cannot be read"
    return (
        f"{path}: cannot be written: {error.strerror or error} ({free} in {folder}); make room or choose another "
        "folder, then run the same command again"
    )
