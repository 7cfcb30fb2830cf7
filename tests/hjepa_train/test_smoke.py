"""Every family trains from its file in configs/smoke, and keeps the contract of objectives."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hjepa_shards import load_mixture
from hjepa_train import RunConfig, load_run_config, train
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.base.mixture_facts import Facts, facts_of
from hjepa_train.objectives.base import Batch, Objective
from hjepa_train.training.config import build_parts
from tests.checks import assert_objective_contract

SMOKE = sorted((Path(__file__).resolve().parents[2] / "configs" / "smoke").glob("*.yaml"))


def configured(path: Path, shards: Path, folder: Path) -> tuple[RunConfig, Facts]:
    config = load_run_config(path, [f"data.root={shards}", f"run.folder={folder}"])
    return config, facts_of(load_mixture(config.data, str(path)))


@pytest.mark.parametrize("path", SMOKE, ids=lambda path: path.stem)
def test_its_objective_keeps_the_contract(path: Path, shards: Path, tmp_path: Path) -> None:
    config, facts = configured(path, shards, tmp_path)

    def build() -> Objective:
        return build_parts(config, 40, str(path), facts)[1]

    size, num = config.data.image_size, 8
    generator, index = torch.Generator().manual_seed(0), torch.arange(num)
    first = torch.randn(num, 3, size, size, generator=generator)
    batch = Batch(images_BCHW=first, labels_B=index, positions_B=index, entry_B=index * 0, rows=num)
    others = tuple(first + 0.5 * first.roll(view, 0) for view in range(1, config.data.augmentation.views))
    assert_objective_contract(build, replace(batch, other_views=others))


@pytest.mark.parametrize("path", SMOKE, ids=lambda path: path.stem)
def test_it_trains_to_its_end(path: Path, shards: Path, tmp_path: Path) -> None:
    config, _ = configured(path, shards, tmp_path)
    run = train(config)
    losses = [row["loss"] for row in read_metrics(run / "metrics.jsonl")]
    assert all(torch.tensor(losses).isfinite())
    assert min(losses[-3:]) < losses[0]
    assert (run / "report.html").exists()
