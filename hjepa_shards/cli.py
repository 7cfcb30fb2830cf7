"""hjepa-shards: every command is one call of a public function and a table of what it returned."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from hjepa_shards.build import DEFAULT_SHARD_MB, BuildOptions, build, default_settings
from hjepa_shards.config import load_yaml, parse
from hjepa_shards.dryrun import Forecast, forecast
from hjepa_shards.encode import EncodeSettings
from hjepa_shards.errors import InputError
from hjepa_shards.index import index_tars
from hjepa_shards.manifest import FILE_NAME, Manifest, load_manifest
from hjepa_shards.mixture import Mixture, load_mixture_file
from hjepa_shards.sources import SOURCES
from hjepa_shards.terminal import console, progress_bar, run_app, size
from hjepa_shards.verify import verify

app = typer.Typer(
    help="Raw image datasets to tar shards, and what can be known about them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    run_app(app)


@app.command("build")
def build_command(
    source: Annotated[str, typer.Argument(help="one of `hjepa-shards sources`")],
    raw: Annotated[Path | None, typer.Option(help="folder of the raw data")] = None,
    out: Annotated[Path, typer.Option(help="root of all shards")] = Path("data/shards"),
    split: Annotated[list[str] | None, typer.Option(help="only this split (may be repeated)")] = None,
    pixels: Annotated[
        Literal["keep", "png", "jpeg"] | None,
        typer.Option(help="how to store pixels [default: the source's]"),
    ] = None,
    shorter_side: Annotated[int | None, typer.Option(help="scale larger images down to this")] = None,
    quality: Annotated[int, typer.Option(help="of JPEG")] = 90,
    encoder: Annotated[
        Literal["pillow", "pillow-simd"], typer.Option(help="must be the one installed; their bytes differ")
    ] = "pillow",
    shard_mb: Annotated[int, typer.Option(help="aimed size of a shard, MiB")] = DEFAULT_SHARD_MB,
    samples_per_shard: Annotated[int | None, typer.Option(help="instead of --shard-mb")] = None,
    seed: Annotated[int, typer.Option(help="of the shuffle over shards")] = 0,
    limit: Annotated[int | None, typer.Option(help="only so many samples of each split")] = None,
    classes: Annotated[Path | None, typer.Option(help="file with one class a line")] = None,
    workers: Annotated[int, typer.Option(help="processes")] = 1,
) -> None:
    """Turn a raw dataset into shards. Killed? The same command goes on."""
    if pixels is None and shorter_side is not None:
        raise InputError("--shorter-side: say --pixels jpeg or --pixels png with it")
    settings = default_settings(source)
    if pixels is not None:
        chosen = {"pixels": pixels, "shorter_side": shorter_side, "quality": quality}
        settings = parse(EncodeSettings, chosen, "how to store pixels")
    options = BuildOptions(
        settings=settings.model_copy(update={"encoder": encoder}),
        shard_mb=shard_mb,
        samples_per_shard=samples_per_shard,
        seed=seed,
        limit=limit,
        classes=classes,
        workers=workers,
    )
    with progress_bar("images") as start:
        manifests = build(source, raw=raw, out=out, splits=split or (), options=options, progress=start(source))
    _print_manifests([(out / source / manifest.split, manifest) for manifest in manifests])
    for manifest in manifests:
        _print_remarks(manifest)


@app.command("verify")
def verify_command(
    folders: Annotated[list[Path], typer.Argument(help="built splits, or folders above them")],
) -> None:
    """Compare every file with its manifest; name lost samples. Exit code 1 if anything is wrong."""
    wrong = 0
    for folder in _splits_below(folders):
        with progress_bar("bytes") as start:
            problems = verify(folder, start(f"verify {folder}"))
        for problem in problems:
            lost = f"; {len(problem.lost_samples)} samples lost: " if problem.lost_samples else ""
            what = f"{problem.path}: {problem.what}{lost}{_some(problem.lost_samples)}"
            console.print(f"[red]wrong[/red] {escape(what)}")
        wrong += len(problems)
        if not problems:
            console.print(f"[green]right[/green] {escape(str(folder))}")
    raise typer.Exit(1 if wrong else 0)


@app.command("index")
def index_command(
    folder: Annotated[Path, typer.Argument(help="folder with somebody else's *.tar")],
    source: Annotated[str | None, typer.Option(help="name [default: the folder above]")] = None,
    split: Annotated[str | None, typer.Option(help="name [default: this folder]")] = None,
) -> None:
    """Make WebDataset tars usable: sidecars and a manifest beside them, the tars untouched."""
    with progress_bar("shards") as start:
        manifest = index_tars(folder, source=source, split=split, progress=start(f"index {folder}"))
    _print_manifests([(folder, manifest)])
    _print_remarks(manifest)


@app.command("info")
def info_command(
    folders: Annotated[list[Path], typer.Argument(help="built splits, or folders above them")],
) -> None:
    """What is in built splits."""
    found = [(folder, load_manifest(folder)) for folder in _splits_below(folders)]
    _print_manifests(found)
    for folder, manifest in found if len(found) == 1 else ():
        _print_details(folder, manifest)


@app.command("sources")
def sources_command() -> None:
    """The raw datasets that `build` knows."""
    table = Table("source", "what", "layout of --raw", "classes", "images", "download", "stored as")
    for source in SOURCES.values():
        layout = source.layout or "none needed"
        table.add_row(
            source.name,
            source.description,
            layout,
            source.classes,
            source.images,
            source.download,
            source.pixels,
        )
    console.print(table)


@app.command("plan")
def plan_command(
    config: Annotated[Path, typer.Argument(help="mix.yaml: a run, or its data section alone")],
    epochs: Annotated[int | None, typer.Option(help="[default: training.epochs, or 1]")] = None,
    global_batch: Annotated[int | None, typer.Option(help="[default: training.global_batch, or 256]")] = None,
    ranks: Annotated[int, typer.Option(help="processes that share a global batch")] = 1,
) -> None:
    """What a run will see, before it starts: steps, and samples, passes, repeats, never seen by source."""
    mixture = load_mixture_file(config)
    if epochs is None:
        epochs = _training_number(config, "epochs", otherwise=1)
    if global_batch is None:
        global_batch = _training_number(config, "global_batch", otherwise=256)
    print_forecast(forecast(mixture, epochs=epochs, global_batch=global_batch, ranks=ranks), mixture)


def _training_number(config: Path, key: str, otherwise: int) -> int:
    """A number of a run's `training` section, which a file for the mixture alone does not have."""
    training = load_yaml(config).get("training")
    value = training.get(key, otherwise) if isinstance(training, dict) else otherwise
    if type(value) is not int:
        raise InputError(f"{config}: training.{key}: a whole number expected, {value!r} found")
    return value


