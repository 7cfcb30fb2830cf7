"""Commands that write files for people: mix (a run's configuration), report (a page about built splits)."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from hjepa_shards.base.shown_text import size
from hjepa_shards.base.terminal import console, escape
from hjepa_shards.commands.tables import folders_below
from hjepa_shards.errors import InputError

if TYPE_CHECKING:
    from hjepa_shards.mixture.source_shares import SourceStats


def mix_command(
    out: Annotated[Path, typer.Option(help="file to write")],
    source: Annotated[list[str] | None, typer.Option(help="name[:split][=weight]; repeat it for each")] = None,
    scale: Annotated[
        Literal["mini", "medium", "large"] | None, typer.Option(help="a foundation mixture in place of --source")
    ] = None,
    root: Annotated[str, typer.Option(help="root of all shards")] = "data/shards",
    strategy: Annotated[
        Literal["weighted", "balanced", "concat"], typer.Option(help="by weights, equally, or by size")
    ] = "weighted",
    epoch_samples: Annotated[int | None, typer.Option(help="samples of an epoch (default: all sizes together)")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="side of the crops, pixels (default: 224, or less if all images are smaller)")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a file that is there")] = False,
) -> None:
    """Write a commented run configuration around a mixture of sources, built or not yet."""
    from hjepa_shards.config import parse
    from hjepa_shards.mixture.mixture import DataConfig
    from hjepa_shards.mixture.write_mixture import SCALES, default_image_size, parse_source, write_mixture

    if (scale is None) == (not source):
        found = "neither" if scale is None else "both"
        raise InputError(
            f"--source name[:split]=weight (one or more) or --scale mini|medium|large expected, {found} found"
        )
    if scale is not None:
        if strategy != "weighted":
            raise InputError(
                f"--scale {scale}: has weights, --strategy {strategy} takes none; name its --source one by one"
            )
        source, default_epoch = list(SCALES[scale][0]), SCALES[scale][1]
        epoch_samples = epoch_samples or default_epoch
    sources = [parse_source(text) for text in source or ()]
    for text, parsed in zip(source or (), sources, strict=True):
        if strategy == "weighted" and parsed.weight is None:
            raise InputError(
                f"--source {text}: a weight expected, as in {text}=0.5, none found; or say --strategy balanced"
            )
        if strategy != "weighted" and parsed.weight is not None:
            raise InputError(f"--source {text}: --strategy {strategy} takes no weights, one found; leave = and it out")
    content = {
        "root": root,
        "strategy": strategy,
        "sources": [source.model_dump() for source in sources],
        "epoch_samples": epoch_samples,
        "image_size": default_image_size(root, sources) if image_size is None else image_size,
    }
    written = write_mixture(out, parse(DataConfig, content, "mix"), force=force)
    _print_stats(written.stats)
    for note in written.notes:
        console.print(f"[yellow]note[/yellow] {escape(note)}")
    console.print(
        f"[green]wrote[/green] {escape(str(out))}; next: hjepa-shards plan {escape(str(out))}", soft_wrap=True
    )


def report_command(
    folders: Annotated[list[str], typer.Argument(path_type=str, help="built splits, or folders above them")],
    html: Annotated[Path, typer.Option(help="page to write")],
    duplicates: Annotated[Path | None, typer.Option(help="what `duplicates --report` wrote")] = None,
    mix: Annotated[Path | None, typer.Option(help="mix.yaml: draw its shares")] = None,
    raw: Annotated[
        list[str] | None, typer.Option(help="folder of raw data, or SOURCE=FOLDER: show the images that were excluded")
    ] = None,
) -> None:
    """Write one self-contained page: images, classes, sizes, exclusions, duplicates, provenance, shares."""
    from hjepa_shards.mixture.mixture import load_mixture_file
    from hjepa_shards.reports.shards_report import write_report
    from hjepa_shards.shards.manifest import load_manifest

    splits = folders_below(folders)
    sources = sorted({load_manifest(folder).source for folder in splits})
    notes = write_report(
        splits,
        html,
        mixture=load_mixture_file(mix) if mix else None,
        duplicates=duplicates,
        raw=dict(_raw_of(text, sources) for text in raw or ()),
    )
    for note in notes:
        console.print(f"[yellow]note[/yellow] {escape(note)}")
    num = f"{len(splits)} split{'s' * (len(splits) != 1)}"
    console.print(f"[green]wrote[/green] {escape(str(html))}: {num}, {size(html.stat().st_size)}", soft_wrap=True)


def _raw_of(text: str, sources: list[str]) -> tuple[str, str]:
    """(source, folder) of --raw: the source may be omitted where there is one only."""
    name, equals, folder = text.partition("=")
    if equals and name in sources:
        return name, folder
    if len(sources) == 1:
        return sources[0], text
    raise InputError(f"--raw {text}: source=folder expected, the sources here are {', '.join(sources)}")


def _print_stats(stats: dict[str, "SourceStats"]) -> None:
    table = Table("source")
    for name in ("share", "samples", "an epoch", "passes"):
        table.add_column(name, justify="right")
    for name, entry in stats.items():
        table.add_row(
            name,
            "?" if entry.share is None else f"{entry.share:.2%}",
            "not built" if entry.samples is None else f"{entry.samples:,}",
            "?" if entry.epoch_samples is None else f"{entry.epoch_samples:,.0f}",
            "?" if entry.passes is None else f"{entry.passes:.2f}",
        )
    console.print(table)
