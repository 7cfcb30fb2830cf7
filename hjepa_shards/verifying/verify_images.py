"""Do the samples of a split hold what their sidecar rows say? `verify --deep`: for third-party tars.

Right checksums say that the bytes are those that were written, not that the right ones were. So every image is decoded
in full, as training does, and its own header, the tar's headers and the .cls members are compared with the rows.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from hjepa_shards.base.thread_map import in_threads
from hjepa_shards.errors import DecodeError, ShardError
from hjepa_shards.images.decode import decode
from hjepa_shards.images.encode import reason_of
from hjepa_shards.images.image_formats import Codec, codec_of, inspect, opened
from hjepa_shards.images.rgb_pixels import shown
from hjepa_shards.shards.class_names import class_number
from hjepa_shards.shards.location import Place, manifest_at
from hjepa_shards.shards.manifest import Manifest, load_manifest
from hjepa_shards.shards.sample_keys import keys_of
from hjepa_shards.shards.sidecar import HAS_JSON, HAS_LABELS, HAS_TEXT, Row, Sidecar, digest_of_keys, key_hash
from hjepa_shards.shards.tar import Member, scan
from hjepa_shards.sources.formats.tar_samples import companion
from hjepa_shards.verifying.verify_split import Problem, Progress, verify

_SAMPLES_A_TASK = 512
_UNDECODABLE = "the image cannot be decoded"
_MEMBER_FLAGS = {"cls": HAS_LABELS, "txt": HAS_TEXT, "json": HAS_JSON}

Finding = tuple[int, str, str]
"""Sample of the shard (-1: all of it), what is wrong, and how in its case."""


def exclusions_of(place: Place, problems: Sequence[Problem]) -> list[dict[str, str]]:
    """What `build --exclude` takes: the images that cannot be decoded.  problems: of `verify_deep`, for this split."""
    manifest = manifest_at(place)
    return [
        {"source": manifest.source, "split": manifest.split, "key": key, "reason": _UNDECODABLE}
        for problem in problems
        if problem.is_of_images
        for key in problem.lost_keys
        if key is not None
    ]


def verify_deep(folder: Path, progress: Progress | None = None, workers: int = 1) -> list[Problem]:
    """`verify`, and everything that is wrong inside the shards whose files are right."""
    manifest = load_manifest(folder)
    total = int(manifest.shard_bytes.sum())
    done = 0

    def advance(num_bytes: int) -> None:
        if progress:
            progress(num_bytes, 2 * total)

    problems = verify(folder, lambda hashed, _: advance(hashed), workers)
    wrong = {problem.shard for problem in problems}
    done += sum(int(manifest.shard_bytes[shard]) for shard in wrong if shard is not None)
    contents = Contents(folder, manifest)
    tasks = (task for shard in range(manifest.num_shards) if shard not in wrong for task in contents.tasks(shard))
    findings: list[Finding] = []
    for shard, is_last, found in in_threads(lambda task: task(), tasks, workers):
        findings += found
        if is_last:
            problems += contents.problems_of(shard, findings)
            findings = []
            done += int(manifest.shard_bytes[shard])
            advance(total + done)
    return problems


_Task = Callable[[], tuple[int, bool, list[Finding]]]
"""Gives the shard, whether this was the shard's last task, and what it found."""


