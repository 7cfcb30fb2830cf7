"""Text for people."""

import pytest

from hjepa_shards.base.shown_text import counted, listed, proper, significant, size


def test_sizes_are_read_by_people() -> None:
    shown = [size(n) for n in (0, 999, 1000, 1_500_000, 20_000_000_000, 3_400_000_000_000)]
    assert shown == ["0 B", "999 B", "1 kB", "1.5 MB", "20 GB", "3.4 TB"]


def test_sizes_and_numbers_have_no_exponents() -> None:
    assert [size(n) for n in (999.4, 999.6, 999_600, 999_999_999)] == ["999 B", "1 kB", "1 MB", "1 GB"]
    shown = [significant(n) for n in (0, 0.00046, 0.5, 1.0, 12.345, 999.9, 1_234_567, -0.25)]
    assert shown == ["0", "0.00046", "0.5", "1", "12.3", "1,000", "1,234,567", "-0.25"]
    assert [significant(n, 4) for n in (22.7432, 267.65, 12_345.6)] == ["22.74", "267.6", "12,346"]


def test_numbers_agree_with_their_nouns_and_long_lists_are_cut() -> None:
    assert [counted(num, "class", "classes") for num in (0, 1, 1200)] == ["0 classes", "1 class", "1,200 classes"]
    assert (listed(["a", "b"]), listed(["a"] * 1009, most=3)) == ("a, b", "a, a, a and 1,006 more")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain äöü 漢字 🦊 עברית", "plain äöü 漢字 🦊 עברית"),
        ("gpj.\u202egnp", "gpj.\\u202egnp"),
        ("\u2066x\u2069\u200f", "\\u2066x\\u2069\\u200f"),
        ("a\x00b\x1b[31m\x85", "a\\u0000b\\u001b[31m\\u0085"),
        ("two\nlines\u2028three", "two lines\\u2028three"),
        ("half \ud83d", "half \\ud83d"),
        ("x" * 300, "x" * 300),
    ],
)
def test_untrusted_text_is_shown_without_what_turns_or_breaks_a_page(text: str, shown: str) -> None:
    assert proper(text) == shown


def test_long_text_is_cut_and_says_how_long_it_was() -> None:
    assert proper("x" * 100_000).endswith("x ... (100,000 characters)")
    assert len(proper("\u202e" * 100_000)) < 2000
