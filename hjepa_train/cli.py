"""hjepa-train: every command is one call of a public function and a table of what it returned."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from hjepa_shards import InputError, console, run_app
from hjepa_train.bench import bench
from hjepa_train.bench_report import as_sheets as as_bench_sheets
from hjepa_train.bench_report import compared, make_folder, write_bench
from hjepa_train.comparison import compare
from hjepa_train.distributed import is_first
from hjepa_train.dryrun import DryRun, as_sheets, dry_run
from hjepa_train.evaluate import PROBES, USUAL, evaluate_all, probes_named
from hjepa_train.export import FORMS, Form, export
from hjepa_train.full_memory import full_memory_told
from hjepa_train.report import did_it_learn, did_it_run_right, probed, read_run, what_ran, write_report
from hjepa_train.run import train
from hjepa_train.runconfig import load_run_config
from hjepa_train.sheet import as_rich

_WHICH = "latest, best (by the probe that training.keep_best names), or a checkpoint's folder"

app = typer.Typer(
    help="Train on mixtures of shards, go on after any kill, and see whether it learnt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    run_app(_app_in_memory, interrupted="`hjepa-train run ... --resume auto` goes on from the last checkpoint")


def _app_in_memory() -> None:
    with full_memory_told(
        "the memory of this machine or of its device is full; end what else runs there, or try one with more"
    ):
        app()


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
    only_check: Annotated[
        bool, typer.Option("--dry-run", help="check everything; print steps, samples, memory and hours; train nothing")
    ] = False,
) -> None:
    """Train. Killed at any moment, `--resume auto` goes on in the middle of the epoch."""
    loaded = load_run_config(config, changes or ())
    if only_check:
        return _print_dry_run(dry_run(loaded, where=str(config)))
    folder = train(
        loaded,
        where=str(config),
        resume=resume,
        stop_after=stop_after,
        accept_mixture=accept_mixture,
        accept_content=accept_content,
    )
    if not is_first():
        return
    write_report(folder)
    for sheet in did_it_run_right(read_run(folder)):
        console.print(as_rich(sheet))
    console.print(
        f"report       {folder / 'report.md'}, report.html\ntensorboard  tensorboard --logdir {folder / 'tensorboard'}"
    )


def _print_dry_run(dry: DryRun) -> None:
    for sheet in as_sheets(dry):
        console.print(as_rich(sheet))
    for note in dry.notes:
        console.print(f"[yellow]note[/yellow] {escape(note)}")


@app.command("eval")
def eval_command(
    folder: Annotated[Path, typer.Argument(help="runs/<name>")],
    source: Annotated[
        list[str] | None, typer.Option(help="a built, labelled source (may be repeated) [default: the config's]")
    ] = None,
    split: Annotated[str | None, typer.Option(help="split to test on [default: test, else val]")] = None,
    bank: Annotated[int | None, typer.Option(help="labelled images that the probes learn from")] = None,
    test: Annotated[int | None, typer.Option(help="images they are tested on")] = None,
    probe: Annotated[str, typer.Option(help=f"some of {', '.join(PROBES)}")] = ",".join(USUAL),
    checkpoint: Annotated[str, typer.Option(help=_WHICH)] = "latest",
) -> None:
    """Probe a run's encoders on frozen features, beside chance, raw pixels, PCA-30 and the untrained encoder.

    Killed at any moment, the same command goes on behind the last finished probe.
    """
    results = evaluate_all(
        folder,
        source or [],
        split=split,
        which=checkpoint,
        probes=probes_named(probe),
        bank=bank,
        test=test,
        say=console.print,
    )
    console.print(as_rich(probed(results)))
    console.print(f"report  {folder / 'report.md'}\njson    {folder / 'evaluation.json'}")


@app.command("report")
def report_command(
    folders: Annotated[list[Path], typer.Argument(help="runs/<name>; several are compared")],
    out: Annotated[
        Path | None, typer.Option(help="folder for a comparison [default: `comparison` beside the first run]")
    ] = None,
) -> None:
    """One run: its tables, report.md and report.html written anew. Several: side by side, also as a page and JSON."""
    if len(folders) > 1:
        place, sheets = compare(folders, out)
        written = ", ".join(str(place / f"comparison.{kind}") for kind in ("md", "html", "json"))
    elif out:
        raise InputError(f"--out {out}: several runs to compare expected, one found; its report stands in its folder")
    else:
        place = write_report(folders[0])
        run = read_run(folders[0])
        sheets = [what_ran(run), *did_it_run_right(run), *did_it_learn(run)]
        written = f"{place}, {place.with_suffix('.html')}"
    for sheet in sheets:
        console.print(as_rich(sheet))
    console.print(f"written  {written}", soft_wrap=True)


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
    if side_by_side:
        for sheet in compared(files):
            console.print(as_rich(sheet))
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
    for sheet in as_bench_sheets(found):
        console.print(as_rich(sheet))
    console.print(f"written  {written}, .md, .html", soft_wrap=True)


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(help="runs/<name>")],
    to: Annotated[Form, typer.Option(help=f"{', '.join(FORMS)}")],
    out: Annotated[Path | None, typer.Option(help="folder to make [default: RUN/export/<encoder>-<to>]")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="which of the run's encoders [default: the target, where there is one]")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help=_WHICH)] = "latest",
) -> None:
    """The encoder for other programs: weights, a folder for timm.create_model("local-dir:..."), an ONNX graph."""
    console.print(f"written  {export(folder, to, out, encoder=encoder, which=checkpoint)}")
