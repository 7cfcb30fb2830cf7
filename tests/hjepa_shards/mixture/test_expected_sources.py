from pathlib import Path
from typing import Any

import pytest

from hjepa_shards import DataConfig, expected_mixture, forecast, load_mixture
from hjepa_shards.errors import InputError
from tests.hjepa_shards.stand_in import save_stand_in


def mixture(root: Path, strategy: str, *sources: dict[str, Any], **more: Any) -> DataConfig:
    return DataConfig.model_validate({"root": str(root), "strategy": strategy, "sources": sources} | more)


def test_what_is_not_built_has_the_published_size_and_what_is_has_its_own(tmp_path: Path) -> None:
    save_stand_in(tmp_path, "cifar10", [700, 300])
    config = mixture(
        tmp_path, "concat", {"name": "cifar10"}, {"name": "stl10", "split": "unlabeled"}, {"name": "imagenet100"}
    )
    found, missing = expected_mixture(config, "test")
    sizes = {entry.name: entry.num_samples for entry in found.entries}
    assert sizes == {"cifar10": 1000, "imagenet100": 126_689, "stl10-unlabeled": 100_000}
    assert missing == ("imagenet100", "stl10-unlabeled")
    assert found.epoch_samples == 227_689


def test_the_images_that_ship_along_are_counted_as_a_build_finds_them(tmp_path: Path) -> None:
    found, missing = expected_mixture(mixture(tmp_path, "concat", {"name": "scattered"}, {"name": "digits"}), "test")
    assert {entry.name: entry.num_samples for entry in found.entries} == {"digits": 1347, "scattered": 8192}
    assert missing == ("digits", "scattered")


def test_a_plan_of_it_has_the_counts_of_the_built_mixture(tmp_path: Path) -> None:
    config = mixture(
        tmp_path, "weighted", {"name": "cifar10", "weight": 0.7}, {"name": "cifar100", "weight": {0: 0.3, 2: 0.9}}
    )
    before, _ = expected_mixture(config, "test")
    for name in ("cifar10", "cifar100"):
        save_stand_in(tmp_path, name, [999] * 50 + [50])
    built = load_mixture(config, "test")
    one, two = (forecast(each, epochs=3, global_batch=64) for each in (before, built))
    assert [(e.draws, e.passes, e.never_seen) for e in one.entries] == [
        (e.draws, e.passes, e.never_seen) for e in two.entries
    ]
    assert one.steps == two.steps
    assert expected_mixture(config, "test")[1] == ()


@pytest.mark.parametrize(
    "source", [{"name": "folder"}, {"name": "cifar10", "split": "tran"}, {"name": "mine", "split": "train"}]
)
def test_a_source_of_unknown_size_must_be_built_first(tmp_path: Path, source: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"test: .*manifest.json expected, not found; .*build it with"):
        expected_mixture(mixture(tmp_path, "concat", source), "test")
