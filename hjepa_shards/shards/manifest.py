"""The manifest of a built split: what is in its shards, as one JSON file, written last.

Shards are columns, not objects: 125,000 of them load in a tenth of a second. The last line is a checksum over the
bytes before it, so any flipped bit is found when the file is read. No times, hosts, paths or worker counts: a build is
a pure function of its input, and so is this file.

Two digests show what changed. `order_digest` covers what the order of samples depends on (samples per shard, keys);
`content_digest` covers the bytes. Neither holds paths, dates or texts.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.base.notebook_html import facts
from hjepa_shards.base.regular_files import read_regular
from hjepa_shards.base.shown_text import counted, listed, proper, size
from hjepa_shards.config import first_problem
from hjepa_shards.errors import ManifestError
from hjepa_shards.shards.manifest_content import MOST_BYTES, Content, parse_json

FILE_NAME = "manifest.json"
VERSION = 1
ORDER_VERSION = 1
_CHECKSUM_LINE = ',\n"checksum": "%s"\n}\n'


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One split on disk. Arrays and lists have one element a shard."""

    source: str
    split: str
    class_names: Sequence[str]
    class_groups: Sequence[str]
    """The wider group of each class (CIFAR-100's coarse labels); empty where there are none."""
    notes: Sequence[str]
    """What a user should know about the raw data, a sentence each."""
    members: Sequence[str]
    """Extensions that every sample has, the image first: ["png", "cls"]."""
    shard_names: str | Sequence[str]
    """A pattern with `%06d` for the number, or the file names one by one (third-party tars)."""
    shard_samples: NDArray[np.int64]
    shard_bytes: NDArray[np.int64]
    shard_sha256: Sequence[str]
    index_sha256: Sequence[str]
    keys_digest: Sequence[str]
    encoder: Mapping[str, Any] | None
    """Identity of the encoder; None for third-party tars."""
    settings: Mapping[str, Any]
    """Build settings: how pixels are stored, samples per shard, seed."""
    provenance: Mapping[str, Any]
    """Raw input digest, upstream name, licence, citation."""
    exclusions: Sequence[Mapping[str, Any]]
    """Samples excluded: name, index, reason."""
    renamed: Mapping[str, Sequence[Any]]
    """Key -> [name, index] where the key does not hold the name."""
    statistics: Mapping[str, Any]
    """Integers: sizes and channel moments over all samples."""

    @property
    def name(self) -> str:
        return f"{self.source}-{self.split}"

    @property
    def raw_source(self) -> str:
        """What opens its raw data: the source itself, unless it was built with --name."""
        return self.provenance.get("raw_source", self.source)

    @property
    def num_shards(self) -> int:
        return len(self.shard_samples)

    @functools.cached_property
    def num_samples(self) -> int:
        return int(self.shard_samples.sum())

    @functools.cached_property
    def order_digest(self) -> str:
        """Hex digest of what the order of samples depends on."""
        digest = hashlib.blake2b(b"hjepa order %d" % ORDER_VERSION, digest_size=16)
        digest.update(self.shard_samples.astype("<i8").tobytes())
        digest.update("".join(self.keys_digest).encode())
        return digest.hexdigest()

    @functools.cached_property
    def content_digest(self) -> str:
        """Hex digest of the shards' bytes."""
        return hashlib.blake2b("".join(self.shard_sha256).encode(), digest_size=16).hexdigest()

    def channel_means(self) -> list[tuple[float, float]]:
        """The means of R, G and B in [0, 1] and of their squares; empty where no pixel was measured."""
        moments = self.statistics.get("channel_moments") or ()
        if not moments or not all(count for count, _, _ in moments):
            return []
        return [(total / count / 255, squares / count / 255**2) for count, total, squares in moments]

    def shard_name(self, shard: int) -> str:
        if isinstance(self.shard_names, str):
            return self.shard_names % shard
        return self.shard_names[shard]

    def in_words(self) -> str:
        """What it is and how much, in a line. Raises nothing."""
        parts = [counted(self.num_samples, "sample", "samples")]
        if self.class_names:
            parts.append(counted(len(self.class_names), "class", "classes"))
        parts.append(f"{counted(self.num_shards, 'shard', 'shards')} of {size(int(self.shard_bytes.sum()))}")
        if self.exclusions:
            parts.append(f"{len(self.exclusions):,} excluded")
        return f"{proper(self.name)}: {', '.join(parts)}"

    def __repr__(self) -> str:
        return f"<Manifest {self.in_words()}>"

    def _repr_html_(self) -> str:
        stored = {key: value for key, value in self.settings.items() if value is not None}
        return facts(
            f"Manifest {self.in_words()}",
            {
                "classes": listed(self.class_names, most=20),
                "members of a sample": ", ".join(self.members),
                "stored": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in stored.items()),
                "upstream": str(self.provenance.get("upstream") or ""),
                "licence": str(self.provenance.get("licence") or ""),
                "order digest": self.order_digest,
                "content digest": self.content_digest,
            },
            self.notes,
        )


