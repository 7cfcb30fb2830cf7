"""Commands that bring raw data, and look at what was brought: download, verify-raw."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, final

import typer
from rich.table import Table

from hjepa_shards.base.progress_bar import progress_bar
from hjepa_shards.base.shown_text import size
from hjepa_shards.base.terminal import console, escape, say_error
from hjepa_shards.base.thread_map import num_cores
from hjepa_shards.commands.tables import print_next
from hjepa_shards.errors import InputError, ShardError

if TYPE_CHECKING:
    from hjepa_shards.downloading.verify_raw import FilesCheck, SplitCheck
    from hjepa_shards.storage.http_download import Watcher


def download_command(
    sources: Annotated[list[str] | None, typer.Argument(help="some of `hjepa-shards sources`")] = None,
    all_sources: Annotated[bool, typer.Option("--all", help="every source that can be downloaded")] = False,
    raw: Annotated[
        Path | None,
        typer.Option(help="folder for the raw data (default: data/raw/SOURCE); of several sources the one above"),
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="only this split (may be repeated)")] = None,
    small: Annotated[bool, typer.Option("--small", help="the images at 256x256 (places365)")] = False,
    keep_archives: Annotated[bool, typer.Option("--keep-archives", help="also after unpacking")] = False,
    force: Annotated[bool, typer.Option("--force", help="download again what is there already")] = False,
    url_base: Annotated[str | None, typer.Option(help="mirror: an address below which the files are")] = None,
) -> None:
    """Fetch raw datasets, check them against published digests, unpack them. Killed? The same command continues."""
    from hjepa_shards.downloading.published_files import DOWNLOADS, has_small_edition, imagenet_instructions
    from hjepa_shards.sources.registry import SOURCES

    if all_sources == bool(sources):
        found = "both" if sources else "neither"
        raise InputError(f"names of sources or --all expected, {found} found; `hjepa-shards sources` lists them")
    names = [name for name in SOURCES if name in DOWNLOADS] if all_sources else list(dict.fromkeys(sources or ()))
    several = all_sources or len(names) > 1
    folders = {name: Path("data/raw") / name if raw is None else raw / name if several else raw for name in names}
    wanted = []
    for name, folder in folders.items():
        known = SOURCES.get(name)
        if known and known.download == "manual":
            console.print(imagenet_instructions(name, folder), markup=False, highlight=False)
        elif known and not known.layout:
            console.print(f"{name}: its images come with this program, nothing to download: hjepa-shards build {name}")
        else:
            wanted.append(name)
    any_small = small and any(map(has_small_edition, wanted))
    chosen = [
        _Download(
            source=name,
            folder=folders[name],
            splits=split or (),
            small=has_small_edition(name) if any_small else small,
            keep_archives=keep_archives,
            force=force,
        )
        for name in wanted
    ]
    for one in chosen:  # what is wrong with the last is said before the first is fetched
        one.print_space()
    if all_sources:
        manual = [source.name for source in SOURCES.values() if source.download == "manual"]
        console.print(
            f"[yellow]note[/yellow] skipped, they cannot be downloaded automatically: {', '.join(manual)}; "
            f"`hjepa-shards download {manual[0]}` says how to get them"
        )
    failed = []
    for one in chosen:
        try:
            one.run(url_base)
        except (InputError, ShardError) as error:
            if not several:
                raise
            say_error(f"error: {error}")
            failed.append(one)
    done = [one for one in chosen if one not in failed]
    if done:
        print_next(*(command for one in done for command in one.next_commands(several)))
    if failed:
        raise InputError(
            f"{len(failed)} of {len(chosen)} sources were not downloaded: {', '.join(one.source for one in failed)}; "
            "see above, then run the same command again"
        )


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Download:
    """One source to be fetched."""

    source: str
    folder: Path
    splits: Sequence[str]
    small: bool
    keep_archives: bool
    force: bool

    def print_space(self) -> None:
        from hjepa_shards.downloading.published_files import space_needed

        space = space_needed(
            self.source,
            self.folder,
            splits=self.splits,
            small=self.small,
            keep_archives=self.keep_archives,
            force=self.force,
        )
        console.print(
            f"{self.source}: {size(space.to_fetch)} to fetch into {escape(str(self.folder))}; of the disk "
            f"{size(space.at_most)} more on the way, {size(space.in_the_end)} in the end, {size(space.free)} free"
        )

    def run(self, url_base: str | None) -> None:
        from hjepa_shards.downloading.published_files import download

        with _watcher("bytes") as watcher:
            found = download(
                self.source,
                self.folder,
                splits=self.splits,
                small=self.small,
                keep_archives=self.keep_archives,
                force=self.force,
                url_base=url_base,
                watcher=watcher,
            )
        for path in found:
            console.print(f"[green]there[/green] {escape(str(path))}", soft_wrap=True)

    def next_commands(self, short: bool) -> list[str]:
        """short: only the one that builds."""
        raw = f"--raw {shlex.quote(str(self.folder))}"
        build = f"hjepa-shards build {self.source} {raw}"
        return [build] if short else [f"hjepa-shards verify-raw {self.source} {raw}", build]


def verify_raw_command(
    source: Annotated[str, typer.Argument(help="one of `hjepa-shards sources`")],
    raw: Annotated[str | None, typer.Option(help="as `build` takes it (default: data/raw/SOURCE)")] = None,
    split: Annotated[list[str] | None, typer.Option(help="only this split (may be repeated)")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="decode every image, hash every published file")] = False,
    classes: Annotated[Path | None, typer.Option(help="file with one class a line")] = None,
    list_file: Annotated[Path | None, typer.Option("--list", help="file that names the images")] = None,
    no_classes: Annotated[bool, typer.Option("--no-classes", help="folder: as `build` takes it")] = False,
    workers: Annotated[int | None, typer.Option(help="threads (default: cores)")] = None,
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
