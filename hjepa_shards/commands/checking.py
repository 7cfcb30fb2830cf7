"""Commands that look at shards and say what is wrong: verify, duplicates."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hjepa_shards.base.atomic_files import require_writable
from hjepa_shards.base.progress_bar import Advance, progress_bar
from hjepa_shards.base.terminal import console, escape, say_error
from hjepa_shards.base.thread_map import num_cores
from hjepa_shards.commands.tables import folders_below, splits_below
from hjepa_shards.errors import InputError, ShardError

if TYPE_CHECKING:
    from hjepa_shards.duplicates.find_duplicates import Duplicates
    from hjepa_shards.shards.location import Place
    from hjepa_shards.verifying.verify_split import Problem


def verify_command(
    folders: Annotated[list[str], typer.Argument(path_type=str, help="built splits, or what is above them; also URLs")],
    deep: Annotated[bool, typer.Option("--deep", help="also decode every image and compare rows with tars")] = False,
    out: Annotated[
        Path | None, typer.Option(help="with --deep: list of images that cannot be decoded, for `build --exclude`")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="threads (default: cores)")] = None,
) -> None:
    """Compare every file with its manifest; name lost samples. Exit code 1: something is wrong; 2: cannot be judged."""
    from hjepa_shards.shards.exclusions import write_exclusions
    from hjepa_shards.storage.remote_files import is_remote
    from hjepa_shards.verifying.verify_images import exclusions_of
    from hjepa_shards.verifying.verify_remote import unfinished_below
    from hjepa_shards.verifying.verify_split import without_manifest

    if out is not None:
        if not deep:
            raise InputError(f"--out {out}: only --deep decodes images; say --deep with it")
        require_writable(out.parent)

    workers = _checked(workers)
    marked = [unfinished_below(place) if is_remote(place) else without_manifest(Path(place)) for place in folders]
    unfinished = list({problem.path: problem for found in marked for problem in found}.values())
    try:
        splits = splits_below(folders)
    except InputError:
        if not unfinished:
            raise
        splits = []
    wrong, lost, unjudged, exclusions, unseen = len(unfinished), 0, [], [], 0
    _print_problems(unfinished)
    for folder in dict.fromkeys(splits):
        with progress_bar("bytes") as start:
            try:
                problems = _problems_of(folder, deep, start(f"verify {folder}"), workers)
            except (InputError, ShardError) as error:
                unjudged.append(error)
                continue
        _print_problems(problems)
        wrong += len(problems)
        lost += len({sample for problem in problems for sample in problem.lost_samples})
        if out is not None:
            exclusions += exclusions_of(folder, problems)
            unseen += sum(not problem.is_of_images for problem in problems)
        if not problems:
            console.print(f"[green]right[/green] {escape(str(folder))}")
    if wrong:
        console.print(f"{wrong:,} problems, {lost:,} samples lost")
    if out is not None:
        write_exclusions(out, exclusions)
        console.print(f"{escape(str(out))}: {len(exclusions):,} images to exclude; `build --exclude` takes it")
        if unseen or unjudged:
            console.print(f"{unseen + len(unjudged):,} other problems are not in it; fix them and verify again")
    for error in unjudged[:-1]:
        say_error(f"error: {error}")
    if unjudged:
        raise unjudged[-1]
    raise typer.Exit(1 if wrong else 0)


def _problems_of(place: "Place", deep: bool, progress: Advance, workers: int) -> list["Problem"]:
    from hjepa_shards.verifying.verify_images import verify_deep
    from hjepa_shards.verifying.verify_remote import verify_remote
    from hjepa_shards.verifying.verify_split import verify

    if isinstance(place, str):
        return verify_remote(place, progress, workers, deep=deep)
    return (verify_deep if deep else verify)(place, progress, workers)


def duplicates_command(
    folders: Annotated[
        list[str],
        typer.Argument(path_type=str, help="built splits, or folders above them; the first ones keep theirs"),
    ],
    near: Annotated[int, typer.Option(help="bits of 64 that two pictures' hashes may differ in, 0 to 15")] = 11,
    out: Annotated[Path | None, typer.Option(help="list of duplicates to exclude, for `build --exclude`")] = None,
    report: Annotated[Path | None, typer.Option(help="all groups of duplicates as JSON, for `report`")] = None,
    workers: Annotated[int | None, typer.Option(help="threads (default: cores)")] = None,
) -> None:
    """Find duplicates of images (exact, near, mirrored) in splits, across them, and leaks into val and test."""
    from hjepa_shards.duplicates.find_duplicates import find_duplicates

    splits = folders_below(folders)
    for path in (out, report):
        if path is not None:
            require_writable(path.parent)
    with progress_bar("images") as start:
        found = find_duplicates(splits, near=near, workers=_checked(workers), start=start)
    _print_relations(found)
    for remark in found.remarks:
        console.print(f"[yellow]note[/yellow] {escape(remark)}")
    if out is not None:
        found.save_exclusions(out)
        console.print(
            f"{escape(str(out))}: {len(found.exclusions):,} duplicates to exclude; `build --exclude` takes it (the "
            "first of each stays, and every image of val and test)"
        )
    if report is not None:
        found.save_report(report)
        console.print(f"{escape(str(report))}: {len(found.groups):,} groups of duplicates")


def _print_relations(found: "Duplicates") -> None:
    from hjepa_shards.duplicates.find_duplicates import KINDS

    if not found.relations:
        console.print(f"[green]no duplicates[/green] among {found.num_samples:,} images")
        return
    table = Table("", "images of", "that are duplicates of images in")
    for column in table.columns[1:]:
        column.overflow = "fold"
    for name in (*KINDS, "all", "share"):
        table.add_column(name, justify="right")
    for relation in found.relations:
        one, other = relation.first, relation.second
        side = 0 if relation.leak else 1
        subject, where = (one, other) if relation.leak else (other, one if one != other else "itself")
        total = relation.totals[side]
        table.add_row(
            "[red]leak[/red]" if relation.leak else "",
            escape(subject),
            escape(where),
            *(f"{relation.images[kind][side]:,}" for kind in KINDS),
            f"{total:,}",
            f"{total / found.samples_of[subject]:.2%}",
        )
    console.print(table)


def _checked(workers: int | None) -> int:
    if workers is None:
        return num_cores()
    if workers < 1:
        raise InputError(f"--workers: a positive number expected, {workers} found")
    return workers


def _print_problems(problems: list["Problem"], most: int = 10) -> None:
    for problem in problems:
        lost = list(zip(problem.lost_samples, problem.lost_keys, strict=True))
        names = ", ".join(f"{sample} ({key})" if key else str(sample) for sample, key in lost[:most])
        samples = f"; {len(lost):,} samples lost: {names}{' ...' * (len(lost) > most)}" if lost else ""
        console.print(f"[red]wrong[/red] {escape(f'{problem.path}: {problem.what}{samples}')}")
