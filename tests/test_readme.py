"""What README and docs say exists: every command, option, folder, configuration, key and page that they name."""

import ast
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hjepa_shards import cli as shards_cli
from hjepa_train import cli as train_cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "_build" not in path.parts
}
EVERYTHING = "\n".join(PAGES.values())
_COMMANDS = r"^(?: {4})?(hjepa-(?:shards|train) [a-z].*)$"


@pytest.mark.parametrize("line", sorted(set(re.findall(_COMMANDS, EVERYTHING, flags=re.MULTILINE))))
def test_every_command_is_understood(line: str) -> None:
    program, *arguments = line.partition("#")[0].split()
    app = shards_cli.app if program == "hjepa-shards" else train_cli.app
    result = CliRunner().invoke(app, [arguments[0], "--help"], terminal_width=200)
    assert result.exit_code == 0, result.output
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert option in result.output


@pytest.mark.parametrize("app", [shards_cli.app, train_cli.app], ids=["hjepa-shards", "hjepa-train"])
def test_help_shows_every_word_about_every_option(app: typer.Typer) -> None:
    """Text in square brackets would be taken for markup, and vanish."""
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    assert len(commands) >= 5
    for name, command in commands.items():
        shown = set(CliRunner().invoke(app, [name, "--help"], terminal_width=200).output.split())
        for parameter in command.params:
            text = " ".join((getattr(parameter, "help", None) or "").split())
            assert parameter.name == "help" or text, f"{name} {parameter.name}: no word about it"
            assert set(text.split()) <= shown, f"{name} {parameter.name}: {text}"


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


def test_every_link_leads_to_a_file() -> None:
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if not re.match(r"[a-z]+:", target):
                assert ((ROOT / name).parent / target).resolve().exists(), f"{name}: {target}"


def test_the_house_lists_every_folder_and_config_in_its_own_words() -> None:
    house = PAGES["docs/contributing.md"].partition("## The house")[2].partition("\n## ")[0]
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


def test_every_config_that_ships_is_explained() -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"configs/{path.name}" in PAGES["docs/training.md"]


def test_written_pages_are_those_of_the_models_and_every_key_has_a_meaning() -> None:
    """`python tools/document_config.py` writes them."""
    spec = importlib.util.spec_from_file_location("document_config", ROOT / "tools" / "document_config.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, text in module.pages().items():
        assert PAGES[f"docs/{name}"] == text
    keys = [line.split(" | ") for line in PAGES["docs/config.md"].splitlines() if line.startswith("| `")]
    assert len(keys) > 60
    assert [cells[0] for cells in keys if not cells[-1].strip(" |")] == []


def test_every_public_function_is_on_the_api_page() -> None:
    listed = set(re.findall(r"\.\. auto(?:function|class):: (\w+)", PAGES["docs/api.md"]))
    for package in ("hjepa_shards", "hjepa_train"):
        top = importlib.import_module(package)
        functions = {name for name in top.__all__ if inspect.isfunction(getattr(top, name))}
        assert functions <= listed
