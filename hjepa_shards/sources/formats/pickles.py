"""Pickles read without executing anything in them.

A pickle is a program. Python's `Unpickler` can be kept from importing, but a flipped byte still makes it ask
for 64 GB of memo. This is a small machine for the part of the language that data is written in: containers,
numbers, strings and uint8 numpy arrays, protocols 2 to 4. It imports nothing and calls nothing: a global is a
word, five words are known, any other is refused by name. Time and memory are linear in the file, and arrays are
views of it.

What was given up: protocols 0, 1 and 5, other classes and dtypes, one array in two entries.
"""

import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from hjepa_shards.errors import InputError, ShardError

_MAX_BYTES = 1 << 30
_MAX_STEPS = 500_000
"""The longest that is known, CIFAR-100's train, takes about 200,000."""
_MAX_DEPTH = 64


def load_pickle(path: Path) -> Any:
    """The data in a pickle file: Python 2's short strings as str, long ones and bytes as memoryviews.

    ShardError if it is not a whole pickle of plain data; InputError, naming it, if it asks for code.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ShardError(f"{path}: a pickle of at most {_MAX_BYTES:,} bytes expected, {size:,} found")
        machine = _Machine(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return machine.run()
    except _RefusedError as error:
        raise InputError(
            f"{path}: a pickle of plain data expected, one that asks for {error} found; nothing was executed"
        ) from error
    except (_BrokenError, IndexError, UnicodeError) as error:
        raise ShardError(
            f"{path}: a whole pickle expected, one broken at byte {machine.at:,} of {size:,} found ({error})"
        ) from error


class _RefusedError(Exception):
    """The pickle names something that is not data."""


class _BrokenError(Exception):
    """The bytes are no pickle of data."""


@dataclass(frozen=True, slots=True)
class _Word:
    """A global: its name, and nothing more."""

    name: str


_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_WORDS = (*_RECONSTRUCT, "numpy.ndarray", "numpy.dtype", "_codecs.encode")

_EMPTY_ARRAY = _Word("an array that awaits its contents")
_UINT8 = _Word("uint8")

_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}
_UNSIGNED = {pickle.BININT1: 1, pickle.BININT2: 2}
_SIGNED = {pickle.BININT: 4}
_TEXTS = {pickle.BINUNICODE: 4, pickle.SHORT_BINUNICODE: 1, pickle.BINUNICODE8: 8}
_BYTES = {pickle.BINSTRING: 4, pickle.BINBYTES: 4, pickle.SHORT_BINBYTES: 1, pickle.BINBYTES8: 8}
_PUTS = {pickle.BINPUT: 1, pickle.LONG_BINPUT: 4}
_GETS = {pickle.BINGET: 1, pickle.LONG_BINGET: 4}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}


@final
class _Machine:
    """A stack, the stacks below the open marks, and a memo."""

    def __init__(self, data: bytes) -> None:
        self.at = 0
        self._data = memoryview(data)
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MAX_STEPS):
            code = bytes(self._take(1))
            if code == pickle.STOP:
                return self._stack.pop()
            self._step(code)
        raise _BrokenError(f"more than {_MAX_STEPS:,} steps")

    def _step(self, code: bytes) -> None:
        push = self._stack.append
        if code in _UNSIGNED:
            push(self._number(_UNSIGNED[code]))
        elif code == pickle.SHORT_BINSTRING:
            push(str(self._take(self._number(1)), "latin-1"))
        elif code in _PUTS:
            self._memo[self._number(_PUTS[code])] = self._stack[-1]
        elif code == pickle.MEMOIZE:
            self._memo[len(self._memo)] = self._stack[-1]
        elif code in _GETS:
            push(self._recalled(self._number(_GETS[code])))
        elif code in _TEXTS:
            push(str(self._take(self._number(_TEXTS[code])), "utf-8"))
        elif code in _BYTES:
            push(self._take(self._number(_BYTES[code])))
        elif code in _SIGNED:
            push(int.from_bytes(self._take(_SIGNED[code]), "little", signed=True))
        elif code == pickle.LONG1:
            push(int.from_bytes(self._take(self._number(1)), "little", signed=True))
        elif code in _CONSTANTS:
            push(_CONSTANTS[code])
        elif code == pickle.PROTO:
            self._take(1)
        elif code == pickle.FRAME:
            self._take(8)
        else:
            self._combine(code)

    def _combine(self, code: bytes) -> None:
        """The steps that make one thing of others."""
        match code:
            case pickle.MARK:
                if len(self._below) == _MAX_DEPTH:
                    raise _BrokenError(f"nested more than {_MAX_DEPTH} deep")
                self._below.append(self._stack)
                self._stack = []
            case pickle.EMPTY_LIST:
                self._stack.append([])
            case pickle.EMPTY_DICT:
                self._stack.append({})
            case pickle.TUPLE:
                items = self._above_mark()
                self._stack.append(tuple(items))
            case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                self._stack.append(tuple([self._stack.pop() for _ in range(_TUPLES[code])][::-1]))
            case pickle.APPEND:
                self._extend([self._stack.pop()])
            case pickle.APPENDS:
                self._extend(self._above_mark())
            case pickle.SETITEM:
                value, key = self._stack.pop(), self._stack.pop()
                self._update([key, value])
            case pickle.SETITEMS:
                self._update(self._above_mark())
            case pickle.GLOBAL | pickle.INST:
                self._stack.append(_word(self._line(), self._line()))
            case pickle.STACK_GLOBAL:
                name, module = self._stack.pop(), self._stack.pop()
                self._stack.append(_word(module, name))
            case pickle.REDUCE:
                arguments, word = self._stack.pop(), self._stack.pop()
                self._stack.append(_called(word, arguments))
            case pickle.BUILD:
                state, thing = self._stack.pop(), self._stack.pop()
                self._stack.append(_built(thing, state))
            case _:
                raise _BrokenError(f"{code!r} begins nothing that data is written in")

    def _take(self, num_bytes: int) -> memoryview:
        left = len(self._data) - self.at
        if num_bytes > left:
            raise _BrokenError(f"{num_bytes:,} more bytes expected, {left:,} found: the file is cut short")
        self.at += num_bytes
        return self._data[self.at - num_bytes : self.at]

    def _number(self, num_bytes: int) -> int:
        return int.from_bytes(self._take(num_bytes), "little")

    def _recalled(self, number: int) -> Any:
        if number not in self._memo:
            raise _BrokenError(f"memo {number:,} was never written")
        return self._memo[number]

    def _line(self, most: int = 200) -> str:
        head, newline, _ = bytes(self._data[self.at : self.at + most]).partition(b"\n")
        if not newline:
            raise _BrokenError("a name that does not end")
        self.at += len(head) + 1
        return str(head, "utf-8")

    def _above_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise _BrokenError("items for something that is not a list")
        self._stack[-1].extend(items)

    def _update(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict) or len(items) % 2:
            raise _BrokenError("keys and values for something that is not a dict")
        if not all(isinstance(key, str) for key in items[::2]):
            raise _BrokenError("a key that is not a string")
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _word(module: Any, name: Any) -> _Word:
    full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a computed name"
    if full not in _WORDS:
        raise _RefusedError(ascii(full[:200]))
    return _Word(full)


def _called(word: Any, arguments: Any) -> Any:
    """What a call stands for. Arguments are looked at only as far as data that numpy wrote needs."""
    match word, arguments:
        case _Word(name=name), (_Word(), _, _) if name in _RECONSTRUCT:
            return _EMPTY_ARRAY
        case _Word(name="numpy.dtype"), (str(kind), *_) if kind in ("u1", "|u1"):
            return _UINT8
        case _Word(name="_codecs.encode"), (str(text), str(codec)) if codec in ("latin1", "latin-1"):
            return memoryview(text.encode("latin-1"))
        case _Word(name=name), _:
            raise _BrokenError(f"{name} of something that is not uint8 data")
    raise _BrokenError("a call of something that is not a name")


def _built(thing: Any, state: Any) -> Any:
    if thing is _UINT8:
        return thing
    match state:
        case (_, tuple(shape), dtype, is_fortran, memoryview() as data) if (
            thing is _EMPTY_ARRAY
            and dtype is _UINT8
            and 0 < len(shape) <= 8
            and all(type(side) is int and side >= 0 for side in shape)
            and math.prod(shape) == len(data) > 0
        ):
            return np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")
    raise _BrokenError("an array whose contents are not the uint8 data that its shape asks for")
