"""Lists of images and captions, whatever wrote them: one rule a format, and what does not fit is left out by name.

    name.jpg#0<TAB>caption                  Flickr8k.token.txt, results_20130124.token (a space does for the tab)
    filepath,title                          a table with a header: comma, tab, semicolon or |, in quotes or not
    caption<TAB>path                        two columns without a header: the one with image names is the path
    {"image": "a.jpg", "caption": "..."}    JSON, a line each (a comma after it is no harm) or one array

A cell or a field `captions` may be an array. A column or a field `split` says to which split an image belongs. Where
more than a tenth of the lines (and more than one) cannot be read, the list is refused: it is something else.

A line is what ends with a line feed: Python's own `splitlines` would cut a caption at a U+2028.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO, final

from hjepa_shards.errors import InputError
from hjepa_shards.sources.base import Remarks
from hjepa_shards.sources.formats.caption_tables import (
    DELIMITERS,
    EXTENSION,
    IMAGE_NAME,
    Line,
    Row,
    rows,
    texts_in_cell,
)
from hjepa_shards.sources.formats.captions import texts_of

IMAGE_COLUMNS = ("image", "image_name", "filepath", "file_name", "filename", "image_path", "path", "file", "img")
CAPTION_COLUMNS = (
    *("captions", "caption", "title", "text", "comment", "sentence", "description", "alt_text"),
    *("sentences", "raw"),
)
MAX_UNREADABLE_SHARE = 0.1
"""Of the lines of a list, where they are more than one."""

_NUMBER_COLUMNS = ("comment_number", "caption_number")
_SPLIT_COLUMN = "split"
_NUMBERED_CAPTION = re.compile(r"(?:caption|sentence|text)[ _]?\d+")
_TOKEN = re.compile(rf"(.+?{EXTENSION})#(\d{{1,9}})(?:\s+(.*))?", re.IGNORECASE)
_URL = re.compile(r"https?://", re.IGNORECASE)
_MAX_LINE = 1 << 20
_MAX_JSON_BYTES = 1 << 31
_LOOKED_AT = 100
_UNREADABLE = "lines without an image and a caption, left out"


class Captioned(NamedTuple):
    """One line of a list."""

    image: str
    """As the list names it."""
    number: int
    """Orders the captions of an image; 0 where the list says none."""
    captions: list[str]
    split: str | None = None
    """As the list says; None where it says nothing of splits."""


_Found = tuple[str, Captioned | None]
"""What to call a line, and what it says; None where that is nothing."""


def read_captions(path: Path, remarks: Remarks) -> Iterator[Captioned]:
    """What a list names, line by line. Lines that say nothing are left out by name, in `remarks`.

    InputError where it is no such list, or more than MAX_UNREADABLE_SHARE of its lines are left out.
    """
    total = left_out = 0
    first = ""
    for where, found in _found_in(path, remarks):
        total += 1
        if found:
            yield found
            continue
        left_out += 1
        first = first or where
        remarks.add(_UNREADABLE, where)
        remarks.leave_out(f"{path.name}, {where}", "no image and caption in it")
    if 1 < left_out < total and left_out > MAX_UNREADABLE_SHARE * total:
        raise InputError(
            f"{path}, {first}: an image and a caption expected, none found, as in {left_out:,} of {total:,} lines; "
            f"at most {MAX_UNREADABLE_SHARE:.0%} are left out: fix the list, or write it as .jsonl"
        )


def _found_in(path: Path, remarks: Remarks) -> Iterator[_Found]:
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            start = file.read(4)
        encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with path.open(encoding=encoding, errors="replace") as file:
            if suffix == ".json":
                yield from _in_array(path, file)
                return
            lines = _lines(path, file, remarks)
            if suffix in (".jsonl", ".ndjson"):
                yield from _in_json_lines(lines)
            else:
                yield from _in_table(path, lines, remarks)
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path}: a list of images and captions expected, cannot be read: {error}") from error


def _lines(path: Path, file: TextIO, remarks: Remarks) -> Iterator[Line]:
    """Lines, their ends cut off."""
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if len(line) == _MAX_LINE:
            raise InputError(f"{path}, line {number}: at most {_MAX_LINE:,} characters expected; is it a list?")
        if "\ufffd" in line:
            remarks.add("lines with bytes that are not UTF-8, shown as \ufffd", f"line {number}")
        yield Line(number, line.rstrip("\n"))


# ---- JSON


def _in_json_lines(lines: Iterable[Line]) -> Iterator[_Found]:
    for number, text in lines:
        record = text.strip().removesuffix(",")
        if record in ("", "[", "]"):  # an array, one object a line
            continue
        try:
            found = _of_record(json.loads(record))
        except (ValueError, RecursionError):
            found = None
        yield f"line {number}", found


def _in_array(path: Path, file: TextIO) -> Iterator[_Found]:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise InputError(f"{path}: JSON of at most {_MAX_JSON_BYTES:,} bytes expected; write it as .jsonl")
    try:
        records = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {str(error)[:200]}") from error
    if not isinstance(records, list):
        raise InputError(f"{path}: an array of objects expected, {type(records).__name__} found")
    for number, record in enumerate(records):
        yield f"object {number}", _of_record(record)


def _of_record(record: Any) -> Captioned | None:
    """The image and the captions of a JSON object, None where it has none."""
    if not isinstance(record, Mapping):
        return None
    fields = {str(key).lower(): value for key, value in record.items()}
    image = next((fields[key] for key in IMAGE_COLUMNS if isinstance(fields.get(key), str)), None)
    captions = next((texts_of(fields[key]) for key in CAPTION_COLUMNS if key in fields), None)
    split = fields.get(_SPLIT_COLUMN)
    return Captioned(image, 0, captions, split if isinstance(split, str) else None) if image and captions else None


# ---- tables


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which cells of a row are what."""

    image: int
    number: int | None
    split: int | None
    captions: tuple[int, ...]
    count: int
    header: bool
    """Whether the first row only names them."""

    def read(self, cells: Sequence[str], delimiter: str) -> Captioned | None:
        """What a row says, None where it does not fit."""
        last = self.count - 1
        if len(cells) > self.count:
            cells = self._with_delimiters_in_caption(cells, delimiter)
        if len(cells) == self.count - 1 and self.number == last - 1:  # Flickr30k: "name.jpg| 4   A dog runs ."
            number, _, caption = cells[-1].strip().partition(" ")
            cells = [*cells[:-1], number, caption]
        if len(cells) < self.count:
            return None
        image = cells[self.image].strip()
        captions = [text for column in self.captions for text in texts_in_cell(cells[column])]
        said = cells[self.number].strip() if self.number is not None else "0"
        if not image or not said.isdecimal() or len(said) > 9:
            return None
        return Captioned(image, int(said), captions, None if self.split is None else cells[self.split].strip())

    def _with_delimiters_in_caption(self, cells: Sequence[str], delimiter: str) -> Sequence[str]:
        """The cells of a row in which a caption was not put in quotes; none where that is not clear."""
        last, caption = self.count - 1, self.captions[-1]
        if caption == last:
            return [*cells[:last], delimiter.join(cells[last:])]
        if not any(cells[self.count :]):
            return cells[: self.count]
        stop = caption + 1 + len(cells) - self.count
        more = cells[caption + 1 : stop]
        if len(self.captions) > 1 or not all(cell.startswith(" ") for cell in more):
            return ()
        return [*cells[:caption], delimiter.join([cells[caption], *more]), *cells[stop:]]


