"""Other people's tars as raw input: what is a sample, its name, label and captions; and what is odd about real tars."""

import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import DecodeError, InputError, ShardError
from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.sources.base import RawSplit
from hjepa_shards.sources.registry import open_split
from tests.hjepa_shards.building.test_build import files_of
from tests.hjepa_shards.sources.layouts import jpeg, put, tarred


def listed(split: RawSplit) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {sample.name: (sample.label, sample.captions) for sample in split.samples}


def opened(folder: Path, *tars: Mapping[str, bytes], split: str = "train") -> RawSplit:
    put(folder, {f"{number:05d}.tar": tarred(files) for number, files in enumerate(tars)})
    return open_split("webdataset", folder, split)


# ---- samples


def test_members_of_a_key_are_one_sample_wherever_they_are(tmp_path: Path) -> None:
    split = opened(
        tmp_path,
        {
            "b.jpg": jpeg(1),
            "a.cls": b"7",
            "b.cls": b"0\n",
            "folder/": b"",
            "folder.v1/a.PNG": b"png",
            "a.jpg": jpeg(2),
            "folder.v1/a.cls": b"-1",
        },
    )
    assert listed(split) == {"b.jpg": (0, ()), "a.jpg": (7, ()), "folder.v1/a.png": (-1, ())}
    assert {sample.name: split.read(sample) for sample in split.samples} == {
        "b.jpg": jpeg(1),
        "a.jpg": jpeg(2),
        "folder.v1/a.png": b"png",
    }
    assert split.class_names == ()
    assert split.notes == ()


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_gives_the_same_samples(tmp_path: Path, tar_format: int) -> None:
    long = "/".join(["caf\u00e9" * 7] * 4) if tar_format != tarfile.USTAR_FORMAT else "a" * 90
    files = {f"{long}/\u732b 1.jpg": jpeg(1), f"{long}/\u732b 1.txt": b"a cat", "./x/y.jpg": jpeg(2)}
    put(tmp_path, {"a.tar": tarred(files, tar_format)})
    split = open_split("webdataset", tmp_path, "train")
    assert listed(split) == {f"{long}/\u732b 1.jpg": (-1, ("a cat",)), "x/y.jpg": (-1, ())}
    assert [split.read(sample) for sample in split.samples] == [jpeg(1), jpeg(2)]


def test_tars_added_from_disk_with_pax_times_are_read(tmp_path: Path) -> None:
    put(tmp_path / "files", {f"{number}.jpg": jpeg(number) for number in range(5)})
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(tmp_path / "files", arcname=".")
    split = open_split("webdataset", tmp_path, "train")
    assert {sample.name: split.read(sample) for sample in split.samples} == {f"{n}.jpg": jpeg(n) for n in range(5)}


def test_a_key_in_two_tars_takes_their_names(tmp_path: Path) -> None:
    split = opened(tmp_path, {"0.jpg": jpeg(0), "1.jpg": jpeg(1)}, {"1.jpg": jpeg(2), "2.jpg": jpeg(3)})
    assert sorted(listed(split)) == ["0.jpg", "00000/1.jpg", "00001/1.jpg", "2.jpg"]
    read = {sample.name: split.read(sample) for sample in split.samples}
    assert (read["00000/1.jpg"], read["00001/1.jpg"]) == (jpeg(1), jpeg(2))


