"""Untrusted archives -> files in one folder, and nowhere else.

One rule for tars and zips: regular files and folders below the folder, nothing more. A link, a device, an absolute name
or a `..` ends the whole archive; no data set that we know holds one. (tarfile's own `data` filter lets links pass that
stay inside, and has been fixed for that more than once.) What comes out is counted while it is written and may not
exceed a bound given beforehand, whatever the headers say.

It is unpacked into .<archive>.unpacking, which becomes .<archive>.unpacked once it is on the disk, and from there each
thing takes its place by rename. Killed before: it is done again. Killed after: the rest is moved.
"""

import ctypes
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, final

from hjepa_shards.base.atomic_files import sync_folder, writing
from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.storage.http_download import Progress

_CHUNK_BYTES = 2**20
_MAX_DEPTH = 32
_DISTRUST = "it is not what it should be: remove it"
_ENTRY_BYTES = 4096
"""What a file counts for besides its bytes, as on a disk: a bomb may also be made of names."""


def is_unpacked(archive: Path, names: tuple[str, ...]) -> bool:
    """Whether everything of `names` is beside the archive, and no unpacking is half done."""
    return not _staged(archive).exists() and all((archive.parent / name).exists() for name in names)


def unpack(
    archive: Path, *, names: tuple[str, ...], most_bytes: int, progress: Progress, replace: bool = False
) -> None:
    """Unpack a tar (compressed or not) or a zip beside itself, all of it or nothing.

    names: what the archive is known to hold; something of it missing means that it is another archive.
    most_bytes: that may come out of it.  progress: receives (bytes of the archive done, in all).
    replace: what is there under those names goes once everything is unpacked.
    ShardError for a damaged or hostile archive, InputError where something is in the way.
    """
    staged, begun = _staged(archive), archive.with_name(f".{archive.name}.unpacking")
    if not staged.exists():
        for first in sorted({name.partition("/")[0] for name in names} if not replace else ()):
            _refuse_if_full(archive.parent / first)
        with writing(begun):
            shutil.rmtree(begun, ignore_errors=True)
            begun.mkdir()
        try:
            _extract(archive, begun, most_bytes, progress)
            missing = [name for name in names if not (begun / name).exists()]
            if missing:
                raise ShardError(f"{archive}: {', '.join(missing)} expected in it, not found; fetch it again")
        except BaseException:
            shutil.rmtree(begun, ignore_errors=True)
            raise
        _sync_file_system(begun)
        begun.rename(staged)
    for path in sorted(staged.iterdir()):
        if not path.name.startswith("."):  # what macOS adds; and no archive brings our lock
            place = archive.parent / path.name
            with writing(place):
                if replace and place.is_dir():
                    shutil.rmtree(place)
                _refuse_if_full(place)
                path.rename(place)
    sync_folder(archive.parent)
    shutil.rmtree(staged)


