"""`bench`: it measures what it says."""

import json
from pathlib import Path

import pytest

from hjepa_shards.loader.bench import TARGETS, bench_loader
from hjepa_shards.loader.stage_times import WORK
from tests.conftest import Command
from tests.hjepa_shards.loader.test_loader import mix
from tests.hjepa_shards.test_cli import yaml_of

DATA = "{{root: {}, strategy: balanced, sources: [{{name: digits}}, {{name: photos}}], image_size: 16, threads: 2}}"


def test_speeds_are_those_of_the_requested_images(shards: Path) -> None:
    said: list[str] = []
    found = bench_loader(mix(shards), batch=32, images=100, rounds=2, say=said.append)
    assert (found.images, found.threads) == (96, 2)
    assert found.cold is not None
    assert 0 < found.loader < 10 * found.decoder
    assert sum(found.stages.values()) == pytest.approx(1)
    assert set(found.stages) == set(WORK)
    assert said == ["from a cold cache", "round 1 of 2", "round 2 of 2"]


def test_the_command_says_what_limits_and_for_whom_it_is_enough(command: Command, shards: Path, tmp_path: Path) -> None:
    config = yaml_of(tmp_path, f"data: {DATA.format(shards)}\n")
    code, out, _ = command("bench", config, "--images", 64, "--rounds", 1)
    assert code == 0
    assert "2 threads at" in out
    assert all(name in out for name in TARGETS)
    code, out, _ = command("bench", config, "--images", 64, "--rounds", 1, "--json")
    assert json.loads(out)["images"] == 64
