"""Whether the wheel works where nothing else is installed: `make wheel` builds it and runs this.

Two empty environments outside of the tree: the bare wheel builds, plans and verifies without PyTorch and scikit-learn;
with `[train]` it builds digits, trains twenty steps and evaluates.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
UV = Path(sys.executable).with_name("uv")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def main() -> None:
    """Exit code 1 where a step fails."""
    (wheel,) = (ROOT / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    compiled = [Path(name).name for name in names if name.endswith((".so", ".pyd"))]
    unwanted = [name for name in names if name.endswith((".c", ".h")) or name.split("/")[0] in ("tests", "tools")]
    if unwanted:
        sys.exit(f"{wheel.name}: the two packages alone expected, {unwanted[0]} found")
    print(f"{wheel.name}: {wheel.stat().st_size / 1e3:.0f} kB, compiled: {', '.join(compiled) or 'nothing'}")
    with tempfile.TemporaryDirectory(prefix="hjepa-wheel-") as folder:
        _try_bare(wheel, Path(folder))
        _try_trainer(wheel, Path(folder))
    print("both environments work")


def _try_bare(wheel: Path, folder: Path) -> None:
    run = _environment(folder / "bare", str(wheel), without=("torch", "scikit-learn", "scipy"))
    for number, colour in enumerate(("red", "green", "blue") * 4):
        photo = folder / "photos" / colour / f"{number}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), colour).save(photo)
    mixture = folder / "mix.yaml"
    data = {"root": "shards", "image_size": 32, "sources": [{"name": "folder", "weight": 1.0}]}
    mixture.write_text(yaml.safe_dump({"data": data}))
    run("hjepa-shards", "build", "folder", "--raw", "photos", "--out", "shards")
    run("hjepa-shards", "plan", "mix.yaml")
    run("hjepa-shards", "verify", "shards", "--deep")


def _try_trainer(wheel: Path, folder: Path) -> None:
    run = _environment(folder / "train", f"{wheel}[train]")
    config = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    config["data"] |= {"root": "shards", "sources": [{"name": "digits", "weight": 1.0}]}
    config["evaluation"]["source"] = "digits"
    config["objective"]["hjepa"]["momentum"] = 0.9  # a short run
    (folder / "digits.yaml").write_text(yaml.safe_dump(config))
    run("hjepa-shards", "build", "digits", "--out", "shards")
    run("hjepa-train", "run", "digits.yaml", "--stop-after", "20")
    (trained,) = (folder / "runs").iterdir()
    run("hjepa-train", "eval", str(trained.relative_to(folder)), "--probe", "knn,ridge")


def _environment(path: Path, requirement: str, *, without: tuple[str, ...] = ()) -> Callable[..., None]:
    """An empty environment with `requirement` and the versions of constraints.txt; what runs a command of it."""
    python = path / "bin/python"
    subprocess.run([UV, "venv", "-q", "--python", PYTHON, path], check=True)
    options = ("-q", "--python", python, "-c", ROOT / "constraints.txt")
    subprocess.run([UV, "pip", "install", *options, requirement], check=True, cwd=path)
    freeze = [UV, "pip", "freeze", "--python", python]
    installed = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout
    found = [name for name in without if re.search(rf"^{name}\b", installed, re.MULTILINE)]
    if found:
        sys.exit(f"{requirement}: {', '.join(found)} came along, though the shard engine needs none of it")
    print(f"{path.name}: {len(installed.splitlines())} packages")
    return partial(_run, path)


def _run(path: Path, *command: str) -> None:
    """A command of the environment at `path`, in the folder beside it."""
    print("$", *command, flush=True)
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([path / "bin" / command[0], *command[1:]], cwd=path.parent, env=variables)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code 0 expected, {done.returncode} found")


if __name__ == "__main__":
    main()
