"""Built sources that consist of a manifest alone: enough for everything that opens no shard."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hjepa_shards.shards.manifest import Manifest, save_manifest, shard_pattern


def save_stand_in(
    root: Path, name: str, shard_samples: Sequence[int], split: str = "train", keys: str = "k", pixels: str = "p"
) -> None:
    """<root>/<name>/<split>/manifest.json. Other `keys` are another order digest, other `pixels` another content."""
    folder = root / name / split
    folder.mkdir(parents=True, exist_ok=True)
    num_shards = len(shard_samples)
    manifest = Manifest(
        source=name,
        split=split,
        class_names=[],
        class_groups=[],
        notes=[],
        members=["png"],
        shard_names=shard_pattern(name, split),
        shard_samples=np.array(shard_samples, np.int64),
        shard_bytes=np.array(shard_samples, np.int64) * 1024,
        shard_sha256=[hashlib.sha256(f"{pixels}{number}".encode()).hexdigest() for number in range(num_shards)],
        index_sha256=["0" * 64] * num_shards,
        keys_digest=[hashlib.md5(f"{keys}{number}".encode()).hexdigest() for number in range(num_shards)],
        encoder=None,
        settings={},
        provenance={},
        exclusions=[],
        renamed={},
        statistics={},
    )
    save_manifest(folder, manifest)
