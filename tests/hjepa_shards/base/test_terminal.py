"""What the commands have in common."""

import errno
import os
import re
from collections.abc import Sequence

import pytest
import typer
from rich.table import Table
from rich.text import Text

from hjepa_shards.base.progress_bar import progress_bar
from hjepa_shards.base.terminal import console, escape, run_app, say_error, visible
from hjepa_shards.errors import InputError, ResumeMismatch, ShardError, TooMuchDamage


def app_that_raises(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str] = ()
) -> typer.Typer:
    monkeypatch.setattr("sys.argv", ["app", *arguments])
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def command() -> None:
        raise error

    return app


@pytest.mark.parametrize("kind", [InputError, ResumeMismatch, ShardError, TooMuchDamage])
def test_what_a_user_can_fix_is_one_line_and_exit_code_2(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HJEPA_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as left:
        run_app(app_that_raises(kind("the disk [/is] full"), monkeypatch), interrupted={})
    assert left.value.code == 2
    assert capsys.readouterr() == ("", "error: the disk [/is] full\n")


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        run_app(app_that_raises(KeyError("x"), monkeypatch), interrupted={})
    monkeypatch.setenv("HJEPA_TRACEBACK", "1")
    with pytest.raises(InputError):
        run_app(app_that_raises(InputError("x"), monkeypatch), interrupted={})


HOSTILE = "a\x1b[31mred\x1b]0;title\x07\rb\u202etxt.exe\u2066\x9b2J\x7f\udc80\n[bold]c\u200f"
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def test_no_control_in_a_text_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("x")
    table.add_row(HOSTILE.replace("[bold]", ""))
    console.print(f"[green]right[/green] {escape(HOSTILE)}")
    console.print(HOSTILE, markup=False)
    console.print(Text(HOSTILE), table)
    say_error(f"error: {HOSTILE}")
    with progress_bar("images") as start:
        start(HOSTILE)(1, 1)
    out, err = capsys.readouterr()
    assert CONTROLS.search(out + err) is None
    assert err.count("\n") == 1
    assert "\\x1b[31mred" in out
    assert "\\n[bold]c" in out.splitlines()[0]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on device; make room"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x: Read-only file system; choose another folder"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/x"), "files open at once: `ulimit -n 65536`"),
        (InputError(f"/x: cannot be read: {os.strerror(errno.EMFILE)}"), "files open at once: `ulimit -n 65536`"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied; change its permissions"),
    ],
)
def test_what_the_machine_lacks_is_one_line_with_what_to_do(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HJEPA_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as left:
        run_app(app_that_raises(error, monkeypatch), interrupted={})
    out, err = capsys.readouterr()
    assert (left.value.code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_readable_text_stays_as_it_is() -> None:
    text = "Grüße 日本語 \u3000 e\u0301 👩\u200d🚀 → ×"
    assert visible(text) == text


@pytest.mark.parametrize("arguments", [["build", "--raw", "x"], ["--raw=x", "build"], ["build"]])
@pytest.mark.parametrize("left", [KeyboardInterrupt(), SystemExit(143)])
def test_what_is_said_after_ctrl_c_is_what_is_true_of_the_command(
    arguments: list[str],
    left: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = app_that_raises(left, monkeypatch, arguments)
    with pytest.raises(SystemExit):
        run_app(app, interrupted={"build": "the same command continues", "x": "wrong"})
    assert capsys.readouterr() == ("", "interrupted; the same command continues\n")
    with pytest.raises(SystemExit):
        run_app(app, interrupted={})
    assert capsys.readouterr() == ("", "interrupted; nothing is half done; the same command begins again\n")
