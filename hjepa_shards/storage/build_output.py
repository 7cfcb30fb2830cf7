"""Where a build writes: a folder, or a URL of anything that fsspec reaches (s3://bucket/prefix).

A build needs little of its target: whole files under names relative to a split's folder, a listing, and one file that
only the first may create. Object stores show an object when all of it has arrived, so shards are written to a scratch
file without a name (a killed process leaves none), sent whole, and followed by their journal record. They know
no locks: two builds at once write the same bytes twice.
"""

import contextlib
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, final

from hjepa_shards.base.atomic_files import create_atomically, exclusive, shared, whole_file, write_atomically, writing
from hjepa_shards.errors import InputError
from hjepa_shards.storage.remote_files import file_system
from hjepa_shards.storage.scratch_folder import scratch_folder

JOURNAL = ".journal"

_FOLDERLESS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
"""Object stores have no folders; requested to make one, some would make a bucket."""
_COPY_BYTES = 16 << 20
_BUSY = "another process is building here; wait for it to end"


class Target(ABC):
    """The folder of one built split. It travels to workers: no open handles in it."""

    where: str
    """What messages call it: its path or URL."""

    @abstractmethod
    def prepare(self) -> None:
        """Make the folder. InputError where that is not possible."""

    @abstractmethod
    def names(self) -> set[str]:
        """The files there, those of the journal as `.journal/<name>`."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All of a file. FileNotFoundError where there is none."""

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """Many small files."""
        return [self.read(name) for name in names]

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless it exists. Whether it was this call that made it."""

    @abstractmethod
    def new_file(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file that takes its name, in place of an older one, only if the block ends well."""

    @abstractmethod
    def remove(self, name: str) -> None: ...

    @abstractmethod
    def alone(self) -> AbstractContextManager[None]:
        """Nothing else builds here. InputError where something does."""

    @abstractmethod
    def alone_with(self, part: str) -> AbstractContextManager[None]:
        """Nothing else builds here but other parts; leaves the file `.journal/<part>` as a mark."""

    @property
    @abstractmethod
    def scratch(self) -> Path:
        """A local folder, perhaps not made, for what a source unpacks before it can be read. It stays after a kill."""

    def write(self, name: str, data: bytes) -> None:
        """`data` as the whole content of a file."""
        with self.new_file(name) as file:
            file.write(data)

    def remove_leftovers(self, of: tuple[str, ...] = ("",)) -> None:
        """Temporary files of killed processes. of: beginnings of the names that they would have taken."""
        hidden = tuple(f".{beginning}" for beginning in of)
        for name in self.names():
            if name.endswith(".tmp") and name.rpartition("/")[2].startswith(hidden):
                self.remove(name)


def target_at(root: str | Path, source: str, split: str) -> Target:
    """`<root>/<source>/<split>`, wherever `root` is."""
    return target_of(f"{str(root).rstrip('/')}/{source}/{split}" if is_url(root) else Path(root) / source / split)


def target_of(folder: str | Path) -> Target:
    """The folder of one split."""
    return RemoteTarget(str(folder)) if is_url(folder) else FolderTarget(Path(folder))


def is_url(target: str | Path) -> bool:
    return "://" in str(target)


@final
class FolderTarget(Target):
    """A folder of this machine, or of a file system that several share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where = str(folder)

    def prepare(self) -> None:
        try:
            (self.folder / JOURNAL).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be made: {error.strerror}; choose another folder with --out"
            ) from error

    def names(self) -> set[str]:
        found = set()
        for inner in ("", f"{JOURNAL}/"):
            with contextlib.suppress(FileNotFoundError):
                found |= {f"{inner}{entry.name}" for entry in (self.folder / inner).iterdir() if not entry.is_dir()}
        return found

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        write_atomically(self.folder / name, data)

    def create(self, name: str, data: bytes) -> bool:
        return create_atomically(self.folder / name, data)

    def new_file(self, name: str) -> AbstractContextManager[BinaryIO]:
        return whole_file(self.folder / name)

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def alone(self) -> AbstractContextManager[None]:
        return exclusive(self.folder / JOURNAL, _BUSY)

    def alone_with(self, part: str) -> AbstractContextManager[None]:
        return shared(self.folder / JOURNAL, self.folder / JOURNAL / part, _BUSY)

    @property
    def scratch(self) -> Path:
        return self.folder / JOURNAL / "scratch"


@final
class RemoteTarget(Target):
    """A prefix of an object store, or any other location that fsspec writes to."""

    def __init__(self, url: str) -> None:
        self.where = url.rstrip("/")

    def __getstate__(self) -> dict[str, str]:
        return {"where": self.where}

    @cached_property
    def _location(self) -> tuple[Any, str]:
        """fsspec's file system, and the path in it."""
        return file_system(self.where)

    def prepare(self) -> None:
        fs, path = self._location
        if _FOLDERLESS.isdisjoint([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol):
            with self._explained("made"):
                fs.makedirs(f"{path}/{JOURNAL}", exist_ok=True)

    def names(self) -> set[str]:
        fs, path = self._location
        with self._explained("listed"):
            fs.invalidate_cache()
            found = fs.find(path)
        return {name.removeprefix(path.rstrip("/") + "/") for name in found}

    def read(self, name: str) -> bytes:
        fs, path = self._location
        with self._explained("read", FileNotFoundError):
            return fs.cat_file(f"{path}/{name}")

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        fs, path = self._location
        paths = [f"{path}/{name}" for name in names]
        with self._explained("read", FileNotFoundError):
            # many at a time: one by one, 10,000 would take a quarter of an hour; `cat` would take * and [ for patterns
            return fs.cat_ranges(paths, [None] * len(paths), [None] * len(paths), on_error="raise")

    def create(self, name: str, data: bytes) -> bool:
        fs, path = self._location
        with self._explained("written"):
            try:
                fs.pipe_file(f"{path}/{name}", data, mode="create")
            except FileExistsError:
                return False
        return True

    @contextmanager
    def new_file(self, name: str) -> Iterator[BinaryIO]:
        fs, path = self._location
        with tempfile.TemporaryFile() as scratch:
            with writing(Path(tempfile.gettempdir()) / name):
                yield scratch
            num_bytes = scratch.tell()
            scratch.seek(0)
            with self._explained("written"):
                with fs.open(f"{path}/{name}", "wb") as sent:
                    shutil.copyfileobj(scratch, sent, _COPY_BYTES)
                arrived = fs.info(f"{path}/{name}")["size"]
            if arrived != num_bytes:
                raise InputError(
                    f"{self.where}/{name}: {num_bytes} bytes sent, {arrived} found there; run the same command again"
                )

    def remove(self, name: str) -> None:
        fs, path = self._location
        with self._explained("removed"), contextlib.suppress(FileNotFoundError):
            fs.rm_file(f"{path}/{name}")

    def alone(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextmanager
    def alone_with(self, part: str) -> Iterator[None]:
        self.write(f"{JOURNAL}/{part}", b"")
        yield

    @property
    def scratch(self) -> Path:
        name = "".join(letter if letter.isalnum() else "-" for letter in self.where)
        return scratch_folder(f"hjepa-build-{name}")

    @contextmanager
    def _explained(self, what: str, *but: type[Exception]) -> Iterator[None]:
        """Each store has errors of its own, few of them OSError; all of them are one line to the user."""
        try:
            yield
        except (InputError, *but):
            raise
        except Exception as error:  # as said above
            said = " ".join(str(error).split())
            raise InputError(
                f"{self.where}: cannot be {what}: {type(error).__name__}: {said}; is the address right, and are the "
                "credentials? then run the same command again"
            ) from error
