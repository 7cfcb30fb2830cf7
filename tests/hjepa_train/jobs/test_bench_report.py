import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from hjepa_shards import LoaderSpeed
from hjepa_shards.errors import InputError
from hjepa_train.base.phase_clock import BACKWARD, FORWARD, PHASES
from hjepa_train.cli import main
from hjepa_train.jobs.bench import Bench
from hjepa_train.jobs.bench_report import compared, make_folder, what_limits, write_bench
from tests.conftest import Command, in_this_process
from tests.hjepa_train.tiny import tiny_run

FOUND = Bench(
    run="tiny",
    date="2026-01-31",
    hardware="A100",
    batch=64,
    warm_up=5,
    step_s=(0.1, 0.08, 0.09),
    waited_s=(0.0, 0.0, 0.027),
    phases_s=tuple({"wait for data": 0.001, "copy and augment": 0.002, FORWARD: 0.05, BACKWARD: x, "update": 0.007}
                   for x in (0.02, 0.03, 0.07)),
    flops_per_image=10**11,
    peak=312e12,
    peak_from="known of A100",
    peak_memory=3 << 20,
    loader=LoaderSpeed(threads=2, images=64, loader=1500.0, decoder=1600.0, cold=None, stages={}, limit="decoding."),
    targets={"A100": (800, 1000)},
    facts={"torch": "2.11"},
    config={"training": {"precision": "bf16"}, "run": {"name": "<b>tiny</b>"}},
)  # fmt: skip


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return in_this_process("hjepa-train", main, monkeypatch, capfd)


def test_the_numbers_of_a_bench_are_those_of_its_steps() -> None:
    assert FOUND.images_per_s == pytest.approx(64 / 0.09)
    assert FOUND.limit == pytest.approx(3120)
    assert FOUND.mfu == pytest.approx(64 / 0.09 / 3120)
    assert FOUND.data_wait == pytest.approx(0.1)
    assert FOUND.phase_s(BACKWARD) == 0.03
    assert FOUND.name == "train_tiny_a100_2026-01-31"


def test_its_files_say_the_same_and_hold_every_digit(tmp_path: Path) -> None:
    make_folder(tmp_path / "deep" / "results")
    path = write_bench(FOUND, tmp_path / "deep" / "results")
    assert path.name == "train_tiny_a100_2026-01-31.json"
    assert {one.suffix for one in path.parent.iterdir()} == {".json", ".md", ".html"}
    assert json.loads(path.read_text())["images_per_s"] == FOUND.images_per_s
    page, text = path.with_suffix(".html").read_text(), path.with_suffix(".md").read_text()
    for shown in ("711.1", "3,120.0", "22.79%", "10.00%", "1,500", "0.89x", "3.0 MiB", "312,000.0 GFLOP/s", "2.11"):
        assert shown in page, shown
        assert shown in text, shown
    assert "<svg" in page
    assert "&lt;b&gt;tiny" in page
    assert "<script" not in page


def test_a_loader_that_is_hardly_faster_is_named_as_the_limit() -> None:
    slow = dataclasses.replace(FOUND, loader=dataclasses.replace(FOUND.loader, loader=FOUND.images_per_s * 1.1))
    assert what_limits(slow).startswith("The data limits")
    assert "decoding" in what_limits(slow)
    assert what_limits(FOUND).startswith("The device limits")


def test_two_results_are_side_by_side_with_what_differs(tmp_path: Path) -> None:
    first = write_bench(FOUND, tmp_path)
    config = FOUND.config | {"training": {"precision": "fp16"}}  # pyright: ignore[reportOperatorIssue] a dict
    faster = dataclasses.replace(FOUND, date="2026-02-01", step_s=(0.045, 0.045), config=config)
    speed, differing = compared([first, write_bench(faster, tmp_path)])
    assert speed.columns == ("", "train_tiny_a100_2026-01-31", "train_tiny_a100_2026-02-01", "last / first")
    assert speed.rows[0] == ("images/s", "711.1", "1,422.2", "2.00x")
    assert len(speed.rows) == 7 + len(PHASES)
    assert set(differing.rows) == {
        ("date", "2026-01-31", "2026-02-01"),
        ("config.training.precision", "bf16", "fp16"),
    }
    shutil.copy(first, tmp_path / "same.json")
    assert compared([first, tmp_path / "same.json"])[1].rows == ()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        ("{", "JSON expected"),
        ("[]", "none of images_per_s found"),
        ('{"peak": 1}', "bench again"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "wrong.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=expected):
        compared([write_bench(FOUND, tmp_path), path])


def test_the_command_measures_writes_and_compares(shards: Path, tmp_path: Path, command: Command) -> None:
    path, out = tiny_run(shards, tmp_path), tmp_path / "results"
    code, shown, err = command("bench", path, "--steps", 3, "--out", out, "--set", "run.name=one")
    assert (code, err) == (0, "")
    for words in ("images/s, of the median of 3 steps", "copy and augment", "M1 Max", "usable cores", "written"):
        assert words in shown
    (first,) = out.glob("*.json")
    second = tmp_path / "results/another.json"
    second.write_text(first.read_text().replace('"one"', '"two"'))
    code, shown, _ = command("bench", "--compare", first, second)
    assert code == 0
    assert "config.run.name" in shown
    assert {one.name for one in tmp_path.iterdir()} == {"run.yaml", "results"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run.yaml", "run.yaml"], "one configuration expected, 2 files found"),
        (["run.yaml", "--set", "training.lrr=1"], "unknown key"),
        (["run.yaml", "--steps", "999"], "--steps 999: at most 93 expected"),
        (["--compare", "run.yaml"], "two files of results or more expected, one found"),
        (["--compare", "run.yaml", "run.yaml"], "JSON expected"),
        (["run.yaml", "--steps", "3", "--out", "run.yaml"], "cannot be made"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    shards: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    tiny_run(shards, tmp_path)
    monkeypatch.chdir(tmp_path)
    code, shown, err = command("bench", *arguments)
    assert (code, shown) == (2, "")
    assert err.count("\n") == 1
    assert expected in err
