"""The README is what a newcomer believes: every folder stands in its house, every command and key it names exists."""

import ast
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hjepa_shards import cli as shards_cli
from hjepa_train import cli as train_cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_house_lists_every_folder_and_config_in_its_own_words() -> None:
    house = README.partition("## The house")[2].partition("\n## ")[0]
    listed = dict(re.findall(r"^    ([\w./-]+)  +(.+)$", house, flags=re.MULTILINE))
    found = {
        f"{path.parent.relative_to(ROOT).as_posix()}/": (ast.get_docstring(ast.parse(path.read_text())) or "")
        for package in ("hjepa_shards", "hjepa_train")
        for path in (ROOT / package).glob("*/**/__init__.py")
    }
    configs = {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert {name: doc.splitlines()[0].rstrip(".") for name, doc in found.items()} == {
        name: line for name, line in listed.items() if name not in configs
    }
    assert configs <= set(listed)


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