@final
class _Replayed:
    """Lines that can be read again from the first on, as far as they were read."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._seen: list[Line] = []

    def again(self) -> Iterator[Line]:
        """All of them; the next call must wait for the end of this one."""
        yield from self._seen
        for line in self._lines:
            self._seen.append(line)
            yield line

    def last(self) -> Iterator[Line]:
        """All of them, no longer kept."""
        return chain(self._seen, self._lines)


def _in_table(path: Path, lines: Iterator[Line], remarks: Remarks) -> Iterator[_Found]:
    replayed = _Replayed(lines)
    start = next((line for line in replayed.again() if line.text.strip()), None)
    if start is None:
        raise InputError(f"{path}: images and captions expected, an empty file found")
    if _TOKEN.fullmatch(start.text):
        yield from _in_tokens(replayed.last())
        return
    delimiters = [mark for mark in DELIMITERS if mark in start.text]
    if not delimiters:
        raise InputError(
            f"{path}, line {start.number}: an image and a caption with a tab, comma, semicolon or | between them "
            f"expected, {start.text[:60]!r} found"
        )
    looked_at = {mark: list(islice(rows(replayed.again(), mark), _LOOKED_AT)) for mark in delimiters}
    delimiter = max(delimiters, key=lambda mark: _num_read(path, looked_at[mark], mark))
    first = looked_at[delimiter]
    columns = _columns(path, first)
    if columns.header and first[0][1][columns.image].strip().lower() not in IMAGE_COLUMNS:
        remarks.add("first lines without an image, taken for a header", f"line {first[0][0]}: {start.text[:60]}")
    found_rows = rows(replayed.last(), delimiter)
    if columns.header:
        next(found_rows)
    for number, cells in found_rows:
        yield f"line {number}", columns.read(cells, delimiter)


def _in_tokens(lines: Iterable[Line]) -> Iterator[_Found]:
    for number, text in lines:
        if text.strip():
            found = _TOKEN.fullmatch(text)
            yield f"line {number}", Captioned(found[1].strip(), int(found[2]), [found[3] or ""]) if found else None


def _num_read(path: Path, found: Sequence[Row], delimiter: str) -> int:
    """How many rows name an image and have a caption, if this is the delimiter."""
    try:
        columns = _columns(path, found)
    except InputError:
        return -1
    read = [columns.read(cells, delimiter) for _, cells in found[columns.header :]]
    return sum(row is not None and bool(IMAGE_NAME.fullmatch(row.image)) for row in read)


def _columns(path: Path, found: Sequence[Row]) -> _Columns:
    """The columns of a table by their names, or by what is in them."""
    table = [cells for _, cells in found]
    names = [cell.strip().lower() for cell in table[0]]
    images = [names.index(name) for name in IMAGE_COLUMNS if name in names]
    captions = [names.index(name) for name in CAPTION_COLUMNS if name in names][:1]
    captions = captions or [number for number, name in enumerate(names) if _NUMBERED_CAPTION.fullmatch(name)]
    if not images or not captions:
        return _by_content(path, table)
    numbers = [names.index(name) for name in _NUMBER_COLUMNS if name in names]
    split = names.index(_SPLIT_COLUMN) if _SPLIT_COLUMN in names else None
    return _Columns(images[0], numbers[0] if numbers else None, split, tuple(captions), len(names), True)


def _by_content(path: Path, table: Sequence[Sequence[str]]) -> _Columns:
    """The columns by what is in them: image names, and the longest texts. A first row without an image is a header."""
    table = [row for row in table if len(row) > 1] or table  # others are left out, or are all that there is
    count = min(map(len, table))
    columns = [[row[number].strip() for row in table] for number in range(count)]
    images = [sum(bool(IMAGE_NAME.fullmatch(cell)) for cell in column) for column in columns]
    urls = [sum(bool(_URL.match(cell)) for cell in column) for column in columns]
    if count < 2 or max(images) * 2 < len(table) or max(urls) * 2 > len(table):
        if count and max(urls) * 2 > len(table):
            raise InputError(
                f"{path}: image files expected, URLs found; fetch the images with img2dataset, then give its folder "
                "of tars with --raw"
            )
        raise InputError(
            f"{path}: a column of image names beside one of captions expected, {list(table[0])!r:.100} found; a header "
            f"may name them: {IMAGE_COLUMNS[2]},{CAPTION_COLUMNS[1]}"
        )
    image = images.index(max(images))
    header = not IMAGE_NAME.fullmatch(columns[image][0])
    names = [column[0].lower() for column in columns] if header else []
    split = names.index(_SPLIT_COLUMN) if _SPLIT_COLUMN in names else None
    lengths = [
        -1 if number in (image, split) else sum(map(len, column[header:])) for number, column in enumerate(columns)
    ]
    caption = lengths.index(max(lengths))
    return _Columns(image, None, split, (caption,), len(table[0]) if header else count, header)
