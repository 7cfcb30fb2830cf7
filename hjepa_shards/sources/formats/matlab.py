"""Numbers and texts in an array of structs of a MATLAB 5 file (.mat): what ImageNet's devkit keeps its synsets in.

Only that: other values are stepped over. A crafted file costs no more than its size allows: what is inflated is bounded
in sum, nothing is copied, elements are looked at one by one, and no deeper than a struct's fields. scipy has a whole
reader, but a damaged file makes it crash the process (scipy 1.17, an invalid read in its C code), and this one has few
enough lines to be right.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import NamedTuple

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHAR = 2, 4
_FORMATS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
"""Type of a data element -> its struct code."""
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
_MAX_INFLATION, _LEAST_INFLATED_BYTES = 64, 1 << 24
"""All compressed elements of a file together: at most so many times its size, or this where that is more."""
_MAX_FIELDS, _MAX_STRUCTS = 1 << 8, 1 << 20


class _Element(NamedTuple):
    kind: int
    data: memoryview


def read_structs(file: bytes, name: str, fields: Sequence[str]) -> list[tuple[float | str, ...]]:
    """The values of some fields of each struct in the array called `name`. ValueError for anything unexpected."""
    if len(file) < _HEADER_BYTES or file[126:128] != b"IM" or file[125] != 1:
        raise ValueError("no MATLAB 5 file")
    left = max(_MAX_INFLATION * len(file), _LEAST_INFLATED_BYTES)
    for element in _elements(memoryview(file)[_HEADER_BYTES:]):
        if element.kind == _COMPRESSED:
            inflated = _inflated(element.data, left)
            left -= len(inflated)
            element = next(_elements(memoryview(inflated)), element)
        if element.kind != _MATRIX:
            continue
        parts = _elements(element.data)
        head = list(islice(parts, 3))  # flags, dimensions, name
        if len(head) == 3 and _class_of(head) == _STRUCT and head[2].data == name.encode():
            return list(_rows(parts, fields))
    raise ValueError(f"no structs called {name}")


def _rows(parts: Iterator[_Element], fields: Sequence[str]) -> Iterator[tuple[float | str, ...]]:
    """Parts: bytes of a field's name, names of the fields, then struct after struct."""
    head = list(islice(parts, 2))
    if len(head) < 2 or len(head[0].data) != 4:
        raise ValueError("structs without field names")
    width, joined = struct.unpack("<i", head[0].data)[0], bytes(head[1].data)
    if not 0 < width <= len(joined) <= width * _MAX_FIELDS:
        raise ValueError(f"1 to {_MAX_FIELDS} field names expected, {len(joined)} bytes of {width} each found")
    known = [joined[at : at + width].rstrip(b"\0").decode("latin-1") for at in range(0, len(joined), width)]
    columns = [known.index(field) for field in fields]
    for number in count():
        row = list(islice(parts, len(known)))
        if not row:
            return
        if number == _MAX_STRUCTS:
            raise ValueError(f"more than {_MAX_STRUCTS:,} structs")
        yield tuple(_value(row[column].data) for column in columns if column < len(row))


def _value(matrix: memoryview) -> float | str:
    """A text, or one number."""
    parts = list(islice(_elements(matrix), 4))
    if len(parts) < 4:
        raise ValueError("a matrix without a value")
    kind, data = parts[3]
    if _class_of(parts) == _CHAR:
        return bytes(data).decode(_ENCODINGS.get(kind, "latin-1"))
    if kind not in _FORMATS or len(data) != struct.calcsize(_FORMATS[kind]):
        raise ValueError("a matrix that is neither a text nor one number")
    return struct.unpack(f"<{_FORMATS[kind]}", data)[0]


def _class_of(parts: Sequence[_Element]) -> int:
    return parts[0].data[0] if parts[0].data else 0


def _elements(data: memoryview) -> Iterator[_Element]:
    """Tag and data, one after another, padded to 8 bytes; a short one is in its tag's second half."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError("cut short")
        kind, num_bytes = struct.unpack_from("<II", data, at)
        start, following = at + 8, at + 8 + num_bytes + (-num_bytes % 8 if kind != _COMPRESSED else 0)
        if kind >> 16:
            kind, num_bytes, start, following = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if start + num_bytes > len(data) or start + num_bytes > following:
            raise ValueError("cut short")
        yield _Element(kind, data[start : start + num_bytes])
        at = following


def _inflated(data: memoryview, most_bytes: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        inflated = inflater.decompress(data, most_bytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(inflated) > most_bytes:
        raise ValueError(f"a decompression bomb: more than {_MAX_INFLATION} times the size of the file")
    return inflated