@final
class Contents:
    """The samples of one split, compared with their rows."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._starts = np.cumsum(manifest.shard_samples) - manifest.shard_samples

    def tasks(self, shard: int) -> Iterator[_Task]:
        """The work on one shard, in pieces."""
        num_samples = int(self.manifest.shard_samples[shard])
        yield lambda: (shard, num_samples == 0, self._in_headers(shard))
        for start in range(0, num_samples, _SAMPLES_A_TASK):
            stop = min(start + _SAMPLES_A_TASK, num_samples)
            yield partial(self._in_some, shard, start, stop, stop == num_samples)

    def _in_some(self, shard: int, start: int, stop: int, is_last: bool) -> tuple[int, bool, list[Finding]]:
        return shard, is_last, self._in_images(shard, start, stop)

    def problems_of(self, shard: int, findings: Sequence[Finding]) -> Iterator[Problem]:
        """One problem for each kind of finding."""
        tar = self._tar(shard)
        kinds: dict[str, list[Finding]] = defaultdict(list)
        for finding in findings:
            kinds[finding[1]].append(finding)
        for what, found in kinds.items():
            samples = sorted({sample for sample, _, _ in found if sample >= 0})
            rows = self._sidecar(shard).checked_rows()
            yield Problem(
                path=tar,
                what=f"{what} ({found[0][2]})",
                lost_samples=tuple(int(self._starts[shard]) + sample for sample in samples),
                lost_keys=tuple(keys_of(tar, [rows[sample] for sample in samples])),
                shard=shard,
                is_of_images=what == _UNDECODABLE,
            )

    def _tar(self, shard: int) -> Path:
        return self.folder / self.manifest.shard_name(shard)

    def _sidecar(self, shard: int) -> Sidecar:
        tar = self._tar(shard)
        return Sidecar(tar.with_name(tar.name + ".index"))

    # ---- what the tar's headers and the manifest say

    def _in_headers(self, shard: int) -> list[Finding]:
        try:
            sidecar = self._sidecar(shard)
            members = list(scan(self._tar(shard)))
            with self._tar(shard).open("rb") as file:
                return [*self._in_sidecar(sidecar, shard), *self._in_members(sidecar, members, file)]
        except (ShardError, OSError) as error:
            return [(-1, "cannot be read", str(error))]

    def _in_sidecar(self, sidecar: Sidecar, shard: int) -> Iterator[Finding]:
        manifest = self.manifest
        flags = sum(flag for name, flag in _MEMBER_FLAGS.items() if name in manifest.members)
        said = (int(manifest.shard_samples[shard]), int(manifest.shard_bytes[shard]), manifest.keys_digest[shard])
        found = (sidecar.num_samples, sidecar.tar_bytes, sidecar.keys_digest.hex())
        if said != found or sidecar.flags & flags != flags:
            yield -1, "the sidecar's header is not what the manifest says", f"{said} expected, {found} found"

    def _in_members(self, sidecar: Sidecar, members: list[Member], file: BinaryIO) -> Iterator[Finding]:
        by_offset: dict[int, list[Member]] = {}  # several where one is a hard link to another
        parts: dict[str, dict[str, Member]] = {}
        for member in members:
            if not member.problem:
                by_offset.setdefault(member.offset, []).append(member)
                parts.setdefault(member.key, {})[member.extension] = member
        num_classes = len(self.manifest.class_names)
        keys = []
        for i, row in enumerate(sidecar.checked_rows()):
            image = _of_row(by_offset, int(row.image_offset), row)
            if image is None:
                yield i, "no member of the tar starts where the row says", f"byte {row.image_offset}"
                continue
            keys.append(image.key)
            if key_hash(image.key) != row.key_hash:
                yield i, "the key is not the row's", f"{image.key}"
            for member, prefix in ((image, "image"), *self._texts(row, by_offset)):
                if member is None or member.key != image.key or member.num_bytes != row[f"{prefix}_bytes"]:
                    yield i, f"the {prefix} member is not the row's", f"{row[f'{prefix}_bytes']} bytes expected"
            label = _label(file, companion(parts[image.key], "cls", image.extension))
            if label != row.label:
                yield i, "the label is not the row's", f"{row.label} in the row, {label} in .cls"
            if num_classes and not -1 <= row.label < num_classes:
                yield i, "the label is no class", f"{row.label}, {num_classes} classes"
        if digest_of_keys(keys) != sidecar.keys_digest:
            yield -1, "the keys are not the ones that the manifest says, in that order", "digest differs"
        known = len(sidecar) * len(self.manifest.members)
        if self.manifest.encoder is not None and len(members) != known:
            yield -1, "the tar holds other members than its samples'", f"{known} expected, {len(members)} found"

    def _texts(self, row: Any, by_offset: dict[int, list[Member]]) -> Iterator[tuple[Member | None, str]]:
        for prefix in ("text", "json"):
            if row[f"{prefix}_offset"]:
                yield _of_row(by_offset, int(row[f"{prefix}_offset"]), row), prefix

    # ---- what the images say

    def _in_images(self, shard: int, start: int, stop: int) -> list[Finding]:
        findings = []
        try:
            sidecar = self._sidecar(shard)
            descriptor = os.open(self._tar(shard), os.O_RDONLY)
        except (ShardError, OSError) as error:
            return [(-1, "cannot be read", str(error))]
        try:
            for i in range(start, stop):
                try:
                    row = sidecar.row(i)
                    data = os.pread(descriptor, row.image_bytes, row.image_offset)
                except (ShardError, OSError) as error:
                    findings.append((i, "cannot be read", str(error)))
                else:
                    findings += [(i, *found) for found in _in_image(data, row)]
        finally:
            os.close(descriptor)
        return findings


def _in_image(data: bytes, row: Row) -> Iterator[tuple[str, str]]:
    if crc32(data) != row.image_crc32:
        yield "the image's crc32 is not the row's", f"{row.image_crc32:08x} expected, {crc32(data):08x} found"
        return
    try:
        info = inspect(data)
        for name in ("codec", "width", "height", "colour", "orientation"):
            if getattr(info, name) != getattr(row, name):
                found = f"{getattr(row, name)} in the row, {getattr(info, name)} found"
                yield f"the image's {name} is not the row's", found
        height, width, _ = _decoded(data, row).shape
    except DecodeError as error:
        yield _UNDECODABLE, reason_of(error)
        return
    if (width, height) != (row.width, row.height):
        yield "the pixels are not as many as the row says", f"{width} x {height} found"


def _decoded(data: bytes, row: Row) -> NDArray[np.uint8]:
    """As in training; of PNGs as in a build, which sees damage that the fast decoder shows."""
    if codec_of(data) != Codec.PNG:
        return decode(data, row.colour, row.orientation)
    with opened(data) as image:
        return np.asarray(shown(data, image).rgb)


def _of_row(by_offset: dict[int, list[Member]], offset: int, row: Any) -> Member | None:
    """The member that begins there: the one of the row's key, if it has several names."""
    found = by_offset.get(offset, [])
    return next((member for member in found if key_hash(member.key) == row.key_hash), next(iter(found), None))


def _label(file: BinaryIO, member: Member | None) -> int | None:
    """What a .cls member says: -1 where there is none, None where it is no number."""
    if member is None:
        return -1
    file.seek(member.offset)
    data = file.read(member.num_bytes)
    return class_number(data.decode("utf-8-sig", "replace")) if data else -1
