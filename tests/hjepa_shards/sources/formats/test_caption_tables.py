"""Rows of tables: what csv writers wrote comes back whole, and a stray quote takes no other row along."""

import contextlib
import csv
import io
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import InputError
from hjepa_shards.sources.base import Remarks
from hjepa_shards.sources.formats.caption_lists import read_captions
from hjepa_shards.sources.formats.caption_tables import DELIMITERS, Line, rows, texts_in_cell
from hjepa_shards.sources.registry import open_split
from tests.conftest import Command
from tests.hjepa_shards.sources.layouts import jpeg, put


def captions_of(folder: Path, name: str, content: str, split: str = "train") -> dict[str, tuple[str, ...]]:
    """What is built of a list; nothing of it may be left out."""
    images = {f"{n}.jpg": jpeg(n) for n in range(4)}
    put(folder, {name: content.encode()} | images)
    opened = open_split("image-text", folder, split, list_file=folder / name)
    found = {sample.name: sample.captions for sample in opened.samples}
    assert list(opened.left_out) == []
    return found


def written(table: list[list[str]], delimiter: str) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator="\n").writerows(table)
    return buffer.getvalue()


@pytest.mark.parametrize("delimiter", DELIMITERS)
@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [2, 1, 0]], ids=["first", "second", "last"])
@pytest.mark.parametrize("header", [True, False], ids=["header", "none"])
def test_what_the_csv_module_writes_comes_back(tmp_path: Path, delimiter: str, order: list[int], header: bool) -> None:
    captions = [
        f"dog number 0{delimiter} it runs{delimiter}",
        "line one\n\nline three",
        "\n".join(f"row {n} of a long caption" for n in range(150)),
        'a "quoted" cat, 6" long; or | not',
    ]
    table = [[f"{n}.jpg", caption, f"0.{n}"] for n, caption in enumerate(captions)]
    table = ([["image", "caption", "score"]] if header else []) + table
    content = written([[row[i] for i in order] for row in table], delimiter)
    found = captions_of(tmp_path, "list.csv", content)
    assert found == {f"{n}.jpg": (caption.strip(),) for n, caption in enumerate(captions)}


plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=30)


@settings(max_examples=150, deadline=None)
@given(st.lists(plain.filter(str.strip), min_size=1, max_size=6), st.sampled_from(DELIMITERS))
def test_any_text_that_was_quoted_comes_back(captions: list[str], delimiter: str) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([f"{n}.jpg", caption] for n, caption in enumerate(captions))
    lines = [Line(number, text) for number, text in enumerate(buffer.getvalue().split("\n"))]
    found = [cells for _, cells in rows(lines, delimiter)]
    assert found == [[f"{n}.jpg", caption] for n, caption in enumerate(captions)]


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_a_stray_quote_takes_no_other_row_along(tmp_path: Path, delimiter: str) -> None:
    table = [
        ['0.jpg', '"never closed'],
        ['1.jpg', 'the 6" ruler, or 7"'],
        ['2.jpg', '5"'],
        ['3.jpg', '"closed too soon" and more'],
    ]  # fmt: skip
    content = "".join(f"{delimiter.join(row)}\n" for row in table)
    assert captions_of(tmp_path, "list.csv", content) == {name: (caption,) for name, caption in table}
    turned = "".join(f"{delimiter.join(reversed(row))}\n" for row in table)
    if delimiter != ",":  # a comma in a caption without quotes, before the last column, is anybody's guess
        assert captions_of(tmp_path, "turned.csv", turned) == {name: (caption,) for name, caption in table}


def test_quotes_that_never_close_cost_no_more_than_reading_twice() -> None:
    """Each line closes a cell and opens another: without a bound every line would look at all that follow."""
    lines = (Line(number, 'a","') for number in range(40_000))
    began = time.monotonic()
    assert sum(1 for _ in rows(lines, ",")) >= 1000
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ('["one", "two"]', ["one", "two"]),
        ("['it\\'s', \"a 'dog'\"]", ["it's", "a 'dog'"]),
        ("['one'\n 'two']", ["['one'\n 'two']"]),
        ("[1, 2]", ["[1, 2]"]),
        ("[]", ["[]"]),
        ("[a dog]", ["[a dog]"]),
        ("[" * 5000 + "]" * 5000, ["[" * 5000 + "]" * 5000]),
        ("a dog", ["a dog"]),
    ],
)
def test_an_array_in_a_cell_is_several_captions(cell: str, texts: list[str]) -> None:
    assert texts_in_cell(cell) == texts


def test_arrays_headers_and_splits_of_published_tables(tmp_path: Path) -> None:
    splits = ["train", "train", "train", "test"]
    table = [[f'["first {n}", "second {n}"]', f"[{n}]", split, f"{n}.jpg", f"{n}"] for n, split in enumerate(splits)]
    content = written([["raw", "sentids", "split", "filename", "img_id"], *table], ",")
    assert captions_of(tmp_path, "list.csv", content) == {f"{n}.jpg": (f"first {n}", f"second {n}") for n in range(3)}
    assert captions_of(tmp_path, "list.csv", content, "test") == {"3.jpg": ("first 3", "second 3")}


