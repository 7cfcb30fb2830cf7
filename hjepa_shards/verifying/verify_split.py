"""Are the files the ones that the manifest describes? Every bit is looked at; lost samples are named.

Files are compared by size and sha256. Where a shard differs, its samples are read one by one, so that the report says
which of them are lost and which still have the bytes that were written. A file that cannot be read is a problem of
that file. Whether right files hold right samples is another question (`verify_images.py`).
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from zlib_ng.zlib_ng import crc32

from hjepa_shards.base.regular_files import open_regular
from hjepa_shards.base.thread_map import in_threads
from hjepa_shards.building.shard_writer import sha256_of
from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.shards.manifest import FILE_NAME, Manifest, load_manifest
from hjepa_shards.shards.sample_keys import keys_of
from hjepa_shards.shards.sidecar import HEADER_BYTES, MEMBERS, PACKED_ROW, ROW, Member, Row, key_hash
from hjepa_shards.shards.tar import is_sample, scan
from hjepa_shards.storage.build_output import JOURNAL

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One file that is not what the manifest says."""

    path: Path | str
    """A string where it is a URL."""
    what: str
    lost_samples: tuple[int, ...] = ()
    """Their indices in manifest order."""
    lost_keys: tuple[str | None, ...] = ()
    """The key of each, None where the shard no longer has it."""
    shard: int | None = None
    """The shard that this file belongs to, None where it belongs to none."""
    is_of_images: bool = False
    """The images themselves are at fault, not the file: raw data has the same damage, and no repair helps."""

    @property
    def name(self) -> str:
        """Of the file, without its folder."""
        return str(self.path).rpartition("/")[2]


def verify(folder: Path, progress: Progress | None = None, workers: int = 1) -> list[Problem]:
    """Everything that is wrong with the files of the split in `folder`; empty when all is well.

    progress: receives (bytes done, bytes in all).  workers: threads, which share out the files. ManifestError,
    InputError where there is no manifest to judge by.
    """
    manifest = load_manifest(folder)
    files = Files(folder, manifest)
    total = int(manifest.shard_bytes.sum())
    problems: list[Problem] = []
    done = 0
    for shard, found in enumerate(in_threads(files.problems_of, range(manifest.num_shards), workers)):
        problems += found
        done += int(manifest.shard_bytes[shard])
        if progress:
            progress(done, total)
    names = [path.name for path in folder.iterdir()]
    return problems + [replace(problem, path=folder / problem.path) for problem in unknown_files(names, manifest)]


def without_manifest(folder: Path) -> list[Problem]:
    """Folders, here or below, that hold tars or an unfinished build but no manifest."""
    problems = []
    marked = {path.parent for pattern in ("**/*.tar", f"**/{JOURNAL}") for path in folder.glob(pattern)}
    for path in sorted(marked):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or (path / FILE_NAME).exists():
            continue
        tars = f"{len(list(path.glob('*.tar')))} tars, no {FILE_NAME}"
        if (path / JOURNAL).exists():
            what = f"{tars}: an unfinished build; run the same `hjepa-shards build` to its end"
        else:
            what = f"{tars}: `hjepa-shards index` makes one for third-party tars"
        problems.append(Problem(path=path, what=what))
    return problems


