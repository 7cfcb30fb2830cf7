"""Where a loader's time goes, and who is the one to wait."""

import time
from itertools import islice
from pathlib import Path

import pytest

from hjepa_shards.images import decode
from hjepa_shards.loader import fill_batch, png_batch
from hjepa_shards.loader.loader import open_loader
from hjepa_shards.loader.stage_times import WORK, LoaderStats, Traffic
from tests.hjepa_shards.loader.test_loader import mix


def test_the_stages_add_up_to_the_time_of_the_threads(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_batch, "decode_pngs", None)  # which verifies as it decodes
    with open_loader(mix(shards, threads=2), seed=5, global_batch=24) as opened:
        num_batches = sum(1 for _ in islice(opened, 400))
        stats = opened.stats()
        manifests = opened.plan.entries
    assert (num_batches, stats.images, stats.threads) == (400, 9600, 2)
    assert sum(stats.stages.values()) == pytest.approx(2 * stats.seconds, rel=0.3)
    assert all(stats.stages[stage] > 0 for stage in WORK)
    assert 0 < stats.occupancy <= 1
    assert stats.num_bytes > 100 * stats.images
    assert {name: source.draws for name, source in stats.sources.items()} == {
        "digits": 4800,
        "photos": 1920,
        "scattered": 2880,
    }
    assert [source.target for source in stats.sources.values()] == [0.5, 0.2, 0.3]
    assert [source.passes for source in stats.sources.values()] == [
        source.draws / entry.num_samples for source, entry in zip(stats.sources.values(), manifests, strict=True)
    ]


def test_what_limits_is_named(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_loader(mix(shards, threads=2), seed=5, global_batch=24) as opened:
        for _ in islice(opened, 4):
            time.sleep(0.2)
        assert opened.stats().limit.startswith("bound by who takes the batches: it waits ")

    def slow(*arguments: object) -> object:
        time.sleep(0.005)
        return decode.crop_into(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fill_batch, "crop_into", slow)
    with open_loader(mix(shards, threads=2), seed=5, global_batch=24) as opened:
        for _ in islice(opened, 10):
            pass
        assert opened.stats().limit.startswith("resize-bound: 2 threads at ")


def test_the_line_says_how_busy_the_threads_are() -> None:
    stages = {"read": 1.0, "verify": 0.4, "decode": 16.0, "resize": 2.0, "idle": 0.6}
    stats = LoaderStats(
        seconds=10,
        images=1000,
        num_bytes=1,
        threads=2,
        stages=stages,
        waited_s=9,
        traffic=Traffic(),
        sources={},  # type: ignore[arg-type]
    )
    assert stats.limit == "decode-bound: 2 threads at 97%, 80% of it decode"
    assert stats.images_per_s == 100