def test_a_first_row_without_an_image_is_a_header(tmp_path: Path) -> None:
    content = "bild;beschreibung\n" + "".join(f"{n}.jpg;tree {n}\n" for n in range(4))
    assert captions_of(tmp_path, "list.csv", content) == {f"{n}.jpg": (f"tree {n}",) for n in range(4)}
    remarks = Remarks()
    list(read_captions(tmp_path / "list.csv", remarks))
    assert remarks.lines() == (
        "1 first lines without an image, taken for a header; the first: line 1: bild;beschreibung",
    )


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_a_split_column_is_obeyed(tmp_path: Path, name: str) -> None:
    of = ["train", "Training", "", "validation"]
    lines = {
        "list.csv": "image,caption,split\n" + "".join(f"{n}.jpg,tree {n},{split}\n" for n, split in enumerate(of)),
        "list.jsonl": "".join(
            f'{{"image": "{n}.jpg", "caption": "tree {n}", "split": "{split}"}},\n' for n, split in enumerate(of)
        ),
    }
    assert sorted(captions_of(tmp_path, name, lines[name])) == ["0.jpg", "1.jpg", "2.jpg"]
    assert sorted(captions_of(tmp_path, name, lines[name], "val")) == ["3.jpg"]
    assert [sample.name for sample in open_split("image-text", tmp_path, "val").samples] == ["3.jpg"]
    with pytest.raises(InputError, match=r"lines of split odd expected, .* train \(1\), Training \(1\),  \(1\), valid"):
        captions_of(tmp_path, name, lines[name], "odd")


def test_unquoted_commas_before_the_last_column_are_read_or_left_out_by_name(tmp_path: Path) -> None:
    lines = ["image,caption,score", "0.jpg,one, two, three,0.5", *["1.jpg,one,0.5"] * 20, "2.jpg,one,two,0.5"]
    put(tmp_path, {"list.csv": "\n".join(lines).encode(), "0.jpg": jpeg(0), "1.jpg": jpeg(1)})
    opened = open_split("image-text", tmp_path, "train")
    assert {sample.name: sample.captions for sample in opened.samples} == {
        "0.jpg": ("one, two, three",),
        "1.jpg": ("one",),
    }
    assert [entry["name"] for entry in opened.left_out] == ["list.csv, line 23"]


@pytest.mark.parametrize(
    ("name", "good", "bad", "first"),
    [
        ("list.csv", "0.jpg,one\n", "rubbish\n", "line 12"),
        ("list.tsv", "0.jpg\tone\n", "rubbish\n", "line 12"),
        ("list.token", "0.jpg#0\tone\n", "rubbish\n", "line 12"),
        ("list.jsonl", '{"image": "0.jpg", "caption": "one"}\n', "rubbish\n", "line 12"),
    ],
)
def test_lines_that_are_left_out_are_named_and_many_are_refused(
    tmp_path: Path, command: Command, name: str, good: str, bad: str, first: str
) -> None:
    put(tmp_path, {f"raw/{name}": (good * 11 + bad).encode(), "raw/0.jpg": jpeg(0)})
    build_it = ("build", "image-text", "--raw", tmp_path / "raw", "--workers", 1, "--out")
    code, out, _ = command(*build_it, tmp_path / "some")
    assert (code, f"excluded {name}, {first}: no image and caption in it" in out) == (3, True)
    put(tmp_path, {f"raw/{name}": (good * 11 + bad * 2 + good).encode()})
    code, _, err = command(*build_it, tmp_path / "many")
    said = " ".join(err.split())
    assert code == 2
    assert f"{name}, {first}: an image and a caption expected, none found, as in 2 of 14 lines; at most 10%" in said


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from('"a,;|\t\n.jpg[]'), max_size=60))
def test_any_table_gives_our_errors_or_rows(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8")
    with contextlib.suppress(InputError):
        assert all(found.image for found in read_captions(path, Remarks()))


def test_a_list_that_was_read_rightly_before_gives_the_same_shards(tmp_path: Path) -> None:
    """No key of the plan or the manifest is new where nothing is left out and no member was chosen."""
    put(tmp_path, {"raw/list.csv": b"image,caption\n0.jpg,one\n", "raw/0.jpg": jpeg(0)})
    [manifest] = build("image-text", raw=tmp_path / "raw", out=tmp_path / "out", options=BuildOptions(workers=1))
    assert sorted(manifest.settings) == [
        *("encoder", "list_excluded", "list_samples", "pixels", "quality", "samples_per_shard", "seed", "shorter_side")
    ]
    assert b"left_out" not in (tmp_path / "out/image-text/train/.journal/plan.json").read_bytes()
