"""The README is what a newcomer believes: every file stands in its tree, every command and key it names exists."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hjepa_shards import cli as shards_cli
from hjepa_train import cli as train_cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tree_lists_every_file_of_the_packages_tools_benchmarks_and_configs() -> None:
    tree = README.partition("## The tree")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^ *([\w./-]+\.(?:py|yaml|txt|tsv))  ", tree, flags=re.MULTILINE))
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("hjepa_shards", "hjepa_train", "tools", "benchmarks", "configs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".txt", ".tsv"} and path.name != "__init__.py"
    }
    assert found == listed


@pytest.mark.parametrize(
    "line", sorted(set(re.findall(r"^    (hjepa-(?:shards|train) .+)$", README, flags=re.MULTILINE)))
)
def test_every_command_of_the_readme_is_understood(line: str) -> None:
    program, *arguments = line.partition("#")[0].split()
    app = shards_cli.app if program == "hjepa-shards" else train_cli.app
    result = CliRunner().invoke(app, [arguments[0], "--help"], terminal_width=200)
    assert result.exit_code == 0, result.output
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert option in result.output


def test_every_config_that_ships_is_named_in_the_readme() -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"configs/{path.name}" in README
