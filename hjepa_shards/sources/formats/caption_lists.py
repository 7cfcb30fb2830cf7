"""Lists of images and captions, whatever wrote them: one rule a format, and what does not fit is counted, not fatal.

    name.jpg#0<TAB>caption                  Flickr8k.token.txt, results_20130124.token (a space does for the tab)
    filepath,title                          a table with a header: comma, tab, semicolon or |, in quotes or not
    caption<TAB>path                        two columns without a header: the one with image names is the path
    {"image": "a.jpg", "caption": "..."}    JSON, a line each or one array; `captions` may be a list

A line is what ends with a line feed: Python's own `splitlines` would cut a caption at a U+2028.
"""

import csv
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from hjepa_shards.errors import InputError
from hjepa_shards.shards.raw_sample import IMAGE_EXTENSIONS
from hjepa_shards.sources.base import Remarks
from hjepa_shards.sources.formats.captions import texts_of

IMAGE_COLUMNS = ("image", "image_name", "filepath", "file_name", "filename", "image_path", "path", "file", "img")
CAPTION_COLUMNS = ("captions", "caption", "title", "text", "comment", "sentence", "description", "alt_text")

_NUMBER_COLUMNS = ("comment_number", "caption_number")
_NUMBERED_CAPTION = re.compile(r"(?:caption|sentence|text)[ _]?\d+")
_EXTENSION = rf"\.(?:{'|'.join(IMAGE_EXTENSIONS)})(?:\.\d+)?"
_IMAGE_NAME = re.compile(rf".*{_EXTENSION}", re.IGNORECASE | re.DOTALL)
_TOKEN = re.compile(rf"(.+?{_EXTENSION})#(\d{{1,9}})(?:\s+(.*))?", re.IGNORECASE)
_URL = re.compile(r"https?://", re.IGNORECASE)
_MAX_LINE = 1 << 20
_MAX_JSON_BYTES = 1 << 31
_JOINED_LINES = 20
"""At most this many lines are one quoted cell; a quote that does not close by then is a quote."""
_LOOKED_AT = 100
_UNREADABLE = "lines without an image and a caption, left out"


class Captioned(NamedTuple):
    """One line of a list."""

    image: str
    """As the list names it."""
    number: int
    """Orders the captions of an image; 0 where the list says none."""
    captions: list[str]


class _Line(NamedTuple):
    number: int
    text: str


def read_captions(path: Path, remarks: Remarks) -> Iterator[Captioned]:
    """What a list names, line by line. InputError where it is no such list; odd lines are counted in `remarks`."""
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            start = file.read(4)
        encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with path.open(encoding=encoding, errors="replace") as file:
            if suffix == ".json":
                yield from _in_array(path, file, remarks)
                return
            lines = _lines(path, file, remarks)
            if suffix in (".jsonl", ".ndjson"):
                yield from _in_json_lines(lines, remarks)
            else:
                yield from _in_table(path, lines, remarks)
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path}: a list of images and captions expected, cannot be read: {error}") from error


def _lines(path: Path, file: TextIO, remarks: Remarks) -> Iterator[_Line]:
    """Lines that are not empty, their ends cut off."""
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if len(line) == _MAX_LINE:
            raise InputError(f"{path}, line {number}: at most {_MAX_LINE:,} characters expected; is it a list?")
        if "\ufffd" in line:
            remarks.add("lines with bytes that are not UTF-8, shown as \ufffd", f"line {number}")
        if line.strip():
            yield _Line(number, line.rstrip("\n"))


# ---- JSON


def _in_json_lines(lines: Iterable[_Line], remarks: Remarks) -> Iterator[Captioned]:
    for number, text in lines:
        try:
            found = _of_record(json.loads(text))
        except (ValueError, RecursionError):
            found = None
        if found:
            yield found
        else:
            remarks.add(_UNREADABLE, f"line {number}")


def _in_array(path: Path, file: TextIO, remarks: Remarks) -> Iterator[Captioned]:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise InputError(f"{path}: JSON of at most {_MAX_JSON_BYTES:,} bytes expected; write it as .jsonl")
    try:
        records = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {str(error)[:200]}") from error
    if not isinstance(records, list):
        raise InputError(f"{path}: an array of objects expected, {type(records).__name__} found")
    for number, record in enumerate(records):
        if found := _of_record(record):
            yield found
        else:
            remarks.add(_UNREADABLE, f"object {number}")


def _of_record(record: Any) -> Captioned | None:
    """The image and the captions of a JSON object, None where it has none."""
    if not isinstance(record, Mapping):
        return None
    fields = {str(key).lower(): value for key, value in record.items()}
    image = next((fields[key] for key in IMAGE_COLUMNS if isinstance(fields.get(key), str)), None)
    captions = next((texts_of(fields[key]) for key in CAPTION_COLUMNS if key in fields), None)
    return Captioned(image, 0, captions) if image and captions else None


