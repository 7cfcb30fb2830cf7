"""What H-JEPA's choices gain, on CIFAR-10 on a CPU: levels at equal FLOP, strength of the term against collapse.

    python benchmarks/ablations.py --raw data/raw/cifar10 [--parallel 2] [--seeds 0 1]

The setting of configs/cifar10_cpu.yaml with a momentum of .99 and a third of its length: 50,048 images; with three
levels as many as cost the same FLOP. A predictor as wide as its encoder has as many at a higher cost, beside the
setting for as many FLOP. Each run is evaluated as `hjepa-train eval` does. Writes
benchmarks/results/ablations_<hardware>_<date>.json and prints the table of docs/results.md.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from parallel_runs import is_job, parser_of, run_all, write_results

from hjepa_train import RunConfig, evaluate, load_run_config, train
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.training.config import build_parts

CONFIG = Path("configs/cifar10_cpu.yaml")
NUM_IMAGES = 50_048
SETTING, LONGER, WIDE = "one level (the setting)", "one level for longer", "predictor as wide as the encoder"
SMALL, SMALL_LONGER, SMALL_WIDE = (f"ViT-S predictor {text}" for text in ("192", "192 for longer", "384"))


def small(width: int) -> dict[str, Any]:
    """A ViT-S/8 whose predictor has this width."""
    return {
        "backbone": "{vit: {size: small, patch: 8}}",
        "objective.hjepa.num_blocks": 2,  # four could cover a grid of 4 x 4
        "objective.hjepa.predictor": f"{{width: {width}, depth: 6, heads: 6}}",
        "training.lr": 5e-4,
        "training.precision": "bf16",
    }


VARIANTS: dict[str, dict[str, Any]] = {
    SETTING: {},
    "three levels": {"objective.hjepa.levels": 3},
    "term x 0.1": {"objective.hjepa.variance_weight": 0.025, "objective.hjepa.covariance_weight": 0.001},
    "term x 10": {"objective.hjepa.variance_weight": 2.5, "objective.hjepa.covariance_weight": 0.1},
    "term x 100": {"objective.hjepa.variance_weight": 25.0, "objective.hjepa.covariance_weight": 1.0},
    "no term": {"objective.hjepa.anticollapse": "none"},
    "sigreg": {"objective.hjepa.anticollapse": "sigreg"},
    LONGER: {},
    WIDE: {"objective.hjepa.predictor": "{width: 96, depth: 2, heads: 3}"},
    SMALL: small(192),
    SMALL_LONGER: small(192),
    SMALL_WIDE: small(384),
}
AS_COSTLY_AS = {LONGER: WIDE, WIDE: WIDE, SMALL: SMALL, SMALL_LONGER: SMALL_WIDE, SMALL_WIDE: SMALL_WIDE}
"""Variant -> the one whose FLOP for 50,048 images it has; all others have the setting's."""
COLUMNS = ("linear", "knn")


def main() -> None:
    parser = parser_of(__doc__, "runs/ablations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    if is_job(arguments, run_one):
        return
    jobs = [(variant, seed) for seed in arguments.seeds for variant in VARIANTS]
    run_all(jobs, arguments, folder_of, "evaluation.json")
    results = {
        variant: [read_result(folder_of(arguments.runs, variant, seed)) for seed in arguments.seeds]
        for variant in VARIANTS
    }
    print_table(results)
    write_results("ablations", {"seeds": arguments.seeds, "runs": results})


def folder_of(runs: Path, variant: str, seed: int) -> Path:
    return runs / f"{variant.split(' (')[0].replace(' ', '-')}-{seed}"


def run_one(variant: str, seed: int, shards: Path, runs: Path) -> None:
    """Train and evaluate one variant."""
    wanted, equal = (
        config_of(name, seed, shards, runs, NUM_IMAGES) for name in (variant, AS_COSTLY_AS.get(variant, SETTING))
    )
    num_images = round(NUM_IMAGES * flops(equal) / flops(wanted) / 64) * 64
    folder = train(config_of(variant, seed, shards, runs, num_images), resume="auto")
    first = folder_of(runs, SETTING, 0) / "evaluation.json"
    pixels = json.loads(first.read_bytes())[0]["rows"][:2] if first.exists() else []  # the same for every run
    evaluate(folder, known_rows=pixels)


def config_of(variant: str, seed: int, shards: Path, runs: Path, num_images: int) -> RunConfig:
    changes = [
        *(f"run.{key}={value}" for key, value in {"name": folder_of(runs, variant, seed).name, "seed": seed}.items()),
        *(f"run.folder={runs}", f"data.root={shards}", "data.threads=1", f"data.epoch_samples={num_images}"),
        *("training.threads=1", "training.epochs=1", "objective.hjepa.momentum=0.99"),
        *(f"{key}={value}" for key, value in VARIANTS[variant].items()),
    ]
    return load_run_config(CONFIG, changes)


def flops(config: RunConfig) -> int:
    """Of one image."""
    return build_parts(config, NUM_IMAGES // 64, "ablations")[1].flops_per_image()


def read_result(folder: Path) -> dict[str, Any]:
    metrics = read_metrics(folder / "metrics.jsonl")
    (evaluation,) = json.loads((folder / "evaluation.json").read_bytes())
    return {
        "rows": {row["features"]: {key: row[key] for key in COLUMNS} for row in evaluation["rows"]},
        "images": metrics[-1]["position"],
        "last": {key: metrics[-1][key] for key in ("rho_l0", "gap_l0", "sd", "rankme")},
        "alarms": sorted({name for row in metrics for name in row["alarms"]}),
    }


def print_table(results: dict[str, list[dict[str, Any]]]) -> None:
    print("| online encoder, percent right | images | linear | k-NN | ρ | gap | RankMe | alarms |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for variant, runs in results.items():
        cells = [f"{runs[0]['images']:,}"]
        for column in COLUMNS:
            values = [run["rows"]["online"][column] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        for name, digits in (("rho_l0", 2), ("gap_l0", 2), ("rankme", 1)):
            cells.append(f"{statistics.mean(run['last'][name] for run in runs):.{digits}f}")
        cells.append(", ".join(sorted({alarm for run in runs for alarm in run["alarms"]})) or "none")
        print(f"| {variant} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
