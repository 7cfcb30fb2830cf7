"""hjepa-train: every command is one call of a public function and a table of what it returned."""

from pathlib import Path
from typing import Annotated

import typer

from hjepa_shards import console, run_app
from hjepa_train.distributed import is_first
from hjepa_train.evaluate import PROBES, USUAL, evaluate_all, probes_named
from hjepa_train.export import FORMS, Form, export
from hjepa_train.report import as_rich, did_it_run_right, probed, read_run, write_report
from hjepa_train.run import load_run_config, train

_WHICH = "latest, best (by the probe that training.keep_best names), or a checkpoint's folder"

app = typer.Typer(
    help="Train on mixtures of shards, go on after any kill, and see whether it learnt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    run_app(app, interrupted="`hjepa-train run ... --resume auto` goes on from the last checkpoint")


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
) -> None:
    """Train. Killed at any moment, `--resume auto` goes on in the middle of the epoch."""
    folder = train(
        load_run_config(config, changes or ()),
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
    console.print(f"report       {folder / 'report.md'}\ntensorboard  tensorboard --logdir {folder / 'tensorboard'}")


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
