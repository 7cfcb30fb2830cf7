"""Does H-JEPA learn on CIFAR-10, on a CPU, in ten minutes? Three seeds, beside everything it must beat.

    python benchmarks/learning.py --raw data/raw/cifar10 [--parallel 2]

Variants:
    healthy       the setting of configs/cifar10_cpu.yaml
    regulariser   the term against collapse alone (prediction loss times zero): what it would learn without predicting
    no-target     sabotage: no momentum, no stop-gradient, no regulariser; its alarms must fire
    swapped       sabotage: targets of another image; its alarms must fire

Writes benchmarks/results/learning_<hardware>_<date>.json and prints the table of docs/results.md.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parallel_runs import is_job, parser_of, run_all, write_results

from hjepa_train import evaluate, load_run_config, train
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.objectives.joint.hjepa import HJepa

CONFIG = Path("configs/cifar10_cpu.yaml")
SEEDS = (0, 1, 2)
JOBS = [(variant, seed) for variant in ("healthy", "regulariser") for seed in SEEDS]
JOBS += [("no-target", 0), ("swapped", 0)]
OBJECTIVE: dict[str, dict[str, Any]] = {
    "healthy": {},
    "regulariser": {"level_weights": [1e-30]},  # 0 is refused; AdamW's epsilon makes nothing of gradients as small
    "no-target": {"anticollapse": "none", "momentum": 0.99},
    "swapped": {"momentum": 0.99},
}
TRAINING: dict[str, dict[str, Any]] = {"no-target": {"epochs": 1}, "swapped": {"epochs": 1}}
"""A third of the run is enough for an alarm, or the alarm is no use."""
COLUMNS = ("linear", "knn", "knn_centred", "knn_whitened")


def main() -> None:
    arguments = parser_of(__doc__, "runs/learning").parse_args()
    if is_job(arguments, run_one):
        return
    run_all(JOBS, arguments, folder_of, "evaluation.json")
    results = {f"{variant}-{seed}": read_result(folder_of(arguments.runs, variant, seed)) for variant, seed in JOBS}
    print_table(results)
    write_results("learning", {"parallel": arguments.parallel, "runs": results})


def folder_of(runs: Path, variant: str, seed: int) -> Path:
    return runs / f"{variant}-{seed}"


def run_one(variant: str, seed: int, shards: Path, runs: Path) -> None:
    """Train and evaluate one variant."""
    sabotage(variant)
    base = load_run_config(CONFIG)
    config = base.model_copy(
        update={
            "run": base.run.model_copy(update={"name": f"{variant}-{seed}", "seed": seed, "folder": runs}),
            "data": base.data.model_copy(update={"root": str(shards), "threads": 1}),
            "training": base.training.model_copy(update={"threads": 1} | TRAINING.get(variant, {})),
            "objective": {"hjepa": base.objective["hjepa"] | OBJECTIVE[variant]},
        }
    )
    folder = train(config, resume="auto")
    first = runs / "healthy-0" / "evaluation.json"
    pixels = json.loads(first.read_bytes())[0]["rows"][:2] if first.exists() else []  # the same for every run
    evaluate(folder, known_rows=pixels)


def sabotage(variant: str) -> None:
    """Break the objective from outside; the product has no such switch."""
    honest = HJepa.targets
    if variant == "no-target":
        HJepa.targets = lambda self, images: self.level_features(self.backbone, images)
    elif variant == "swapped":
        HJepa.targets = lambda self, images: [target.roll(1, 0) for target in honest(self, images)]


def read_result(folder: Path) -> dict[str, Any]:
    metrics = read_metrics(folder / "metrics.jsonl")
    late = [row for row in metrics if row["step"] >= 0.2 * metrics[-1]["step"]]
    (evaluation,) = json.loads((folder / "evaluation.json").read_bytes())
    return {
        "rows": {row["features"]: {key: row[key] for key in COLUMNS} for row in evaluation["rows"]},
        "images": metrics[-1]["position"],
        "images_per_s": statistics.median(row["images_per_s"] for row in metrics),
        "data_wait": statistics.mean(row["data_wait"] for row in metrics),
        "largest_rho_after_20%": max(row["rho_l0"] for row in late),
        "smallest_gap_after_20%": min(row["gap_l0"] for row in late),
        "alarms": sorted({name for row in metrics for name in row["alarms"]}),
        "proof": metrics[-1]["proof"],
    }


def print_table(results: dict[str, dict[str, Any]]) -> None:
    def row(name: str, features: str, runs: Sequence[str]) -> None:
        cells = []
        for column in COLUMNS:
            values = [results[run]["rows"][features][column] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        print(f"| {name} | " + " | ".join(cells) + " |")

    def seeds(variant: str) -> list[str]:
        return [f"{variant}-{seed}" for seed in SEEDS]

    print("| CIFAR-10, percent right | linear | k-NN | k-NN centred | k-NN whitened |\n|---|---:|---:|---:|---:|")
    row("raw pixels", "raw pixels", ["healthy-0"])
    row("PCA-30", "PCA-30", ["healthy-0"])
    row("untrained encoder", "untrained", seeds("healthy"))
    row("regulariser alone, online", "online", seeds("regulariser"))
    row("H-JEPA, online", "online", seeds("healthy"))
    row("H-JEPA, target", "target", seeds("healthy"))
    row("sabotage: no target network", "online", ["no-target-0"])
    row("sabotage: another image's targets", "online", ["swapped-0"])
    for name, result in results.items():
        print(
            f"{name}: {result['images']:,} images, {result['images_per_s']:.0f}/s, after 20%: "
            f"ρ <= {result['largest_rho_after_20%']:.3f}, gap >= {result['smallest_gap_after_20%']:.3f}, "
            f"alarms: {', '.join(result['alarms']) or 'none'}"
        )


if __name__ == "__main__":
    main()
