"""What the doctor finds is there, what it advises has its reason, what is broken is a remark."""

import io
import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hjepa_shards.base.machine_limits import Cores, Disk, Memory, OpenFiles
from hjepa_shards.commands import doctor
from hjepa_shards.commands.doctor import Examination, Speed, advise, examine
from tests.conftest import Command

DISK = Disk(folder=Path("/data"), kind="ext4", free_bytes=10**12, read_bytes_per_s=2e9)
FINE = Examination(
    versions={"torch": "2.15.0+cu130"},
    decoders=(Speed(name="simplejpeg", images_per_s=900), Speed(name="simplejpeg, as built", images_per_s=3000)),
    encoders=(Speed(name="turbo", images_per_s=500),),
    resizers=(Speed(name="hjepa's own", images_per_s=15_000), Speed(name="OpenCV", images_per_s=7_000)),
    not_compiled=(),
    has_libdeflate=True,
    cores=Cores(machine=64, allowed=64, quota=None),
    memory=Memory(machine=256 * 2**30, limit=None),
    open_files=OpenFiles(soft=65536, hard=65536),
    shards=DISK,
    temporary=DISK,
    stored_bytes=33_000,
    load=0.5,
    gpus=("NVIDIA H200, 143771 MiB, 570.1",),
    torch={"cuda build": "13.0", "cuda": True, "mps": False, "devices": ["NVIDIA H200"]},
    advice=(),
)
CPU_TORCH = {"cuda build": None, "cuda": False, "mps": False, "devices": []}


def test_there_is_nothing_to_advise_on_a_good_machine() -> None:
    assert list(advise(FINE)) == []


@pytest.mark.parametrize(
    ("changes", "what", "why"),
    [
        ({"cores": Cores(machine=64, allowed=64, quota=4.0)}, "data.threads: 4", "64 threads"),
        ({"cores": Cores(machine=64, allowed=2, quota=None)}, "scheduler", "2 of 64"),
        ({"cores": Cores(machine=1, allowed=1, quota=None)}, "256", "900 originals a second, 3,000 at 256"),
        ({"load": 70.0}, "idle", "70.0 processes wanted its 64 cores"),
        ({"open_files": OpenFiles(soft=1024, hard=-1)}, "ulimit -n 65536", "1,024"),
        ({"open_files": OpenFiles(soft=1024, hard=4096)}, "ulimit -n 4096", "1,024"),
        ({"open_files": OpenFiles(soft=1024, hard=1024)}, "administrator", "1,024"),
        ({"memory": Memory(machine=256 * 2**30, limit=2 * 2**30)}, "data.order.window", "2.15 GB"),
        ({"shards": replace(DISK, read_bytes_per_s=66e6)}, "faster disk", "2,000 photographs"),
        ({"shards": replace(DISK, kind="nfs4")}, "local disk", "nfs4"),
        ({"shards": replace(DISK, free_bytes=10**9)}, "make room on /data", "33 GB"),
        ({"temporary": replace(DISK, free_bytes=10**8)}, "TMPDIR", "100 MB"),
        ({"versions": {}, "torch": {}}, "hjepa[train]", "PyTorch"),
        ({"torch": {"error": "ImportError: no"}}, "import torch", "ImportError: no"),
        ({"torch": CPU_TORCH}, "fits the driver", "built without CUDA"),
        ({"gpus": (), "torch": CPU_TORCH}, "configs/quickstart.yaml", "no GPU"),
        ({"versions": FINE.versions | {"pillow-simd": "9.5"}}, "--encoder pillow-simd", "other bytes"),
        ({"decoders": (Speed(name="simplejpeg", images_per_s=None, remark="boom"),)}, "simplejpeg", "boom"),
        ({"not_compiled": ("_pread", "_png")}, "install gcc", "_pread, _png"),
        ({"has_libdeflate": False}, "libdeflate0", "zlib"),
    ],
)
def test_each_trouble_has_its_advice_with_a_reason(changes: dict[str, Any], what: str, why: str) -> None:
    advice = list(advise(replace(FINE, **changes)))
    assert len(advice) == 1
    assert what in advice[0].what
    assert why in advice[0].why


def test_configurations_that_are_advised_exist() -> None:
    advice = next(advise(replace(FINE, gpus=(), torch=CPU_TORCH)))
    for word in advice.what.split():
        if word.endswith(".yaml"):
            assert (Path(__file__).parents[3] / word).is_file()


def test_the_photograph_is_like_those_that_are_trained_on() -> None:
    with Image.open(io.BytesIO(doctor._photo())) as image:
        assert (image.size, image.mode, image.format) == ((500, 375), "RGB", "JPEG")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('first'); print('last')", ("last", "")),
        ("import sys; print(len(sys.stdin.buffer.read()))", ("300000", "")),
        ("import nothing_of_that_name", ("", "ModuleNotFoundError: No module named 'nothing_of_that_name'")),
        ("import os; os._exit(3)", ("", "ended with 3 and no word")),
        ("import os; os.kill(os.getpid(), 9)", ("", "ended with -9 and no word")),
        ("pass", ("", "ended with 0 and no word")),
    ],
)
def test_a_library_that_breaks_breaks_its_own_process_only(code: str, said: tuple[str, str]) -> None:
    assert doctor._ask(code, bytes(300_000))() == said


def test_a_library_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PATIENCE_S", 0.5)
    assert doctor._ask("import time; time.sleep(60)", b"")() == (
        "",
        "no answer within 0.5 s; is the machine busy, or its disk slow?",
    )


def test_a_decoder_is_measured_in_images_per_second() -> None:
    speed = doctor._decoder("PIL", doctor._DECODERS["PIL"], doctor._photo())
    assert speed.name == "Pillow"
    assert 20 < (speed.images_per_s or 0) < 20_000
    missing = doctor._decoder("nothing_of_that_name", "", b"")
    assert (missing.images_per_s, missing.remark) == (None, "not installed")


@pytest.mark.slow
def test_the_examination_of_this_machine(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", cache(examine))
    shorter = doctor._MEASURE.replace(f"< {doctor._MEASURED_S}", "< 0.05")
    assert shorter != doctor._MEASURE
    monkeypatch.setattr(doctor, "_MEASURE", shorter)
    monkeypatch.setattr(doctor, "_MEASURED_S", 0.05)
    code, out, _ = command("doctor", "--folder", tmp_path, "--json")
    assert code == 0
    found = json.loads(out)
    assert {"python", "numpy", "simplejpeg", "torch"} <= set(found["versions"])
    assert all(speed["images_per_s"] or speed["remark"] for speed in found["decoders"] + found["resizers"])
    assert {speed["name"] for speed in found["decoders"]} >= {"simplejpeg", "OpenCV", "Pillow", "torchvision"}
    assert all(speed["images_per_s"] > 5 for speed in found["encoders"])
    code, out, _ = command("doctor", "--folder", tmp_path)
    assert code == 0
    assert "images/s a core" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        ("echo 'NVIDIA H200, 143771 MiB, 570.1'; echo; echo 'NVIDIA L4, 23034 MiB, 570.1'", 2),
        ("echo 'NVIDIA-SMI has failed'; exit 9", 0),
        ("exec sleep 60", 0),
    ],
)
def test_a_driver_is_queried_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, gpus: int
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "_PATIENCE_S", 1)
    assert len(doctor._gpus()) == gpus