def test_what_is_odd_is_settled_by_rule_and_counted(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in [
            ("two.png", b"png"),
            ("two.jpg", b"jpg"),
            ("twice.jpg", b"old"),
            ("._two.jpg", b"AppleDouble"),
            ("__MACOSX/._two.jpg", b"AppleDouble"),
            (".hidden.jpg", b"hidden"),
            ("twice.jpg", b"new"),
            ("noimage.cls", b"1"),
            ("README", b"no extension"),
            ("dots.in.the.name.jpg", b"its extension is in.the.name.jpg"),
            ("two.cls", b"3"),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    put(tmp_path, {"a.tar": buffer.getvalue(), ".hidden.tar": b"", "00000.parquet": b"", "00000_stats.json": b"{}"})
    split = open_split("webdataset", tmp_path, "train")
    found = {sample.name: sample for sample in split.samples}
    assert sorted(found) == ["dots", "noimage", "twice.jpg", "two.jpg"]
    assert split.read(found["twice.jpg"]) == b"new"
    assert split.read(found["two.jpg"]) == b"jpg"
    likely = r", but in.the.name.jpg: choose it with --image"
    for name, more in (("noimage", ""), ("dots", likely)):
        with pytest.raises(DecodeError, match=rf"^no image among its members{more}$"):
            split.read(found[name])
    assert split.notes == (
        "1 members twice in a tar, the later one is used; the first: twice.jpg",
        "1 samples with several images, the first kind is used; the first: two: jpg, png",
        "2 samples without a class (.cls); the first: twice",
    )


# ---- labels and captions


def test_class_names_as_text_are_numbered_in_order_of_name(tmp_path: Path) -> None:
    split = opened(
        tmp_path, {"a.jpg": b"", "a.cls": b"zebra", "b.jpg": b"", "b.cls": b" 7\n", "c.jpg": b"", "d.x": b""}
    )
    assert split.class_names == ("7", "zebra")
    assert listed(split) == {"a.jpg": (1, ()), "b.jpg": (0, ()), "c.jpg": (-1, ()), "d": (-1, ())}


def test_a_class_is_one_however_it_was_written(tmp_path: Path) -> None:
    numbers = opened(tmp_path / "1", {"a.jpg": b"", "a.cls": b"11", "b.jpg": b"", "b.cls": b"11.0\n"})
    assert (numbers.class_names, listed(numbers)) == ((), {"a.jpg": (11, ()), "b.jpg": (11, ())})
    names = {"a.jpg": b"", "a.cls": b"11", "b.jpg": b"", "b.cls": b"11.0", "c.jpg": b"", "c.cls": b"cat"}
    assert opened(tmp_path / "2", names).class_names == ("11", "cat")
    composed, other = "caf\u00e9".encode(), "cafe\u0301".encode()
    both = {"a.jpg": b"", "a.cls": composed, "b.jpg": b"", "b.cls": other}
    with pytest.raises(InputError, match="two classes that differ expected"):
        _ = opened(tmp_path / "3", both).samples
    listed_names = opened(put(tmp_path / "4", {"classnames.txt": b"ant\n" + other}), both)
    assert listed(listed_names) == {"a.jpg": (1, ()), "b.jpg": (1, ())}


def test_a_class_list_names_numbers_and_orders_names(tmp_path: Path) -> None:
    numbers = opened(
        put(tmp_path / "1", {"classnames.txt": b"\xef\xbb\xbftench\r\ngold fish\r\n"}), {"a.jpg": b"", "a.cls": b"1"}
    )
    assert numbers.class_names == ("tench", "gold fish")
    assert listed(numbers) == {"a.jpg": (1, ())}
    classes = put(tmp_path, {"mine.txt": "zebra\n\u00e4ffin\n".encode()}) / "mine.txt"
    put(tmp_path / "2", {"x.tar": tarred({"a.jpg": b"", "a.cls": b"zebra"})})
    names = open_split("webdataset", tmp_path / "2", "train", classes=classes)
    assert names.class_names == ("zebra", "\u00e4ffin")
    assert listed(names) == {"a.jpg": (0, ())}


@pytest.mark.parametrize("said", [b"2", b"-2", b"lion", b"99999999999999999999"])
def test_a_class_that_the_list_does_not_have_is_named(tmp_path: Path, said: bytes) -> None:
    split = opened(put(tmp_path, {"classnames.txt": b"tench\ngoldfish\n"}), {"a.jpg": b"", "a.cls": said})
    with pytest.raises(InputError, match=rf"00000.tar: a.cls: one of the 2 classes expected, '{said.decode()}' found"):
        _ = split.samples


@pytest.mark.parametrize(("content", "found"), [(b"", "none"), (b"a\n\nb\n", "an empty line"), (b"a\na\n", "twice")])
def test_a_wrong_class_list_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    with pytest.raises(InputError, match=rf"classnames.txt: class names expected.*{found}"):
        opened(put(tmp_path, {"classnames.txt": content}), {"a.jpg": b""})


def test_captions_are_those_of_txt_then_json_each_once(tmp_path: Path) -> None:
    split = opened(
        tmp_path,
        {
            "a.jpg": b"",
            "a.txt": "\ufeff a caf\u00e9 \r\n".encode(),
            "a.json": json.dumps({"captions": ["a caf\u00e9", "two\ncups", "", 7], "caption": "unused"}).encode(),
            "b.jpg": b"",
            "b.json": b'{"caption": "half \\ud800 a pair", "url": "http://x"}',
            "c.jpg": b"",
            "c.txt": b"\xff bytes",
            "c.json": b"{no json",
            "d.jpg": b"",
            "d.json": b"[" * 100_000,
            "e.jpg": b"",
            "e.json": b'["caption"]',
            "f.jpg": b"",
            "f.txt": b"x" * 2**20 + b"!",
        },
    )
    assert [captions for _, captions in listed(split).values()] == [
        ("a caf\u00e9", "two\ncups"),
        ("half ? a pair",),
        ("\ufffd bytes",),
        (),
        (),
        (),
    ]
    assert split.notes == (
        "2 samples whose .json is no JSON, read without its captions; the first: c",
        "1 texts of more than 1,048,576 bytes, not read; the first: f.txt",
    )


# ---- which tars


def test_a_split_is_a_folder_or_a_word_in_the_names(tmp_path: Path) -> None:
    put(tmp_path / "folders", {"train/x.tar": tarred({"1.jpg": b""}), "dev/x.tar": tarred({"2.jpg": b""})})
    assert sorted(listed(open_split("webdataset", tmp_path / "folders", "dev"))) == ["2.jpg"]
    words = put(
        tmp_path / "words",
        {f"cc-{name}-0.tar": tarred({f"{name}.jpg": b""}) for name in ("training", "validation", "test2017")},
    )
    assert sorted(listed(open_split("webdataset", words, "train"))) == ["training.jpg"]
    assert sorted(listed(open_split("webdataset", words, "val"))) == ["validation.jpg"]
    assert sorted(listed(open_split("webdataset", words, "test"))) == ["test2017.jpg"]
    with pytest.raises(InputError, match=r"tars of split extra expected .* 3 tars of other splits, cc-test2017-0.tar"):
        open_split("webdataset", words, "extra")
    rest = put(tmp_path / "rest", {"shard-0.tar": tarred({"0.jpg": b""}), "val-0.tar": tarred({"1.jpg": b""})})
    assert sorted(listed(open_split("webdataset", rest, "train"))) == ["0.jpg"]


def test_a_pattern_names_tars_and_the_split_is_whatever_it_is_called(tmp_path: Path) -> None:
    put(tmp_path, {f"x-{number:03d}.tar": tarred({f"{number}.jpg": b""}) for number in range(12)})
    split = open_split("webdataset", f"{tmp_path}/x-{{009..011}}.tar", "mine_2")
    assert sorted(listed(split)) == ["10.jpg", "11.jpg", "9.jpg"]
    assert sorted(listed(open_split("webdataset", f"{tmp_path}/x-000.tar", "train"))) == ["0.jpg"]
    with pytest.raises(InputError, match=r"x-012.tar: a tar expected, no such file, and 8 more of 20 are missing"):
        open_split("webdataset", f"{tmp_path}/x-{{001..020}}.tar", "train")
    with pytest.raises(InputError, match="a split name of letters"):
        open_split("webdataset", str(tmp_path), "../up")
    with pytest.raises(InputError, match="cifar10: a folder expected, 'x-"):
        open_split("cifar10", "x-{0..1}.tar", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="none found; name a folder of tars, or a pattern"):
        open_split("webdataset", tmp_path / "empty", "train")


# ---- damage


@pytest.mark.parametrize("cut", [0, 1, 700, 2048, 3000, -513, -1025])
def test_a_tar_that_was_cut_short_is_refused_with_advice(tmp_path: Path, cut: int) -> None:
    whole = tarred({"a.jpg": jpeg(0), "a.cls": b"1"})
    put(tmp_path, {"a.tar": whole[: cut if cut >= 0 else whole.rindex(b"1") + 512 + cut]})
    with pytest.raises(ShardError, match=r"a\.tar: .*(fetch it again|no tar)"):
        _ = open_split("webdataset", tmp_path, "train").samples


def test_a_tar_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    split = opened(tmp_path, {"a.jpg": jpeg(0)})
    sample = split.samples[0]
    (tmp_path / "00000.tar").write_bytes(b"short")
    with pytest.raises(ShardError, match=r"bytes of a.jpg expected .* it has changed"):
        split.read(sample)
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        split.read(sample)


def test_tars_without_samples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="samples expected, none found in 1 tars"):
        _ = opened(tmp_path, {"README": b""}).samples


def _read_all(folder: Path, data: bytes) -> None:
    """Our errors, or samples that can be read."""
    (folder / "fuzz.tar").write_bytes(data)
    try:
        split = open_split("webdataset", f"{folder}/fuzz.tar", "train")
        for sample in split.samples:
            split.read(sample)
    except (InputError, ShardError):
        return


def _check_flips(folder: Path, data: st.DataObject) -> None:
    tar_format = data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    whole = bytearray(tarred({"a" * 120 + ".jpg": b"x" * 600, "b\u00e9.cls": b"1", "c.json": b"{}"}, tar_format))
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    for _ in range(data.draw(st.integers(1, 4))):
        header = data.draw(st.sampled_from(headers))
        at = header + data.draw(st.one_of(st.integers(0, 511), st.integers(124, 136), st.integers(156, 156)))
        whole[at] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):  # a checksum that fits, as an attacker would write
            whole[header + 148 : header + 156] = b" " * 8
            whole[header + 148 : header + 156] = b"%06o\0 " % sum(whole[header : header + 512])
    _read_all(folder, bytes(whole))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_give_our_errors_or_samples(tmp_path: Path, data: st.DataObject) -> None:
    _check_flips(tmp_path, data)


