"""PyTorch's files: what is in them comes out, whatever else they hold; hostile ones run nothing and fill no memory."""

import argparse
import collections
import io
import os
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._utils import _rebuild_tensor_v2

from hjepa_shards.errors import InputError
from hjepa_train.cli import main
from hjepa_train.weights import torch_files
from hjepa_train.weights.torch_files import Inert, opened
from tests.conftest import in_this_process
from tests.hjepa_train.tiny import tiny_run


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 8, generator=generator)
    return {
        "float": whole,
        "half": whole.half(),
        "bfloat": whole.bfloat16(),
        "double": whole.double(),
        "int": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "transposed": whole.t(),
        "part": whole[2:4, 1::2],
        "tied": whole,
    }


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_come_out_as_torch_load_gives_them_whatever_is_saved_beside_them(
    tmp_path: Path, is_zip: bool, protocol: int
) -> None:
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": tensors() | {"parameter": net.weight},
        "args": argparse.Namespace(lr=1e-3, inner=argparse.Namespace(path=Path("x"))),
        "best": np.float64(0.5),
        "array": np.arange(3),
        "counts": collections.Counter("aab"),
        "optimizer": optimizer.state_dict(),
        "set": {1, 2},
        "epoch": 7,
        "names": ["a", ("b", None, True)],
    }
    path = tmp_path / "weights.pth"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)
    if protocol == 2:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)  # what this reader is for
    with opened(path) as found:
        for name, expected in content["model"].items():
            torch.testing.assert_close(found["model"][name].read(), expected.detach(), rtol=0, atol=0)
        assert (found["epoch"], found["names"]) == (7, ["a", ("b", None, True)])
        assert isinstance(found["args"], Inert)
        assert found["args"].name == "argparse.Namespace"


