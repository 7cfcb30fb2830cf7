"""Rows of tables as people's tools write them: csv with any of four delimiters, quoted where it should be, or not.

Whether a quote opens a cell is decided row by row, by what is consistent. A cell that begins with a quote goes on, over
any number of lines, until a quote closes it before a delimiter or the end of a line, by the rules of the csv module. If
none does, or if a line on the way is a row by itself (it has a cell that names an image), the quote was part of the
text, and the row is cut at its delimiters as it is. So one stray quote takes no other row along.
"""

import ast
import csv
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, final

from hjepa_shards.shards.raw_sample import IMAGE_EXTENSIONS

DELIMITERS = "\t|,;"
EXTENSION = rf"\.(?:{'|'.join(IMAGE_EXTENSIONS)})(?:\.\d+)?"
IMAGE_NAME = re.compile(rf".*{EXTENSION}", re.IGNORECASE | re.DOTALL)

_MAX_ROW = 1 << 20
"""Characters of a row of several lines; a cell has at most 131,072, as the csv module has it."""
_TEXT = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_PYTHON_LIST = re.compile(rf"\[\s*(?:{_TEXT})(?:\s*,\s*(?:{_TEXT}))*\s*,?\s*\]", re.DOTALL)
_PYTHON_TEXT = re.compile(_TEXT, re.DOTALL)


class Line(NamedTuple):
    """A line of a list, without its end."""

    number: int
    text: str


Row = tuple[int, list[str]]
"""The number of its first line, and its cells."""


def rows(lines: Iterable[Line], delimiter: str) -> Iterator[Row]:
    """The rows of a table, without its empty lines."""
    source, waiting = iter(lines), deque[Line]()
    unjoined = 0
    """No cell over several lines begins on a line before this one: it was looked for, and did not close."""
    while True:
        line = waiting.popleft() if waiting else next(source, None)
        if line is None:
            return
        if not line.text.strip():
            continue
        plain = [_unquoted(cell) for cell in line.text.split(delimiter)]
        if '"' not in line.text:
            yield line.number, plain
            continue
        lookahead = _Lookahead(line, delimiter, source, waiting, may_join=line.number >= unjoined)
        try:
            quoted = next(csv.reader(lookahead.texts(), delimiter=delimiter, strict=True))
        except (csv.Error, StopIteration):
            unjoined = max(unjoined, lookahead.taken[-1].number if lookahead.taken else 0)
            waiting.extendleft(reversed(lookahead.taken))
            yield line.number, plain
            continue
        same = not lookahead.taken and delimiter != "," and len(quoted) == len(plain)
        yield line.number, plain if same else quoted


@final
class _Lookahead:
    """A line, and those after it as far as the csv module wants them: while a quoted cell is open."""

    def __init__(
        self, line: Line, delimiter: str, source: Iterator[Line], waiting: deque[Line], *, may_join: bool
    ) -> None:
        self._line, self._delimiter, self._source, self._waiting = line, delimiter, source, waiting
        self._may_join = may_join
        self.taken: list[Line] = []

    def texts(self) -> Iterator[str]:
        """Ends where no more lines may belong to the cell."""
        yield f"{self._line.text}\n"
        after_quote = self._line.text.rpartition('"')[2].split(self._delimiter)[1:]
        num_characters = 0
        while self._may_join and not _names_image(after_quote) and num_characters < _MAX_ROW:
            line = self._waiting.popleft() if self._waiting else next(self._source, None)
            if line is None:
                return
            self.taken.append(line)
            before_quote = line.text.partition('"')[0].split(self._delimiter)
            if len(before_quote) > 1 and _names_image(before_quote):
                return
            num_characters += len(line.text) + 1
            yield f"{line.text}\n"


def texts_in_cell(cell: str) -> list[str]:
    """The captions in a cell: an array of texts as JSON or Python writes it, or the cell itself."""
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return [cell]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if found is None and _PYTHON_LIST.fullmatch(text):
        try:
            found = [ast.literal_eval(part) for part in _PYTHON_TEXT.findall(text)]
        except (ValueError, SyntaxError):
            found = None
    if isinstance(found, list) and found and all(isinstance(part, str) for part in found):
        return found
    return [cell]


def _names_image(cells: Sequence[str]) -> bool:
    return any(IMAGE_NAME.fullmatch(_unquoted(cell).strip()) for cell in cells)


def _unquoted(cell: str) -> str:
    """A cell without the quotes that a table's writer put around it; a caption's own quotes stay."""
    stripped = cell.strip()
    inner = stripped[1:-1]
    if len(stripped) < 2 or stripped[0] != '"' or stripped[-1] != '"' or '"' in inner.replace('""', ""):
        return cell
    return inner.replace('""', '"')