def class_name(names: Sequence[str], label: int) -> str:
    """A label in words; nothing for -1, which is none."""
    if label < 0:
        return ""
    return names[label] if label < len(names) else f"class {label}"


def built_splits(folder: Path) -> list[str]:
    """The splits that are below a source's folder, sorted; hidden folders are a killed command's."""
    found = (path.parent.name for path in folder.glob(f"*/{FILE_NAME}"))
    return sorted(name for name in found if not name.startswith("."))


def shard_pattern(source: str, split: str) -> str:
    return f"{source}-{split}-%06d.tar"


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, whole or not at all."""
    write_atomically(folder / FILE_NAME, manifest_bytes(manifest))


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of `manifest.json`."""
    named = {"pattern": manifest.shard_names} if isinstance(manifest.shard_names, str) else {}
    content: dict[str, Any] = {
        "format": "hjepa-shards",
        "version": VERSION,
        "source": manifest.source,
        "split": manifest.split,
        "num_samples": manifest.num_samples,
        "num_shards": manifest.num_shards,
        "num_bytes": int(manifest.shard_bytes.sum()),
        "members": list(manifest.members),
        "class_names": list(manifest.class_names),
        "class_groups": list(manifest.class_groups),
        "notes": list(manifest.notes),
        "encoder": manifest.encoder,
        "settings": manifest.settings,
        "provenance": manifest.provenance,
        "statistics": manifest.statistics,
        "exclusions": list(manifest.exclusions),
        "renamed": manifest.renamed,
        "shards": {
            **(named or {"names": list(manifest.shard_names)}),
            "samples": manifest.shard_samples.tolist(),
            "bytes": manifest.shard_bytes.tolist(),
            "sha256": list(manifest.shard_sha256),
            "index_sha256": list(manifest.index_sha256),
            "keys_digest": list(manifest.keys_digest),
        },
    }
    lines = ",\n".join(f'"{key}": {json.dumps(value, sort_keys=True)}' for key, value in content.items())
    body = ("{\n" + lines).encode()
    return body + (_CHECKSUM_LINE % _checksum(body)).encode()


def load_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json`. ManifestError where it is missing, damaged or of another version."""
    path = folder / FILE_NAME
    try:
        data = read_regular(path, MOST_BYTES)
    except FileNotFoundError as error:
        if not any(folder.glob("*.tar")):
            raise ManifestError(
                f"{path}: no manifest here, nor tars; a built split expected, as `hjepa-shards build` leaves them in "
                "<out>/<source>/<split>"
            ) from error
        raise ManifestError(
            f"{path}: no manifest here; `hjepa-shards build` writes one, `hjepa-shards index {folder}` makes one "
            "for third-party tars"
        ) from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror or error}; fix that, then run again") from error
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, path: str) -> Manifest:
    """The content of `manifest.json`, checked. path: what to call it in errors."""
    body = _checked_body(path, data)
    try:
        content = parse_json(body + b"}")
    except ValueError as error:
        raise ManifestError(f"{path}: JSON expected, {error}; build or index again") from error
    if content.get("format") != "hjepa-shards" or content.get("version") != VERSION:
        found = [str(value)[:40] if isinstance(value, str | int) else "none" for value in _format_of(content)]
        raise ManifestError(
            f"{path}: format hjepa-shards version {VERSION} expected, {found[0]} version {found[1]} found; use the "
            "hjepa-shards that wrote it"
        )
    try:
        return _from_content(Content.model_validate(content))
    except ValidationError as error:
        raise ManifestError(
            f"{path}: {first_problem(error)}; it was written by another hjepa-shards, or is not to be trusted: build "
            "or index again"
        ) from error


def _format_of(content: Mapping[str, Any]) -> tuple[Any, Any]:
    return content.get("format"), content.get("version")


def _from_content(content: Content) -> Manifest:
    shards = content.shards
    names = shards.names if shards.names is not None else shards.pattern
    assert names is not None
    return Manifest(
        source=content.source,
        split=content.split,
        class_names=content.class_names,
        class_groups=content.class_groups,
        notes=content.notes,
        members=content.members,
        shard_names=names,
        shard_samples=np.array(shards.samples, dtype=np.int64),
        shard_bytes=np.array(shards.bytes, dtype=np.int64),
        shard_sha256=shards.sha256,
        index_sha256=shards.index_sha256,
        keys_digest=shards.keys_digest,
        encoder=content.encoder,
        settings=content.settings,
        provenance=content.provenance,
        exclusions=content.exclusions,
        renamed=content.renamed,
        statistics=content.statistics,
    )


def _checksum(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=32).hexdigest()


def _checked_body(path: str, data: bytes) -> bytes:
    """The bytes before the checksum line, which must be theirs."""
    tail_bytes = len(_CHECKSUM_LINE % "") + 64
    body, tail = data[:-tail_bytes], data[-tail_bytes:]
    if tail != (_CHECKSUM_LINE % _checksum(body)).encode():
        raise ManifestError(
            f"{path}: the last line does not hold the checksum of the lines before it: the file was changed or cut "
            "short; build again into another folder, or fetch it again"
        )
    return body