@final
class Files:
    """The files of one split, compared with its manifest."""

    def __init__(self, folder: Path, manifest: Manifest, *, advice: str = "") -> None:
        """advice: what to do about a file that is wrong, where it is not what one does in a folder of one's own."""
        self.folder = folder
        self.manifest = manifest
        self._starts = np.cumsum(manifest.shard_samples) - manifest.shard_samples
        built = manifest.encoder is not None
        again = "`hjepa-shards repair` makes it again, or fetch it again" if built else "fetch it again"
        self._again = advice or again
        self._index_again = advice or (again if built else "`hjepa-shards index` makes it again")

    def problems_of(self, shard: int) -> list[Problem]:
        """What is wrong with a shard and its index."""
        manifest = self.manifest
        tar = self.folder / manifest.shard_name(shard)
        index = tar.with_name(tar.name + ".index")
        num_samples = int(manifest.shard_samples[shard])
        index_bytes = HEADER_BYTES + num_samples * ROW.itemsize
        index_differs = self._difference(index, index_bytes, shard, manifest.index_sha256, ".index")
        tar_differs = self._difference(tar, int(manifest.shard_bytes[shard]), shard, manifest.shard_sha256, "")
        problems = []
        if index_differs:
            problems.append(Problem(path=index, what=f"{index_differs}; {self._index_again}", shard=shard))
        if tar_differs:
            rows = _readable_rows(index, num_samples)
            lost = _lost(tar, rows)
            if index_differs and tar.exists():
                tar_differs += ", and so does its index: samples that it no longer describes count as lost"
            keys = keys_of(tar, [rows[i] for i in lost if rows[i] is not None])
            named = iter(keys)
            problems.append(
                Problem(
                    path=tar,
                    what=f"{tar_differs}; {self._again}",
                    lost_samples=tuple(int(self._starts[shard]) + i for i in lost),
                    lost_keys=tuple(None if rows[i] is None else next(named) for i in lost),
                    shard=shard,
                )
            )
        if not problems and manifest.encoder is None:
            problems += self._not_indexed(tar, index, shard)
        return problems

    def _not_indexed(self, tar: Path, index: Path, shard: int) -> Iterator[Problem]:
        """Samples of a third-party tar that its index does not know: earlier ones ended at the first end mark."""
        known = {row.key_hash for row in _readable_rows(index, int(self.manifest.shard_samples[shard])) if row}
        excluded = {exclusion.get("name") for exclusion in self.manifest.exclusions}
        try:
            keys = dict.fromkeys(member.key for member in scan(tar) if is_sample(member))
        except (ShardError, InputError) as error:
            yield Problem(path=tar, what=str(error).removeprefix(f"{tar}: "), shard=shard)
            return
        missing = [key for key in keys if key not in excluded and key_hash(key) not in known]
        if missing:
            yield Problem(
                path=tar,
                what=f"{len(missing):,} samples that its index does not know, {missing[0]} the first; "
                "`hjepa-shards index` finds them",
                shard=shard,
            )

    def _difference(self, path: Path, num_bytes: int, shard: int, sha256: Any, suffix: str) -> str:
        """How a file differs from what was written; "" where it does not.

        sha256, suffix: of the files of this kind, by shard.
        """
        try:
            found_bytes = path.stat().st_size
            if found_bytes != num_bytes:
                return f"{num_bytes} bytes expected, {found_bytes} found"
            found = sha256_of(path)
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        if found == sha256[shard]:
            return ""
        if found in sha256:
            return f"sha256 is that of {self.manifest.shard_name(list(sha256).index(found))}{suffix}: swapped"
        return "sha256 differs from the manifest's"


def _readable_rows(index: Path, num_samples: int) -> list[Row | None]:
    """The rows of a sidecar, whatever else is wrong with it; None where a row does not match its checksum."""
    try:
        with open_regular(index) as file:
            file.seek(HEADER_BYTES)
            data = file.read(num_samples * ROW.itemsize)
    except OSError:
        data = b""
    packed = [data[start : start + ROW.itemsize] for start in range(0, len(data) - ROW.itemsize + 1, ROW.itemsize)]
    rows = [Row._make(PACKED_ROW.unpack(one)) for one in packed]
    whole = [row if crc32(one[:-4]) == row.row_crc32 else None for one, row in zip(packed, rows, strict=True)]
    return whole + [None] * (num_samples - len(rows))


def _lost(tar: Path, rows: list[Row | None]) -> list[int]:
    """The samples of a damaged shard whose image, text or json is not what was written, or that no row describes."""
    try:
        with open_regular(tar) as file:

            def is_whole(row: Row, member: Member) -> bool:
                offset, num_bytes, expected = row.member(member)
                try:
                    file.seek(offset)
                    data = file.read(num_bytes)
                except (OSError, ValueError):
                    return False
                return len(data) == num_bytes and crc32(data) == expected

            return [
                i for i, row in enumerate(rows) if row is None or not all(is_whole(row, member) for member in MEMBERS)
            ]
    except OSError:
        return list(range(len(rows)))


def unknown_files(names: Collection[str], manifest: Manifest) -> Iterator[Problem]:
    """Shards and sidecars that the manifest does not know, and what a killed build left, among the files of a split."""
    shards = {manifest.shard_name(shard) for shard in range(manifest.num_shards)}
    known = shards | {f"{name}.index" for name in shards}
    for name in sorted(name for name in names if name.endswith((".tar", ".tar.index")) and name not in known):
        yield Problem(path=name, what="is not in the manifest; remove it or build into another folder")
    for name in sorted(name for name in names if name.startswith(".") and name.endswith(".tmp")):
        yield Problem(path=name, what="was left by a killed build; remove it")
