from pathlib import Path
from typing import Any

import pytest

from hjepa_shards import expected_mixture
from hjepa_shards.errors import InputError
from hjepa_train import load_run_config
from hjepa_train.base import schedules
from hjepa_train.objectives.recipe import Recipe
from hjepa_train.objectives.registry import OBJECTIVES
from hjepa_train.training.config import RunConfig, TrainingConfig
from hjepa_train.training.optimizer import rates
from hjepa_train.training.recipe_values import RECIPE_KEYS, recipe_of, with_recipe
from hjepa_train.training.saved_config import resolved

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
ODD = Recipe(
    name="Odd",
    source="nowhere",
    lr_per_256=2e-3,
    schedule="step",
    min_lr=1e-5,
    step_at=(0.5,),
    step_factor=0.2,
    warmup_epochs=20,
    betas=(0.5, 0.6),
    eps=1e-6,
    weight_decay=(0.1, 0.2),
    clip_norm=3.0,
    layer_decay=0.7,
)


def training(**given: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"epochs": 300, "global_batch": 1024} | given)


def values(found: TrainingConfig) -> dict[str, Any]:
    return {key: getattr(found, key) for key in RECIPE_KEYS}


def test_every_key_that_the_file_leaves_out_is_the_recipes() -> None:
    expected = {key: getattr(ODD, key) for key in RECIPE_KEYS if key != "lr"} | {"lr": 8e-3}
    found = with_recipe(training(), ODD, "run.yaml")
    assert values(found) == expected
    assert found.lr_per_256 is None
    assert with_recipe(found, ODD, "run.yaml") == found, "filled in once"


def test_what_the_file_says_stays_also_where_it_says_none() -> None:
    given = {
        **{"lr": 5e-4, "schedule": "linear", "min_lr": 0.0, "warmup_epochs": None, "betas": [0.9, 0.95], "eps": 1e-7},
        **{"weight_decay": 0.0, "clip_norm": None, "layer_decay": None, "step_factor": 0.5, "step_at": []},
    }
    found = values(with_recipe(training(**given), ODD, "run.yaml"))
    assert found == given | {"betas": (0.9, 0.95), "step_at": ()}


@pytest.mark.parametrize(("given", "lr"), [({"lr_per_256": 1e-4}, 4e-4), ({"lr": 3e-4}, 3e-4), ({"lr": None}, 8e-3)])
def test_the_learning_rate_is_said_for_a_batch_or_for_256_images(given: dict[str, Any], lr: float) -> None:
    assert with_recipe(training(**given), ODD, "run.yaml").lr == pytest.approx(lr)


def test_a_recipes_warm_up_is_at_most_a_tenth_of_the_run() -> None:
    assert with_recipe(training(epochs=30), ODD, "run.yaml").warmup_epochs == 3
    assert with_recipe(training(epochs=30, warmup_epochs=20), ODD, "run.yaml").warmup_epochs == 20


def test_another_schedule_takes_nothing_that_it_does_not_read() -> None:
    constant = with_recipe(training(schedule="constant"), ODD, "run.yaml")
    assert (constant.min_lr, constant.step_at) == (0.0, ())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"schedule": "constant", "min_lr": 1e-6}, "training.min_lr: 0 expected with `schedule: constant`"),
        ({"lr": 1e-6}, "training.min_lr: at most the peak 1e-06 expected, 1e-05 found"),
        ({"schedule": "cosine", "step_at": [0.5]}, "training.step_at: none expected with `schedule: cosine`"),
        ({"step_at": []}, "training.step_at: a share of the run or more expected with `schedule: step`, none found"),
        ({"step_at": [0.8, 0.5]}, "training.step_at: rising shares expected"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"run.yaml: {said}"):
        with_recipe(training(**given), ODD, "run.yaml")


def with_objective(name: str, **given: Any) -> RunConfig:
    config = load_run_config(CONFIGS / "cifar10_cpu.yaml")
    return config.model_copy(update={"objective": {name: {}}, "training": training(**given)})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hjepa", {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.05, "warmup_epochs": None}),
        ("mae", {"lr": 6e-4, "betas": (0.9, 0.95), "weight_decay": 0.05, "warmup_epochs": 30}),
        ("simclr", {"lr": 6e-4, "betas": (0.9, 0.999), "weight_decay": 0.1, "warmup_epochs": 30}),
    ],
)
def test_a_family_brings_its_published_recipe(name: str, expected: dict[str, Any]) -> None:
    """MAE: PRETRAIN.md of facebookresearch/mae; SimCLR: MoCo v3's for a ViT; 300 epochs in batches of 1,024."""
    found = resolved(with_objective(name), "run.yaml").training
    assert {key: getattr(found, key) for key in expected} == expected
    rest = {"schedule": "cosine", "min_lr": 0.0, "eps": 1e-8, "clip_norm": None, "layer_decay": None, "step_at": ()}
    assert {key: getattr(found, key) for key in rest} == rest


def test_a_recipe_may_depend_on_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OBJECTIVES["mae"][1], "recipes_by_backbone", {"vit": ODD})
    assert recipe_of(with_objective("mae"), "run.yaml") is ODD
    assert resolved(with_objective("mae"), "run.yaml").training.clip_norm == 3.0


H_JEPAS = sorted(path for path in CONFIGS.glob("*.yaml") if "hjepa" in load_run_config(path).objective)


@pytest.mark.parametrize("path", H_JEPAS, ids=lambda path: path.stem)
def test_configurations_that_ship_have_the_numbers_that_they_had(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of H-JEPA in 2026-11: AdamW's own betas, a half cosine to 0, weight decay by the run's length."""
    monkeypatch.chdir(tmp_path)  # where nothing is built
    config = resolved(load_run_config(path), path.name)
    found = config.training
    mixture, _ = expected_mixture(config.data, path.name)
    num_steps = mixture.make_plan(0).num_steps(found.epochs, found.global_batch)
    warmup = schedules.warmup_steps(
        num_steps, found.warmup_epochs, epoch_samples=mixture.epoch_samples, global_batch=found.global_batch
    )
    lr, weight_decay = rates(found, num_steps=num_steps, warmup_steps=warmup)
    assert found.lr is not None
    assert found.lr == (1.25e-4 if path.stem == "imagenet100_m1max" else 1e-3)
    for step in (0, num_steps // 3, num_steps - 1):
        assert lr(step) == schedules.learning_rate(step, num_steps, peak=found.lr, warmup_steps=warmup)
        start, end = schedules.decay_by_length(num_steps)
        assert weight_decay(step) == pytest.approx(schedules.weight_decay(step, num_steps, start=start, end=end))
    assert (found.betas, found.eps, found.clip_norm, found.layer_decay) == ((0.9, 0.999), 1e-8, None, None)
