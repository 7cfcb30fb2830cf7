"""Probes during a run: when, of what, as good as `eval` says, and without a trace in the training."""

import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hjepa_shards import manifest_at
from hjepa_shards.errors import InputError
from hjepa_train import evaluate, load_run_config, train
from hjepa_train.backbones.base import Backbone
from hjepa_train.base.distributed import joined
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.checkpoints.checkpoint_files import best, latest, load, read_state
from hjepa_train.data import labelled_images
from hjepa_train.data.labelled_images import EvaluationConfig
from hjepa_train.evaluation import online_probes
from hjepa_train.evaluation.online_probes import OnlineProbes, find_labels
from hjepa_train.training.config import RunConfig, build_parts
from tests.hjepa_shards.loader.test_elastic import damage
from tests.hjepa_train.test_ranks import environment, train_main, train_ranks
from tests.hjepa_train.tiny import STEPS, tiny_run

NAMES = ["knn_online", "knn_target", "ridge_online", "ridge_target"]


def settings(**changes: Any) -> dict[str, Any]:
    return {"source": "digits", "bank": 150, "test": 50, "crop_share": 1, **changes}


def often(**changes: Any) -> dict[str, Any]:
    """After the first update, every 9, and the last."""
    return settings(during_every_epochs=0.5, **{"during_bank": 60, "during_test": 40, **changes})


def probed(run: Path) -> dict[int, dict[str, float]]:
    """What was found, by the number of updates."""
    rows = read_metrics(run / "metrics.jsonl")
    return {row["step"] + 1: {name: row[name] for name in NAMES} for row in rows if "knn_target" in row}


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved = latest(run / "checkpoints")
    assert saved is not None
    return load(saved).model


BEST = {"training__keep_best": "knn_target", "training__keep_checkpoints": 1}


