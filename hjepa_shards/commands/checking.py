"""Commands that look at shards and say what is wrong: verify."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from hjepa_shards.commands.tables import splits_below
from hjepa_shards.terminal import console, progress_bar
from hjepa_shards.verify import verify


def verify_command(
    folders: Annotated[list[Path], typer.Argument(help="built splits, or folders above them")],
) -> None:
    """Compare every file with its manifest; name lost samples. Exit code 1 if anything is wrong."""
    wrong = 0
    for folder in splits_below(folders):
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


def _some(samples: tuple[int, ...], most: int = 10) -> str:
    return ", ".join(map(str, samples[:most])) + (" ..." if len(samples) > most else "")
