"""Nothing in a pickle is executed, and no damage gives anything but our own errors, in bounded time and memory."""

import builtins
import os
import pickle
import random
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.sources.formats.pickles import load_pickle


def content() -> dict[str, object]:
    pixels = np.arange(4 * 3072, dtype=np.uint64).astype(np.uint8).reshape(4, 3072)
    return {"data": pixels, "labels": [0, 300, 70_000, -1], "filenames": ["a.png", "ü.png", "c", "d"], "x": (1, None)}


class Calls:
    """Pickles as a call."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def load(folder: Path, data: bytes) -> object:
    path = folder / "batch"
    path.write_bytes(data)
    return load_pickle(path)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_data_comes_back_as_pickle_itself_reads_it(tmp_path: Path, protocol: int) -> None:
    found = load(tmp_path, pickle.dumps(content(), protocol=protocol))
    assert isinstance(found, dict)
    expected = content()
    assert np.array_equal(found.pop("data"), expected.pop("data"))
    assert found == expected


def test_python_2_strings_and_fortran_order_are_understood(tmp_path: Path) -> None:
    long = bytes(range(256)) * 2
    data = b"\x80\x02}q\x01(U\x01au\x00.".replace(b"u\x00", b"T" + struct.pack("<i", len(long)) + long + b"u")
    found = load(tmp_path, data)
    assert isinstance(found, dict)
    assert bytes(found["a"]) == long
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert np.array_equal(load(tmp_path, pickle.dumps(array, protocol=2)), array)


ATTACKS = {
    "os.system": lambda mark: pickle.dumps(Calls(os.system, f"touch {mark}"), 2),
    "os.system by stack": lambda mark: pickle.dumps(Calls(os.system, f"touch {mark}"), 4),
    "eval": lambda mark: pickle.dumps(Calls(builtins.eval, f"open({str(mark)!r}, 'w')"), 2),
    "exec": lambda mark: pickle.dumps(Calls(builtins.exec, f"open({str(mark)!r}, 'w')"), 4),
    "open": lambda mark: pickle.dumps(Calls(builtins.open, str(mark), "w"), 3),
    "subprocess": lambda mark: pickle.dumps(Calls(subprocess.call, ["touch", str(mark)]), 2),
    "getattr of an allowed module": lambda mark: (
        b"\x80\x04\x8c\x05numpy\x8c\x0bload.system\x93X" + _text(f"touch {mark}") + b"\x85R."
    ),
    "nested in arguments": lambda mark: pickle.dumps({"data": [Calls(np.dtype, Calls(os.system, f"touch {mark}"))]}, 2),
    "as array state": lambda mark: (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"cposix\nsystem\nX" + _text(f"touch {mark}") + b"\x85Rb."
    ),
    "codec of the attacker's choice": lambda mark: (
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R."
    ),
    "object dtype": lambda mark: pickle.dumps(np.array([Calls(os.system, f"touch {mark}")], dtype=object), 2),
    "text instruction": lambda mark: b"(S'touch " + str(mark).encode() + b"'\nios\nsystem\n.",
    "instance": lambda mark: b"(X" + _text(f"touch {mark}") + b"ios\nsystem\n.",
    "text global": lambda mark: b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.",
    "global spelled by pieces of data": lambda mark: (
        b"\x80\x04(\x8c\x02os\x8c\x06systeml\x93X" + _text(f"touch {mark}") + b"\x85R."
    ),
    "name that is no string": lambda mark: b"\x80\x04]]\x93.",
    "persistent id": lambda mark: b"\x80\x02Ptouch\n.",
    "extension": lambda mark: b"\x80\x02\x82\x01.",
    "new object": lambda mark: b"\x80\x02cnumpy\ndtype\n)\x81.",
}


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_malicious_pickle_executes_nothing(tmp_path: Path, attack: str) -> None:
    mark = tmp_path / "executed"
    with pytest.raises((InputError, ShardError)):
        load(tmp_path, ATTACKS[attack](mark))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        ("os.system", "posix.system"),
        ("os.system by stack", "posix.system"),
        ("eval", "builtin"),
        ("nested in arguments", "posix.system"),
        ("instance", "os.system"),
        ("text global", "os.system"),
        ("getattr of an allowed module", "numpy.load.system"),
    ],
)
def test_the_refused_global_is_named(tmp_path: Path, attack: str, name: str) -> None:
    with pytest.raises(InputError, match=rf"batch: .*asks for '.*{name}.* nothing was executed"):
        load(tmp_path, ATTACKS[attack](tmp_path / "executed"))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_cut_anywhere_is_refused(tmp_path: Path, protocol: int) -> None:
    whole = pickle.dumps(content(), protocol=protocol)
    for length in [*range(200), *range(200, len(whole) - 200, 97), *range(len(whole) - 200, len(whole))]:
        with pytest.raises(ShardError, match="batch: a whole pickle expected"):
            load(tmp_path, whole[:length])


def test_flipped_bytes_give_our_errors_or_other_data(tmp_path: Path) -> None:
    whole = pickle.dumps({"data": np.zeros((2, 8), np.uint8), "labels": [1, 2, 3], "filenames": ["a", "b"]}, 2)
    draw = random.Random(0)
    for at in range(len(whole)):
        for value in {0, 255, whole[at] ^ 1 << draw.randrange(8), draw.randrange(256)}:
            _load_or_our_error(tmp_path, whole[:at] + bytes([value]) + whole[at + 1 :])


def test_many_flipped_bytes_at_once(tmp_path: Path) -> None:
    draw = random.Random(0)
    for protocol in (2, 3, 4):
        whole = pickle.dumps(content(), protocol=protocol)
        for _ in range(120):
            data = bytearray(whole)
            for _ in range(draw.randint(1, 8)):
                data[draw.choice([draw.randrange(300), draw.randrange(len(data))])] = draw.randrange(256)
            _load_or_our_error(tmp_path, bytes(data))


@settings(deadline=1000, max_examples=100)
@given(data=st.binary(max_size=300))
def test_any_bytes_give_our_errors_or_data(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    _load_or_our_error(tmp_path_factory.getbasetemp(), b"\x80\x02" + data + b".")


def _load_or_our_error(folder: Path, data: bytes) -> None:
    try:
        load(folder, data)
    except (InputError, ShardError):
        return


def test_sizes_that_the_file_does_not_hold_are_not_allocated(tmp_path: Path) -> None:
    huge = struct.pack("<Q", 1 << 62)
    for data in (
        b"\x80\x04\x8e" + huge + b"abc.",
        b"\x80\x04\x8d" + huge + b"abc.",
        b"\x80\x02]r\xff\xff\xff\xffj\xff\xff\xff\x7f.",
        b"\x80\x02]r\xff\xff\xff\xff.",
        b"(" * 1_000 + b".",
        b"]" * 550_000 + b".",
    ):
        _load_or_our_error(tmp_path, data)


def test_a_shared_tower_of_tuples_is_cheap(tmp_path: Path) -> None:
    tower = b"\x80\x02)" + b"q\x00h\x00\x86" * 100_000 + b"."
    assert isinstance(load(tmp_path, tower), tuple)
    with pytest.raises(ShardError, match="a key that is not a string"):
        load(tmp_path, b"\x80\x02})" + b"q\x00h\x00\x86" * 50 + b"K\x01s.")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: cannot be read: No such file"):
        load_pickle(tmp_path / "nowhere")