# ---- tables


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which cells of a row are what."""

    image: int
    number: int | None
    captions: tuple[int, ...]
    count: int

    def read(self, cells: Sequence[str], delimiter: str) -> Captioned | None:
        """What a row says, None where it does not fit."""
        last = self.count - 1
        if len(cells) > self.count and self.captions[-1] == last:  # a caption with the delimiter in it
            cells = [*cells[:last], delimiter.join(cells[last:])]
        if len(cells) == self.count - 1 and self.number == last - 1:  # Flickr30k: "name.jpg| 4   A dog runs ."
            number, _, caption = cells[-1].strip().partition(" ")
            cells = [*cells[:-1], number, caption]
        if len(cells) < self.count:
            return None
        image = cells[self.image].strip()
        captions = [cells[column] for column in self.captions]
        said = cells[self.number].strip() if self.number is not None else "0"
        if not image or not said.isdecimal() or len(said) > 9:
            return None
        return Captioned(image, int(said), captions)


def _in_table(path: Path, lines: Iterator[_Line], remarks: Remarks) -> Iterator[Captioned]:
    start = list(islice(lines, _LOOKED_AT))
    if not start:
        raise InputError(f"{path}: images and captions expected, an empty file found")
    lines = chain(start, lines)
    if _TOKEN.fullmatch(start[0].text):
        yield from _in_tokens(lines, remarks)
        return
    delimiter = next((mark for mark in "\t|,;" if mark in start[0].text), None)
    if delimiter is None:
        raise InputError(
            f"{path}, line {start[0].number}: an image and a caption with a tab, comma, semicolon or | between them "
            f"expected, {start[0].text[:60]!r} found"
        )
    rows: Callable[[Iterable[_Line]], Iterator[tuple[int, list[str]]]] = (
        _comma_rows if delimiter == "," else lambda lines: _plain_rows(lines, delimiter)
    )
    first = [cells for _, cells in rows(start)]
    columns = _by_header(first[0]) or _by_content(path, first)
    found_rows = rows(lines)
    if _by_header(first[0]):
        next(found_rows)
    for number, cells in found_rows:
        if found := columns.read(cells, delimiter):
            yield found
        else:
            remarks.add(_UNREADABLE, f"line {number}")


def _in_tokens(lines: Iterable[_Line], remarks: Remarks) -> Iterator[Captioned]:
    for number, text in lines:
        found = _TOKEN.fullmatch(text)
        if found:
            yield Captioned(found[1].strip(), int(found[2]), [found[3] or ""])
        else:
            remarks.add(_UNREADABLE, f"line {number}")


def _by_header(cells: Sequence[str]) -> _Columns | None:
    """The columns by their names, None where the first row is no header."""
    names = [cell.strip().lower() for cell in cells]
    images = [names.index(name) for name in IMAGE_COLUMNS if name in names]
    captions = [names.index(name) for name in CAPTION_COLUMNS if name in names][:1]
    captions = captions or [number for number, name in enumerate(names) if _NUMBERED_CAPTION.fullmatch(name)]
    if not images or not captions:
        return None
    numbers = [names.index(name) for name in _NUMBER_COLUMNS if name in names]
    return _Columns(images[0], numbers[0] if numbers else None, tuple(captions), len(names))


def _by_content(path: Path, rows: Sequence[Sequence[str]]) -> _Columns:
    """The columns by what is in them: image names, and the longest texts."""
    count = min(map(len, rows))
    columns = [[row[number].strip() for row in rows] for number in range(count)]
    images = [sum(bool(_IMAGE_NAME.fullmatch(cell)) for cell in column) for column in columns]
    urls = [sum(bool(_URL.match(cell)) for cell in column) for column in columns]
    if count < 2 or max(images) * 2 < len(rows) or max(urls) * 2 > len(rows):
        if count and max(urls) * 2 > len(rows):
            raise InputError(
                f"{path}: image files expected, URLs found; fetch the images with img2dataset, then give its folder "
                "of tars with --raw"
            )
        raise InputError(
            f"{path}: a column of image names beside one of captions expected, {list(rows[0])!r:.100} found; a header "
            f"may name them: {IMAGE_COLUMNS[2]},{CAPTION_COLUMNS[1]}"
        )
    image = images.index(max(images))
    lengths = [-1 if number == image else sum(map(len, column)) for number, column in enumerate(columns)]
    return _Columns(image, None, (lengths.index(max(lengths)),), count)


def _plain_rows(lines: Iterable[_Line], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for number, text in lines:
        yield number, [_unquoted(cell) for cell in text.split(delimiter)]


def _unquoted(cell: str) -> str:
    """A cell without the quotes that a table's writer put around it; a caption's own quotes stay."""
    stripped = cell.strip()
    inner = stripped[1:-1]
    if len(stripped) < 2 or stripped[0] != '"' or stripped[-1] != '"' or '"' in inner.replace('""', ""):
        return cell
    return inner.replace('""', '"')


def _comma_rows(lines: Iterable[_Line]) -> Iterator[tuple[int, list[str]]]:
    """Rows by the rules of csv; a line that breaks them is cut at its commas as it is."""
    source, waiting = iter(lines), deque[_Line]()

    def following() -> _Line | None:
        return waiting.popleft() if waiting else next(source, None)

    while (line := following()) is not None:
        taken: list[_Line] = []
        text = line.text
        while text.count('"') % 2 and len(taken) < _JOINED_LINES:
            more = following()
            if more is None:
                break
            taken.append(more)
            text += f"\n{more.text}"
        try:
            cells = next(csv.reader([text], strict=True))
        except (csv.Error, StopIteration):
            waiting.extendleft(reversed(taken))
            cells = [_unquoted(cell) for cell in line.text.split(",")]
        yield line.number, cells
