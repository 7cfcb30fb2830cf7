"""Keys hold their names: reversible, and what Hugging Face and webdataset can cut at the first dot."""

import re
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from hjepa_shards.shards.raw_sample import decode_key, digest_key, extension_of, plain_key

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)


def test_keys_percent_encode_all_but_letters_digits_dash_and_underscore() -> None:
    assert plain_key("n01/a_b-C.jpg") == "n01%2Fa_b-C"
    assert plain_key("a.b~c d%.JPEG") == "a%2Eb%7Ec%20d%25"
    assert plain_key("ä.png") == "%C3%A4"


@given(NAMES)
def test_any_name_gives_a_key_that_decodes_to_it(name: str) -> None:
    key = plain_key(name)
    assert re.fullmatch(r"[A-Za-z0-9_%-]*", key)
    composed = unicodedata.normalize("NFC", name)
    extension = extension_of(composed)
    assert decode_key(key) == (composed[: -len(extension) - 1] if extension else composed)


def test_a_digest_key_begins_with_60_bytes_of_its_name_and_depends_on_the_index() -> None:
    keys = {digest_key("y" * 91, index) for index in range(3)}
    assert len(keys) == 3
    assert all(re.fullmatch(r"y{60}-[0-9a-f]{16}", key) for key in keys)


def test_only_known_image_extensions_are_cut_off() -> None:
    assert [extension_of(name) for name in ("a.JPG", "a.tar", "jpg", "a.b.webp", ".png")] == [
        "jpg", "", "", "webp", "png",
    ]  # fmt: skip
