"""Writes plan_v1.json: `python tests/golden/make_plan.py`. A change of it breaks every run that people have saved."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from hjepa_shards.base.keyed_random import derive_key, philox_words
from hjepa_shards.mixture.permutation import EntryOrder
from hjepa_shards.mixture.sample_order import Entry, OrderSettings, Plan, order_proof, slice_of
from hjepa_shards.mixture.source_counts import first_segment

SEED = 20_260_101
SHARDS = {"cifar10": [300, 0, 250, 7, 443], "digits": [97], "photos": [64] * 40}
CHANGES = [(0, (6, 3, 1)), (3001, (1, 0, 4)), (7000, (1, 1, 1))]
ORDER = OrderSettings(lanes=3, window=4)
NUM_POSITIONS = 10_000
KEYS: list[tuple[int | str, ...]] = [
    (0,),
    (7, "mask", 12),
    (7, "mask", "12"),
    (-1, "window", "stl10-test", 0, 10**12, 3, 4),
]


def entries() -> list[Entry]:
    return [
        Entry(name=name, shard_samples=np.array(sizes), order_digest="", content_digest="")
        for name, sizes in SHARDS.items()
    ]


def content() -> dict[str, Any]:
    """What the order is today."""
    plan = Plan(entries(), SEED, ORDER, first_segment(CHANGES[0][1]), 4096)
    parts = []
    for start, weights in CHANGES[1:]:
        parts.append(plan.samples(plan.segment.start, start))
        plan = plan.reweighed(start, weights)
    parts.append(plan.samples(plan.segment.start, NUM_POSITIONS))
    names = ("position", "source", "draw", "pass_", "sample", "lane")
    rows = np.stack([np.concatenate([getattr(part, name) for part in parts]) for name in names], axis=1)
    one = EntryOrder(entries()[0], SEED, ORDER)
    return {
        "keys": {json.dumps(parts): f"{derive_key(*parts):032x}" for parts in KEYS},  # pyright: ignore
        "words": [f"{word:016x}" for word in philox_words(derive_key(7, "mask", 12), 8, counter=5, stream=1)],
        "pass": one.draws(2000, 3000).sample.tolist(),
        "replacements": [one.replacement(2000, attempt) for attempt in range(1, 17)],
        "last_segment": {"weights": plan.segment.weights, "owed": plan.segment.owed, "draws": plan.segment.draws},
        "columns": names,
        "first_rows": rows[:200].tolist(),
        "all_rows_sha256": hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest(),
        "proof": f"{order_proof(rows[:, 0], [list(SHARDS)[i] for i in rows[:, 1]], rows[:, 4]):032x}",
        "batch": plan.global_batch(9000, 66).position.tolist(),
        "rank_batches": [plan.rank_batch(9000, 66, rank, 6).position.tolist() for rank in range(6)],
        "slices": [[slice_of(rank, 4, 2, first, SEED) for rank in range(4)] for first in range(0, 1280, 64)],
    }


def write(path: Path) -> None:
    lines = [f'  "{key}": {json.dumps(value)}' for key, value in content().items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).with_name("plan_v1.json"))
