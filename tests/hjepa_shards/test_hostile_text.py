"""Names, notes and values with control characters, through each command that prints them: none reaches the terminal."""

from pathlib import Path

import pytest
import yaml

from tests.conftest import Command
from tests.hjepa_shards.base.test_terminal import CONTROLS
from tests.hjepa_shards.sources.layouts import jpeg

EVIL = "cat\x1b[31m\x1b]0;pwned\x07\rdog\u202egnp.\x9b2J[bold]"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder of classes, an image of each and one that is broken, all with controls in their names."""
    for number, name in enumerate((EVIL, f"z{EVIL}\nright everything")):
        folder = tmp_path / "raw" / "train" / name
        folder.mkdir(parents=True)
        (folder / f"{EVIL}.jpg").write_bytes(jpeg(number))
        (folder / f"broken{EVIL}\n.jpg").write_bytes(b"no image")
        (tmp_path / "raw" / "train" / f"empty{EVIL}").mkdir(exist_ok=True)
    return tmp_path


def test_no_command_passes_them_on(hostile: Path, command: Command) -> None:
    out = hostile / f"out{EVIL}"
    shards = ("--out", out, "--samples-per-shard", 2, "--workers", 1)
    said = [command("build", "folder", "--raw", hostile / "raw", *shards)]
    assert said[0][0] == 3
    config = hostile / f"{EVIL}.yaml"
    data = {"root": str(out), "sources": [{"name": "folder", "weight": 1}]}
    config.write_text(yaml.safe_dump({"data": data}))
    said += [
        command("info", out),
        command("verify", out),
        command("plan", config),
        command("plan", config, "--set", f"data.strategy={EVIL}"),
        command("plan", config, "--set", f'data.{EVIL}="x\\e[31m"'),
        command("build", "folder", "--raw", hostile / "raw", *shards, "--seed", 1),
        command("build", "folder", "--raw", hostile / f"{EVIL}"),
        command("verify-raw", "folder", "--raw", hostile / "raw"),
        command("info", hostile / EVIL),
    ]
    (next(out.rglob("*.tar"))).write_bytes(b"")
    said.append(command("verify", out))
    for number, (_, stdout, stderr) in enumerate(said):
        assert stdout or stderr
        assert CONTROLS.search(stdout + stderr) is None, (number, stdout, stderr)
        assert not any(line.startswith("right everything") for line in stdout.splitlines())
        assert stderr.count("\n") <= 1
