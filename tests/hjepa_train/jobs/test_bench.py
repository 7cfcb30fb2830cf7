import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hjepa_shards import LoaderSpeed
from hjepa_shards.errors import InputError
from hjepa_train import load_run_config, train
from hjepa_train.base import device_peaks
from hjepa_train.base.device_peaks import Machine
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.base.phase_clock import PHASES
from hjepa_train.checkpoints.background_saver import restore
from hjepa_train.checkpoints.checkpoint_files import latest, load
from hjepa_train.jobs import bench as bench_module
from hjepa_train.jobs.bench import WARM_UP, Bench, bench
from hjepa_train.training.config import build_parts
from hjepa_train.training.optimizer import build_optimizer
from tests.hjepa_train.tiny import STEPS, tiny_run

MEASURED = 12


@pytest.fixture(scope="module")
def measured(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Path]:
    """(a bench of the tiny run, its folder); hers is the slowest part, so it is done once."""
    folder = tmp_path_factory.mktemp("bench")
    return bench(load_run_config(tiny_run(shards, folder)), steps=MEASURED), folder


def test_the_phases_add_up_to_a_free_step(measured: tuple[Bench, Path]) -> None:
    """Within 20%; other work on this machine may slow one of the two ways, but not each time."""
    found, folder = measured
    apart = []
    for _ in range(10):
        assert len(found.step_s) == len(found.waited_s) == len(found.phases_s) == MEASURED
        assert all(set(step) == set(PHASES) for step in found.phases_s)
        apart.append(min(sum(step.values()) for step in found.phases_s) / min(found.step_s))
        if 0.8 < apart[-1] < 1.2:
            return
        found = bench(load_run_config(folder / "run.yaml"), steps=MEASURED)
    raise AssertionError(apart)


def test_numbers_are_positive_and_follow_from_each_other(measured: tuple[Bench, Path]) -> None:
    found, _ = measured
    assert all(seconds > 0 for step in found.phases_s for seconds in step.values())
    assert 0 < found.data_wait < 1
    assert 0 < found.mfu < 1
    middle = sorted(found.step_s)[MEASURED // 2 - 1 : MEASURED // 2 + 1]
    assert found.images_per_s == pytest.approx(16 / (sum(middle) / 2))
    assert found.limit == found.peak / found.flops_per_image
    assert 1e9 < found.peak < 1e13
    assert found.loader.loader > found.images_per_s
    assert found.peak_memory is None


def test_a_bench_leaves_nothing_in_the_folder_of_runs(measured: tuple[Bench, Path]) -> None:
    _, folder = measured
    assert {inner.name for inner in folder.iterdir()} == {"run.yaml"}


def test_its_steps_are_those_of_the_run(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights after the free pass are those of a run that stops there, bit for bit."""
    config = load_run_config(tiny_run(shards, tmp_path, training__global_batch=16, training__micro_batch=8))
    seen: list[dict[str, torch.Tensor]] = []
    original = bench_module.drive

    def watched(config: Any, mixture: Any, objective: Any, *rest: Any, **options: Any) -> Any:
        steps = original(config, mixture, objective, *rest, **options)
        seen.append({name: value.clone() for name, value in objective.state_dict().items()})
        return steps

    monkeypatch.setattr(bench_module, "drive", watched)
    bench(config, steps=9)
    folder = train(config, stop_after=WARM_UP + 3)
    _, objective = build_parts(config, STEPS, "test")
    newest = latest(folder / "checkpoints")
    assert newest
    restore(load(newest), objective, build_optimizer(objective, config.training))
    for name, value in objective.state_dict().items():
        assert torch.equal(value, seen[0][name]), name
    assert len(seen) == 6
    assert read_metrics(folder / "metrics.jsonl")


def test_a_known_device_has_its_peak_and_its_name(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Machine(name="Here 1", pattern="cpu", bf16=1e12, fp32=3e12, target=(10, 20))
    monkeypatch.setattr(device_peaks, "MACHINES", (here,))
    monkeypatch.setattr(bench_module, "MACHINES", (here,))
    found = bench(load_run_config(tiny_run(shards, tmp_path)), steps=3)
    assert (found.hardware, found.peak, found.targets) == ("Here 1", 3e12, {"Here 1": (10, 20)})
    assert found.name == f"train_tiny_here-1_{found.date}"


def test_more_steps_than_the_run_has_are_refused(shards: Path, tmp_path: Path) -> None:
    config = load_run_config(tiny_run(shards, tmp_path))
    with pytest.raises(InputError, match=rf"--steps 94: at most {3 * (STEPS - WARM_UP)} expected"):
        bench(config, steps=94)


def test_ranks_are_refused(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="one process expected"):
        bench(load_run_config(tiny_run(shards, tmp_path)), steps=3)


def test_json_is_complete(measured: tuple[Bench, Path]) -> None:
    found, _ = measured
    read = json.loads(json.dumps(found.as_json()))
    assert set(read) >= {name for name in Bench.__dataclass_fields__}
    assert set(read["loader"]) == set(LoaderSpeed.__dataclass_fields__)
    assert read["images_per_s"] == found.images_per_s
    assert set(read["phase_medians_s"]) == set(PHASES)
    assert read["config"]["backbone"]["vit"]["width"] == 24
    assert {"torch", "cpu", "threads", "numpy", "usable cores", "precision"} <= set(read["facts"])
