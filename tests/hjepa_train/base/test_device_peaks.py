from pathlib import Path

import pytest
import torch

from hjepa_train import load_run_config, train
from hjepa_train.base import device_peaks
from hjepa_train.base.device_peaks import Machine, device_name, images_per_s_at_peak, machine_called
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.reports.run_report import write_report
from hjepa_train.training.config import build_parts
from tests.hjepa_train.tiny import tiny_run


@pytest.mark.parametrize(
    ("name", "machine", "bf16"),
    [
        ("NVIDIA H200", "H200", 790e12),
        ("NVIDIA H100 80GB HBM3", "H100", 989e12),
        ("NVIDIA H100 PCIe", "H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", "A100", 312e12),
        ("NVIDIA A10", "A10", 125e12),
        ("NVIDIA L40S", "L40S", 362e12),
        ("NVIDIA L4", "L4", 121e12),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 165e12),
        ("Apple M1 Max", "M1 Max", 10.4e12),
    ],
)
def test_devices_are_known_by_what_their_drivers_call_them(name: str, machine: str, bf16: float) -> None:
    found = machine_called(name)
    assert found
    assert (found.name, found.peak("bf16")) == (machine, bf16)
    assert found.peak("fp32") <= found.peak("bf16")


@pytest.mark.parametrize("name", ["cpu", "mps", "NVIDIA A10G", "NVIDIA GH200 480GB", "Apple M1", "Tesla T4", ""])
def test_a_name_that_only_looks_like_a_known_one_is_unknown(name: str) -> None:
    assert machine_called(name) is None


def test_the_targets_are_those_of_the_user() -> None:
    assert {machine.name: machine.target for machine in device_peaks.MACHINES if machine.target} == {
        "A100": (800, 1000),
        "M1 Max": (150, 200),
    }


def test_a_cpu_has_no_peak_so_its_run_says_nothing_of_it(shards: Path, tmp_path: Path) -> None:
    assert images_per_s_at_peak(torch.device("cpu"), "fp32", 10**9) is None
    run = train(load_run_config(tiny_run(shards, tmp_path)), stop_after=1)
    assert "mfu" not in read_metrics(run / "metrics.jsonl")[-1]


def test_a_run_on_a_known_device_says_what_share_of_its_peak_the_model_gets(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Machine(name="here", pattern=device_name(torch.device("cpu")), bf16=1e9, fp32=2e9)
    monkeypatch.setattr(device_peaks, "MACHINES", (here,))
    config = load_run_config(tiny_run(shards, tmp_path))
    run = train(config, stop_after=3)
    _, objective = build_parts(config, 36, "test")
    rows = read_metrics(run / "metrics.jsonl")
    assert len(rows) == 3
    for row in rows:
        assert row["mfu"] == pytest.approx(row["images_per_s"] * objective.flops_per_image() / 2e9)
    assert f"MFU {rows[0]['mfu']:.0%}" in capsys.readouterr().out
    middle = sorted(row["mfu"] for row in rows)[1]
    assert f"| share of the device's peak FLOP/s (median MFU) | {100 * middle:.2f}% |" in write_report(run).read_text()
