"""Which tars are meant: a folder, or a pattern as webdataset takes it: braces, stars, `::` between several, URLs."""

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from braceexpand import braceexpand

from hjepa_shards.errors import InputError
from hjepa_shards.storage.remote_files import is_remote, remote_glob

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tar.xz")
MAX_TARS = 1_000_000
"""Named by one pattern: a slip such as {0..9999999999} ends here."""
_BETWEEN = re.compile(r"::(?![^\[\]]*\])")  # not within an IPv6 address: http://[::1]/x.tar


def is_pattern(raw: str) -> bool:
    """Whether `raw` names tars (by braces, a star, a URL, or one file) rather than a folder."""
    return is_remote(raw) or bool(re.search(r"[{*]", raw)) or raw.endswith(TAR_SUFFIXES)


def tars_in(folder: Path) -> list[str]:
    """The names of the tars in a folder, sorted, except hidden ones. InputError where it cannot be read."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise InputError(f"{folder}: a folder of tars expected, {error.strerror or error}") from error
    return sorted(name for name in names if name.endswith(TAR_SUFFIXES) and not name.startswith("."))


def expand(pattern: str) -> list[str]:
    """The locations that a pattern names, each once, sorted: {000..012}, {0..10..5}, {a..c}, {a,b}, * and `::`.

    InputError where a star finds nothing or the braces are not right.
    """
    locations: dict[str, None] = {}
    for part in _BETWEEN.split(pattern):
        for text in _braced(part, pattern):
            found = [text] if "*" not in text else remote_glob(text) if is_remote(text) else glob.glob(text)
            if not found:
                raise InputError(f"{text}: tars expected, none found; check the pattern")
            locations |= dict.fromkeys(found)
    return sorted(locations)


def _braced(text: str, pattern: str) -> list[str]:
    """`text` with its braces written out, the innermost first, so that no step can exceed MAX_TARS."""
    texts = [text]
    while any("{" in text for text in texts):
        longer = []
        for text in texts:
            before, choices, after = _innermost(text, pattern)
            longer += [f"{before}{choice}{after}" for choice in choices]
            if len(longer) > MAX_TARS:
                raise InputError(f"{pattern}: at most {MAX_TARS:,} tars expected, more named; check the numbers")
        texts = longer
    return texts


def _innermost(text: str, pattern: str) -> tuple[str, Iterable[str], str]:
    """What is before, in and after one pair of braces; text without braces is its own one choice."""
    if "{" not in text:
        return text, [""], ""
    found = re.search(r"\{([^{}]*)\}", text)
    if not found:
        raise InputError(f"{pattern}: a closing brace expected for each opening one; write it as x-{{000..012}}.tar")
    if numbers := re.fullmatch(r"(-?\d+)\.\.(-?\d+)(\.\.-?\d+)?", found[1]):
        digits = max(len(number) for number in numbers.groups("0"))
        first, last = (int(number) for number in numbers.groups()[:2]) if digits < 20 else (0, MAX_TARS)
        if last < first or last - first >= MAX_TARS:
            raise InputError(
                f"{pattern}: {found[0]}: a range from less to more, of at most {MAX_TARS:,} tars, expected"
            )
    choices = list(braceexpand(found[0], escape=False))
    if choices == [found[0]]:  # neither a range nor a list: literal for a shell, and a name that no tar has
        raise InputError(f"{pattern}: {found[0]}: a range as {{000..012}} or {{a..c}}, or a list as {{a,b}}, expected")
    return text[: found.start()], choices, text[found.end() :]