def _sync_file_system(folder: Path) -> None:
    """Everything on `folder`'s file system onto the disk, at once: an fsync for each of a hundred thousand files would
    take longer than unpacking them."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if hasattr(libc, "syncfs"):
            libc.syncfs(descriptor)
        else:
            os.sync()
    finally:
        os.close(descriptor)


def _staged(archive: Path) -> Path:
    return archive.with_name(f".{archive.name}.unpacked")


def _refuse_if_full(path: Path) -> None:
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path}: is in the way of what is to be unpacked; move it elsewhere and run this again")


@final
@dataclass(frozen=True, slots=True)
class _Entry:
    """A file or folder in an archive."""

    name: str
    num_bytes: int
    """As the header says."""
    content: IO[bytes] | None
    """None: a folder."""
    at: int
    """How far into the archive it is, bytes."""


def _extract(archive: Path, folder: Path, most_bytes: int, progress: Progress) -> None:
    left = most_bytes
    total = archive.stat().st_size
    made = {folder}
    entries = _zip_entries(archive) if archive.suffix == ".zip" else _tar_entries(archive)
    for entry in entries:
        path = _inside(archive, folder, entry.name)
        parent = path if entry.content is None else path.parent
        if parent not in made:
            with _placing(archive, entry, parent):
                parent.mkdir(parents=True, exist_ok=True)
            made.add(parent)
        left -= _ENTRY_BYTES
        if entry.content is not None:
            with _placing(archive, entry, path), path.open("wb") as file:
                for data in _chunks(archive, entry):
                    left -= len(data)
                    if left < 0:
                        break
                    file.write(data)
        if left < 0:
            raise ShardError(
                f"{archive}: at most {most_bytes:,} bytes expected in it, more found at {entry.name!r}; {_DISTRUST}"
            )
        progress(entry.at, total)
    progress(total, total)


def _inside(archive: Path, folder: Path, name: str) -> Path:
    """Where an entry goes. There are no links below `folder`, so the name alone decides."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name or len(parts) > _MAX_DEPTH:
        raise ShardError(f"{archive}: names below its folder expected, {name[:200]!r} found; {_DISTRUST}")
    return folder.joinpath(*parts)


@contextmanager
def _placing(archive: Path, entry: "_Entry", path: Path) -> Iterator[None]:
    """Around the making of what an entry becomes: its own name may be at fault, or the disk."""
    try:
        with writing(path):
            yield
    except UnicodeEncodeError as error:
        raise ShardError(f"{archive}: {entry.name!a} cannot be the name of a file; {_DISTRUST}") from error
    except InputError as error:
        if isinstance(error.__cause__, (FileExistsError, NotADirectoryError, IsADirectoryError)):
            raise ShardError(f"{archive}: {entry.name!r} is both a file and a folder in it; {_DISTRUST}") from error
        raise


def _chunks(archive: Path, entry: _Entry) -> Iterator[bytes]:
    assert entry.content is not None
    left = entry.num_bytes
    with _readable(archive):
        while data := entry.content.read(_CHUNK_BYTES):
            left -= len(data)
            yield data
    if left:
        raise ShardError(
            f"{archive}: {entry.num_bytes:,} bytes of {entry.name!r} expected, {entry.num_bytes - left:,} found"
        )


def _tar_entries(archive: Path) -> Iterator[_Entry]:
    with (
        _readable(archive),
        archive.open("rb") as file,
        tarfile.open(fileobj=file, mode="r|*", bufsize=_CHUNK_BYTES) as tar,
    ):
        while (info := tar.next()) is not None:
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  (a kilobyte each, of two million)
            if info.isdir():
                yield _Entry(info.name, 0, None, file.tell())
            elif info.isreg():
                yield _Entry(info.name, info.size, tar.extractfile(info), file.tell())
            else:
                raise ShardError(f"{archive}: {_only_files(info.name)} found; {_DISTRUST}")


def _zip_entries(archive: Path) -> Iterator[_Entry]:
    with _readable(archive), zipfile.ZipFile(archive) as bundle:
        at = 0
        for info in bundle.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ShardError(f"{archive}: {_only_files(info.filename)} found; {_DISTRUST}")
            at += info.compress_size
            if info.is_dir():
                yield _Entry(info.filename, 0, None, at)
            else:
                with bundle.open(info) as content:
                    yield _Entry(info.filename, info.file_size, content, at)


def _only_files(name: str) -> str:
    return f"regular files and folders expected, {name[:200]!r}, a link, device or pipe,"


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    """Around whatever reads the archive: ShardError for what tarfile, zipfile and their decompressors raise."""
    try:
        yield
    except InputError:
        raise
    except (
        *(tarfile.TarError, zipfile.BadZipFile, zlib.error, OSError, EOFError),
        *(ValueError, NotImplementedError, RuntimeError, OverflowError),  # zipfile's, for bad sizes, codecs, passwords
    ) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ShardError(
            f"{archive}: a readable archive expected, {said} found; remove it and fetch it again"
        ) from error
