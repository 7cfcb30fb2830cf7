"""hjepa-train: every command is one call of a public function and a table of what it returned.

What a command runs is imported in its body: `--help`, completion and a mistyped option load no PyTorch.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hjepa_shards.base.terminal import BEGINS_AGAIN, console, escape, run_app, version_option
from hjepa_shards.errors import InputError

if TYPE_CHECKING:
    from hjepa_train.jobs.dry_run import DryRun

_WHICH = "latest, best (by the probe that training.keep_best names), or a checkpoint's folder"
_WEIGHTS = "what init.weights may be, or init's keys: '{weights: FILE, key: teacher}'"
_EXTRA = ("torch", "safetensors", "tensorboard")
"""What `pip install 'hjepa[train]'` brings."""

_AFTER_CTRL_C = {
    "run": "`hjepa-train run ... --resume auto` continues from the last checkpoint",
    "eval": "the same command continues after the last finished probe",
    **dict.fromkeys(("report", "bench", "export"), BEGINS_AGAIN),
}

app = typer.Typer(
    help="Train on mixtures of shards, continue after any kill, and see whether it learnt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.callback()(version_option)


def main() -> None:
    run_app(_app_in_its_place, interrupted=_AFTER_CTRL_C | ({"run": BEGINS_AGAIN} if "--dry-run" in sys.argv else {}))


def _app_in_its_place() -> None:
    """A memory that is full and a PyTorch that is not there are the user's to fix, wherever they are met."""
    try:
        app()
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in _EXTRA:
            raise
        raise InputError(f"{error.name} is not installed; training needs it: pip install 'hjepa[train]'") from error
    except (RuntimeError, MemoryError) as error:
        from hjepa_train.base.full_memory import is_full_memory

        if not is_full_memory(error):
            raise
        raise InputError(
            "the memory of this machine or of its device is full; end what else runs there, or try one with more"
        ) from error


@app.command("run")
def run_command(
    config: Annotated[Path, typer.Argument(help="mix.yaml: the one file that describes a run")],
    resume: Annotated[
        str | None, typer.Option(help="`auto`: from the latest checkpoint, or begin; or a checkpoint's path")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="another value, such as training.lr=1e-4 (may be repeated)")
    ] = None,
    stop_after: Annotated[int | None, typer.Option(help="save and stop after this step", min=1)] = None,
    accept_mixture: Annotated[bool, typer.Option(help="resume with other weights or sources")] = False,
    accept_content: Annotated[bool, typer.Option(help="resume with other pixels in the same order")] = False,
    extend: Annotated[
        bool, typer.Option(help="with --resume: continue to a larger training.epochs, on schedules of that length")
    ] = False,
    only_check: Annotated[
        bool, typer.Option("--dry-run", help="check everything; print steps, samples, memory and hours; train nothing")
    ] = False,
) -> None:
    """Train. Killed at any moment, `--resume auto` continues in the middle of the epoch."""
    from hjepa_train.base.distributed import is_first
    from hjepa_train.jobs.dry_run import dry_run
    from hjepa_train.jobs.run import train
    from hjepa_train.reports.run_log import has_tensorboard
    from hjepa_train.reports.run_report import did_it_run_right, read_run
    from hjepa_train.reports.text_table import as_rich
    from hjepa_train.training.config import load_run_config

    loaded = load_run_config(config, changes or ())
    if only_check:
        return _print_dry_run(dry_run(loaded, where=str(config)), config)
    folder = train(
        loaded,
        where=str(config),
        resume=resume,
        stop_after=stop_after,
        accept_mixture=accept_mixture,
        accept_content=accept_content,
        extend=extend,
    )
    if not is_first():
        return
    for table in did_it_run_right(read_run(folder)):
        console.print(as_rich(table))
    console.print(f"report       {escape(str(folder / 'report.md'))}, report.html", soft_wrap=True)
    if loaded.logging.tensorboard and has_tensorboard(folder):
        console.print(f"tensorboard  tensorboard --logdir {escape(str(folder / 'tensorboard'))}", soft_wrap=True)


def _print_dry_run(dry: "DryRun", config: Path) -> None:
    from hjepa_train.base.device_peaks import machine_called, machines_named
    from hjepa_train.jobs.dry_run import as_tables, hours_table
    from hjepa_train.jobs.speed_here import speed_here
    from hjepa_train.reports.text_table import as_rich

    for table in as_tables(dry):
        console.print(as_rich(table))
    with console.status("measuring a few steps"):
        here = speed_here(dry, where=str(config))
    named = machines_named(f"{config.name} {config.read_text(encoding='utf-8')} {dry.config.run.name}")
    own = machine_called(here.device)
    machines = named if own is None or own in named else [own, *named]
    console.print(as_rich(hours_table(dry, here, machines)))
    for note in dry.notes:
        console.print(f"[yellow]note[/yellow] {escape(note)}")


