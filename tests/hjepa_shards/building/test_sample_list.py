"""The list of a split: one order, unique keys, and columns that hold what objects did."""

import os
import pickle
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hjepa_shards.base.keyed_random import permutation
from hjepa_shards.building.sample_list import Listing, Shuffled, in_order
from hjepa_shards.building.shard_columns import Slice
from hjepa_shards.errors import InputError
from hjepa_shards.shards.raw_sample import Extent, RawSample, decode_key, extension_of
from hjepa_shards.shards.sample_table import SampleTable

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)
SAMPLES = [
    RawSample(name=f"{'ab'[i % 2]}/ü{i}.jpg", index=i, label=i % 3 - 1, captions=("eins", "zwei ä") * (i % 2))
    for i in range(7)
]


def sorted_listing(samples: Iterable[RawSample]) -> Listing:
    return in_order(SampleTable(samples))


def sample(name: str, index: int = 0) -> RawSample:
    return RawSample(name=name, index=index)


def keys_of(*samples: RawSample) -> list[str]:
    return [key for key, _ in sorted_listing(samples).keyed()]


def names_of(listing: Listing) -> list[tuple[str, int]]:
    return [(found.name, found.index) for _, found in listing.keyed()]


def test_samples_come_back_as_they_were() -> None:
    listing = sorted_listing(SAMPLES)
    assert sorted((found for _, found in listing.keyed()), key=lambda s: s.index) == SAMPLES
    assert list(listing) == [listing[place] for place in range(len(listing))] == [found for _, found in listing.keyed()]


def test_the_order_is_that_of_composed_utf8_bytes_then_index() -> None:
    names = ["b", "B", "a\u0308", "z", "\u00e4a", "a", "10", "9"]
    ordered = [name for name, _ in names_of(sorted_listing([sample(name) for name in names]))]
    assert ordered == ["10", "9", "B", "a", "b", "z", "a\u0308", "\u00e4a"]
    rows = [sample("a", 10), sample("b", 1), sample("a", 9)]
    assert names_of(sorted_listing(rows)) == [("a", 9), ("a", 10), ("b", 1)]


@given(st.lists(st.tuples(NAMES, st.integers(0, 3)), unique=True, max_size=6), st.randoms())
def test_the_order_does_not_depend_on_how_the_samples_come(rows: list[tuple[str, int]], random: Random) -> None:
    composed = {(unicodedata.normalize("NFC", name), index) for name, index in rows}
    assume(len(composed) == len(rows))
    wanted = sorted(rows, key=lambda row: (unicodedata.normalize("NFC", row[0]).encode(), row[1]))
    random.shuffle(rows)
    assert names_of(sorted_listing([sample(*row) for row in rows])) == wanted
    assert names_of(sorted_listing([sample(*row) for row in wanted])) == wanted


@given(st.lists(NAMES, unique_by=lambda name: unicodedata.normalize("NFC", name), max_size=8))
def test_any_names_give_unique_short_keys_that_decode_to_the_name(names: list[str]) -> None:
    listing = sorted_listing([sample(name) for name in names])
    keys, names = [key for key, _ in listing.keyed()], list(listing.names())
    assert len(set(keys)) == len(names)
    for i, key in enumerate(keys):
        assert re.fullmatch(r"[A-Za-z0-9_%-]{0,90}", key)
        if key in listing.renamed():
            assert listing.renamed()[key] == (names[i], 0)
        else:
            composed = unicodedata.normalize("NFC", names[i])
            extension = extension_of(composed)
            assert decode_key(key) == (composed[: -len(extension) - 1] if extension else composed)


def test_keys_hold_no_dot_and_no_slash() -> None:
    assert keys_of(sample("a~b.c/d e-f_.png")) == ["a%7Eb%2Ec%2Fd%20e-f_"]
    assert keys_of(sample("ü~b.c/d e-f_.png")) == ["%C3%BC%7Eb%2Ec%2Fd%20e-f_"]


def test_names_that_share_a_key_get_a_digest_each() -> None:
    keys = keys_of(sample("a.jpg"), sample("a.png"), sample("b.png"), sample("b.png", 1), sample("c.png"))
    assert len(set(keys)) == 5
    assert all(re.fullmatch(r"[ab]-[0-9a-f]{16}", key) for key in keys[:4])
    assert keys[4] == "c"


def test_a_key_is_at_most_90_bytes_and_then_begins_with_60_of_its_name() -> None:
    longest, longer = keys_of(sample("x" * 90), sample("y" * 91))
    assert longest == "x" * 90
    assert re.fullmatch(r"y{60}-[0-9a-f]{16}", longer)


def test_a_plain_key_that_looks_like_the_digest_of_another_is_refused() -> None:
    long = "y" * 91
    (digest,) = keys_of(sample(long))
    with pytest.raises(InputError, match="two names that differ"):
        keys_of(sample(long), sample(digest))


