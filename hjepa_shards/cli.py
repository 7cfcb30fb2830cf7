"""hjepa-shards: every command is one call of a public function and a table of what it returned."""

import typer

from hjepa_shards.base.terminal import BEGINS_AGAIN, CONTINUES, run_app, version_option
from hjepa_shards.commands.checking import duplicates_command, verify_command
from hjepa_shards.commands.fetching import download_command, verify_raw_command
from hjepa_shards.commands.machine import bench_command, doctor_command
from hjepa_shards.commands.making import build_command, index_command, merge_command, repair_command
from hjepa_shards.commands.reporting import mix_command, report_command
from hjepa_shards.commands.showing import info_command, plan_command, sources_command

_COMMANDS = {
    "sources": (sources_command, BEGINS_AGAIN),
    "download": (download_command, CONTINUES),
    "verify-raw": (verify_raw_command, BEGINS_AGAIN),
    "build": (build_command, CONTINUES),
    "merge": (merge_command, BEGINS_AGAIN),
    "verify": (verify_command, BEGINS_AGAIN),
    "duplicates": (duplicates_command, BEGINS_AGAIN),
    "repair": (repair_command, BEGINS_AGAIN),
    "index": (index_command, BEGINS_AGAIN),
    "info": (info_command, BEGINS_AGAIN),
    "plan": (plan_command, BEGINS_AGAIN),
    "mix": (mix_command, BEGINS_AGAIN),
    "report": (report_command, BEGINS_AGAIN),
    "doctor": (doctor_command, BEGINS_AGAIN),
    "bench": (bench_command, BEGINS_AGAIN),
}
"""With what is true of each after Ctrl-C."""

app = typer.Typer(
    help="Raw image datasets to tar shards, and what can be known about them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.callback()(version_option)
for _name, (_command, _) in _COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    run_app(app, interrupted={name: after for name, (_, after) in _COMMANDS.items()})