@app.command("eval")
def eval_command(
    folder: Annotated[Path, typer.Argument(help="runs/<name>")],
    source: Annotated[
        list[str] | None, typer.Option(help="a built, labelled source (may be repeated) (default: the config's)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="split to test on (default: test, else val)")] = None,
    bank: Annotated[int | None, typer.Option(help="labelled images that the probes learn from")] = None,
    test: Annotated[int | None, typer.Option(help="images they are tested on")] = None,
    probe: Annotated[str, typer.Option(help="some of linear, knn, ridge, sgd, attentive")] = "linear,knn,ridge",
    checkpoint: Annotated[str, typer.Option(help=_WHICH)] = "latest",
    beside: Annotated[
        list[str] | None, typer.Option(help=f"weights from elsewhere as further rows: {_WEIGHTS} (may be repeated)")
    ] = None,
) -> None:
    """Probe a run's encoders on frozen features, beside chance, raw pixels, PCA-30 and the untrained encoder.

    Killed at any moment, the same command continues after the last finished probe.
    """
    from hjepa_train.jobs.evaluate import evaluate_all, probes_named
    from hjepa_train.reports.run_report import probed
    from hjepa_train.reports.text_table import as_rich
    from hjepa_train.weights.init_config import weights_named

    results = evaluate_all(
        folder,
        source or [],
        split=split,
        which=checkpoint,
        probes=probes_named(probe),
        beside=[weights_named(one, "--beside") for one in beside or ()],
        bank=bank,
        test=test,
        say=console.print,
    )
    console.print(as_rich(probed(results)))
    console.print(f"report  {escape(str(folder / 'report.md'))}\njson    {escape(str(folder / 'evaluation.json'))}")


@app.command("report")
def report_command(
    folders: Annotated[list[Path], typer.Argument(help="runs/<name>; several are compared")],
    out: Annotated[
        Path | None, typer.Option(help="folder for a comparison (default: `comparison` beside the first run)")
    ] = None,
) -> None:
    """One run: its tables, report.md and report.html written again. Several: side by side, also as a page and JSON."""
    from hjepa_train.reports.compare_runs import compare
    from hjepa_train.reports.run_report import did_it_learn, did_it_run_right, read_run, what_ran, write_report
    from hjepa_train.reports.text_table import as_rich

    if len(folders) > 1:
        written_to, tables = compare(folders, out)
        written = ", ".join(str(written_to / f"comparison.{kind}") for kind in ("md", "html", "json"))
    elif out:
        raise InputError(f"--out {out}: several runs to compare expected, one found; its report is in its folder")
    else:
        written_to = write_report(folders[0])
        run = read_run(folders[0])
        tables = [what_ran(run), *did_it_run_right(run), *did_it_learn(run)]
        written = f"{written_to}, {written_to.with_suffix('.html')}"
    for table in tables:
        console.print(as_rich(table))
    console.print(f"written  {escape(written)}", soft_wrap=True)


@app.command("bench")
def bench_command(
    files: Annotated[list[Path], typer.Argument(help="mix.yaml; with --compare, results of two benches or more")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="another value, such as training.precision=bf16 (may be repeated)")
    ] = None,
    steps: Annotated[int, typer.Option(help="how many are measured, twice: free, and phase by phase", min=3)] = 30,
    out: Annotated[Path, typer.Option(help="folder for the results: JSON, Markdown, a page")] = Path(
        "benchmarks/results"
    ),
    side_by_side: Annotated[bool, typer.Option("--compare", help="show results side by side; measure nothing")] = False,
) -> None:
    """Measure training on this machine: images/s, a step by its phases, the device's peak, the loader's speed."""
    from hjepa_train.jobs.bench import bench
    from hjepa_train.jobs.bench_report import as_tables, compared, make_folder, write_bench
    from hjepa_train.reports.text_table import as_rich
    from hjepa_train.training.config import load_run_config

    if side_by_side:
        for table in compared(files):
            console.print(as_rich(table))
        return
    if len(files) > 1:
        raise InputError(f"bench: one configuration expected, {len(files)} files found; results compare with --compare")
    config = load_run_config(files[0], changes or ())
    make_folder(out)
    with console.status("measuring") as status:
        found = bench(
            config, where=str(files[0]), steps=steps, say=lambda what: status.update(f"measuring: {escape(what)}")
        )
    written = write_bench(found, out)
    for table in as_tables(found):
        console.print(as_rich(table))
    console.print(f"written  {escape(str(written))}, .md, .html", soft_wrap=True)


@app.command("export")
def export_command(
    to: Annotated[Literal["safetensors", "torch", "timm", "onnx"], typer.Option(help="for which programs")],
    folder: Annotated[Path | None, typer.Argument(help="runs/<name>; none with --weights")] = None,
    out: Annotated[Path | None, typer.Option(help="folder to make (default: RUN/export/<encoder>-<to>)")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="online or target (default: the target, where there is one)")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help=_WHICH)] = "latest",
    weights: Annotated[str | None, typer.Option(help=f"in place of a run's: {_WEIGHTS}")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="of --weights, pixels (default: as their source says)", min=1)
    ] = None,
) -> None:
    """The encoder for other programs: weights, a folder for timm.create_model("local-dir:..."), an ONNX graph."""
    from hjepa_train.jobs.export import export, export_weights
    from hjepa_train.weights.init_config import weights_named

    if weights is not None:
        if folder is not None or out is None:
            raise InputError("export --weights: no run, and a folder to make with --out, expected")
        written = export_weights(weights_named(weights, "--weights"), to, out, image_size=image_size)
        return console.print(f"written  {escape(str(written))}")
    if folder is None:
        raise InputError("export: a run's folder, or --weights, expected, neither found")
    console.print(f"written  {escape(str(export(folder, to, out, encoder=encoder, which=checkpoint)))}")
