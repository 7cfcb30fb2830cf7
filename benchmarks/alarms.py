"""Do alarms fire where a run is broken, and only there? CIFAR-10 on a CPU: three sabotages, and three seeds without.

    python benchmarks/alarms.py --raw data/raw/cifar10 [--parallel 2]

The setting of configs/cifar10_cpu.yaml with a momentum of .99 and a third of its length, 50,048 images, without probes,
and with networks that take an eighth of the time: an encoder of width 48 and depth 2, a predictor of 24 and 1.

    healthy       nothing broken; no alarm may fire
    no-target     no momentum, no stop-gradient, no regulariser
    swapped       targets of another image
    regulariser   the term against collapse alone

Writes benchmarks/results/alarms_cpu_<date>.json and prints the table of docs/results.md: the worst of each signal after
warm-up, beside the limit that its alarm has.
"""

from pathlib import Path
from typing import Any

from learning import OBJECTIVE, folder_of, sabotage
from parallel_runs import is_job, parser_of, run_all, write_results

from hjepa_train import load_run_config, train
from hjepa_train.base.metrics_file import read_metrics

CONFIG = Path("configs/cifar10_cpu.yaml")
JOBS = [("healthy", 0), ("no-target", 0), ("swapped", 0), ("regulariser", 0), ("healthy", 1), ("healthy", 2)]


def main() -> None:
    arguments = parser_of(__doc__, "runs/alarms").parse_args()
    if is_job(arguments, run_one):
        return
    run_all(JOBS, arguments, folder_of, "report.md")
    results = {
        f"{variant}-{seed}": read_result(folder_of(arguments.runs, variant, seed)) for variant, seed in sorted(JOBS)
    }
    print_table(results)
    write_results("alarms", {"runs": results})


def run_one(variant: str, seed: int, shards: Path, runs: Path) -> None:
    """Train one variant."""
    sabotage(variant)
    settings = {
        **{"run.name": f"{variant}-{seed}", "run.seed": seed, "run.folder": runs, "data.root": shards},
        **{"data.threads": 1, "data.epoch_samples": 50_048, "training.threads": 1, "training.epochs": 1},
        **{"logging.every_steps": 25, "logging.images_every": 0, "logging.tensorboard": False},
        **{f"objective.hjepa.{key}": value for key, value in OBJECTIVE[variant].items()},
        **{"backbone.vit": "{width: 48, depth: 2, heads: 2, patch: 4}"},
        **{"objective.hjepa.predictor": "{width: 24, depth: 1, heads: 2}", "objective.hjepa.momentum": 0.99},
        **{"evaluation.during_every_epochs": 0},
    }
    train(load_run_config(CONFIG, [f"{key}={value}" for key, value in settings.items()]), resume="auto")


def read_result(folder: Path) -> dict[str, Any]:
    rows = read_metrics(folder / "metrics.jsonl")
    judged = [row for row in rows if row["judged"]]
    first: dict[str, int] = {}
    for row in judged:
        for name in row["alarms"]:
            first.setdefault(name, row["step"])
    return {
        "largest_rho": max(row["rho_l0"] for row in judged),
        "smallest_gap": min(row["gap_l0"] for row in judged),
        "smallest_sd_of_start": min(row["sd"] for row in judged) / rows[0]["sd"],
        "smallest_rankme_of_start": min(row["rankme"] for row in judged) / rows[0]["rankme"],
        "at_the_end": {name: rows[-1][name] for name in ("rho_l0", "gap_l0", "sd", "rankme")},
        "at_the_start": {name: rows[0][name] for name in ("rho_l0", "gap_l0", "sd", "rankme")},
        "first_step_of_alarm": first,
        "log_points": len(judged),
        "proof": rows[-1]["proof"],
    }


def print_table(results: dict[str, dict[str, Any]]) -> None:
    print("| run | largest ρ | smallest gap | smallest sd | smallest RankMe | alarms, from step |")
    print("|---|---:|---:|---:|---:|---|")
    for name, result in results.items():
        alarms = ", ".join(f"*{alarm}* {step}" for alarm, step in result["first_step_of_alarm"].items())
        print(
            f"| {name} | {result['largest_rho']:.2f} | {result['smallest_gap']:.3f} | "
            f"{result['smallest_sd_of_start']:.2f} | {result['smallest_rankme_of_start']:.2f} | {alarms or 'none'} |"
        )


if __name__ == "__main__":
    main()
