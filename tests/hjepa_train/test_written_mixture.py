"""What `hjepa-shards mix` writes is a run that the trainer takes as it is."""

from pathlib import Path
from typing import Any

import pytest

from hjepa_shards import DataConfig, load_mixture
from hjepa_shards.config import load_yaml, parse
from hjepa_shards.mixture.write_mixture import SCALES, parse_source, write_mixture
from hjepa_train import load_run_config, train
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.training.config import build_parts
from tests.hjepa_shards.stand_in import save_stand_in


def write(path: Path, root: Path, sources: tuple[str, ...], **more: Any) -> Path:
    content = {
        "root": str(root),
        "strategy": "weighted",
        "sources": [parse_source(text).model_dump() for text in sources],
    }
    return write_mixture(path, parse(DataConfig, content | more, "test")).path


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_is_a_configuration_without_an_unknown_key(tmp_path: Path, scale: str) -> None:
    sources, epoch_samples = SCALES[scale]
    config = load_run_config(write(tmp_path / f"{scale}.yaml", tmp_path, sources, epoch_samples=epoch_samples))
    assert config.run.name == scale


@pytest.mark.parametrize("image_size", [8, 16, 24, 28, 32, 48, 64, 96, 112, 128, 192, 224, 256, 384, 448, 512])
def test_backbone_and_objective_can_be_built_at_any_size_that_is_written(tmp_path: Path, image_size: int) -> None:
    save_stand_in(tmp_path, "big", [120_000])
    path = write(tmp_path / "mine.yaml", tmp_path, ("big=1",), image_size=image_size)
    config = load_run_config(path)
    mixture = load_mixture(config.data, "test")
    num_steps = mixture.make_plan(0).num_steps(config.training.epochs, config.training.global_batch)
    objective = dict(config.objective)
    if image_size > 64:  # the same patches in a narrow encoder: what is tested is that levels and masks fit
        patch = config.backbone["vit"]["patch"]
        narrow = {"width": 24, "depth": 1, "heads": 1, "patch": patch}
        objective = {"hjepa": objective["hjepa"] | {"predictor": {"width": 24, "depth": 1, "heads": 1}}}
        config = config.model_copy(update={"backbone": {"vit": narrow}, "objective": objective})
    backbone, _ = build_parts(config, num_steps, "test")
    assert image_size % backbone.patch_size == 0


def test_a_written_run_trains(shards: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", shards, ("digits=0.7", "photos=0.3"), image_size=16)
    config = load_run_config(path)
    run = config.run.model_copy(update={"folder": tmp_path})
    config = config.model_copy(
        update={"run": run, "logging": config.logging.model_copy(update={"every_steps": 1, "tensorboard": False})}
    )
    folder = train(config, stop_after=2)
    last = read_metrics(folder / "metrics.jsonl")[-1]
    assert {name: source["target"] for name, source in last["sources"].items()} == {"digits": 0.7, "photos": 0.3}


def test_the_comments_are_comments(tmp_path: Path) -> None:
    sources, epoch_samples = SCALES["mini"]
    path = write(tmp_path / "mini.yaml", tmp_path, sources, epoch_samples=epoch_samples)
    bare = tmp_path / "bare.yaml"
    bare.write_text("\n".join(line.partition("#")[0] for line in path.read_text().splitlines()))
    assert load_yaml(bare) == load_yaml(path)
