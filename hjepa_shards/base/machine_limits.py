"""What this machine lets one process have: cores, memory, open files, disks; and the versions of what is installed.

A container's limits are smaller than the machine's and are in control groups: version 2 (cpu.max, memory.max) or 1
(cpu.cfs_quota_us, memory.limit_in_bytes), where every group above the process's own limits it too.
"""

import contextlib
import importlib.metadata
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hjepa_shards.base.thread_map import num_cores

_PACKAGES = (
    "hjepa",
    "numpy",
    "pillow",
    "pillow-simd",
    "simplejpeg",
    "opencv-python-headless",
    "opencv-python",
    "PyTurboJPEG",
    "torch",
    "torchvision",
)
_BLOCK_BYTES = 4 << 20
_DISK_BYTES = 128 << 20
_DISK_S = 2.5
"""Longest time that a disk is written to, and read."""
_CAN_DROP = hasattr(os, "posix_fadvise")
_REMARK = "" if _CAN_DROP else "from memory: this system cannot drop a file from its cache"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cores:
    """How much processor time there is."""

    machine: int
    allowed: int
    """Those that the process may be scheduled on."""
    quota: float | None
    """The time of how many cores its control groups grant; None: no limit."""

    @property
    def usable(self) -> float:
        return self.allowed if self.quota is None else min(self.allowed, self.quota)


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes."""

    machine: int
    limit: int | None
    """Of the process's control groups; None: no limit below the machine's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenFiles:
    """How many files a process may have open."""

    soft: int
    """In force, -1: any number; `ulimit -n` raises it up to `hard`."""
    hard: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Disk:
    """The file system that a folder is on."""

    folder: Path
    kind: str
    """ext4, xfs, nfs4, tmpfs, ...; '' where it is unknown."""
    free_bytes: int
    read_bytes_per_s: float | None = None
    """In one piece, past the memory cache; None: not measured."""
    remark: str = ""


def cores(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> Cores:
    quotas = []
    for group in _groups(proc, groups, "cpu"):
        text = _read(group / "cpu.max") or f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
        with contextlib.suppress(ValueError, ZeroDivisionError):
            quota, period = map(int, text.split())
            quotas += [quota / period] if quota > 0 else []
    return Cores(machine=os.cpu_count() or 1, allowed=num_cores(), quota=min(quotas, default=None))


def memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> Memory:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = []
    for group in _groups(proc, groups, "memory"):
        with contextlib.suppress(ValueError):
            limits.append(int(_read(group / "memory.max") or _read(group / "memory.limit_in_bytes")))
    return Memory(machine=machine, limit=min((limit for limit in limits if limit < machine), default=None))


def open_files() -> OpenFiles:
    soft, hard = (-1 if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(resource.RLIMIT_NOFILE))
    return OpenFiles(soft=soft, hard=hard)


def disk_of(folder: Path) -> Disk:
    """The file system of a folder, or of the nearest folder above it that exists."""
    folder = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    return Disk(folder=folder, kind=_kind(folder), free_bytes=shutil.disk_usage(folder).free)


def measured(disk: Disk) -> Disk:
    """With its speed: a file without a name is written, dropped from memory and read again.

    Whatever ends the process, nothing of the file stays.
    """
    num_bytes = min(_DISK_BYTES, disk.free_bytes // 8 // _BLOCK_BYTES * _BLOCK_BYTES)
    if not num_bytes:
        return replace(disk, remark="not measured: it is nearly full")
    if disk.kind in ("tmpfs", "ramfs"):
        return replace(disk, remark="this is memory, not a disk")
    try:
        return replace(disk, read_bytes_per_s=_read_speed(disk.folder, num_bytes), remark=_REMARK)
    except OSError as error:
        return replace(disk, remark=f"not measured: {error.strerror or error}")


def versions() -> dict[str, str]:
    """Of Python and of the packages that speed depends on, where they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    from PIL import features  # only here: this folder comes before all images

    turbo = features.version("libjpeg_turbo")
    return found | ({"libjpeg-turbo of Pillow": turbo} if turbo else {})


def _read_speed(folder: Path, num_bytes: int) -> float:
    """Bytes/s in one piece."""
    block = os.urandom(_BLOCK_BYTES)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        started, written = time.monotonic(), 0
        while written < num_bytes and time.monotonic() - started < _DISK_S:
            written += file.write(block)
            os.fsync(file.fileno())
        if _CAN_DROP:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started, read = time.monotonic(), 0
        while read < written and time.monotonic() - started < _DISK_S:
            read += len(os.pread(file.fileno(), _BLOCK_BYTES, read))
        return read / (time.monotonic() - started)


def _groups(proc: Path, groups: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that hold this process for `controller`, and of those above them."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names and controller not in names.split(","):
            continue
        for root in (groups / names, groups / controller) if names else (groups, groups / "unified"):
            below = root / path.strip("/")
            yield from (group for group in (below, *below.parents) if group.is_relative_to(root) and group.is_dir())


def _kind(folder: Path) -> str:
    """The type of the file system that holds a folder."""
    best = ("", "")
    for line in _read(Path("/proc/mounts")).splitlines():
        _, path, kind, *_ = line.split(" ")
        path = path.replace("\\040", " ")
        if folder.is_relative_to(path) and len(path) >= len(best[0]):
            best = (path, kind)
    return best[1]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
