"""Real processes, one a rank, killed and followed by others: together they consume an exact prefix of the order."""

import json
import multiprocessing
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hjepa_shards.loader.loader import open_loader
from hjepa_shards.mixture.sample_order import add_proofs
from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.shards.sidecar import Sidecar
from tests.hjepa_shards.loader.ranks import consume
from tests.hjepa_shards.loader.test_loader import mix
from tests.hjepa_shards.verifying.test_verify_split import flip

SEED = 11
STEPS = 5


def phase(
    root: Path, out: Path, world: int, global_batch: int, state: dict[str, Any] | None
) -> tuple[list[tuple[int, ...]], dict[str, Any]]:
    """(all that the ranks consumed, the state that they would save together)"""
    context = multiprocessing.get_context("forkserver")
    data = mix(root).config.model_dump()
    out.mkdir()
    ranks = [
        context.Process(target=consume, args=(data, out, rank, world, global_batch, SEED, state, STEPS), daemon=True)
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    give_up = time.monotonic() + 120
    while not all((out / f"{rank}.json").exists() for rank in range(world)):
        assert all(process.is_alive() for process in ranks)
        assert time.monotonic() < give_up
        time.sleep(0.02)
    for process in ranks:
        process.kill()
        process.join()
    texts = [(out / f"{rank}.jsonl").read_text() for rank in range(world)]
    rows = [tuple(json.loads(line)) for text in texts for line in text.splitlines()]
    states = [json.loads((out / f"{rank}.json").read_text()) for rank in range(world)]
    together = states[0] | {"proof": f"{add_proofs(*(int(one['proof'], 16) for one in states)):032x}"}
    assert all(one | {"proof": "", "damaged": {}} == together | {"proof": "", "damaged": {}} for one in states)
    return rows, together


def in_one_process(root: Path, num: int) -> tuple[list[tuple[int, ...]], str]:
    """The first `num` images of the run and their proof."""
    rows: list[tuple[int, ...]] = []
    with open_loader(mix(root), seed=SEED, global_batch=num) as loader:
        batch = next(loader)
        rows += zip(batch.positions.tolist(), batch.entries.tolist(), batch.samples.tolist(), strict=True)
    return rows, f"{batch.proof:032x}"


def damage(root: Path, places: Mapping[str, Iterable[tuple[int, int]]]) -> Path:
    """Break the images of (shard, row) of each source."""
    for source, rows in places.items():
        folder = root / source / "train"
        manifest = load_manifest(folder)
        for shard, place in rows:
            path = folder / manifest.shard_name(shard)
            row = Sidecar(path.with_name(path.name + ".index")).row(place)
            flip(path, row.image_offset + row.image_bytes // 2)
    return root


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """Three samples of digits (of 200) and one of photos (of 100) are broken, in different shards."""
    root = Path(shutil.copytree(shards, tmp_path / "shards"))
    return damage(root, {"digits": ((0, 3), (1, 40), (3, 7)), "photos": ((1, 5),)})


def test_any_ranks_follow_any_others(shards: Path, tmp_path: Path) -> None:
    rows, state, consumed = [], None, 0
    for world, global_batch in ((1, 24), (8, 32), (2, 20), (4, 24), (1, 9)):
        more, state = phase(shards, tmp_path / f"{world}-{global_batch}", world, global_batch, state)
        rows, consumed = rows + more, consumed + STEPS * global_batch
        expected, proof = in_one_process(shards, consumed)
        assert sorted(rows) == expected
        assert state["proof"] == proof


def test_each_rank_blind_to_what_the_others_find_damaged(shards: Path, damaged: Path, tmp_path: Path) -> None:
    """A replacement follows from position and bytes alone."""
    before, state = phase(damaged, tmp_path / "first", 4, 48, None)
    after, end = phase(damaged, tmp_path / "then", 2, 80, state | {"damaged": {}})
    expected, proof = in_one_process(damaged, STEPS * (48 + 80))
    assert sorted(before + after) == expected
    assert end["proof"] == proof
    undamaged, _ = in_one_process(shards, STEPS * (48 + 80))
    assert 4 <= sum(one != other for one, other in zip(expected, undamaged, strict=True)) < 30