@pytest.mark.slow
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_damaged_headers_give_our_errors_or_samples(tmp_path: Path, data: st.DataObject) -> None:
    _check_flips(tmp_path, data)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cls=st.binary(max_size=40), txt=st.binary(max_size=40), text=st.text(max_size=60), name=st.text(max_size=30))
def test_any_member_gives_our_errors_or_samples(tmp_path: Path, cls: bytes, txt: bytes, text: str, name: str) -> None:
    members = {"a.jpg": b"", "a.cls": cls, "a.txt": txt, "a.json": text.encode("utf-8", "surrogatepass")}
    _read_all(tmp_path, tarred(members | {f"{name}.jpg": b""}, tarfile.PAX_FORMAT))


# ---- built


def test_a_build_keeps_bytes_names_labels_and_captions_for_any_workers(tmp_path: Path) -> None:
    tars = [
        {f"{number:03d}.{extension}": data for number in range(first, first + 15) for extension, data in [
            ("jpg", jpeg(number)), ("cls", b"%d" % (number % 3)), ("txt", b"image %d" % number)]}
        for first in (0, 15)
    ]  # fmt: skip
    tars[1]["nothing.cls"] = b"1"
    put(tmp_path / "raw", {f"{number}.tar": tarred(files) for number, files in enumerate(tars)})
    options = {"samples_per_shard": 8}
    for workers in (1, 2):
        build(
            "webdataset",
            raw=str(tmp_path / "raw"),
            out=tmp_path / f"{workers}",
            options=BuildOptions(workers=workers, **options),
        )
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")
    manifest = load_manifest(tmp_path / "1/webdataset/train")
    assert manifest.num_samples == 30
    assert [(e["name"], e["reason"]) for e in manifest.exclusions] == [("nothing", "no image among its members")]
    assert np.array_equal(manifest.members, ["jpg", "cls", "txt", "json"])
    stored = {}
    for path in sorted((tmp_path / "1/webdataset/train").glob("*.tar")):
        with tarfile.open(path) as tar:
            stored |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    expected = tars[0] | tars[1]
    del expected["nothing.cls"]
    assert {name: data for name, data in stored.items() if not name.endswith(".json")} == expected


def test_a_split_travels_without_its_list_and_reads_what_a_sample_says(tmp_path: Path) -> None:
    split = opened(tmp_path, {f"{number}.jpg": jpeg(number) for number in range(50)})
    sample = split.samples[7]
    parcel = pickle.dumps(split)
    assert len(parcel) < 1024
    arrived = pickle.loads(parcel)
    assert arrived.read(sample) == split.read(sample)
    assert "_found" not in vars(arrived)
    split.forget_list()
    assert split.class_names == ()
    assert "_found" not in vars(split), "the headers of all tars would be read again"
