"""Are the shards the ones that the manifest describes? Every bit is looked at; lost samples are named.

Files are compared by size and sha256. Where a shard differs, its samples are read one by one, so that the report says
which of them are lost and which still have the bytes that were written.
"""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from hjepa_shards.errors import SidecarError
from hjepa_shards.manifest import Manifest, load_manifest
from hjepa_shards.sidecar import Sidecar
from hjepa_shards.tar import scan
from hjepa_shards.writer import sha256_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One file that is not what the manifest says."""

    path: Path
    what: str
    lost_samples: tuple[int, ...] = ()
    """Their indices in manifest order."""


def verify(folder: Path, progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """Everything that is wrong with a built split; empty when all is well. ManifestError if it has no manifest.

    progress: called with (bytes done, bytes in all).
    """
    manifest = load_manifest(folder)
    total = int(manifest.shard_bytes.sum())
    problems: list[Problem] = []
    done = 0
    for shard in range(manifest.num_shards):
        problems += _problems_of(folder, manifest, shard)
        done += int(manifest.shard_bytes[shard])
        if progress:
            progress(done, total)
    return problems + list(_strangers(folder, manifest))


def _problems_of(folder: Path, manifest: Manifest, shard: int) -> Iterator[Problem]:
    path = folder / manifest.shard_name(shard)
    index_path = path.with_name(path.name + ".index")
    first = int(manifest.shard_samples[:shard].sum())
    everything = tuple(range(first, first + int(manifest.shard_samples[shard])))
    index_is_right = index_path.exists() and sha256_of(index_path) == manifest.index_sha256[shard]
    built = manifest.encoder is not None
    again = "remove it and run the same `hjepa-shards build`, or fetch it again" if built else "fetch it again"
    index_again = again if built else "`hjepa-shards index` makes it again"
    if not index_path.exists():
        yield Problem(path=index_path, what=f"is missing; {index_again}")
    elif not index_is_right:
        yield Problem(path=index_path, what=f"sha256 differs from the manifest's; {index_again}")
    if not path.exists():
        yield Problem(path=path, what=f"is missing; {again}", lost_samples=everything)
        return
    size, expected = path.stat().st_size, int(manifest.shard_bytes[shard])
    if size != expected:
        what = f"{expected} bytes expected, {size} found; {again}"
    elif sha256_of(path) != manifest.shard_sha256[shard]:
        what = f"sha256 differs from the manifest's; {again}"
    else:
        return
    lost = _lost(path, index_path, first) if index_is_right else everything
    yield Problem(path=path, what=what, lost_samples=lost)


def _lost(path: Path, index_path: Path, first: int) -> tuple[int, ...]:
    """The samples of a damaged shard whose image, text or json is not what was written."""
    lost = []
    rows = Sidecar(index_path).checked_rows()
    with path.open("rb") as file:
        for i, row in enumerate(rows):
            for member in ("image", "text", "json"):
                file.seek(int(row[f"{member}_offset"]))
                num_bytes = int(row[f"{member}_bytes"])
                data = file.read(num_bytes)
                if len(data) != num_bytes or crc32(data) != row[f"{member}_crc32"]:
                    lost.append(first + i)
                    break
    return tuple(lost)


def _strangers(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """Shards and sidecars that the manifest does not know."""
    names = {manifest.shard_name(shard) for shard in range(manifest.num_shards)}
    known = names | {f"{name}.index" for name in names}
    for path in sorted([*folder.glob("*.tar"), *folder.glob("*.tar.index")]):
        if path.name not in known:
            yield Problem(path=path, what="is not in the manifest; remove it or build into another folder")


def keys_of(folder: Path, manifest: Manifest, shard: int) -> list[str]:
    """The keys of a shard's samples, in the sidecar's order, read from the tar's headers."""
    path = folder / manifest.shard_name(shard)
    by_offset = {member.offset: member.key for member in scan(path)}
    rows = Sidecar(path.with_name(path.name + ".index")).checked_rows()
    try:
        return [by_offset[int(row["image_offset"])] for row in rows]
    except (KeyError, tarfile.TarError) as error:
        raise SidecarError(f"{path}: no member starts where the sidecar says; index the tars again") from error
