"""A class is its name, however Unicode composes it, and 11.0 is the number 11."""

import pytest

from hjepa_shards.errors import InputError
from hjepa_shards.shards.class_names import class_number, one_name, require_distinct


@pytest.mark.parametrize(
    ("text", "number"),
    [("11", 11), ("11.0", 11), (" 11.\n", 11), ("-1.00", -1), ("007", 7), ("0", 0)]
    + [(text, None) for text in ("", "11.5", "1e1", "true", "cat", "1.0.0", "\u0661", "9" * 12)],
)
def test_a_number_is_one_however_it_was_written(text: str, number: int | None) -> None:
    assert class_number(text) == number


def test_names_are_compared_in_composed_form() -> None:
    assert one_name("cafe\u0301") == one_name("caf\u00e9") == "caf\u00e9"
    require_distinct(["a", "A", "b"], "here")
    with pytest.raises(InputError, match="here: two classes that differ expected"):
        require_distinct(["caf\u00e9", "b", "cafe\u0301"], "here")
