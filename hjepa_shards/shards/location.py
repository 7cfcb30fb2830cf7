"""Where a built split is: a folder, or a URL that fsspec knows."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hjepa_shards.base.regular_files import read_regular
from hjepa_shards.errors import InputError, ManifestError
from hjepa_shards.shards.manifest import FILE_NAME, Manifest, built_splits, load_manifest, parse_manifest
from hjepa_shards.shards.manifest_content import MOST_BYTES
from hjepa_shards.shards.sidecar import HEADER_BYTES, ROW
from hjepa_shards.storage.remote_files import is_remote, remote_below, remote_exists, remote_start

Place = Path | str
"""A folder, or the URL of one."""
STORED_FORMS = ("", ".zst", ".gz")
"""Endings of a shard's name at a URL, where it may be compressed."""
_USUAL_SPLITS = ("train", "val", "test")


def place_of(root: str, source: str, split: str) -> Place:
    """Where the `split` of a `source` is below `root`, a folder or URL, built or not. Raises nothing."""
    return f"{root.rstrip('/')}/{source}/{split}" if is_remote(root) else Path(root) / source / split


def splits_at(root: str, source: str, names: Iterable[str] = ()) -> list[str]:
    """The built splits of `source` below `root`, sorted; at a URL, which cannot be listed, the usual ones and `names`.

    InputError for a server that does not answer.
    """
    if not is_remote(root):
        return built_splits(Path(root) / source)
    return sorted(
        name for name in {*_USUAL_SPLITS, *names} if remote_exists(f"{place_of(root, source, name)}/{FILE_NAME}")
    )


def splits_at_or_below(url: str) -> list[str]:
    """The URLs of built splits: this one, or those below it, where its server can list; else the usual ones below.

    InputError for a server that does not answer.
    """
    url = url.rstrip("/")
    if remote_exists(f"{url}/{FILE_NAME}"):
        return [url]
    ending = f"/{FILE_NAME}"
    found = sorted(name.removesuffix(ending) for name in remote_below(url) if name.endswith(ending))
    return found or [f"{url}/{name}" for name in _USUAL_SPLITS if remote_exists(f"{url}/{name}/{FILE_NAME}")]


def manifest_at(place: Place) -> Manifest:
    """The manifest of the split at `place`, checked. InputError or ManifestError where there is none."""
    if isinstance(place, Path):
        return load_manifest(place)
    url = f"{place}/{FILE_NAME}"
    try:
        data = remote_start(url, MOST_BYTES + 1)
    except InputError as error:
        raise InputError(f"{error}; a built split is expected there: <root>/<source>/<split>") from error
    if len(data) > MOST_BYTES:
        raise ManifestError(f"{url}: a manifest of at most {MOST_BYTES:,} bytes expected, more found; upload it again")
    return parse_manifest(data, url)


def is_labelled(place: Place, manifest: Manifest) -> bool:
    """Whether samples of the split at `place` have labels, with names or without.

    Of third-party tars in which not every sample has one, the first shard is read.
    """
    if manifest.class_names or "cls" in manifest.members:
        return True
    if manifest.encoder is not None or not manifest.num_samples:
        return False
    shard = int(np.argmax(manifest.shard_samples > 0))
    index = f"{place}/{manifest.shard_name(shard)}.index"
    try:
        most_bytes = HEADER_BYTES + ROW.itemsize * int(manifest.shard_samples[shard])
        data = remote_start(index, most_bytes) if is_remote(index) else read_regular(Path(index), most_bytes)
        return bool((np.frombuffer(data[HEADER_BYTES:], ROW)["label"] >= 0).any())
    except (InputError, OSError, ValueError):
        return False  # the reader of the samples says what is wrong with it
