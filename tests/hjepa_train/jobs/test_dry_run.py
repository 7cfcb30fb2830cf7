import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hjepa_shards.errors import InputError
from hjepa_train import dry_run, load_run_config, train
from hjepa_train.base.device import devices_here
from hjepa_train.base.device_peaks import machines_named
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.cli import main
from hjepa_train.jobs.dry_run import ASSUMED_MFU, SpeedHere, as_tables, hours_table
from hjepa_train.training.config import build_parts
from tests.conftest import Command, in_this_process
from tests.hjepa_train.tiny import PROBED, STEPS, tiny_run

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SHIPPED: dict[str, tuple[int, float, dict[str, int]]] = {
    "quickstart": (615, 0.14, {"digits": 1_965, "photos": 983, "scattered": 6_879}),
    "cifar": (3_125, 0.16, {"cifar10": 50_000, "cifar100": 50_000}),
    "cifar10_cpu": (2_344, 0.14, {"cifar10": 50_000}),
    "cifar10": (58_594, 1.64, {"cifar10": 50_000}),
    "cifar10_supervised_cpu": (1_563, 0.03, {"cifar10": 50_000}),
    "cifar10_linear_cpu": (391, 0.19, {"cifar10": 50_000}),
    "cifar10_finetune_cpu": (782, 0.19, {"cifar10": 50_000}),
    "stl10": (78_125, 16.38, {"stl10-unlabeled": 100_000}),
    "imagenet100": (148_464, 22.74, {"imagenet100": 126_689}),
    "imagenet100_m1max": (395_904, 22.74, {"imagenet100": 126_689}),
    "imagenet100_multi": (108_082, 22.74, {"cifar10": 27_669, "imagenet100": 193_682, "stl10-unlabeled": 55_338}),
    "foundation_mini": (107_813, 22.74, {"cifar100": 27_600, "imagenet100": 165_600, "stl10-unlabeled": 82_800}),
    "foundation_medium": (134_880, 87.45, {"imagenet": 1_243_050, "stl10-unlabeled": 138_117}),
    "foundation_large": (89_356, 267.65, {"coco": 366_000, "imagenet": 1_281_000, "places365": 183_000}),
}
"""Steps, GFLOP an image (FlopCounterMode's count), images of each source an epoch."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return in_this_process("hjepa-train", main, monkeypatch, capfd)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_config_that_ships_is_a_run_that_could_begin(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where nothing is built, and no run is
    config = load_run_config(CONFIGS / f"{name}.yaml")
    if config.init:
        with pytest.raises(
            InputError, match=f"init: {config.init.weights}: .* nothing found there; train that run first"
        ):
            dry_run(config)
        config = config.model_copy(update={"init": None})
    dry = dry_run(config)
    steps, gigaflop, epoch = SHIPPED[name]
    assert dry.plan.steps == steps
    assert dry.flops_per_image / 1e9 == pytest.approx(gigaflop, abs=0.006)
    assert {entry.name: round(entry.epoch_draws) for entry in dry.plan.entries} == epoch
    assert set(dry.not_built) == set(epoch)
    assert dry.memory.total < 16 * 2**30
    assert len(as_tables(dry)) == 5


def test_a_run_is_what_its_dry_run_said(shards: Path, tmp_path: Path) -> None:
    config = load_run_config(tiny_run(shards, tmp_path))
    dry = dry_run(config)
    assert (dry.plan.steps, dry.plan.samples, dry.not_built) == (STEPS, 16 * STEPS, ())
    _, objective = build_parts(config, STEPS, "test")
    assert dry.trained_parameters == sum(p.numel() for p in objective.parameters() if p.requires_grad)
    assert sum(part.parameters for part in dry.parts) == sum(p.numel() for p in objective.parameters())
    assert {part.name: part.trained for part in dry.parts} == {"backbone": True, "target": False, "predictor": True}
    last = read_metrics(train(config) / "metrics.jsonl")[-1]
    assert {name: row["count"] for name, row in last["sources"].items()} == {
        entry.name: entry.draws for entry in dry.plan.entries
    }


def test_the_optimizers_values_are_shown_with_their_origin(
    shards: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = SpeedHere(device="cpu", images_per_s=None, how="not measured: no time")
    monkeypatch.setattr("hjepa_train.jobs.speed_here.speed_here", lambda *_, **__: nothing)
    changes = {"training__min_lr": 1e-6, "training__weight_decay": "ijepa", "training__frozen": ["backbone.norm"]}
    path = tiny_run(shards, tmp_path, **changes)
    mae = ("run", path, "--dry-run", "--set", "objective={mae: {}}")
    _, out, err = command(*mae)
    assert err == ""
    assert "AdamW, MAE's recipe" in out
    assert "Recipe: arXiv 2111.06377" in out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.count("│") == 4]
    assert [row for row in cells if row[0] in ("lr", "min_lr", "warmup_epochs", "betas", "weight_decay", "frozen")] == [
        ["lr", "9.375e-06", "the recipe: 0.00015 for 256 images"],
        ["min_lr", "1e-06", "the file"],
        ["warmup_epochs", "0.2", "the recipe: 40, at most a tenth of the run"],
        ["betas", "0.9, 0.95", "the recipe"],
        ["weight_decay", "ijepa", "the file"],
        ["frozen", "backbone.norm", "the file"],
    ]
    assert ["backbone", "48", "no"] in cells, "a norm of 24"
    _, out, _ = command(*mae, "--set", "training.lr_per_256=1e-3", "--set", "training.warmup_epochs=null")
    assert "6.25e-05 │    the file: 0.001 for 256 images" in re.sub(" +(?=the file)", "    ", out)
    assert re.search(r"warmup_epochs │ a tenth of the run │ +the file ", out)


def test_hours_are_samples_times_flop_over_a_share_of_the_peak(shards: Path, tmp_path: Path) -> None:
    path = tiny_run(shards, tmp_path, training__precision="bf16", data__epoch_samples=8 * 10**6)
    dry = dry_run(load_run_config(path))
    assert dry.plan.samples == 16 * 10**6
    here = SpeedHere(device="cpu", images_per_s=250.0, how="measured: 3 steps of 16 images")
    table = hours_table(dry, here, machines_named("an M1 Max, an A100 or an H200"))
    own, *rows = table.rows
    assert own == ("this machine (cpu)", "250", "17.8", "measured: 3 steps of 16 images")
    assumed = {row[0]: row for row in rows if row[3].startswith("assumed")}
    for name, peak in {"M1 Max": 10.4e12, "A100": 312e12, "H200": 790e12}.items():
        speed = ASSUMED_MFU * peak / dry.flops_per_image
        hours = dry.plan.samples / speed / 3600
        shown = f"{hours:,.1f}" if hours >= 0.1 else "below 0.1"
        assert assumed[name] == (name, f"{speed:,.0f}", shown, f"assumed: 40% of {peak / 1e12:g} TFLOP/s (bf16)")
    targets = {row[0]: row[1:] for row in rows if row not in assumed.values()}
    assert targets == {
        "M1 Max": ("150 to 200", "22.2 to 29.6", "the project's target"),
        "A100": ("800 to 1,000", "4.4 to 5.6", "the project's target"),
    }
    assert table.note.count("project's targets are") == 1


def test_targets_are_shown_only_where_their_hardware_is_named(
    shards: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = SpeedHere(device="cpu", images_per_s=None, how="not measured: no time")
    monkeypatch.setattr("hjepa_train.jobs.speed_here.speed_here", lambda *_, **__: nothing)
    path = tiny_run(shards, tmp_path)
    _, out, _ = command("run", path, "--dry-run")
    assert "│ this machine (cpu) │        – │     – │ not measured: no time │" in out
    assert not any(word in out for word in ("M1 Max", "A100", "H200", "target's", "project"))
    for change, named in (("# as on an A100", "A100"), ("# 8 x RTX-4090", "RTX 4090"), ("# imagenet100, rho_l4", "")):
        path.write_text(f"{path.read_text().partition('#')[0]}{change}\n")
        _, out, _ = command("run", path, "--dry-run")
        found = [line.split("│")[1].strip() for line in out.splitlines() if "assumed:" in line]
        assert found == ([named] if named else [])
        assert (out.count("The project's targets are"), out.count("800 to 1,000")) == (
            (1, 1) if "A100" in change else (0, 0)
        )
    assert "M1 Max" in command("run", path, "--dry-run", "--set", "run.name=tiny_m1max")[1]
    known = SpeedHere(device="A100", images_per_s=700.0, how="measured: 9 steps of 16 images")
    monkeypatch.setattr("hjepa_train.jobs.speed_here.speed_here", lambda *_, **__: known)
    _, out, _ = command("run", path, "--dry-run")
    assert [line.split("│")[1].strip() for line in out.splitlines() if "800 to 1,000" in line] == ["A100"]


def test_more_ranks_and_micro_batches_need_less_memory_each(shards: Path, tmp_path: Path) -> None:
    config = load_run_config(tiny_run(shards, tmp_path))
    one, two = dry_run(config), dry_run(config, ranks=2)
    assert (one.micro_batch, two.micro_batch) == (16, 8)
    assert 1.8 < one.memory.activations / two.memory.activations < 2.2
    parts = dry_run(load_run_config(tiny_run(shards, tmp_path, training__micro_batch=4)))
    assert parts.micro_batch == 4
    assert parts.memory.activations < two.memory.activations
    assert parts.memory.images == one.memory.images
    assert parts.memory.weights == two.memory.weights == one.memory.weights


def change(path: Path, section: str, **values: Any) -> Path:
    content = yaml.safe_load(path.read_text())
    content[section] |= values
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_command_prints_the_tables_and_makes_no_folder(shards: Path, tmp_path: Path, command: Command) -> None:
    path = tiny_run(shards, tmp_path)
    code, out, err = command("run", path, "--dry-run")
    assert (code, err) == (0, "")
    for words in ("36 of 16 images", "predictor", "GFLOP an image", "activations of 16 images", "photos"):
        assert words in out
    assert re.search(r"│ this machine \(cpu\) │ +[\d.]+ │ below 0.1 │ measured: \d+ steps? of 16 images │", out)
    assert {inner.name for inner in tmp_path.iterdir()} == {"run.yaml"}


def test_a_run_that_has_begun_is_named_and_not_touched(shards: Path, tmp_path: Path, command: Command) -> None:
    path = tiny_run(shards, tmp_path)
    before = train(load_run_config(path), stop_after=3)
    rows = read_metrics(before / "metrics.jsonl")
    _, out, _ = command("run", path, "--dry-run")
    assert "holds checkpoints up to step-00000003" in " ".join(out.split())
    assert read_metrics(before / "metrics.jsonl") == rows


def test_what_the_run_or_its_evaluation_would_miss_is_noted(shards: Path, tmp_path: Path) -> None:
    assert dry_run(load_run_config(tiny_run(shards, tmp_path))).notes == ()
    absent = next(name for name in ("mps", "cuda") if name not in devices_here())
    path = tiny_run(shards, tmp_path, training__device=absent, evaluation={"source": "coco"})
    probes, device = dry_run(load_run_config(path)).notes
    assert "coco: a built source expected, none found; build it with" in probes
    assert f"training.device: {absent}: none is on this machine" in device


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("training", {"global_bach": 16}, "unknown key `training.global_bach`; did you mean `global_batch`?"),
        ("objective", {"hjepa": {"momentum": 0.9999}}, "objective.hjepa.momentum: with 0.9999 over 36 steps"),
        ("backbone", {"vit": {"size": "tiny", "patch": 5}}, "backbone.vit.patch: 5 does not divide the image size 16"),
        ("data", {"sources": [{"name": "mine", "weight": 1}]}, "build it with `hjepa-shards build mine"),
        ("data", {"augmentation": {"views": 2}}, "data.augmentation.views: 1 expected"),
        ("data", {"pixel_std": [0, 0.2, 0.2]}, "pixel_std: standard deviations of at least 1e-06 expected"),
        ("objective", {"hjepa": {"levels": 1, "momentum": 0.5, "level_weights": [0]}}, "not all 0, expected, [0.0]"),
        ("training", {"keep_best": "knn_x"}, "keep_best: one of knn_online, knn_target, ridge_online, ridge_target"),
        ("evaluation", {"source": "photos", "during_every_epochs": 1}, "a split train to fit the probe on"),
        ("training", {"epochs": 28 * 10**13}, "a run of at most 72,057,594,037,927,936 samples expected"),
        ("training", {"global_batch": 10**12}, "training.global_batch: Input should be less than or equal to"),
        ("data", {"image_size": 10**12}, "data.image_size: Input should be less than"),
        ("backbone", {"vit": {"width": 24, "depth": 10**12, "heads": 2, "patch": 2}}, "less than or equal to 256"),
        ("objective", {"hjepa": {"levels": 10**12}}, "rising strides expected"),
    ],
)
def test_what_a_run_would_refuse_is_refused_in_one_line(
    shards: Path, tmp_path: Path, command: Command, section: str, values: dict[str, Any], expected: str
) -> None:
    code, out, err = command(
        "run", change(tiny_run(shards, tmp_path, evaluation=PROBED), section, **values), "--dry-run"
    )
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert expected in err


def test_counts_without_end_are_planned_at_once(shards: Path, tmp_path: Path) -> None:
    path = tiny_run(shards, tmp_path, data__epoch_samples=10**12, training__warmup_epochs=3.0)
    dry = dry_run(load_run_config(path))
    assert dry.plan.samples == 2 * 10**12
    assert "training.warmup_epochs: 3 epochs of warm-up in a run of 2" in " ".join(dry.notes)


def test_weights_that_follow_epochs_without_end_are_refused(shards: Path, tmp_path: Path) -> None:
    sources = [{"name": "digits", "weight": {0: 1, 10**9: 2}}, {"name": "photos", "weight": 1}]
    with pytest.raises(InputError, match="the last change within"):
        dry_run(load_run_config(change(tiny_run(shards, tmp_path), "data", sources=sources)))


def test_ranks_that_do_not_divide_the_batch_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="16"):
        dry_run(load_run_config(tiny_run(shards, tmp_path)), ranks=3)
