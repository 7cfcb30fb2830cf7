"""Runs from the command line, as a user types them: stopped and resumed, refused where they must be.

Killed with -9: tests/hjepa_train/test_kill_points.py.
"""

import hashlib
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hjepa_shards.errors import InputError, ResumeMismatch
from hjepa_train import evaluate, load_run_config, train
from hjepa_train.base.device import devices_here
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.checkpoints.checkpoint_files import latest, read_state
from hjepa_train.cli import _AFTER_CTRL_C, app, main
from hjepa_train.training.saved_config import resolved
from tests.conftest import Command, in_this_process
from tests.hjepa_shards.storage.bad_server import serving
from tests.hjepa_train.checkpoints.test_untrusted_checkpoints import sealed
from tests.hjepa_train.tiny import PROBED, STEPS, tiny_run
from tests.processes import forked


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """hjepa-train in this process, where PyTorch is there already: exit code, stdout, stderr."""
    return in_this_process("hjepa-train", main, monkeypatch, capfd)


def column(run: Path) -> list[tuple[int, float, float, str]]:
    """What must be equal to the bit, of every step."""
    return [(row["step"], row["loss"], row["grad_norm"], row["proof"]) for row in read_metrics(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, never interrupted. For reading only."""
    return train(load_run_config(tiny_run(shards, tmp_path_factory.mktemp("whole"), logging__tensorboard=True)))


def test_a_run_stopped_at_a_step_and_resumed_equals_the_uninterrupted_one(
    shards: Path, tmp_path: Path, whole: Path
) -> None:
    config = load_run_config(tiny_run(shards, tmp_path))
    for stop_after in (10, 11, 30):
        train(config, resume="auto", stop_after=stop_after)
    assert column(train(config, resume="auto")) == column(whole)


LOGGING = {"every_steps": 10, "images_every": 0, "tensorboard": False}


def test_a_run_stopped_between_log_points_reports_its_last_step_and_resumes_as_if_never_stopped(
    shards: Path, tmp_path: Path, command: Command
) -> None:
    whole = train(load_run_config(tiny_run(shards, tmp_path / "a", logging=LOGGING)))
    path, run = tiny_run(shards, tmp_path / "b", logging=LOGGING), tmp_path / "b" / "tiny"
    _, out, _ = command("run", path, "--stop-after", 17)
    said = " ".join(out.split())
    assert "stopped after step 17 of 36, saved" in said
    assert f"After step 17. Order proof after {17 * 16} images" in said
    assert f"{run / 'report.md'}, report.html" in out
    *logged, last = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in logged] == [0, 10]
    assert (last["step"], last["position"], last["stopped"]) == (16, 17 * 16, True)
    assert last["loss"] != logged[-1]["loss"]
    assert "rho_l0" not in last
    assert {name: row["count"] for name, row in last["sources"].items()} == {"digits": 204, "photos": 68}
    assert "After step 17." in (run / "report.md").read_text()
    assert "2 of 2" not in (run / "report.md").read_text().partition("**Alarms**")[2]
    assert "<dd>17</dd>" in (run / "report.html").read_text()
    train(load_run_config(path), resume="auto", stop_after=21)  # a log point: no line of its own
    assert [row.get("stopped") for row in read_metrics(run / "metrics.jsonl")] == [None] * 3
    assert column(train(load_run_config(path), resume="auto")) == column(whole)
    rows, expected = (read_metrics(folder / "metrics.jsonl") for folder in (run, whole))
    assert [(row["alarms"], row["judged"], set(row)) for row in rows] == [
        (row["alarms"], row["judged"], set(row)) for row in expected
    ]


def test_tensorboard_is_named_only_where_there_is_one(
    shards: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {"every_steps": 10, "images_every": 0, "tensorboard": True}
    path = tiny_run(shards, tmp_path, logging=written)
    assert f"tensorboard --logdir {tmp_path / 'tiny' / 'tensorboard'}\n" in command("run", path, "--stop-after", 1)[1]
    resumed = ("run", path, "--resume", "auto", "--stop-after")
    assert "--logdir" not in command(*resumed, 2, "--set", "logging.tensorboard=false")[1]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    code, out, err = command(*resumed, 3)
    assert (code, err) == (0, "")
    assert "--logdir" not in out
    assert "tensorboard is not installed, so nothing is written for it: pip install 'hjepa[train]'" in out


def test_every_command_says_what_is_true_of_it_after_ctrl_c(
    shards: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert set(_AFTER_CTRL_C) == {info.name for info in app.registered_commands}
    monkeypatch.setattr("hjepa_train.training.config.load_run_config", interrupt)
    path = tiny_run(shards, tmp_path)
    continues = "interrupted; `hjepa-train run ... --resume auto` continues from the last checkpoint\n"
    assert command("run", path) == (130, "", continues)
    again = "interrupted; nothing is half done; the same command begins again\n"
    assert command("run", path, "--dry-run") == command("bench", path) == (130, "", again)
    monkeypatch.setattr("hjepa_train.jobs.evaluate.evaluate_all", interrupt)
    assert command("eval", path)[2] == "interrupted; the same command continues after the last finished probe\n"


def test_ctrl_c_saves_the_step_under_way_and_the_run_goes_on_from_there(shards: Path, tmp_path: Path) -> None:
    config, run = tiny_run(shards, tmp_path), tmp_path / "tiny"
    with forked("hjepa-train", "run", config, said=tmp_path / "said") as process:
        while process.poll() is None and not (run / "metrics.jsonl").exists():
            time.sleep(0.03)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said.decode()
    assert said == b"interrupted; `hjepa-train run ... --resume auto` continues from the last checkpoint\n"
    saved = latest(run / "checkpoints")
    assert saved is not None
    reached = read_metrics(run / "metrics.jsonl")[-1]["step"] + 1
    assert saved.name == f"step-{reached:08}"  # every step is logged here
    assert reached < STEPS
    assert f"<dd>{reached}</dd>" in (run / "report.html").read_text()
    assert f"After step {reached}." in (run / "report.md").read_text()
    train(load_run_config(config), resume="auto", stop_after=reached + 2)
    assert [row[0] for row in column(run)] == list(range(reached + 2))


def test_a_stop_that_is_after_the_run_is_refused_and_a_refused_run_leaves_no_folder(
    shards: Path, tmp_path: Path
) -> None:
    config = load_run_config(tiny_run(shards, tmp_path))
    train(config, stop_after=20)
    with pytest.raises(InputError, match="--stop-after 20: a step after 20 expected"):
        train(config, resume="auto", stop_after=20)
    momentum = config.model_copy(
        update={
            "run": config.run.model_copy(update={"name": "other"}),
            "objective": {"hjepa": config.objective["hjepa"] | {"momentum": 0.9999}},
        }
    )
    with pytest.raises(InputError, match=r"mine.yaml: objective.hjepa.momentum: "):
        train(momentum, where="mine.yaml")
    assert not (tmp_path / "other").exists()


def test_a_device_that_is_not_here_is_refused_and_leaves_no_folder(shards: Path, tmp_path: Path) -> None:
    absent = next(name for name in ("mps", "cuda") if name not in devices_here())
    path = tiny_run(shards, tmp_path, training__device=absent)
    with pytest.raises(InputError, match=f"training.device: {absent}: auto or one of .*cpu expected on this machine"):
        train(load_run_config(path))
    assert not (tmp_path / "tiny").exists()


def test_thread_count_of_the_loader_and_micro_checkpoints_do_not_change_the_losses(
    shards: Path, tmp_path: Path
) -> None:
    one = train(load_run_config(tiny_run(shards, tmp_path / "a", data__threads=1)), stop_after=12)
    two = train(
        load_run_config(tiny_run(shards, tmp_path / "b", data__threads=3, training__save_every_steps=2)), stop_after=12
    )
    assert column(one) == column(two)


def test_a_finished_run_has_the_files_and_facts_that_its_folder_promises(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "tiny"))
    evaluation = evaluate(run)
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "report.md",
        "evaluation.json",
        "checkpoints",
        "tensorboard",
    }
    assert [row["features"] for row in evaluation["rows"]] == ["raw pixels", "PCA-30", "untrained", "online", "target"]
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert last["position"] == 16 * STEPS
    assert {name: row["count"] for name, row in last["sources"].items()} == {"digits": 12 * STEPS, "photos": 4 * STEPS}
    assert len(list((run / "checkpoints").iterdir())) == 2
    newest = latest(run / "checkpoints")
    assert newest
    assert read_state(newest)["loader"]["position"] == 16 * STEPS
    written = load_run_config(run / "config.yaml")
    assert written == resolved(load_run_config(whole.parent / "run.yaml"), "run.yaml")
    assert written.objective["hjepa"]["num_blocks"] == 4, "what was left to its default too"


def test_the_untrained_row_is_the_encoder_that_the_run_began_with(shards: Path, tmp_path: Path) -> None:
    still = train(
        load_run_config(tiny_run(shards, tmp_path, training__lr=1e-12, training__weight_decay=0.0)), stop_after=7
    )
    rows = {row["features"]: row for row in evaluate(still, probes=("knn",), bank=60)["rows"]}
    assert rows["untrained"]["knn"] == rows["online"]["knn"] == rows["target"]["knn"]


def test_a_run_on_shards_at_a_url_is_the_run_on_the_folder(shards: Path, tmp_path: Path) -> None:
    with serving() as server:
        for path in shards.rglob("*"):
            if path.is_file():
                server.files[str(path.relative_to(shards))] = path.read_bytes()
        far = train(load_run_config(tiny_run(shards, tmp_path / "far", data__root=server.url())), stop_after=4)
        there = evaluate(far, probes=("knn",), bank=60)
    near = train(load_run_config(tiny_run(shards, tmp_path / "near")), stop_after=4)
    assert column(far) == column(near)
    assert there == evaluate(near, probes=("knn",), bank=60)


def test_an_objective_of_one_view_refuses_several(shards: Path, tmp_path: Path) -> None:
    config = load_run_config(tiny_run(shards, tmp_path, data__augmentation={"views": 2}))
    with pytest.raises(InputError, match=r"data.augmentation.views: 1 expected.*2 found"):
        train(config)
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"training__lr": 2e-3}, "training.lr"),
        ({"training__global_batch": 32}, "training.global_batch"),
        ({"training__micro_batch": 8}, "training.micro_batch"),
        ({"objective__hjepa": {"levels": 1, "momentum": 0.8}}, "objective.hjepa.levels"),
        ({"data__augmentation": {"horizontal_flip": False}}, "data.augmentation.horizontal_flip"),
    ],
)
def test_resuming_with_another_recipe_is_refused_by_name(
    shards: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    train(load_run_config(tiny_run(shards, tmp_path)), stop_after=2)
    with pytest.raises(ResumeMismatch, match=named):
        train(load_run_config(tiny_run(shards, tmp_path, **change)), resume="auto")


def test_a_checkpoint_from_before_a_key_continues_with_its_default_alone(shards: Path, tmp_path: Path) -> None:
    run = train(load_run_config(tiny_run(shards, tmp_path)), stop_after=2)
    saved = latest(run / "checkpoints")
    assert saved is not None
    state = json.loads((saved / "state.json").read_text())
    del state["config"]["data"]["augmentation"]["blur"]
    (saved / "state.json").write_text(json.dumps(state))
    files = json.loads((saved / "files.json").read_text())
    text = (saved / "state.json").read_bytes()
    files["state.json"] = {"bytes": len(text), "blake2b": hashlib.blake2b(text).hexdigest()}
    (saved / "files.json").write_text(json.dumps(files))
    with pytest.raises(ResumeMismatch, match=r"data.augmentation.blur: 0.0 saved, 0.5 here"):
        train(load_run_config(tiny_run(shards, tmp_path, data__augmentation={"blur": 0.5})), resume="auto")
    train(load_run_config(tiny_run(shards, tmp_path)), resume="auto", stop_after=4)
    assert len(read_metrics(run / "metrics.jsonl")) == 4


def test_resuming_with_other_weights_is_refused_and_continues_where_accepted(shards: Path, tmp_path: Path) -> None:
    train(load_run_config(tiny_run(shards, tmp_path)), stop_after=4)
    other = [{"name": "digits", "weight": 0.5}, {"name": "photos", "weight": 0.5}]
    changed = load_run_config(tiny_run(shards, tmp_path, data__sources=other))
    with pytest.raises(ResumeMismatch, match="weights"):
        train(changed, resume="auto")
    run = train(changed, resume="auto", stop_after=8, accept_mixture=True)
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert {name: row["count"] for name, row in last["sources"].items()} == {"digits": 48 + 32, "photos": 16 + 32}


def test_a_folder_with_checkpoints_is_not_overwritten_by_accident(shards: Path, tmp_path: Path) -> None:
    config = load_run_config(tiny_run(shards, tmp_path))
    train(config, stop_after=1)
    with pytest.raises(InputError, match="--resume auto"):
        train(config)
    with pytest.raises(InputError, match=r"--resume xyz: `auto` or the folder .* none found; .*checkpoints/step"):
        train(config, resume="xyz")
    for run_folder in (tmp_path / "tiny", tmp_path / "tiny" / "checkpoints"):
        with pytest.raises(InputError, match=r"one checkpoint expected, that of a run found; .*auto`, or .*step-0"):
            train(config, resume=str(run_folder))


def test_values_are_set_on_the_command_line(shards: Path, tmp_path: Path, command: Command) -> None:
    path = tiny_run(shards, tmp_path)
    changes = ["training.lr=1e-4", "data.sources.1.weight={0: .25, 2: 0}", "run.name=other"]
    arguments = [part for change in changes for part in ("--set", change)]
    code, _, said = command("run", path, *arguments, "--stop-after", 1)
    assert code == 0, said
    config = load_run_config(tmp_path / "other" / "config.yaml")
    assert config == resolved(load_run_config(path, changes), "run.yaml")
    assert (config.training.lr, config.data.sources[1].weight) == (1e-4, {0: 0.25, 2: 0})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.lr", "a key and a value expected"),
        ("training..lr=3", "a key and a value expected"),
        ("training.lr={", "a YAML value expected"),
        ("training.learning_rat=1", "learning_rat"),
        ("data.sources.7.weight=1", "a list of 2 is there"),
        ("training.lr.high=1", "training.lr, which is 0.001|lr"),
    ],
)
def test_wrong_values_on_the_command_line_are_refused(shards: Path, tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_run_config(tiny_run(shards, tmp_path, training__lr=1e-3), [change])


def test_a_run_without_a_terminal_says_lines(shards: Path, tmp_path: Path, command: Command) -> None:
    _, printed, _ = command("run", tiny_run(shards, tmp_path, evaluation=PROBED), "--stop-after", 12)
    line = rf"^step 0/{STEPS}  loss [\d.]+  ρ [\d.]+ gap -?[\d.]+  [\d,]+/s, waits \d+%  k-NN [\d.]+$"
    assert len(re.findall(line, printed, re.M)) == 1
    # a model as small as this predicts the position for most of the run: that is reported when it begins
    assert printed.count("predicts the position, not the image\n") == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"training__learning_rat": 1.0}, "learning_rat"),
        ({"objective__hjepa": {"level": 3}}, "levels"),
        ({"backbone__vitt": {}}, "exactly one"),
        ({"training__global_batch": -4}, "global_batch"),
    ],
)
def test_a_wrong_configuration_is_refused_by_the_key(
    shards: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        load_run_config(tiny_run(shards, tmp_path, **change))


def test_a_wrong_configuration_is_one_line_and_exit_code_2(shards: Path, tmp_path: Path, command: Command) -> None:
    code, _, said = command("run", tiny_run(shards, tmp_path, training__learning_rat=1.0))
    assert code == 2
    assert said.count("\n") == 1
    assert "learning_rat" in said
    assert not (tmp_path / "tiny").exists()


def test_a_diverging_run_stops_by_name(shards: Path, tmp_path: Path) -> None:
    config = load_run_config(tiny_run(shards, tmp_path, training__lr=1e30, training__warmup_epochs=0.0))
    with pytest.raises(InputError, match="diverged"):
        train(config)


EDITS: dict[str, dict[str, Any]] = {
    "a position beyond 2^63": {"loader": {"position": 2**70}},
    "a text for draws": {"loader": {"segment": {"draws": ["1", "2"]}}},
    "a proof of another length": {"loader": {"proof": "0" * 31}},
    "a damaged sample below 0": {"loader": {"damaged": {"digits": [-1]}}},
    "a loader that is a list": {"loader": []},
    "no ranks": {"recipe": {"world_size": 0}},
    "alarms of texts": {"alarms": {"reference": {"sd": "x"}}},
    "a config that is a text": {"config": "x"},
    "a micro-batch that is a text": {"config": {"training": {"micro_batch": "x"}}},
    "a scale that is none": {"scaler": {"scale": "1"}},
}


def merged(content: Any, changes: Any) -> Any:
    if not isinstance(changes, dict) or not isinstance(content, dict):
        return changes
    return {**content, **{key: merged(content.get(key), value) for key, value in changes.items()}}


@pytest.fixture(scope="module")
def begun(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    return train(load_run_config(tiny_run(shards, tmp_path_factory.mktemp("run"))), stop_after=3)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_state_is_one_line(begun: Path, tmp_path: Path, edit: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(begun, tmp_path / "runs" / "tiny"))
    checkpoint = latest(folder / "checkpoints")
    assert checkpoint is not None
    state = json.loads((checkpoint / "state.json").read_bytes())
    (checkpoint / "state.json").write_text(json.dumps(merged(state, edit)))
    sealed(checkpoint)
    config = load_run_config(folder / "config.yaml", [f"run.folder={tmp_path / 'runs'}"])
    with pytest.raises(InputError) as refused:
        train(config, resume="auto", stop_after=5)
    assert "\n" not in str(refused.value)


def test_alarms_of_a_run_whose_signals_were_those_of_a_micro_batch_take_a_new_reference_and_say_so(
    begun: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    says = "alarms take a new reference at the next log point"
    folder = Path(shutil.copytree(begun, tmp_path / "runs" / "tiny"))
    checkpoint = latest(folder / "checkpoints")
    assert checkpoint is not None
    state = json.loads((checkpoint / "state.json").read_bytes())
    state["alarms"] = {"reference": {"sd": 99.0, "rankme": 99.0}, "in_a_row": {"features shrink": 7}}
    (checkpoint / "state.json").write_text(json.dumps(state))
    sealed(checkpoint)
    config = load_run_config(folder / "config.yaml", [f"run.folder={tmp_path / 'runs'}"])
    train(config, resume="auto", stop_after=5)
    assert says in " ".join(capfd.readouterr().out.split())
    *_, resumed, last = read_metrics(folder / "metrics.jsonl")
    assert resumed["judged"]
    assert resumed["alarms"] == last["alarms"] == []
    saved = latest(folder / "checkpoints")
    assert saved is not None
    assert read_state(saved)["alarms"]["reference"] == {name: resumed[name] for name in ("sd", "rankme")}
    train(config, resume="auto", stop_after=6)
    assert says not in " ".join(capfd.readouterr().out.split())
