"""Commands that bring raw data, and look at what was brought: download, verify-raw."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hjepa_shards.base.progress_bar import progress_bar
from hjepa_shards.base.shown_text import size
from hjepa_shards.base.terminal import console, escape, say_error
from hjepa_shards.base.thread_map import num_cores
from hjepa_shards.errors import InputError

if TYPE_CHECKING:
    from hjepa_shards.downloading.verify_raw import FilesCheck, SplitCheck
    from hjepa_shards.storage.http_download import Watcher


def download_command(
    source: Annotated[str, typer.Argument(help="one of `hjepa-shards sources`")],
    raw: Annotated[Path | None, typer.Option(help="folder for the raw data [default: data/raw/SOURCE]")] = None,
    split: Annotated[list[str] | None, typer.Option(help="only this split (may be repeated)")] = None,
    small: Annotated[bool, typer.Option("--small", help="the images at 256x256 (places365)")] = False,
    keep_archives: Annotated[bool, typer.Option("--keep-archives", help="also after unpacking")] = False,
    url_base: Annotated[str | None, typer.Option(help="mirror: an address below which the files are")] = None,
) -> None:
    """Fetch a raw dataset, check it against its published digest, unpack it. Killed? The same command continues."""
    from hjepa_shards.downloading.published_files import download, imagenet_instructions, space_needed
    from hjepa_shards.sources.registry import SOURCES

    folder = raw or Path("data/raw") / source
    known = SOURCES.get(source)
    if known and known.download == "manual":
        console.print(imagenet_instructions(source, folder), markup=False, highlight=False)
        return
    if known and not known.layout:
        console.print(f"{source}: its images come with this program, nothing to download: hjepa-shards build {source}")
        return
    splits = split or ()
    space = space_needed(source, folder, splits=splits, small=small, keep_archives=keep_archives)
    console.print(
        f"{source}: {size(space.to_fetch)} to fetch into {escape(str(folder))}; of the disk {size(space.at_most)} more "
        f"on the way, {size(space.in_the_end)} in the end, {size(space.free)} free"
    )
    with _watcher("bytes") as watcher:
        found = download(
            source,
            folder,
            splits=splits,
            small=small,
            keep_archives=keep_archives,
            url_base=url_base,
            watcher=watcher,
        )
    for path in found:
        console.print(f"[green]there[/green] {escape(str(path))}")
    console.print(f"next: hjepa-shards verify-raw {source} --raw {escape(str(folder))}, then build {source}")


def verify_raw_command(
    source: Annotated[str, typer.Argument(help="one of `hjepa-shards sources`")],
    raw: Annotated[str | None, typer.Option(help="as `build` takes it [default: data/raw/SOURCE]")] = None,
    split: Annotated[list[str] | None, typer.Option(help="only this split (may be repeated)")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="decode every image, hash every published file")] = False,
    classes: Annotated[Path | None, typer.Option(help="file with one class a line")] = None,
    list_file: Annotated[Path | None, typer.Option("--list", help="file that names the images")] = None,
    no_classes: Annotated[bool, typer.Option("--no-classes", help="folder: as `build` takes it")] = False,
    workers: Annotated[int | None, typer.Option(help="threads [default: cores]")] = None,
) -> None:
    """Is raw data what was published? Exit code 1 if anything is wrong, 2 if it cannot be decided."""
    from hjepa_shards.downloading.verify_raw import check_raw_files, check_raw_splits
    from hjepa_shards.sources.registry import SOURCES

    if workers is not None and workers < 1:
        raise InputError(f"--workers: a positive number expected, {workers} found")
    known = SOURCES.get(source)
    if raw is None and known and known.layout:
        raw = f"data/raw/{source}"
    with _watcher("images") as watcher:
        checks = check_raw_splits(
            source,
            raw,
            splits=split or (),
            classes=classes,
            list_file=list_file,
            no_classes=no_classes,
            deep=deep,
            workers=workers or num_cores(),
            watcher=watcher,
        )
    _print_splits(source, checks)
    files = None
    if raw is not None and Path(raw).is_dir():
        with _watcher("bytes") as watcher:
            files = check_raw_files(source, Path(raw), deep=deep, watcher=watcher)
        _print_files(files)
    unopened = [check.unopened for check in checks if check.unopened]
    if unopened:
        for reason in unopened[:-1]:
            say_error(f"error: {reason}")
        raise InputError(unopened[-1])
    raise typer.Exit(1 if (files and files.wrong) or any(check.wrong for check in checks) else 0)


def _print_splits(source: str, checks: list["SplitCheck"]) -> None:
    table = Table("split", "images", "published", "classes", "decoded")
    for column in table.columns[1:]:
        column.justify = "right"
    for check in checks:
        if check.images:
            published = "-" if check.published is None else f"{check.published:,}"
            table.add_row(check.split, f"{check.images:,}", published, str(check.classes or "-"), f"{check.decoded:,}")
    if table.row_count:
        console.print(table)
    for check in checks:
        for line in check.wrong:
            console.print(f"[red]wrong[/red] {source} {check.split}: {escape(line)}")
        if not check.wrong and not check.unopened:
            rest = "; the rest with --deep" if check.decoded < check.images else ""
            console.print(
                f"[green]right[/green] {source} {check.split}: {check.images:,} images, {check.decoded:,} of them "
                f"decoded{rest}"
            )


def _print_files(files: "FilesCheck", most: int = 10) -> None:
    for line in files.wrong[:most]:
        console.print(f"[red]wrong[/red] {escape(line)}")
    if len(files.wrong) > most:
        console.print(f"... and {len(files.wrong) - most:,} more files")
    if files.as_published:
        console.print(f"[green]right[/green] byte for byte as published: {escape(', '.join(files.as_published))}")


@contextmanager
def _watcher(unit: str) -> Iterator["Watcher"]:
    """Bars and lines on the terminal."""
    from hjepa_shards.storage.http_download import Watcher

    with progress_bar(unit) as start:
        yield Watcher(bar=start, note=lambda line: console.print(f"[yellow]note[/yellow] {escape(line)}"))
