"""PyTorch's files of weights, read without executing anything in them.

Such a file is a pickle, a program that can name any function, beside the numbers of the tensors. `torch.load` with
`weights_only=True` refuses those that hold an `argparse.Namespace`, a configuration or a scalar of NumPy beside the
weights, as most published ones do. This reader runs the pickle on a small machine of its own: the standard library
parts it into steps (`pickletools`), and here nothing is imported and nothing is called. A class is a name; what a call
of one makes is an `Inert`; only tensors and dictionaries become what they are. Numbers are read when a tensor is
wanted, after its size was compared with the file's.

Both formats: the zip of PyTorch 1.6 and later, and the one before. What was given up: the tar of before 0.4, sparse,
quantized and complex tensors, dictionaries whose keys are no text (an optimizer's state), pickled models.
"""

import contextlib
import io
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, final

import torch
from torch import Tensor

from hjepa_shards.base.regular_files import open_regular
from hjepa_shards.errors import InputError

_MOST_PICKLE_BYTES = 1 << 26
_MOST_STEPS = 10_000_000
_MOST_DIMS = 16
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MAGIC = 0x1950A86A20F9469CFC6C
"""The number with which a file of the older format begins."""
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


@final
@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in an open file."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """Its numbers, on the CPU. InputError where the file does not have them. Only while the file is open."""


@final
@dataclass(slots=True)
class Inert:
    """What a call of a class would have made."""

    name: str
    entries: dict[str, Any] = field(default_factory=dict[str, Any])
    """What was put into it as into a dictionary."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """What a file of PyTorch holds: dictionaries, lists, plain values, `StoredTensor`s and `Inert`s.

    InputError where it cannot be read, is cut short, is not of PyTorch, or lies about its sizes; nothing was executed.
    """
    with contextlib.ExitStack() as stack:
        with _readable(path):
            file = stack.enter_context(open_regular(path))
            archive = _Zip(path, file) if file.read(4) == b"PK\3\4" else _Legacy(path, file)
            content = archive.content()
        yield content


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Around whatever reads the file: InputError for what the disk and zipfile raise."""
    try:
        yield
    except (
        *(OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error),
        *(NotImplementedError, RuntimeError, ValueError, LookupError, OverflowError),  # zipfile's, for damaged ones
    ) as error:
        if isinstance(error, InputError):
            raise
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{path}: a file of PyTorch cannot be read: {' '.join(said.split())[:200]}") from error


class _BrokenError(Exception):
    """The bytes are no pickle of PyTorch's."""


@final
@dataclass(frozen=True, slots=True)
class _Name:
    """A class or function: its name, and nothing more."""

    full: str


@final
@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: torch.dtype
    key: str
    num_elements: int


