"""Does this tree write the bytes, the orders and the losses of another commit? For changes that must change none.

    python tools/compare_trees.py HEAD~1

Both trees, as processes of this Python: every source is built (journal included), a mixture's order is proved, H-JEPA,
MAE and SimCLR are trained, and a run that the old tree began and was stopped continues in this one. Real data where
HJEPA_TEST_DATA names some. Exit code 1 where anything differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parents[1]
SHARDS, TRAIN = (
    f"import sys; from hjepa_{name}.cli import main; sys.argv[0] = 'x'; main()" for name in ("shards", "train")
)
EVERY_SOURCE = (
    "import sys, pathlib; from tests.hjepa_shards.raw_sets import build_every_source; "
    "build_every_source(pathlib.Path(sys.argv[1]))"
)
"""In both trees: a few images of every source, in its published layout."""
REAL = {
    "cifar10": ("cifar10", "--split", "test", "--limit", "3000", "--samples-per-shard", "512"),
    "photos": ("folder", "--name", "photographs", "--pixels", "jpeg", "--shorter-side", "256", "--limit", "60"),
    "coco": ("coco", "--split", "val"),
    "stl10-part": ("stl10", "--split", "train"),
    "odd": ("folder", "--name", "odd"),
}
"""Folder of real data -> how it is built."""
STEPS, STOP = 24, 13
CLOCK = ("images_per_s", "data_wait", "mfu")
OBJECTIVES: dict[str, Any] = {
    "hjepa": {"levels": 2, "momentum": 0.75, "predictor": {"width": 16, "depth": 1, "heads": 2}},
    "mae": {"decoder": {"width": 16, "depth": 1, "heads": 2}},
    "simclr": {},
}

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="the commit before, such as HEAD~1")
    revision = parser.parse_args().revision
    with tempfile.TemporaryDirectory() as name:
        old = Path(name) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(old), revision], cwd=HERE, check=True)
        try:
            rows = compared({"old": old, "new": HERE}, Path(name))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=HERE, check=True)
    table = Table("what", "of both trees", "")
    for what, size, is_same in rows:
        table.add_row(what, size, "[green]equal[/green]" if is_same else "[red]differs[/red]")
    console.print(table)
    raise SystemExit(not all(is_same for _, _, is_same in rows))


def compared(trees: dict[str, Path], scratch: Path) -> list[tuple[str, str, bool]]:
    """(what, how much of it, whether it is the same) by both trees."""
    rows = []
    golden = {name: files_of(tree / "tests" / "golden") for name, tree in trees.items()}
    rows.append(
        row("golden files", {n: {k: v for k, v in g.items() if k.endswith(".json")} for n, g in golden.items()})
    )
    roots = {name: scratch / name for name in trees}
    for name, tree in trees.items():
        python(tree, EVERY_SOURCE, str(roots[name] / "small"))
        for folder, options in REAL.items():
            raw = Path(os.environ.get("HJEPA_TEST_DATA", "nowhere"), folder)
            if raw.is_dir():
                source, *rest = options
                python(tree, SHARDS, "build", source, "--raw", raw, "--out", roots[name] / "real", *rest, codes=(0, 3))
        for source in ("digits", "photos"):
            python(tree, SHARDS, "build", source, "--out", roots[name] / "run", "--limit", "400")
    for part in ("small/shards", "real", "run"):
        rows.append(row(f"shards, manifests, journals: {part}", {n: files_of(r / part) for n, r in roots.items()}))
    configs = {kind: config_of(kind, scratch) for kind in OBJECTIVES}
    proofs = {n: python(t, SHARDS, "plan", configs["hjepa"], "--proof", "10000") for n, t in trees.items()}
    rows.append(row("order proof of 10,000 positions", {n: {"proof": p.strip()} for n, p in proofs.items()}))
    for kind, config in configs.items():
        curves = {}
        for name, tree in trees.items():
            curves[name] = trained(tree, config, scratch / f"{kind}-{name}")
        rows.append(row(f"{kind}: numbers of {STEPS} steps", curves))
        begun = scratch / f"{kind}-begun"
        trained(trees["old"], config, begun, "--stop-after", str(STOP))
        resumed = trained(trees["new"], config, begun, "--resume", "auto")
        rows.append(row(f"{kind}: begun before, resumed here", {"old": curves["old"], "new": resumed}))
    return rows


def python(tree: Path, code: str, *arguments: object, codes: tuple[int, ...] = (0,)) -> str:
    """What a tree's code prints; ends this program where it fails."""
    variables = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        raise SystemExit(f"{tree}: {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def trained(tree: Path, config: Path, folder: Path, *options: str) -> dict[str, str]:
    """Every number of a run's steps but its clock, as they were written, and its last weights."""
    python(tree, TRAIN, "run", config, "--set", f"run.folder={folder}", *options)
    lines = (folder / "same" / "metrics.jsonl").read_text().splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]
    numbers = {f"step {row['step']}": json.dumps(row, sort_keys=True) for row in rows}
    if len(rows) < STEPS:
        return numbers
    weights = folder / "same" / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors"
    return numbers | {"weights": hashlib.sha256(weights.read_bytes()).hexdigest()}


def config_of(objective: str, scratch: Path) -> Path:
    """A run of seconds, on what the old tree built."""
    content = {
        "run": {"name": "same", "seed": 3},
        "data": {
            "root": str(scratch / "old" / "run"),
            "strategy": "weighted",
            "sources": [{"name": "digits", "weight": 0.75}, {"name": "photos", "weight": 0.25}],
            "epoch_samples": 16 * STEPS,
            "image_size": 16,
            "augmentation": {"color_jitter": 0.1, "views": 2 if objective == "simclr" else 1},
        },
        "backbone": {"vit": {"width": 24, "depth": 2, "heads": 2, "patch": 2}},
        "objective": {objective: OBJECTIVES[objective]},
        "training": {"device": "cpu", "epochs": 1, "global_batch": 16, "threads": 1, "save_every_steps": 7},
        "evaluation": {"source": "digits", "bank": 100, "test": 50, "crop_share": 1},
        "logging": {"every_steps": 1, "tensorboard": False},
    }
    path = scratch / f"{objective}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def files_of(folder: Path) -> dict[str, str]:
    """Digest of every file below, hidden ones too.

    What a tree notes for itself is none: the number of its rules in a plan, times and sizes of raw files.
    """
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "raw.json")
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    content = {name: path.read_bytes() for name, path in files.items()}
    for name in content:
        if name.endswith("/plan.json"):
            plan = json.loads(content[name])
            plan.pop("rules", None)
            content[name] = json.dumps(plan).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}


def row(what: str, found: dict[str, dict[str, str]]) -> tuple[str, str, bool]:
    """Names what differs as it is found."""
    old, new = found["old"], found["new"]
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    for key in differing[:5]:
        console.print(f"[red]differs[/red] {what}: {key}: {old.get(key)} before, {new.get(key)} here", soft_wrap=True)
    return what, f"{len(old):,}", not differing and bool(old)


if __name__ == "__main__":
    main()
