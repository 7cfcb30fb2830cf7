"""What the commands have in common: errors as one line with exit code 2, the version."""

import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from hjepa_shards.errors import InputError, ShardError

_INTERRUPTED = (130, 138, 143)
"""What typer makes of Ctrl-C, and what a run leaves with that was told to stop by SIGUSR1 or SIGTERM."""

console = Console(width=None if sys.stdout.isatty() else 140)
if console.is_jupyter:  # lines, as into a file: rich's live bars want ipywidgets there
    console = Console(width=110, force_jupyter=False, force_terminal=False)


def run_app(app: Callable[[], object], *, interrupted: str) -> None:
    """Run a command; what its user can fix is one line on stderr and exit code 2 (HJEPA_TRACEBACK=1 shows more).

    interrupted: how to continue after Ctrl-C.
    """
    try:
        app()
    except (InputError, ShardError) as error:
        if os.environ.get("HJEPA_TRACEBACK"):
            raise
        say_error(f"error: {error}")
        raise SystemExit(2) from error
    except PermissionError as error:  # pathlib asks whether a path is a folder, and raises where it may not look
        say_error(f"error: {error.filename}: {error.strerror}; change its permissions, or choose another")
        raise SystemExit(2) from error
    except SystemExit as left:
        if left.code in _INTERRUPTED:
            say_error(f"interrupted; {interrupted}")
        raise


def say_error(text: str) -> None:
    """On one line; wrapped between words where a terminal is narrower. By rank, where torchrun started several."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ:
        text = f"rank {os.environ['RANK']}: {text}"
    if sys.stderr.isatty():
        text = textwrap.fill(text, shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False)
    print(text, file=sys.stderr)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hjepa {version('hjepa')}")
        raise typer.Exit


def version_option(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and leave")
    ] = False,
) -> None:
    """What a program takes before its command."""
