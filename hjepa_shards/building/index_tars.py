"""Third-party tars, made usable by one pass: sidecars and a manifest beside them, the tars untouched.

webdataset's rules: a member's key is its name up to the first dot, members of one key are one sample; names without an
extension and hidden ones are passed over. Samples without an image that a decoder can open are excluded by name.
Members need not be in key order. A tar is read as a build reads it: what is odd about it is in the notes.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from zlib_ng.zlib_ng import crc32

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.building.shard_writer import JOURNAL, sha256_of
from hjepa_shards.errors import DecodeError, InputError, ManifestError, ShardError
from hjepa_shards.images.encode import EXTENSIONS, reason_of
from hjepa_shards.images.image_formats import Colour, inspect
from hjepa_shards.images.rgb_pixels import notes_of, remarks_of
from hjepa_shards.shards.class_names import class_number
from hjepa_shards.shards.manifest import Manifest, load_manifest, save_manifest
from hjepa_shards.shards.raw_sample import IMAGE_EXTENSIONS
from hjepa_shards.shards.sidecar import HAS_JSON, HAS_LABELS, HAS_TEXT, ROW, digest_of_keys, key_hash, pack
from hjepa_shards.shards.tar import Member, is_sample, scan
from hjepa_shards.sources.base import Remarks
from hjepa_shards.sources.formats.captions import label_in
from hjepa_shards.sources.formats.tar_samples import (
    ImagesByName,
    companion,
    image_member,
    likely_images,
    readable,
    remark_at,
)
from hjepa_shards.storage.build_output import FolderTarget

_MAX_IMAGE_BYTES = 1 << 30
_MAX_TEXT_BYTES = 1 << 28
_MAX_LABEL_BYTES = 1 << 10
_FLAGS = {"cls": HAS_LABELS, "txt": HAS_TEXT, "json": HAS_JSON}


def index_tars(
    folder: Path,
    *,
    source: str | None = None,
    split: str | None = None,
    class_names: Sequence[str] = (),
    image: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Index every tar in `folder`. `source` and `split` are the last two parts of its path unless named.

    class_names: of the labels 0, 1, ...  image: the member of each sample that is its image, such as left.jpg of
    0000.left.jpg; None: the first that is an image.  progress: receives (shards done, shards in all).
    InputError if there are none, or if `hjepa-shards build` made them; ShardError for a tar that cannot be read.
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        found = ", ".join(sorted(path.name for path in folder.glob("*"))[:5]) if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: *.tar files expected, found: {found or 'nothing'}")
    if (folder / JOURNAL).exists() or _is_built(folder):
        raise InputError(f"{folder}: made by `hjepa-shards build`, which wrote its index; run `hjepa-shards verify`")
    FolderTarget(folder).remove_leftovers()
    resolved = folder.resolve()
    chosen = image_member(image) if image is not None else ""
    remarks = Remarks()
    shards = []
    for done, path in enumerate(paths, start=1):
        shards.append(index_tar(path, remarks, chosen))
        if progress:
            progress(done, len(paths))
    extensions = Counter(extension for shard in shards for extension in shard.extensions)
    if not extensions:
        likely = ImagesByName()
        for shard in shards:
            likely.add_all(shard.likely)
        if said := likely.error(folder, sum(len(shard.exclusions) for shard in shards), chosen):
            raise InputError(said)
        raise ShardError(f"{folder}: no images in {len(paths)} tars; members like <key>.jpg expected")
    for path, shard in zip(paths, shards, strict=True):
        write_atomically(path.with_name(path.name + ".index"), shard.index)
    flags = [name for name, flag in _FLAGS.items() if all(shard.flags & flag for shard in shards)]
    manifest = Manifest(
        source=source or resolved.parent.name,
        split=split or resolved.name,
        class_names=tuple(class_names),
        class_groups=(),
        notes=(*remarks.lines(), *notes_of(sum((shard.remarks for shard in shards), Counter()))),
        members=[extensions.most_common(1)[0][0], *flags],
        shard_names=[path.name for path in paths],
        shard_samples=np.array([len(shard.rows) for shard in shards], dtype=np.int64),
        shard_bytes=np.array([shard.tar_bytes for shard in shards], dtype=np.int64),
        shard_sha256=[shard.sha256 for shard in shards],
        index_sha256=[hashlib.sha256(shard.index).hexdigest() for shard in shards],
        keys_digest=[shard.keys_digest.hex() for shard in shards],
        encoder=None,
        settings={"pixels": "keep"} | ({"image": chosen} if chosen else {}),
        provenance={"upstream": "tars written by somebody else", "licence": "", "citation": ""},
        exclusions=[exclusion for shard in shards for exclusion in shard.exclusions],
        renamed={},
        statistics={"images": sum(len(shard.rows) for shard in shards)},
    )
    save_manifest(folder, manifest)
    return manifest


def _is_built(folder: Path) -> bool:
    try:
        return load_manifest(folder).encoder is not None
    except ManifestError:
        return False  # none, or one that has to be made again


@final
class Indexed:
    """What one pass over a tar found."""

    def __init__(self, path: Path) -> None:
        self.tar_bytes = path.stat().st_size
        self.sha256 = sha256_of(path)
        self.keys: list[str] = []
        self.rows: list[tuple[int, ...]] = []
        self.extensions: list[str] = []
        self.exclusions: list[dict[str, Any]] = []
        self.remarks: Counter[str] = Counter()
        """What had to be assumed about pixels, and of how many images."""
        self.likely = ImagesByName()
        """Of the samples without an image."""
        self.flags = HAS_LABELS | HAS_TEXT | HAS_JSON

    def finish(self) -> None:
        self.keys_digest = digest_of_keys(self.keys)
        self.index = pack(
            np.array(self.rows, dtype=ROW),
            flags=self.flags,
            tar_bytes=self.tar_bytes,
            keys_digest=self.keys_digest,
        )


def index_tar(path: Path, remarks: Remarks, image: str = "") -> Indexed:
    """One pass over one tar.  remarks: receives what is odd.  image: as `image_member`, '' for the first image."""
    samples: dict[str, dict[str, Member]] = {}
    for member in scan(path, remark_at(remarks, path)):
        if not is_sample(member):
            continue
        parts = samples.setdefault(member.key, {})
        if member.extension in parts:
            raise ShardError(
                f"{path}: {member.key}.{member.extension} occurs twice; webdataset refuses that too. Write the "
                "shard again with unique keys"
            )
        parts[member.extension] = member
    indexed = Indexed(path)
    with path.open("rb") as file:

        def read(member: Member | None, most: int = _MAX_IMAGE_BYTES) -> bytes:
            if member is None:
                return b""
            file.seek(member.offset)
            return file.read(min(member.num_bytes, most))

        for number, (key, parts) in enumerate(samples.items()):
            images = [parts[e] for e in parts if (e == image if image else e in IMAGE_EXTENSIONS)]
            chosen = next((member for member in images if not member.problem), None) or next(iter(images), None)
            try:
                data = read(_checked_image(chosen, parts))
                info = inspect(data)
            except DecodeError as error:
                indexed.exclusions.append({"name": key, "index": number, "reason": reason_of(error)})
                indexed.likely.add([] if images else likely_images(parts))
                continue
            if info.colour == Colour.DEEP:
                indexed.remarks.update(remarks_of(data))
            assert chosen is not None
            label_member, text, json_text = (_companion(parts, name, chosen, remarks) for name in _FLAGS)
            text_data, json_data = read(text), read(json_text)
            label = _label(path, key, read(label_member, _MAX_LABEL_BYTES))
            if label_member is None and (found := label_in(json_data.decode("utf-8", "replace"))):
                remarks.add("samples without .cls whose .json has a label, which is not read", f"{key}: {found}")
            for member, flag in zip((label_member, text, json_text), _FLAGS.values(), strict=True):
                if member is None:
                    indexed.flags &= ~flag
            indexed.keys.append(key)
            indexed.extensions.append(EXTENSIONS.get(info.codec, chosen.extension))
            indexed.rows.append(
                (
                    chosen.offset,
                    text.offset if text else 0,
                    json_text.offset if json_text else 0,
                    key_hash(key),
                )
                + (len(data), crc32(data), len(text_data), crc32(text_data))
                + (len(json_data), crc32(json_data), info.width, info.height, label)
                + (info.codec, info.colour, info.orientation, 0, 0, 0)
            )
    indexed.finish()
    return indexed


def _checked_image(image: Member | None, parts: Mapping[str, Member]) -> Member:
    """The image. DecodeError where it cannot be read, or where there is none among `parts`."""
    if image is None:
        raise DecodeError(f"no image among its members: {', '.join(parts)}")
    if image.problem:
        raise DecodeError(f"its image is {image.problem}")
    if image.num_bytes > _MAX_IMAGE_BYTES:
        raise DecodeError(f"an image of more than {_MAX_IMAGE_BYTES:,} bytes")
    return image


def _companion(parts: Mapping[str, Member], name: str, image: Member, remarks: Remarks) -> Member | None:
    """The class or the captions of an image, None where there are none that can be read."""
    found = companion(parts, name, image.extension)
    if found is not None and name != "cls" and found.num_bytes > _MAX_TEXT_BYTES:
        remarks.add(f"texts of more than {_MAX_TEXT_BYTES:,} bytes, not read", f"{image.key}.{name}")
        return None
    return readable(found, f"{image.key}.{name}", remarks)


def _label(path: Path, key: str, data: bytes) -> int:
    """The class of a .cls member, -1 where there is none."""
    if not data:
        return -1
    label = class_number(data.decode("utf-8-sig", "replace"))
    if label is None or label < -1:
        raise ShardError(
            f"{path}: {key}.cls: a class number expected, {data[:40]!r} found; an index has no place for class names: "
            "`hjepa-shards build webdataset` takes them, or write numbers"
        )
    return label
