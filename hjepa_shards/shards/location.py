"""Where a built split is: a folder, or a URL that fsspec knows."""

from collections.abc import Iterable
from pathlib import Path

from hjepa_shards.errors import InputError, ManifestError
from hjepa_shards.shards.manifest import FILE_NAME, Manifest, built_splits, load_manifest, parse_manifest
from hjepa_shards.shards.manifest_content import MOST_BYTES
from hjepa_shards.storage.remote_files import is_remote, remote_exists, remote_start

Place = Path | str
"""A folder, or the URL of one."""
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
