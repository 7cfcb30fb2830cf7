"""Variables of a launcher that are wrong are one line."""

import socket

import pytest
import torch

from hjepa_shards.errors import InputError
from hjepa_train.base.distributed import is_first, joined
from hjepa_train.cli import main
from tests.conftest import in_this_process
from tests.processes import free_port

WHOLE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}


def meet() -> None:
    with joined(torch.device("cpu"), 1):
        pytest.fail("no other rank is there")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"WORLD_SIZE": "two"},
            "WORLD_SIZE=two: a whole number from 1 to 1048576 expected; start with torchrun,",
        ),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: a whole number from 1"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE=: a whole number"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE=999"),
        ({"RANK": "x"}, "RANK=x: a whole number from 0 to 1 expected"),
        ({"RANK": "2"}, "RANK=2: a whole number from 0 to 1 expected"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http: a whole number from 1 to 65535"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT=65536: a whole number from 1 to 65535"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0: a whole number from 1 to 2"),
        ({"MASTER_ADDR": None}, "WORLD_SIZE=2 is set, MASTER_ADDR not; start with torchrun, or unset it"),
        ({"MASTER_ADDR": ""}, "WORLD_SIZE=2 is set, MASTER_ADDR not"),
        ({"RANK": None, "MASTER_PORT": None}, "WORLD_SIZE=2 is set, RANK, MASTER_PORT not"),
    ],
)
def test_a_wrong_variable_is_named_with_what_it_must_be(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None], said: str
) -> None:
    for name, value in (WHOLE | changes).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as refused:
        meet()
    assert str(refused.value).startswith(said)


def test_one_process_needs_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    assert is_first()
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "x")
    assert is_first()
    with joined(torch.device("cpu"), 1) as device:
        assert device.type == "cpu"


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::", 0))
        other.listen()
        port = other.getsockname()[1]
        for name, value in (WHOLE | {"MASTER_PORT": str(port)}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=rf"^MASTER_PORT={port}: a free port .* uses it.* choose another port"):
            meet()


def test_ranks_that_do_not_come_are_still_told_from_a_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (WHOLE | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="rank 0 of 2 lost the others, or did not meet them within 1 s"):
        meet()


@pytest.mark.parametrize("command", ["run", "bench"])
def test_a_wrong_variable_ends_a_command_with_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    code, out, err = in_this_process("hjepa-train", main, monkeypatch, capfd)(command, "configs/quickstart.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: WORLD_SIZE=two: a whole number")
