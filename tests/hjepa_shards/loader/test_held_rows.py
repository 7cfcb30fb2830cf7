"""Rows are those of the file, whatever is held; a file that changes under a reader is damage and ends nothing."""

import os
import random
import shutil
from pathlib import Path

import pytest

from hjepa_shards.errors import SidecarError
from hjepa_shards.loader import held_rows
from hjepa_shards.loader.held_rows import HeldRows
from hjepa_shards.loader.loader import open_loader
from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.shards.sidecar import HEADER_BYTES, ROW, Sidecar, pack
from tests.hjepa_shards.loader.test_loader import mix


@pytest.mark.parametrize("most_shards", [0, 2, 9])
@pytest.mark.parametrize("compiled", [True, False])
def test_rows_are_those_of_the_file_whatever_is_held(
    shards: Path, most_shards: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards / "digits" / "train"
    manifest = load_manifest(folder)
    if not compiled:
        monkeypatch.setattr(held_rows, "preads", None)
    sidecars = {n: Sidecar(folder / f"{manifest.shard_name(n)}.index") for n in range(manifest.num_shards)}
    rows = HeldRows(most_shards * len(sidecars[0]) * ROW.itemsize)
    draw = random.Random(0)
    for _ in range(200):
        wanted = [(n, draw.randrange(len(sidecars[n]))) for n in draw.choices(list(sidecars), k=5)]
        assert rows.read({n: sidecars[n] for n, _ in wanted}, wanted) == [sidecars[n].row(i) for n, i in wanted]
    assert rows._num_bytes == sum(map(len, rows._rows.values())) <= rows._most_bytes
    assert len(rows._rows) == min(most_shards, len(sidecars))


def test_shards_that_are_no_longer_in_use_make_room(shards: Path) -> None:
    folder = shards / "digits" / "train"
    manifest = load_manifest(folder)
    sidecars = [Sidecar(folder / f"{manifest.shard_name(n)}.index") for n in range(2)]
    rows = HeldRows(len(sidecars[0]) * ROW.itemsize)
    for shard in (0, 1):
        for _ in range(200):
            rows.read({shard: sidecars[shard]}, [(shard, 0)])
        assert list(rows._rows) == [shard]


@pytest.mark.parametrize("change", ["cut", "zeros", "removed"])
def test_an_index_that_changes_under_a_loader_is_damage_at_most(shards: Path, tmp_path: Path, change: str) -> None:
    root = Path(shutil.copytree(shards, tmp_path / "shards"))
    with open_loader(
        mix(str(root), ({"name": "digits", "weight": 1},)), seed=3, global_batch=8, stops_alone=False
    ) as loader:
        next(loader)
        for reader in loader._readers:
            reader._rows = HeldRows(0)
        for path in (root / "digits" / "train").glob("*000001.tar.index"):
            if change == "cut":
                os.truncate(path, HEADER_BYTES + 5 * ROW.itemsize)
            elif change == "zeros":
                path.write_bytes(bytes(path.stat().st_size))
            else:
                path.unlink()
        for _ in range(12):
            next(loader)
        reasons = list(loader.damaged.get("digits", {}).values())
    assert bool(reasons) == (change != "removed")
    assert all("000001.tar.index" in reason for reason in reasons)


def test_a_row_that_leads_out_of_its_shard_is_damage(shards: Path, tmp_path: Path) -> None:
    """Four gigabytes would be made room for, for each sample."""
    path = tmp_path / "x.tar.index"
    shutil.copy(next((shards / "digits" / "train").glob("*.index")), path)
    before = Sidecar(path)
    rows = before.checked_rows().copy()
    rows["image_bytes"][0] = 2**32 - 1
    path.write_bytes(pack(rows, flags=before.flags, tar_bytes=before.tar_bytes, keys_digest=before.keys_digest))
    with pytest.raises(SidecarError, match="row 0: members within"):
        Sidecar(path).row(0)
    assert Sidecar(path).row(1) == before.row(1)
