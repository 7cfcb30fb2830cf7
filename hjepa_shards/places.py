"""Where a built split lies: a folder, or a URL that fsspec knows."""

from pathlib import Path

from hjepa_shards.errors import InputError
from hjepa_shards.manifest import FILE_NAME, Manifest, load_manifest, parse_manifest
from hjepa_shards.sources.remote import is_remote, remote_bytes, remote_info

Place = Path | str
"""A folder, or the URL of one."""


def place_of(root: str, source: str, split: str) -> Place:
    return f"{root.rstrip('/')}/{source}/{split}" if is_remote(root) else Path(root) / source / split


def manifest_at(place: Place) -> Manifest:
    """The manifest of the split that lies there, checked. InputError or ManifestError where there is none."""
    if isinstance(place, Path):
        return load_manifest(place)
    url = f"{place}/{FILE_NAME}"
    try:
        num_bytes, _ = remote_info(url)
        data = b"".join(remote_bytes(url, num_bytes))
    except InputError as error:
        raise InputError(f"{error}; a built split is expected there: <root>/<source>/<split>") from error
    return parse_manifest(data, url)
