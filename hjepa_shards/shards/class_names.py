"""What makes two classes one: their names in Unicode's composed form. Numbers mean nothing outside their own split.

"é" is one letter on Linux and two on macOS's disks, so names are compared in the composed form (NFC). A class number
may be written by programs that know only floating point: 11.0 is 11.
"""

import re
import unicodedata
from collections.abc import Iterable

from hjepa_shards.errors import InputError

_NUMBER = re.compile(r"-?[0-9]{1,9}(\.0*)?")


def one_name(name: str) -> str:
    """The form of a class name in which it is compared with others."""
    return unicodedata.normalize("NFC", name)


def require_distinct(names: Iterable[str], where: str) -> None:
    """InputError where two of `names` are one.  where: what holds them, for the message."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(one_name(name), name)) != name:
            raise InputError(
                f"{where}: two classes that differ expected, {other!a} and {name!a} are one and the same in Unicode's "
                "composed form; rename or join them"
            )


def class_number(text: str) -> int | None:
    """The number that a .cls member says, as 11 or as 11.0; None where it says a name."""
    text = text.strip()
    return int(text.partition(".")[0]) if _NUMBER.fullmatch(text) else None
