"""The manifest: whole, checked, and two digests that show what changed."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hjepa_shards.errors import ManifestError
from hjepa_shards.shards.manifest import Manifest, load_manifest, save_manifest

BASE = Manifest(
    source="s",
    split="train",
    class_names=["a", "ü"],
    class_groups=["g", "g"],
    notes=["n"],
    members=["png", "cls"],
    shard_names="s-train-%06d.tar",
    shard_samples=np.array([3, 2]),
    shard_bytes=np.array([2048, 1024]),
    shard_sha256=["00" * 32, "11" * 32],
    index_sha256=["22" * 32, "33" * 32],
    keys_digest=["44" * 16, "55" * 16],
    encoder={"pillow": "1"},
    settings={"pixels": "png"},
    provenance={"upstream": "u"},
    exclusions=[{"name": "n", "index": 0, "reason": "r"}],
    renamed={"k-1": ["n", 0]},
    statistics={"images": 5},
)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save_manifest(tmp_path, BASE)
    loaded = load_manifest(tmp_path)
    for field in Manifest.__dataclass_fields__:
        assert np.array_equal(getattr(loaded, field), getattr(BASE, field)), field
    assert (loaded.name, loaded.num_samples, loaded.num_shards) == ("s-train", 5, 2)
    assert loaded.shard_name(1) == "s-train-000001.tar"
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert list(content)[-1] == "checksum"
    assert content["shards"]["samples"] == [3, 2]


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    save_manifest(tmp_path, BASE)
    path = tmp_path / "manifest.json"
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 31):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ManifestError, match="checksum"):
            load_manifest(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 50, -1])
def test_a_manifest_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    save_manifest(tmp_path, BASE)
    path = tmp_path / "manifest.json"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ManifestError, match="checksum"):
        load_manifest(tmp_path)


def test_an_unknown_version_is_refused_by_its_number(tmp_path: Path) -> None:
    body = b'{\n"format": "hjepa-shards",\n"version": 7'
    checksum = hashlib.blake2b(body, digest_size=32).hexdigest()
    (tmp_path / "manifest.json").write_bytes(body + f',\n"checksum": "{checksum}"\n}}\n'.encode())
    with pytest.raises(ManifestError, match=r"version 1 expected.*version 7"):
        load_manifest(tmp_path)


def test_a_missing_manifest_names_the_commands_that_write_one(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no manifest here, nor tars.*hjepa-shards build"):
        load_manifest(tmp_path)
    (tmp_path / "theirs.tar").touch()
    with pytest.raises(ManifestError, match=r"hjepa-shards build.*hjepa-shards index"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "order", "content"),
    [
        ({"shard_sha256": ["00" * 32, "12" * 32]}, False, True),
        ({"keys_digest": ["44" * 16, "56" * 16]}, True, False),
        ({"shard_samples": np.array([2, 3])}, True, False),
        ({"class_names": ["other"]}, False, False),
        ({"source": "t", "shard_names": "t-train-%06d.tar"}, False, False),
        ({"provenance": {}, "settings": {}, "encoder": None, "exclusions": [], "renamed": {}}, False, False),
        ({"shard_sha256": ["11" * 32, "00" * 32]}, False, True),
        ({"keys_digest": ["55" * 16, "44" * 16]}, True, False),
    ],
)
def test_each_digest_covers_its_own_and_nothing_else(change: dict[str, object], order: bool, content: bool) -> None:
    changed = replace(BASE, **change)  # type: ignore[arg-type]
    assert (changed.order_digest != BASE.order_digest) == order
    assert (changed.content_digest != BASE.content_digest) == content
