"""hjepa-shards: every command is one call of a public function and a table of what it returned."""

import typer

from hjepa_shards.base.terminal import run_app, version_option
from hjepa_shards.commands.checking import duplicates_command, verify_command
from hjepa_shards.commands.fetching import download_command, verify_raw_command
from hjepa_shards.commands.machine import bench_command, doctor_command
from hjepa_shards.commands.making import build_command, index_command, merge_command, repair_command
from hjepa_shards.commands.reporting import mix_command, report_command
from hjepa_shards.commands.showing import info_command, plan_command, sources_command

_COMMANDS = {
    "sources": sources_command,
    "download": download_command,
    "verify-raw": verify_raw_command,
    "build": build_command,
    "merge": merge_command,
    "verify": verify_command,
    "duplicates": duplicates_command,
    "repair": repair_command,
    "index": index_command,
    "info": info_command,
    "plan": plan_command,
    "mix": mix_command,
    "report": report_command,
    "doctor": doctor_command,
    "bench": bench_command,
}

app = typer.Typer(
    help="Raw image datasets to tar shards, and what can be known about them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.callback()(version_option)
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    run_app(app, interrupted="the same command continues with what is not done yet")
