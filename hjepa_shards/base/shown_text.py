"""Text for people, in a terminal and on a page: sizes, lists of names, and third-party text that breaks neither."""

import math
import unicodedata
from collections.abc import Sequence

_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def size(num_bytes: float) -> str:
    """Bytes for people: 1.5 MB, in powers of 1,000 as disks and networks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:  # what would be rounded to 1,000 is one of the next unit
            return f"{num_bytes:.3g} {unit}" if unit != "B" else f"{num_bytes:.0f} B"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"


def significant(value: float, digits: int = 3) -> str:
    """A number with this many significant digits, never as 1.2e+04: 1,234,567, 12.3, 0.0046."""
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text


def counted(num: int, one: str, many: str) -> str:
    """1 shard; 1,200 shards."""
    return f"{num:,} {one if num == 1 else many}"


def listed(texts: Sequence[str], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more:,} more" if more > 0 else "")


def proper(text: str, most: int = 300) -> str:
    r"""Third-party text: nothing that turns the reading direction or is no character, not too long.

    Controls, directional overrides, line separators and halves of surrogate pairs become \uNNNN.
    """
    if len(text) > most:
        text = f"{text[: most - 40]} ... ({len(text):,} characters)"
    return "".join(_escaped(letter) if _is_treacherous(letter) else letter for letter in text)


def _is_treacherous(letter: str) -> bool:
    kind = unicodedata.category(letter)
    turns = unicodedata.bidirectional(letter) in _TURNING or letter in "\u200e\u200f\u061c"
    return turns or kind in ("Cc", "Cs", "Zl", "Zp")


def _escaped(letter: str) -> str:
    return " " if letter in "\n\t" else f"\\u{ord(letter):04x}"