@pytest.fixture(scope="module")
def with_it(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was probed often and keeps its best checkpoint. For reading only."""
    return train(load_run_config(tiny_run(shards, tmp_path_factory.mktemp("with"), evaluation=often(), **BEST)))


@pytest.fixture
def probed_run(with_it: Path, tmp_path: Path) -> Path:
    """The same, to write into."""
    return Path(shutil.copytree(with_it, tmp_path / "tiny"))


def test_training_is_the_same_to_the_bit_with_and_without(shards: Path, tmp_path: Path, with_it: Path) -> None:
    without = train(load_run_config(tiny_run(shards, tmp_path, evaluation=settings(during_every_epochs=0))))
    assert probed(without) == {}
    assert list(probed(with_it)) == [1, 9, 18, 27, 36]
    ours, theirs = weights(with_it), weights(without)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for left, right in zip(*(read_metrics(run / "metrics.jsonl") for run in (with_it, without)), strict=True):
        for noise in ("images_per_s", "data_wait", *NAMES):
            left.pop(noise, None), right.pop(noise, None)
        assert left == right


def test_it_finds_what_eval_finds_with_the_same_images(probed_run: Path) -> None:
    rows = {row["features"]: row for row in evaluate(probed_run, probes=("knn", "ridge"), bank=60, test=40)["rows"]}
    found = probed(probed_run)[STEPS]
    assert found["knn_target"] == rows["target"]["knn"]
    assert found["knn_online"] == rows["online"]["knn"]
    assert found["ridge_target"] == rows["target"]["ridge"]


def test_a_resumed_run_probes_at_the_same_steps(shards: Path, tmp_path: Path, with_it: Path) -> None:
    config = load_run_config(tiny_run(shards, tmp_path, evaluation=often(), **BEST))
    for stop_after in (8, 20):
        train(config, resume="auto", stop_after=stop_after)
    assert probed(train(config, resume="auto")) == probed(with_it)


def test_it_falls_on_the_first_log_point_of_each_interval(shards: Path, tmp_path: Path) -> None:
    config = tiny_run(shards, tmp_path, evaluation=often(), logging={"every_steps": 4, "tensorboard": False})
    run = train(load_run_config(config))
    assert list(probed(run)) == [1, 9, 21, 29, 36]  # log points are 1, 5, 9 ..; intervals begin at 9, 18, 27, 36


def troubled_main(number: int, folder: str) -> None:
    """Train. Rank 0 takes 12 s over the first probe; a device of rank 1 is full in the second one, and a matrix of
    rank 0 is singular in the third."""
    encodings, fits = itertools.count(), itertools.count()
    encode, fit = online_probes.pooled_features, online_probes.ridge_probe

    def encode_slowly(*given: Any) -> torch.Tensor:
        call = next(encodings)
        if number == 0 and call < 4:
            time.sleep(3)
        if number == 1 and call == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return encode(*given)

    def fit_or_fail(*given: Any) -> tuple[float, float]:
        if number == 0 and next(fits) == 2:
            torch.linalg.cholesky(-torch.eye(2))
        return fit(*given)

    online_probes.pooled_features, online_probes.ridge_probe = encode_slowly, fit_or_fail
    file = os.open(f"{folder}/printed-{number}", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    train_main(number, folder)


def test_two_ranks_survive_a_probe_that_is_slow_on_one_and_probes_that_fail_on_one(
    shards: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        shards, tmp_path, evaluation=often(), training__keep_best="knn_target", training__ranks_timeout_s=6
    )
    assert train_ranks(config, 2, main=troubled_main) == []
    run = tmp_path / "tiny"
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == list(range(STEPS))
    assert list(probed(run)) == [1, 27, 36]
    printed = (tmp_path / "printed-0").read_text()
    assert "no probe after step 9: rank 1: online: the memory of this machine or of its device is full; set" in printed
    assert "no probe after step 18: online: features whose product can be inverted expected, a" in printed
    assert "no probe" not in (tmp_path / "printed-1").read_text()
    rows = {row["features"]: row for row in evaluate(run, probes=("knn", "ridge"), bank=60, test=40)["rows"]}
    assert probed(run)[STEPS]["knn_online"] == rows["online"]["knn"]
    assert probed(run)[STEPS]["ridge_target"] == rows["target"]["ridge"]
    found = probed(run)
    top = best(run / "checkpoints", "knn_target")
    assert top is not None
    assert top[0].name == f"step-{max(found, key=lambda one: (found[one]['knn_target'], -one)):08d}"


def untrained_probes(config: RunConfig, folder: Path) -> OnlineProbes:
    """Of the encoders that the run begins with."""
    _, objective = build_parts(config, STEPS, "test")
    return OnlineProbes(
        find_labels(config.data, config.evaluation, steps_per_epoch=18, global_batch=16),
        objective,
        config.data,
        config.evaluation,
        num_steps=STEPS,
        log_every=1,
        checkpoints=folder / "nothing is here",
        keep_best="knn_target",
        say=print,
    )


def probe_main(number: int, folder: str) -> None:
    """Probe as one of several ranks."""
    task: dict[str, Any] = torch.load(f"{folder}/task")
    os.environ.update(environment(number, task["world"], task["port"]))
    labelled_images.BATCH = online_probes.BATCH = 8  # in a process of its own
    with joined(torch.device("cpu"), 30):
        values = untrained_probes(load_run_config(Path(folder) / "run.yaml"), Path(folder))(1)
        (Path(folder) / f"found-{task['world']}-{number}").write_text(json.dumps(values))


def test_one_rank_two_and_four_find_the_same(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run(shards, tmp_path, evaluation=often(during_bank=61, during_test=43))
    for module in (labelled_images, online_probes):
        monkeypatch.setattr(module, "BATCH", 8)
    alone = untrained_probes(load_run_config(config), tmp_path)(1)
    assert sorted(alone[0]) == NAMES
    for world in (2, 4):
        train_ranks(config, world, main=probe_main)
        found = [json.loads((tmp_path / f"found-{world}-{number}").read_text()) for number in range(world)]
        assert found == [list(alone)] * world


def test_by_default_it_takes_a_small_share_of_the_images(shards: Path) -> None:
    data = load_run_config(Path("configs/quickstart.yaml")).data.model_copy(update={"root": str(shards)})
    default = EvaluationConfig(source="digits", during_bank=100, during_test=20)
    test = min(20, manifest_at(shards / "digits" / "test").num_samples)
    found = find_labels(data, default, steps_per_epoch=18, global_batch=16)
    assert found is not None
    assert (found.source, found.split, found.bank, found.test) == ("digits", "test", 100, test)
    assert found.every == 18 * 9  # 2,400 images are 150 steps of 16, and so 9 whole epochs
    found = find_labels(data, default, steps_per_epoch=1000, global_batch=16)
    assert found is not None
    assert found.every == 1000


@pytest.mark.parametrize("source", ["photos", "scattered", "nowhere"])  # no test split, or not built
def test_without_labels_it_is_silent_by_default_and_refused_where_it_was_requested(
    shards: Path, tmp_path: Path, source: str
) -> None:
    run = train(load_run_config(tiny_run(shards, tmp_path / "a", evaluation=settings(source=source))), stop_after=2)
    assert probed(run) == {}
    wanting = load_run_config(tiny_run(shards, tmp_path / "b", evaluation=often(source=source)))
    with pytest.raises(InputError, match=f"{source}.*expected"):
        train(wanting)
    assert not (tmp_path / "b" / "tiny").exists()


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        (often(), r"training.keep_best: one of knn_online, knn_target, ridge_online, ridge_target expected, knn found"),
        (settings(source="photos"), "training.keep_best: knn: a labelled source to probe during the run expected"),
    ],
)
def test_a_best_that_nothing_measures_is_refused(
    shards: Path, tmp_path: Path, evaluation: dict[str, Any], said: str
) -> None:
    config = load_run_config(tiny_run(shards, tmp_path, evaluation=evaluation, training__keep_best="knn"))
    with pytest.raises(InputError, match=said):
        train(config)
    assert not (tmp_path / "tiny").exists()


def test_damaged_images_of_the_probe_do_not_end_the_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(shards, tmp_path / "shards"))
    config = load_run_config(tiny_run(root, tmp_path / "run", evaluation=often()))
    train(config, stop_after=3)
    damage(root, {"digits": [(0, 40)]})
    run = train(config, resume="auto", stop_after=10)
    assert list(probed(run)) == [1]
    assert "no probe after step 9: " in capfd.readouterr().out


def test_the_best_checkpoint_stays_and_says_its_value(probed_run: Path) -> None:
    run, found = probed_run, probed(probed_run)
    step = max(found, key=lambda one: (found[one]["knn_target"], -one))
    top = best(run / "checkpoints", "knn_target")
    assert top is not None
    assert top[0].name == f"step-{step:08d}"
    assert read_state(top[0])["probe"] == found[step]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {top[0].name, f"step-{STEPS:08d}"}
    *_, target = evaluate(run, probes=("knn",), which="best", bank=60, test=40)["rows"]
    assert found[step]["knn_target"] == target["knn"]


def test_the_best_is_known_before_its_checkpoint_is_on_the_disk(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_run_config(tiny_run(shards, tmp_path, evaluation=often()))
    watch = untrained_probes(config, tmp_path)
    found = iter([30.0, 40.0, 35.0, 41.0])
    monkeypatch.setattr(OnlineProbes, "_probe", lambda self: {"knn_target": next(found)})
    assert [watch(step)[1] for step in (1, 9, 18, 27)] == [True, True, False, True]


def test_encoders_are_in_evaluation_mode_and_values_that_are_not_finite_are_written_as_null_and_are_never_the_best(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = online_probes.pooled_features

    def broken(encoder: Backbone, *given: Any) -> torch.Tensor:
        assert not any(part.training for part in encoder.modules())
        return honest(encoder, *given) * float("nan")

    monkeypatch.setattr(online_probes, "pooled_features", broken)
    run = train(
        load_run_config(tiny_run(shards, tmp_path, evaluation=often(), training__keep_best="knn_target")), stop_after=3
    )
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert row["knn_target"] is None
    assert best(run / "checkpoints", "knn_target") is None