def test_two_spellings_of_one_unicode_name_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"e\\u0301.*xe9|xe9.*e\\u0301"):
        keys_of(sample("caf\u00e9.jpg"), sample("cafe\u0301.jpg"))


def test_a_name_that_is_no_text_is_refused_and_captions_are_repaired() -> None:
    with pytest.raises(InputError, match=r"udc80.*rename"):
        keys_of(sample("a\udc80.jpg"))
    ((_, repaired),) = sorted_listing([RawSample(name="a", index=0, captions=("half \ud83d a pair",))]).keyed()
    assert repaired.captions == ("half ? a pair",)


def test_what_is_taken_out_of_a_list_keeps_its_keys() -> None:
    listing = sorted_listing([sample("a.jpg"), sample("a.png"), sample("b.png"), *SAMPLES])
    everything = list(listing.keyed())
    assert list(listing.without([0, 9]).keyed()) == everything[1:9]
    drawn = sorted(permutation(5, 10)[:4].tolist())
    assert list(listing.drawn(5, 4).keyed()) == [everything[place] for place in drawn]
    assert listing.places_of(["b"]) == {"b": 6}  # after a-..., a-..., a/ü0, a/ü2, a/ü4, a/ü6
    with pytest.raises(InputError, match="'zz'"):
        listing.places_of(["b", "zz"])


@pytest.mark.parametrize("count", [1, 4, 5, 40_001])
def test_slices_follow_the_permutation_that_is_never_in_memory(count: int) -> None:
    listing = sorted_listing(sample("a", index) for index in range(count))
    order = permutation(7, count).tolist()
    for start, stop in ((0, count), (count // 3, count // 2), (count - 1, count + 9)):
        taken = Shuffled(listing, 7).slice(start, stop)
        assert [found.index for _, found in taken.keyed()] == order[start:stop]
        assert len(taken) == len(order[start:stop])


def test_a_slice_travels_with_all_that_reading_takes() -> None:
    samples = [
        sample("plain.jpg"),
        RawSample(name="ü" * 99, index=2**40, label=7, captions=("ä", ""), extent=Extent(3, 2**40, 0)),
    ]
    taken = Shuffled(sorted_listing(samples), 1).slice(0, 2)
    arrived: Slice = pickle.loads(pickle.dumps(taken))
    assert sorted((found for _, found in arrived.keyed()), key=lambda found: found.index) == samples
    assert [key for key, _ in arrived.keyed()] == [key for key, _ in taken.keyed()]


def test_the_digest_sees_every_column() -> None:
    base = RawSample(name="ab", index=0, label=1, captions=("c",))
    others = [
        RawSample(name="ac", index=0, label=1, captions=("c",)),
        RawSample(name="ab", index=1, label=1, captions=("c",)),
        RawSample(name="ab", index=0, label=2, captions=("c",)),
        RawSample(name="ab", index=0, label=1, captions=("c", "")),
    ]
    digests = {sorted_listing([one]).digest(("x",)) for one in (base, *others)}
    digests.add(sorted_listing([base]).digest(("y",)))
    digests.add(sorted_listing([base, base.__class__(name="ab", index=1)]).digest(("x",)))
    assert len(digests) == 7
    assert sorted_listing([base]).digest(("x",)) in digests


def test_the_digest_is_that_of_the_columns_as_they_always_were() -> None:
    """Builds that have begun continue, and are repaired, forever."""
    many = [RawSample(name=f"{i:05}ü", index=i, label=i % 7 - 1, captions=("c",) * (i % 3)) for i in range(20_000)]
    assert sorted_listing(many).digest(("x", "y")) == "78eed46cb8c454d6b9ee717a022d2323"
    assert sorted_listing(SAMPLES).digest(()) == "c9e6878f2a9d50dc7f72b30a12a236a8"


def test_a_slice_of_a_shard_takes_little() -> None:
    """Some seventy bytes and the name; objects and keys took 300."""
    listing = sorted_listing(sample(f"n{i % 10:08}/n{i % 10:08}_{i}.JPEG", i) for i in range(10_000))
    assert len(pickle.dumps(Shuffled(listing, 1).slice(0, 10_000))) < 10_000 * 95


def test_a_full_disk_is_reported_where_the_list_is_written(small_disk: Path) -> None:
    """SQLite puts a list that does not fit into its few megabytes where SQLITE_TMPDIR says."""
    code = (
        "from hjepa_shards.shards.sample_table import SampleTable\n"
        "from hjepa_shards.shards.raw_sample import RawSample\n"
        "SampleTable(RawSample(name=f'{i:0100}', index=0) for i in range(200_000))\n"
    )
    environment = {**os.environ, "SQLITE_TMPDIR": str(small_disk)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = ended.stderr.splitlines()[-1]
    assert re.search(r"InputError: the list of samples: room in .* expected, .*full; make room .*TMPDIR=FOLDER", last)
