"""What the commands have in common: errors as one line with exit code 2, and a safe terminal.

Class names, file names, notes and servers' answers are untrusted: a terminal would obey the control characters in them
(colours, titles, a line written over, text that reads from right to left). All text passes `visible` on its way out.
"""

import errno
import os
import re
import resource
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Annotated

import typer
from rich import markup
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from hjepa_shards.errors import InputError, ShardError

_INTERRUPTED = (130, 138, 143)
"""What typer makes of Ctrl-C, and what a run leaves with that was told to stop by SIGUSR1 or SIGTERM."""

BEGINS_AGAIN = "nothing is half done; the same command begins again"
CONTINUES = "the same command continues with what is not done yet"
"""What is true of a command after Ctrl-C."""

_ADVICE = {
    errno.EACCES: "; change its permissions, or choose another",
    errno.EPERM: "; change its permissions, or choose another",
    errno.EROFS: "; choose another folder",
    errno.ENOSPC: "; make room, then run the same command again",
    errno.EDQUOT: "; make room, then run the same command again",
    errno.EIO: "; look at this disk",
    errno.ESTALE: "; mount it again",
    errno.ENAMETOOLONG: "; choose a shorter name",
    errno.ELOOP: "; choose another",
    errno.EMFILE: "",
    errno.ENFILE: "",
}
"""What a user can do about errors of the operating system, wherever they are met."""

_CONTROLS = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\xad\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ud800-\\udfff\\ufeff"
    "\\ufff9-\\ufffb\\U000e0000-\\U000e0fff]"
)
"""What steers a terminal, is not seen or not encoded: C0, C1, directions and other formats, half surrogates, tags."""


def visible(text: str) -> str:
    """`text` on one line, each control character as Python writes it: \\x1b, \\n, \\u202e."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape(text: str) -> str:
    """`text` for a place where the console's markup is read: neither markup nor controls in it have an effect."""
    return markup.escape(visible(text))


class _SafeConsole(Console):
    """Makes controls in any text visible, where the text was not `escape`d too; its own colours and cursor stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if not segment.control and segment.text != "\n" and _CONTROLS.search(segment.text):
                lines = segment.text.split("\n")
                segment = Segment("\n".join(map(visible, lines)), segment.style)
            yield segment


console = _SafeConsole(width=None if sys.stdout.isatty() else 140)
if console.is_jupyter:  # lines, as into a file: rich's live bars want ipywidgets there
    console = _SafeConsole(width=110, force_jupyter=False, force_terminal=False)


def run_app(app: Callable[[], object], *, interrupted: Mapping[str, str]) -> None:
    """Run a command; what its user can fix is one line on stderr and exit code 2 (HJEPA_TRACEBACK=1 shows more).

    interrupted: by the name of a command, what is true of it after Ctrl-C.
    """
    try:
        app()
    except (InputError, ShardError) as error:
        if os.environ.get("HJEPA_TRACEBACK"):
            raise
        say_error(f"error: {error}{_open_files_advice(str(error))}")
        raise SystemExit(2) from error
    except OSError as error:  # pathlib asks whether a path is a folder, and raises where it may not look
        advice = _ADVICE.get(error.errno or 0)
        if advice is None or os.environ.get("HJEPA_TRACEBACK"):
            raise
        where = error.filename or "a file of this machine"
        say_error(f"error: {where}: {error.strerror}{advice}{_open_files_advice(str(error.strerror))}")
        raise SystemExit(2) from error
    except SystemExit as left:
        if left.code in _INTERRUPTED:
            command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
            if sys.stderr.isatty():
                print(end="\r", file=sys.stderr)  # over the ^C that the terminal has written
            say_error(f"interrupted; {interrupted.get(command, BEGINS_AGAIN)}")
        raise


def _open_files_advice(said: str) -> str:
    """What to do where a process may not open as many files as it needs; whatever it wanted to do with this one."""
    if os.strerror(errno.EMFILE) not in said and os.strerror(errno.ENFILE) not in said:
        return ""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"; this process may have {limit:,} files open at once: `ulimit -n 65536` before the same command allows more"
    )


def say_error(text: str) -> None:
    """On one line; wrapped between words where a terminal is narrower. By rank, where torchrun started several."""
    text = visible(text)
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
