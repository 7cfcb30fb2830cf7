"""hjepa-shards: every command is one call of a public function and a table of what it returned."""

import typer

from hjepa_shards.commands.checking import verify_command
from hjepa_shards.commands.making import build_command, index_command
from hjepa_shards.commands.showing import info_command, plan_command, sources_command
from hjepa_shards.terminal import run_app

_COMMANDS = {
    "sources": sources_command,
    "build": build_command,
    "verify": verify_command,
    "index": index_command,
    "info": info_command,
    "plan": plan_command,
}

app = typer.Typer(
    help="Raw image datasets to tar shards, and what can be known about them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    run_app(app)
