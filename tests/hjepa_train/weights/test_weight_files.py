from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hjepa_shards.errors import InputError
from hjepa_train.weights.weight_files import NamedTensors, read_weights


def named(number: float, *prefixes: str) -> dict[str, Tensor]:
    return {f"{''.join(prefixes)}w": torch.full((2,), number), f"{''.join(prefixes)}b": torch.full((3,), number)}


def read(folder: Path, content: Any, key: str | None = None) -> NamedTensors:
    torch.save(content, folder / "w.pth")
    return read_weights(folder / "w.pth", key)


@pytest.mark.parametrize(
    ("content", "key", "number", "path"),
    [
        (named(1), None, 1, ()),
        ({"model": named(1)}, None, 1, ("model",)),
        ({"model": named(1), "model_ema": named(2)}, None, 2, ("model_ema",)),
        ({"student": named(1, "module."), "teacher": named(2, "module.")}, None, 2, ("teacher",)),
        ({"student": named(1), "teacher": named(2)}, "student", 1, ("student",)),
        ({"state_dict": named(3, "module.", "_orig_mod.")}, None, 3, ("state_dict",)),
        ({"state_dict": {"model": named(3)}}, None, 3, ("state_dict", "model")),
        ({"any": {"thing": named(4)}}, None, 4, ("any", "thing")),
        ({"a": {"x": named(1)}, "b": {"x": named(2)}}, "b.x", 2, ("b", "x")),
        ({"model": {**named(1, "online."), **named(2, "target.")}}, "model.target", 2, ("model", "target")),
        ({**named(1, "online."), **named(2, "target.net.")}, "target.net.", 2, ("target", "net")),
        ({"model": named(5), "loss": torch.tensor(3.0), "epoch": 7}, None, 5, ("model",)),
    ],
)
def test_the_dictionary_that_is_meant_is_found(
    tmp_path: Path, content: Any, key: str | None, number: float, path: tuple[str, ...]
) -> None:
    found = read(tmp_path, content, key)
    assert found.path == path
    torch.testing.assert_close(found.tensors, named(number), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        (
            {"a": named(1), "b": named(2)},
            None,
            r"one dictionary of tensors expected, 2 found \(a, b\); choose one with",
        ),
        ({"a": named(1)}, "b", r"init\.key: b: a dictionary of tensors expected, none found; here: a"),
        ({"epoch": 3}, None, "none found in it"),
        ([torch.ones(3)], None, "tensors by name expected, a list found"),
        (torch.nn.Linear(2, 2), None, r"a pickled 'torch.nn.modules.linear.Linear' found; save its state_dict\(\)"),
        ({"w": torch.ones(3).to(torch.float8_e4m3fn)}, None, "cannot be read|not read here|float32"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path: Path, content: Any, key: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, content, key)


def test_safetensors_with_what_they_say_of_themselves_and_damaged_ones(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(named(2, "module."), path, {"made": "by us"})
    found = read_weights(path)
    torch.testing.assert_close(found.tensors, named(2), rtol=0, atol=0)
    assert found.about == {"made": "by us"}
    whole = path.read_bytes()
    for data in (b"", whole[:4], whole[:60], whole[:-3], b"\xff" * 8 + whole[8:], whole[:8] + b"x" + whole[9:]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"w\.safetensors: a file of safetensors cannot be read"):
            read_weights(path)
    save_file({"w": torch.ones(3).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(InputError, match=r"float8_e4m3fn found in 'w'; save the weights in float32"):
        read_weights(path)
