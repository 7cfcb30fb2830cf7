"""Numbers and texts in an array of structs of a MATLAB 5 file (.mat): what ImageNet's devkit keeps its synsets in.

Only that: other values are stepped over. scipy has a whole reader, but a damaged file makes it crash the process
(scipy 1.17, an invalid read in its C code), and this one has few enough lines to be right.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_STRUCT, _CHAR = 2, 4
_FORMATS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
"""Type of a data element -> its struct code."""
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
_MAX_INFLATED_BYTES = 1 << 28


class _Element(NamedTuple):
    kind: int
    data: bytes


def read_structs(file: bytes, name: str, fields: Sequence[str]) -> list[tuple[float | str, ...]]:
    """The values of some fields of each struct in the array called `name`. ValueError for anything unexpected."""
    if len(file) < _HEADER_BYTES or file[126:128] != b"IM" or file[125] != 1:
        raise ValueError("no MATLAB 5 file")
    for element in _elements(file[_HEADER_BYTES:]):
        if element.kind == _COMPRESSED:
            element = next(_elements(_inflated(element.data)), element)
        parts = list(_elements(element.data)) if element.kind == _MATRIX else []
        if len(parts) > 2 and _class_of(parts) == _STRUCT and parts[2].data == name.encode():
            return list(_rows(parts, fields))
    raise ValueError(f"no structs called {name}")


def _rows(parts: Sequence[_Element], fields: Sequence[str]) -> Iterator[tuple[float | str, ...]]:
    """Parts: flags, dimensions, name, bytes of a field's name, names of the fields, then struct after struct."""
    if len(parts) < 5 or len(parts[3].data) != 4:
        raise ValueError("structs without field names")
    width, joined = struct.unpack("<i", parts[3].data)[0], parts[4].data
    known = [joined[at : at + width].rstrip(b"\0").decode("latin-1") for at in range(0, len(joined), max(width, 1))]
    columns = [known.index(field) for field in fields]
    for first in range(5, len(parts), len(known)):
        row = parts[first : first + len(known)]
        yield tuple(_value(row[column].data) for column in columns if column < len(row))


def _value(matrix: bytes) -> float | str:
    """A text, or one number."""
    parts = list(_elements(matrix))
    if len(parts) < 4:
        raise ValueError("a matrix without a value")
    kind, data = parts[3]
    if _class_of(parts) == _CHAR:
        return data.decode(_ENCODINGS.get(kind, "latin-1"))
    if kind not in _FORMATS or len(data) != struct.calcsize(_FORMATS[kind]):
        raise ValueError("a matrix that is neither a text nor one number")
    return struct.unpack(f"<{_FORMATS[kind]}", data)[0]


def _class_of(parts: Sequence[_Element]) -> int:
    return parts[0].data[0] if parts[0].data else 0


def _elements(data: bytes) -> Iterator[_Element]:
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


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MAX_INFLATED_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
