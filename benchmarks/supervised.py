"""What each backbone learns from CIFAR-10's labels, from scratch, on one thread of a CPU, in some five minutes.

    python benchmarks/supervised.py --raw data/raw/cifar10 [--parallel 2]

Variants: convnext (three seeds), swin, tinyvit, vit, deit; and `swapped`, ConvNeXt with each image's label taken from
another image of its batch, which must stay at chance.

Writes benchmarks/results/supervised_<hardware>_<date>.json and prints the table of docs/results.md.
"""

import json
import resource
import statistics
from pathlib import Path
from typing import Any

from parallel_runs import is_job, parser_of, run_all, write_results

from hjepa_train import evaluate, load_run_config, train
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.base.mixture_facts import NO_FACTS, read_facts
from hjepa_train.objectives.supervised.supervised import Supervised
from hjepa_train.training.config import build_parts
from hjepa_train.training.saved_config import load_saved_config

CONFIG = Path("configs/cifar10_supervised_cpu.yaml")
BACKBONES: dict[str, dict[str, Any]] = {
    "convnext": {
        "convnext": {
            "depths": [1, 1, 2, 1],
            "widths": [32, 64, 128, 256],
            "patch": 2,
            "strides": [2, 2, 2, 1],
            "layer_scale": 0.1,
        }
    },
    "swin": {"swin": {"width": 48, "depths": [2, 4], "heads": [3, 6], "patch": 4, "window": 4}},
    "tinyvit": {"tinyvit": {"depths": [1, 2, 2, 1], "widths": [24, 48, 96, 128], "windows": [4, 4, 2, 1]}},
    "vit": {"vit": {"width": 96, "depth": 4, "heads": 3, "patch": 4}},
    "deit": {"deit": {"width": 96, "depth": 4, "heads": 3, "patch": 4}},
}
EPOCHS = {"convnext": 4, "swin": 2, "tinyvit": 3, "vit": 1, "deit": 1, "swapped": 1}
"""As many as five minutes of CPU time are enough for."""
JOBS = [("convnext", 0), ("swin", 0), ("tinyvit", 0), ("vit", 0), ("deit", 0), ("swapped", 0)]
JOBS += [("convnext", 1), ("convnext", 2)]


def main() -> None:
    arguments = parser_of(__doc__, "runs/supervised").parse_args()
    if is_job(arguments, run_one):
        return
    run_all(JOBS, arguments, folder_of, "evaluation.json")
    results = {f"{variant}-{seed}": read_result(folder_of(arguments.runs, variant, seed)) for variant, seed in JOBS}
    print("| backbone | parameters | images | CPU seconds | own classifier, percent right |\n|---|---:|---:|---:|---:|")
    for variant in EPOCHS:
        found = [result for name, result in results.items() if name.startswith(f"{variant}-")]
        right = [result["right"] for result in found]
        spread = f" ± {statistics.stdev(right):.1f}" if len(right) > 1 else ""
        first = found[0]
        print(
            f"| {variant} | {first['parameters']:,} | {first['images']:,} | {first['cpu_s']:.0f} | "
            f"{statistics.mean(right):.1f}{spread} |"
        )
    write_results("supervised", {"parallel": arguments.parallel, "runs": results})


def folder_of(runs: Path, variant: str, seed: int) -> Path:
    return runs / f"{variant}-{seed}"


def run_one(variant: str, seed: int, shards: Path, runs: Path) -> None:
    """Train and evaluate one variant."""
    if variant == "swapped":
        honest = Supervised.labels
        Supervised.labels = lambda self, batch: honest(self, batch).roll(1, 0)
    name = "convnext" if variant == "swapped" else variant
    base = load_run_config(CONFIG)
    config = base.model_copy(
        update={
            "run": base.run.model_copy(update={"name": f"{variant}-{seed}", "seed": seed, "folder": runs}),
            "data": base.data.model_copy(update={"root": str(shards), "threads": 1}),
            "training": base.training.model_copy(update={"epochs": EPOCHS[variant], "threads": 1}),
            "backbone": BACKBONES[name],
        }
    )
    folder = train(config, resume="auto")
    used = resource.getrusage(resource.RUSAGE_SELF)
    (folder / "cpu_s.json").write_text(json.dumps(used.ru_utime + used.ru_stime))
    Supervised.labels = honest if variant == "swapped" else Supervised.labels
    evaluate(folder, probes=("ridge",))


def read_result(folder: Path) -> dict[str, Any]:
    metrics = read_metrics(folder / "metrics.jsonl")
    (evaluation,) = json.loads((folder / "evaluation.json").read_bytes())
    rows = {row["features"]: row for row in evaluation["rows"]}
    config = load_saved_config(folder)
    _, objective = build_parts(config, 1, str(folder), read_facts(folder) or NO_FACTS)
    return {
        "right": rows["encoder"]["own"],
        "ridge": rows["encoder"]["ridge"],
        "untrained_ridge": rows["untrained"]["ridge"],
        "test": evaluation["test"],
        "images": metrics[-1]["position"],
        "images_per_s": statistics.median(row["images_per_s"] for row in metrics),
        "cpu_s": json.loads((folder / "cpu_s.json").read_bytes()),
        "backbone": config.backbone,
        "parameters": sum(parameter.numel() for parameter in objective.parameters()),
        "proof": metrics[-1]["proof"],
    }


if __name__ == "__main__":
    main()