class _Archive:
    """Where the numbers of storages are; what both formats share."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.num_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        self._read: dict[str, Tensor] = {}
        self._bytes_left = self.num_bytes

    def content(self) -> Any:
        raise NotImplementedError

    def bytes_of(self, storage: _Storage) -> bytearray:
        raise NotImplementedError

    def run(self, data: Any) -> Any:
        """What a pickle makes.  data: a file of bytes, of which no more is read than the pickle has."""
        try:
            return _Machine(self).run(data)
        except (_BrokenError, ValueError, IndexError, KeyError, OverflowError, UnicodeError, RecursionError) as error:
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise self.refused(f"a whole file of PyTorch expected, a broken one found ({said})") from error

    def refused(self, what: str) -> InputError:
        return InputError(f"{self.path}: {what}; nothing in it was executed; fetch it again, or save it as safetensors")

    def numbers(self, storage: _Storage) -> Tensor:
        """All of a storage. The sum of those that are read is at most the file: one cannot be sold many times."""
        if storage.key not in self._read:
            num_bytes = storage.num_elements * storage.dtype.itemsize
            self._bytes_left -= num_bytes
            if self._bytes_left < 0:
                raise self.refused(f"at most its {self.num_bytes:,} bytes of numbers expected, more found")
            with _readable(self.path):
                data = self.bytes_of(storage)
            if len(data) != num_bytes:
                raise self.refused(f"{num_bytes:,} bytes of storage {storage.key[:40]!r} expected, {len(data):,} found")
            flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
            self._read[storage.key] = flat
        return self._read[storage.key].view(storage.dtype)

    def tensor(self, storage: _Storage, offset: Any, shape: Any, stride: Any) -> StoredTensor:
        """A part of a storage, each element of which it has at most once."""
        sizes = (offset, *shape, *stride)
        if not all(type(size) is int and 0 <= size < 2**62 for size in sizes) or len(shape) != len(stride):
            raise _BrokenError("a tensor without sizes")
        count = math.prod(shape)
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if count else 0
        if len(shape) > _MOST_DIMS or count > storage.num_elements or last >= max(1, storage.num_elements):
            raise _BrokenError(f"a tensor of {count:,} numbers up to {last:,} in a storage of {storage.num_elements:,}")
        return StoredTensor(shape, lambda: torch.as_strided(self.numbers(storage), shape, stride, offset))


@final
class _Zip(_Archive):
    """<name>/data.pkl, and the numbers of each storage in <name>/data/<key>."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        super().__init__(path, file)
        self._bundle = zipfile.ZipFile(file)
        self._members = {info.filename: info for info in self._bundle.infolist()}

    def content(self) -> Any:
        pickles = [name for name in self._members if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise self.refused(f"one data.pkl in it expected, {len(pickles)} found, so it is not of PyTorch")
        self._folder = pickles[0].removesuffix("data.pkl")
        order = self._members.get(f"{self._folder}byteorder")
        if order and bytes(self._plain(order, 16)) != b"little":
            raise self.refused("numbers in little-endian order expected, others found")
        return self.run(io.BytesIO(self._plain(self._members[pickles[0]], _MOST_PICKLE_BYTES)))

    def bytes_of(self, storage: _Storage) -> bytearray:
        info = self._members.get(f"{self._folder}data/{storage.key}")
        if info is None:
            raise self.refused(f"storage {storage.key[:40]!r} expected in it, not found")
        return self._plain(info, storage.num_elements * storage.dtype.itemsize)

    def _plain(self, info: zipfile.ZipInfo, most_bytes: int) -> bytearray:
        """Of a member that is not compressed, as PyTorch writes them: what it has, the file has."""
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > min(most_bytes, self.num_bytes):
            raise self.refused(
                f"{info.filename[-80:]!r}: at most {most_bytes:,} bytes, not compressed, expected, "
                f"{info.file_size:,} found"
            )
        with self._bundle.open(info) as member:
            data = bytearray(member.read())
        if len(data) != info.file_size:
            raise self.refused(f"{info.filename[-80:]!r}: {info.file_size:,} bytes expected, {len(data):,} found")
        return data


@final
class _Legacy(_Archive):
    """Pickles in a row (a number, the version, the system, the content, the keys of storages), then all numbers."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        super().__init__(path, file)
        self._data = io.BytesIO(file.read())
        self._at: dict[str, int] = {}
        self._storages: dict[str, _Storage] = {}

    def content(self) -> Any:
        data = self._data.getbuffer()
        if bytes(data[:1]) != b"\x80" or self.run(self._data) != _MAGIC:
            raise self.refused("a file of PyTorch expected, something else found")
        self.run(self._data)
        system = self.run(self._data)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise self.refused("numbers in little-endian order expected, others found")
        content, keys = self.run(self._data), self.run(self._data)
        at = self._data.tell()
        for key in keys if isinstance(keys, list) else ():
            count = int.from_bytes(data[at : at + 8], "little")
            if not isinstance(key, str) or key not in self._storages:
                raise self.refused("storages that its tensors have expected, others found")
            if count != self._storages[key].num_elements:
                raise self.refused(f"{self._storages[key].num_elements:,} numbers expected, {count:,} found")
            self._at[key] = at + 8
            at += 8 + count * self._storages[key].dtype.itemsize
        return content

    def bytes_of(self, storage: _Storage) -> bytearray:
        if storage.key not in self._at or self._storages[storage.key] != storage:
            raise self.refused(f"storage {storage.key[:40]!r} expected in it, not found")
        at = self._at[storage.key]
        return bytearray(self._data.getbuffer()[at : at + storage.num_elements * storage.dtype.itemsize])

    def known(self, storage: _Storage) -> None:
        self._storages.setdefault(storage.key, storage)


_AS_THEY_ARE = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@final
class _Machine:
    """A stack, the stacks below the open marks, and a memo. Nothing in it is hashed but texts and numbers."""

    def __init__(self, archive: _Archive) -> None:
        self._archive = archive
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: Any) -> Any:
        for number, (step, argument, at) in enumerate(pickletools.genops(data)):
            if number > _MOST_STEPS or (at or 0) > _MOST_PICKLE_BYTES:
                break
            if step.name == "STOP":
                return self._stack.pop()
            self._step(step.name, argument)
        raise _BrokenError("a pickle that does not end")

    def _step(self, name: str, argument: Any) -> None:
        if name in _AS_THEY_ARE:
            self._stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._stack.append(self._memo[argument])
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name not in ("PROTO", "FRAME"):
            self._combine(name, argument)

    def _combine(self, name: str, argument: Any) -> None:
        """The steps that make one thing of others."""
        stack = self._stack
        match name:
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._above_mark()
            case "DUP":
                stack.append(stack[-1])
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(Inert("set"))
            case "LIST" | "FROZENSET" | "TUPLE":
                items = self._above_mark()
                made = {"LIST": list, "TUPLE": tuple, "FROZENSET": lambda items: Inert("frozenset")}[name](items)
                self._stack.append(made)
            case "DICT":
                items = self._above_mark()
                self._stack.append({})
                self._put(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple([stack.pop() for _ in range(_TUPLES[name])][::-1]))
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS":
                self._extend(self._above_mark())
            case "ADDITEMS":
                self._above_mark()
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._put([key, value])
            case "SETITEMS":
                self._put(self._above_mark())
            case "GLOBAL":
                stack.append(_Name(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                last, module = stack.pop(), stack.pop()
                stack.append(_Name(f"{module}.{last}" if isinstance(module, str) and isinstance(last, str) else "?"))
            case "REDUCE" | "NEWOBJ":
                arguments, what = stack.pop(), stack.pop()
                stack.append(self._called(what, arguments))
            case "NEWOBJ_EX":
                del stack[-2:]
                stack.append(_inert(stack.pop()))
            case "INST":
                self._above_mark()
                self._stack.append(Inert(argument.replace(" ", ".", 1)))
            case "OBJ":
                what = (self._above_mark() or [None])[0]
                self._stack.append(_inert(what))
            case "BUILD":
                stack.pop()
            case "BINPERSID":
                stack.append(self._stored(stack.pop()))
            case _:
                raise _BrokenError(f"a step {name}, which no file of weights has")

    def _above_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)
        elif not isinstance(self._stack[-1], Inert):
            raise _BrokenError("items for something that is not a list")

    def _put(self, items: list[Any]) -> None:
        target = self._stack[-1]
        entries = target.entries if isinstance(target, Inert) else target
        if not isinstance(entries, dict) or len(items) % 2:
            raise _BrokenError("keys and values for something that is not a dict")
        pairs = zip(items[::2], items[1::2], strict=True)
        entries.update({key: value for key, value in pairs if isinstance(key, str)})

    def _called(self, what: Any, arguments: Any) -> Any:
        """What a call stands for."""
        name = what.full if isinstance(what, _Name) else ""
        match arguments:
            case (_Storage() as storage, offset, tuple(shape), tuple(stride), *_) if name in _TENSORS:
                return self._archive.tensor(storage, offset, shape, stride)
            case (StoredTensor() as tensor, *_) if name in _PARAMETERS:
                return tensor
            case (_Name() as inner, _, tuple(wrapped), *_) if name == "torch._tensor._rebuild_from_type_v2":
                return self._called(inner, wrapped) if inner.full != name else Inert(name)
            case (tuple(shape),) if name == "torch.Size":
                return shape
            case () | (list(),) if name == "collections.OrderedDict":
                found: dict[str, Any] = {}
                for pair in arguments[0] if arguments else ():
                    if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str):
                        found[pair[0]] = pair[1]
                return found
        return _inert(what)

    def _stored(self, what: Any) -> Any:
        """A storage, as PyTorch names it: ("storage", its type, key, device, number of elements)."""
        match what:
            case ("storage", _Name(full=kind), str(key), _, int(count), *more) if not any(more):
                dtype = _STORAGES.get(kind.rpartition(".")[2]) if kind.startswith("torch.") else None
                if dtype is None:
                    raise _BrokenError(f"tensors of {kind[:80]!r}, which are not read here")
                if not 0 <= count < 2**62:
                    raise _BrokenError(f"a storage of {count:,} numbers")
                if count * dtype.itemsize > self._archive.num_bytes:
                    raise _BrokenError(
                        f"a storage of {count * dtype.itemsize:,} bytes in a file of {self._archive.num_bytes:,}"
                    )
                storage = _Storage(dtype, key, count)
                if isinstance(self._archive, _Legacy):
                    self._archive.known(storage)
                return storage
        return Inert("?")


def _inert(what: Any) -> Inert:
    return Inert(what.full if isinstance(what, _Name) else "?")