def print_forecast(plan: Forecast, mixture: Mixture) -> None:
    """The dry run as a table with its warnings."""
    console.print(
        f"{plan.epochs:,} epochs of {plan.epoch_samples:,} samples ({mixture.config.strategy}): {plan.steps:,} steps "
        f"of {plan.global_batch} on each of {plan.ranks} ranks, {plan.samples:,} samples in all"
    )
    table = Table("source")
    for name in (
        "share",
        "samples",
        "an epoch",
        "in the run",
        "passes",
        "repeats",
        "never seen",
        "read",
        "windows",
    ):
        table.add_column(name, justify="right")
    for entry in plan.entries:
        table.add_row(
            entry.name,
            f"{entry.share:.2%}",
            f"{entry.samples:,}",
            f"{entry.epoch_draws:,.0f}",
            f"{entry.draws:,}",
            f"{entry.passes:.2f}",
            f"{entry.repeats:,}",
            f"{entry.never_seen:,}",
            size(entry.draw_bytes),
            size(entry.window_bytes),
        )
    console.print(table)
    for warning in plan.warnings:
        console.print(f"[yellow]note[/yellow] {escape(warning)}")


def _splits_below(folders: list[Path]) -> list[Path]:
    found = [path.parent for folder in folders for path in sorted(folder.glob(f"**/{FILE_NAME}"))]
    if not found:
        names = ", ".join(str(folder) for folder in folders)
        raise InputError(
            f"{names}: no {FILE_NAME} here or below; `hjepa-shards build` writes one, `hjepa-shards index` makes one "
            "for somebody else's tars"
        )
    return found


def _print_manifests(found: list[tuple[Path, Manifest]]) -> None:
    table = Table("split", "samples", "shards", "bytes", "members", "classes", "excluded", "order", "content")
    for column in table.columns[1:4]:
        column.justify = "right"
    for folder, manifest in found:
        table.add_row(
            escape(str(folder)),
            f"{manifest.num_samples:,}",
            f"{manifest.num_shards:,}",
            size(int(manifest.shard_bytes.sum())),
            " ".join(manifest.members),
            str(len(manifest.class_names) or "-"),
            str(len(manifest.exclusions)),
            manifest.order_digest[:12],
            manifest.content_digest[:12],
        )
    console.print(table)


def _print_remarks(manifest: Manifest, most: int = 10) -> None:
    for note in manifest.notes:
        console.print(f"[yellow]note[/yellow] {escape(note)}")
    for exclusion in manifest.exclusions[:most]:
        console.print(f"[yellow]excluded[/yellow] {escape(exclusion['name'])}: {escape(exclusion['reason'])}")
    if len(manifest.exclusions) > most:
        console.print(f"... and {len(manifest.exclusions) - most} more, all in the manifest")


def _print_details(folder: Path, manifest: Manifest) -> None:
    console.print(f"stored as: {manifest.settings}", markup=False)
    console.print(f"encoder: {manifest.encoder or 'none (indexed tars)'}", markup=False)
    for key, value in manifest.provenance.items():
        console.print(f"{key}: {value}", markup=False)
    statistics = manifest.statistics
    if statistics.get("images") and "width" in statistics:
        width, height = statistics["width"], statistics["height"]
        console.print(f"width {width[0]}-{width[1]}, height {height[0]}-{height[1]} pixels")
        for name, (count, total, squares) in zip("RGB", statistics["channel_moments"], strict=True):
            mean = total / count / 255
            deviation = max(0.0, squares / count / 255**2 - mean**2) ** 0.5
            console.print(f"{name}: mean {mean:.4f}, standard deviation {deviation:.4f}")
    if manifest.class_names:
        names = ", ".join(manifest.class_names[:20]) + " ..." * (len(manifest.class_names) > 20)
        console.print(f"classes: {names}", markup=False)
    _print_remarks(manifest)


def _some(samples: tuple[int, ...], most: int = 10) -> str:
    return ", ".join(map(str, samples[:most])) + (" ..." if len(samples) > most else "")