class Call:
    """A pickle that would call something."""

    def __init__(self, what: Any, *arguments: Any) -> None:
        self.what = (what, arguments)

    def __reduce__(self) -> Any:
        return self.what


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_a_file_would_call_is_a_name(tmp_path: Path, is_zip: bool) -> None:
    mark = tmp_path / "executed"
    path = tmp_path / "weights.pth"
    content = {"a": Call(os.system, f"touch {mark}"), "b": Call(eval, f"open({str(mark)!r}, 'w')"), "w": torch.ones(2)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with opened(path) as found:
        assert [found[name].name for name in ("a", "b")] == ["posix.system", "__builtin__.eval"]
        assert found["w"].read().tolist() == [1, 1]
    assert not mark.exists()


def in_zip(path: Path, data: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as bundle:
        bundle.writestr("archive/data.pkl", data)
        for key, content in storages.items():
            bundle.writestr(f"archive/data/{key}", content)
    return path


class Storages(pickle._Pickler):  # pyright: ignore[reportAttributeAccessIssue]
    """Writes a `Stored` as PyTorch writes a storage."""

    def persistent_id(self, obj: Any) -> Any:
        return ("storage", obj.kind, obj.key, "cpu", obj.count) if isinstance(obj, Stored) else None


class Stored:
    def __init__(self, count: Any, key: Any = "0", kind: Any = torch.FloatStorage) -> None:
        self.count, self.key, self.kind = count, key, kind


class Rebuilt:
    """A tensor of these numbers, true or not."""

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any) -> None:
        self.arguments = (storage, offset, shape, stride, False, collections.OrderedDict())

    def __reduce__(self) -> Any:
        return _rebuild_tensor_v2, self.arguments


def pickled(content: Any) -> bytes:
    file = io.BytesIO()
    Storages(file, 2).dump(content)
    return file.getvalue()


def nested(depth: int) -> Any:
    """A tuple of two of the one before: 2^depth of them where they are walked or hashed."""
    made: Any = ("x",)
    for _ in range(depth):
        made = (made, made)
    return made


def cyclic() -> dict[str, Any]:
    made: dict[str, Any] = {"w": Rebuilt(Stored(2), 0, (2,), (1,))}
    made["inside"] = made
    return made


_OF_TWO = {"0": bytes(8)}
HOSTILE = {
    "a storage of a billion numbers": (pickled({"w": Rebuilt(Stored(10**9), 0, (10**9,), (1,))}), _OF_TWO),
    "a tensor wider than its storage": (pickled({"w": Rebuilt(Stored(2), 0, (3,), (1,))}), _OF_TWO),
    "one number a billion times": (pickled({"w": Rebuilt(Stored(2), 0, (10**9,), (0,))}), _OF_TWO),
    "beyond the end": (pickled({"w": Rebuilt(Stored(2), 1, (2,), (1,))}), _OF_TWO),
    "before the start": (pickled({"w": Rebuilt(Stored(2), -1, (2,), (1,))}), _OF_TWO),
    "steps backwards": (pickled({"w": Rebuilt(Stored(2), 1, (2,), (-1,))}), _OF_TWO),
    "sizes that are no numbers": (pickled({"w": Rebuilt(Stored(2), 0, ("a",), (1,))}), _OF_TWO),
    "no storage": (pickled({"w": Rebuilt(Stored(2, "7"), 0, (2,), (1,))}), _OF_TWO),
    "a shorter storage": (pickled({"w": Rebuilt(Stored(2), 0, (2,), (1,))}), {"0": bytes(4)}),
    "a storage elsewhere": (pickled({"w": Rebuilt(Stored(2, "../../etc/hostname"), 0, (2,), (1,))}), _OF_TWO),
    "complex numbers": (pickled({"w": Rebuilt(Stored(1, kind=torch.ComplexFloatStorage), 0, (1,), (1,))}), _OF_TWO),
    "a pickle that is cut": (pickled({"w": "x" * 100})[:60], _OF_TWO),
    "a string of 4 GB": (b"\x80\x02X\xff\xff\xff\xffabc.", _OF_TWO),
    "bytes of 2^60": (b"\x80\x05\x8e" + (2**60).to_bytes(8, "little") + b"abc.", _OF_TWO),
    "a bytearray of 2^60": (b"\x80\x05\x96" + (2**60).to_bytes(8, "little") + b"abc.", _OF_TWO),
    "no end": (b"\x80\x02}", _OF_TWO),
    "an empty stack": (b"\x80\x02.", _OF_TWO),
    "no mark": (b"\x80\x02u.", _OF_TWO),
    "a memo that was not written": (b"\x80\x02h\x05.", _OF_TWO),
    "no pickle": (b"hello", _OF_TWO),
    "out of band": (b"\x80\x05\x97.", _OF_TWO),
    "an extension": (b"\x80\x02\x82\x01.", _OF_TWO),
    "a long number of digits": (b"L" + b"9" * 100_000 + b"L\n.", _OF_TWO),
}


@pytest.fixture
def bounded() -> Any:
    """At most 2 GB more than now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_line(tmp_path: Path, name: str, bounded: None) -> None:
    path = in_zip(tmp_path / "w.pth", *HOSTILE[name])
    with pytest.raises(InputError) as refused, opened(path) as found:
        found["w"].read()
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 600


def test_what_is_deep_or_contains_itself_takes_no_time(tmp_path: Path) -> None:
    with opened(in_zip(tmp_path / "w.pth", pickled(cyclic()), _OF_TWO)) as found:
        assert found["inside"] is found
        assert found["w"].read().tolist() == [0, 0]
    keys = b"\x80\x02}" + pickle.dumps(nested(22), 2)[2:-1] + b"K\x01s."
    with opened(in_zip(tmp_path / "k.pth", keys, _OF_TWO)) as found:
        assert found == {}, "a key that is no text is left out, and never hashed"
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    with opened(in_zip(tmp_path / "d.pth", deep, _OF_TWO)) as found:
        while found:
            [found] = found


def test_a_zip_that_swells_is_refused(tmp_path: Path, bounded: None) -> None:
    data = pickled({"w": Rebuilt(Stored(2**20), 0, (2**20,), (1,))})
    path = in_zip(tmp_path / "w.pth", data, {"0": bytes(2**22), "pad": os.urandom(2**22)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="not compressed, expected"), opened(path):
        pass
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("archive/data.pkl", data)
        bundle.writestr("archive/pad", os.urandom(2**22))
        bundle.writestr("archive/data/0", bytes(2**22), zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="not compressed, expected"), opened(path) as found:
        found["w"].read()


def test_one_storage_cannot_be_sold_many_times(tmp_path: Path) -> None:
    """Members of a zip that lie over each other: each is as large as the file."""
    path = in_zip(tmp_path / "w.pth", pickled({}), {"0": bytes(4000)})
    with path.open("rb") as file:
        archive = torch_files._Zip(path, file)
        archive.content()
        archive._members |= {f"archive/data/{key}": archive._members["archive/data/0"] for key in range(1, 9)}
        storages = [torch_files._Storage(torch.float32, str(key), 1000) for key in range(9)]
        assert len(archive.numbers(storages[0])) == 1000
        with pytest.raises(InputError, match="more found"):
            [archive.numbers(storage) for storage in storages]


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_that_is_cut_anywhere_or_has_a_flipped_byte_is_one_line_or_whole(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"w": torch.ones(300), "v": torch.zeros(2, 3)}, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    cuts = [whole[:length] for length in range(0, len(whole), 37)]
    flips = [whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :] for at in range(0, len(whole), 11)]
    said = [read_all(path, data) for data in (*cuts, *flips)]
    assert all(said[: len(cuts)]), "a part is never a whole file"
    assert not any("\n" in line for line in said)


def read_all(path: Path, data: bytes) -> str:
    """What is wrong with this file, nothing where all of it can be read."""
    path.write_bytes(data)
    try:
        with opened(path) as found:
            for one in found.values() if isinstance(found, dict) else ():
                if isinstance(one, torch_files.StoredTensor):
                    one.read()
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["folder", "pipe", "missing", "empty", "tar", "text"])
def test_what_is_no_file_of_pytorch_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w.pth"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "tar":
        import tarfile

        tarfile.open(path, "w").close()
    elif kind in ("empty", "text"):
        path.write_text("" if kind == "empty" else "hello\n" * 100)
    with pytest.raises(InputError, match=r"w\.pth"), opened(path):
        pass


def test_the_program_leaves_with_2_and_runs_nothing(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command, config = in_this_process("hjepa-train", main, monkeypatch, capfd), tiny_run(shards, tmp_path)
    torch.save({"model": {"w": torch.ones(3)}, "x": Call(os.system, f"touch {tmp_path}/executed")}, tmp_path / "w.pth")
    code, _, err = command("run", config, "--dry-run", "--set", f"init.weights={tmp_path}/w.pth")
    assert code == 2
    assert "missing: pos_embed" in " ".join(err.split()) or "missing: patch_embed.proj.weight" in " ".join(err.split())
    assert "Traceback" not in err
    in_zip(tmp_path / "w.pth", *HOSTILE["a storage of a billion numbers"])
    code, _, err = command("run", config, "--set", f"init.weights={tmp_path}/w.pth")
    assert (code, "4,000,000,000 bytes in a file of" in " ".join(err.split())) == (2, True)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "tiny").exists(), "nothing of a run that did not begin"
