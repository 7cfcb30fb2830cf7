"""Keys: reversible, unique, short, and what Hugging Face and webdataset can cut at the first dot."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hjepa_shards.errors import InputError
from hjepa_shards.sample import RawSample, decode_key, encode_keys, extension_of, plain_key, sort_samples

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)


def sample(name: str, index: int = 0) -> RawSample:
    return RawSample(name=name, index=index)


def test_keys_percent_encode_all_but_letters_digits_dash_and_underscore() -> None:
    assert encode_keys([sample("n01/a_b-C.jpg")]) == ["n01%2Fa_b-C"]
    assert encode_keys([sample("a.b~c d%.JPEG")]) == ["a%2Eb%7Ec%20d%25"]
    assert encode_keys([sample("ä.png")]) == ["%C3%A4"]


@given(st.lists(NAMES, unique_by=lambda name: unicodedata.normalize("NFC", name), max_size=8))
def test_any_names_give_unique_short_keys_that_decode_to_the_name(names: list[str]) -> None:
    keys = encode_keys([sample(name) for name in names])
    assert len(set(keys)) == len(keys)
    for key, name in zip(keys, names, strict=True):
        assert len(key.encode()) <= 90
        assert re.fullmatch(r"[A-Za-z0-9_%-]*", key)
        if key == plain_key(name):  # else the manifest's `renamed` has it
            composed = unicodedata.normalize("NFC", name)
            extension = extension_of(composed)
            assert decode_key(key) == (composed[: -len(extension) - 1] if extension else composed)


def test_names_that_share_a_key_get_a_digest_each() -> None:
    keys = encode_keys([sample("a.jpg"), sample("a.png"), sample("b.png"), sample("b.png", 1)])
    assert len(set(keys)) == 4
    assert all(re.fullmatch(r"[ab]-[0-9a-f]{16}", key) for key in keys)


def test_a_key_is_at_most_90_bytes_and_then_begins_with_60_of_its_name() -> None:
    longest, longer = encode_keys([sample("x" * 90), sample("y" * 91)])
    assert longest == "x" * 90
    assert re.fullmatch(r"y{60}-[0-9a-f]{16}", longer)


def test_two_spellings_of_one_unicode_name_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"e\\u0301.*xe9|xe9.*e\\u0301"):
        encode_keys([sample("caf\u00e9.jpg"), sample("cafe\u0301.jpg")])


def test_the_order_is_that_of_composed_utf8_bytes_then_index() -> None:
    names = ["b", "B", "a\u0308", "z", "\u00e4a", "a", "10", "9"]
    ordered = [s.name for s in sort_samples([sample(name) for name in names])]
    assert ordered == ["10", "9", "B", "a", "b", "z", "a\u0308", "\u00e4a"]
    assert [s.index for s in sort_samples([sample("a", 10), sample("a", 9)])] == [9, 10]


def test_only_known_image_extensions_are_cut_off() -> None:
    assert [extension_of(name) for name in ("a.JPG", "a.tar", "jpg", "a.b.webp", ".png")] == [
        "jpg", "", "", "webp", "png",
    ]  # fmt: skip
