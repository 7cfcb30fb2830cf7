"""What a rank of a test does, in a process of its own. Imports little: eight of them start at once."""

import json
import os
import time
from pathlib import Path
from typing import Any

from hjepa_shards.config import parse
from hjepa_shards.loader.loader import open_loader
from hjepa_shards.mixture.mixture import DataConfig, load_mixture


def consume(
    data: dict[str, Any], out: Path, rank: int, world: int, global_batch: int, seed: int, state: Any, steps: int
) -> None:
    """A line an image that it delivers; its state after the last batch; then it waits to be killed."""
    mixture = load_mixture(parse(DataConfig, data, "test"), "test")
    with (
        open_loader(mixture, seed=seed, global_batch=global_batch, rank=rank, world=world, state=state) as loader,
        (out / f"{rank}.jsonl").open("w") as lines,
    ):
        for _ in range(steps):
            batch = next(loader)
            for row in zip(batch.positions.tolist(), batch.entries.tolist(), batch.samples.tolist(), strict=True):
                lines.write(json.dumps(row) + "\n")
        lines.flush()
        (out / f"{rank}.part").write_text(json.dumps(loader.state_dict(batch)))
        os.rename(out / f"{rank}.part", out / f"{rank}.json")
        time.sleep(600)
