"""What a newcomer types first is answered at once: help, versions, completion and typos load no heavy library."""

import inspect
import json
import os
import subprocess
import sys
from typing import get_args

import pytest

from hjepa_shards.building.build import DEFAULT_SHARD_MB
from hjepa_shards.commands.checking import duplicates_command
from hjepa_shards.commands.making import build_command
from hjepa_shards.duplicates.find_duplicates import DEFAULT_NEAR
from hjepa_train import cli as train_cli
from hjepa_train.jobs.evaluate import PROBES, USUAL
from hjepa_train.jobs.export import FORMS

HEAVY = ("numpy", "pydantic", "fsspec", "cv2", "sklearn", "torch", "ray")
_PROGRAMS = {"hjepa-shards": "hjepa_shards", "hjepa-train": "hjepa_train"}
_FIRST = {
    "help": ["--help"],
    "a command's help": ["bench", "--help"],
    "version": ["--version"],
    "unknown command": ["biuld"],
    "unknown option": ["bench", "--nonsense"],
    "completion script": ["--show-completion", "bash"],
}
_CODE = """
import atexit, json, os, sys
sys.argv[0] = {program!r}
atexit.register(lambda: print(json.dumps([m for m in {heavy!r} if m in sys.modules]), file=sys.stderr))
from {package}.cli import main
main()
"""


def loaded(program: str, arguments: list[str], **variables: str) -> tuple[int, str, list[str]]:
    """Exit code, what was printed, and which heavy libraries a command had loaded when it left."""
    code = _CODE.format(program=program, heavy=HEAVY, package=_PROGRAMS[program])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=False,
    )
    *said, modules = done.stderr.splitlines()
    return done.returncode, done.stdout + "\n".join(said), json.loads(modules)


@pytest.mark.parametrize("what", _FIRST)
@pytest.mark.parametrize("program", _PROGRAMS)
def test_first_steps_load_nothing_heavy(program: str, what: str) -> None:
    # typer looks for the shell that started it: there is none in a Makefile
    code, said, modules = loaded(program, _FIRST[what], _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert modules == []
    assert code == (2 if what.startswith("unknown") else 0), said
    assert said.strip()


@pytest.mark.parametrize("program", _PROGRAMS)
def test_a_shell_completes_commands_and_options(program: str) -> None:
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    for typed, expected in ((f"{program} ben", "bench"), (f"{program} bench --", "--help")):
        given = {variable: "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
        code, said, modules = loaded(program, [], **given)
        assert (code, modules) == (0, [])
        assert expected in said.split()


def test_defaults_that_commands_show_are_those_of_what_they_call() -> None:
    def default(command: object, option: str) -> object:
        return inspect.signature(command).parameters[option].default  # type: ignore[arg-type]

    assert default(build_command, "shard_mb") == DEFAULT_SHARD_MB
    assert default(duplicates_command, "near") == DEFAULT_NEAR
    assert default(train_cli.eval_command, "probe") == ",".join(USUAL)
    parameters = inspect.signature(train_cli.eval_command).parameters
    assert ", ".join(PROBES) in parameters["probe"].annotation.__metadata__[0].help
    form = inspect.signature(train_cli.export_command).parameters["to"].annotation
    assert get_args(get_args(form)[0]) == FORMS


def test_modules_run_as_programs() -> None:
    for package in _PROGRAMS.values():
        done = subprocess.run([sys.executable, "-m", package, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("hjepa ")


def test_without_pytorch_one_line_names_the_extra() -> None:
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['hjepa-train', 'run', 'mix.yaml']\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "from hjepa_train.cli import main; main()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: torch is not installed; training needs it: pip install 'hjepa[train]'\n"
