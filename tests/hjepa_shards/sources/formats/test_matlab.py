"""MATLAB files as scipy writes them, and damaged ones."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa_shards.sources.formats.matlab import read_structs

ROWS = [(1, "n02119789", "kit fox, Vulpes macrotis"), (2, "n02100735", "English setter"), (1860, "n\u732b", "")]


def saved(compressed: bool = False, **more: object) -> bytes:
    from scipy.io import savemat

    table = np.zeros(len(ROWS), dtype=[("ID", "O"), ("WNID", "O"), ("words", "O"), ("children", "O")])
    for number, row in enumerate(ROWS):
        table[number] = (*row, np.arange(number, dtype=np.uint16))
    buffer = io.BytesIO()
    savemat(buffer, {**more, "synsets": table.reshape(-1, 1)}, do_compression=compressed)
    return buffer.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
def test_the_fields_are_those_that_scipy_wrote(compressed: bool) -> None:
    file = saved(compressed, before=np.eye(3), cells=np.array(["a", 1.5], dtype=object))
    assert read_structs(file, "synsets", ["ID", "WNID", "words"]) == ROWS
    assert read_structs(file, "synsets", ["WNID"]) == [(row[1],) for row in ROWS]


@pytest.mark.parametrize(
    ("file", "field", "message"),
    [
        (b"", "ID", "no MATLAB 5 file"),
        (saved()[:200], "ID", "cut short"),
        (saved()[:128], "ID", "no structs called synsets"),
        (saved(), "gloss", "not in list"),
        (saved(), "children", "neither a text nor one number"),
        (saved(compressed=True)[:-40], "ID", "cut short"),
        (saved(compressed=True)[:160] + b"\xff" * 400, "ID", "cut short|invalid|incorrect"),
    ],
)
def test_what_cannot_be_read_is_a_value_error(file: bytes, field: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_structs(file, "synsets", [field])


def element(kind: int, data: bytes) -> bytes:
    padding = b"" if kind == 15 else bytes(-len(data) % 8)
    return struct.pack("<II", kind, len(data)) + data + padding


def compressed(num_bytes: int) -> bytes:
    return element(15, zlib.compress(element(14, bytes(num_bytes)), 9))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (compressed(1 << 23) * 40, "decompression bomb: more than 64 times"),
        (element(14, element(6, bytes([2])) + bytes(8 << 20)), "no structs"),
        (element(14, element(6, b"\2") + element(5, b"") + element(1, b"synsets") + element(5, b"\1\0\0\0")
                 + element(1, b"x" * (4 << 20))), "1 to 256 field names"),
    ],
)  # fmt: skip
def test_a_crafted_file_costs_no_more_than_its_size_allows(content: bytes, message: str) -> None:
    file = saved()[:128] + content
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read_structs(file, "synsets", ["ID"])
        assert tracemalloc.get_traced_memory()[1] < max(2 * len(file), 40 << 20)
    finally:
        tracemalloc.stop()


FILES = [saved(), saved(compressed=True)]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_flipped_files_give_values_or_value_errors(data: st.DataObject) -> None:
    flipped = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(1, 3))):
        flipped[data.draw(st.integers(0, len(flipped) - 1))] = data.draw(st.integers(0, 255))
    try:
        rows = read_structs(bytes(flipped), "synsets", ["ID", "WNID"])
    except ValueError:
        return
    assert all(isinstance(value, int | float | str) for row in rows for value in row)
