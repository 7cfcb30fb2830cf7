"""Where shards are: short files are damage, what cannot be read is retried and then stops the run."""

import os
import shutil
import time
from pathlib import Path

import pytest

from hjepa_shards.errors import ManifestError, ShardError, ShardTruncated, SidecarError
from hjepa_shards.loader import shard_store as store_module
from hjepa_shards.loader.shard_store import LocalStore
from hjepa_shards.shards.manifest import load_manifest


@pytest.fixture
def split(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards / "digits" / "train", tmp_path / "train"))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, none of which is waited."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def tar(split: Path, shard: int) -> Path:
    return split / f"digits-train-{shard:06}.tar"


def test_bytes_come_from_where_they_are(split: Path) -> None:
    store = LocalStore(split, load_manifest(split))
    assert store.read(2, 100, 3000) == tar(split, 2).read_bytes()[100:3100]
    assert len(store.sidecar(2)) == 48
    store.close()


def test_a_short_shard_is_truncated_and_not_retried(split: Path, waits: list[float]) -> None:
    store = LocalStore(split, load_manifest(split))
    os.truncate(tar(split, 0), 1000)
    with pytest.raises(ShardTruncated, match="3000 bytes expected at 0, 1000 found"):
        store.read(0, 0, 3000)
    assert waits == []


def test_a_missing_shard_or_sidecar_is_a_read_error_and_not_damage(split: Path, waits: list[float]) -> None:
    store = LocalStore(split, load_manifest(split))
    tar(split, 0).unlink()
    index = tar(split, 1).with_name(tar(split, 1).name + ".index")
    index.unlink()
    for attempt in (lambda: store.read(0, 0, 10), lambda: store.sidecar(1)):
        with pytest.raises(ShardError, match="failed 4 times: No such file") as caught:
            attempt()
        assert not isinstance(caught.value, ShardTruncated | SidecarError)
    assert waits == [0.1, 0.5, 2.0] * 2


def test_a_read_error_that_passes_is_not_noticed(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(split, load_manifest(split))
    away = split / "away"
    tar(split, 0).rename(away)
    monkeypatch.setattr(time, "sleep", lambda seconds: away.rename(tar(split, 0)))
    assert store.read(0, 0, 10) == tar(split, 0).read_bytes()[:10]


def test_the_sidecar_of_another_shard_is_refused(split: Path) -> None:
    shutil.copy(split / "digits-train-000001.tar.index", split / "digits-train-000000.tar.index")
    with pytest.raises(ManifestError, match="not of one build"):
        LocalStore(split, load_manifest(split)).sidecar(0)


def test_open_files_are_bounded_and_all_closed_at_the_end(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_shards() -> int:
        links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        return sum(link.endswith(".tar") and str(split) in link for link in links)

    monkeypatch.setattr(store_module, "descriptor_share", lambda num_stores: 2)
    store = LocalStore(split, load_manifest(split))
    for shard in (0, 1, 2, 3, 4, 0, 3):
        assert store.read(shard, 0, 512) == tar(split, shard).read_bytes()[:512]
        assert open_shards() <= 2
    store.close()
    assert open_shards() == 0
