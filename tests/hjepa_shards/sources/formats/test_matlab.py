"""MATLAB files as scipy writes them, and damaged ones."""

import io

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
