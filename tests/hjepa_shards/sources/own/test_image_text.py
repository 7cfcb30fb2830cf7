"""Images with captions, in the layouts that people have them in, with the traps of the real ones."""

import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import DecodeError, InputError, ShardError
from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.sources.base import RawSplit, Remarks
from hjepa_shards.sources.formats.caption_lists import read_captions
from hjepa_shards.sources.registry import open_split
from tests.hjepa_shards.sources.layouts import jpeg, put, tarred

JPEG = jpeg(0)


def listed(split: RawSplit) -> dict[str, tuple[str, ...]]:
    return {sample.name: sample.captions for sample in split.samples}


def with_list(folder: Path, name: str, content: str | bytes, *images: str) -> RawSplit:
    data = content.encode() if isinstance(content, str) else content
    put(folder, {name: data} | dict.fromkeys(images, JPEG))
    return open_split("image-text", folder, "train")


# ---- the published layouts


def test_flickr8k_as_it_is_published(tmp_path: Path) -> None:
    lines = (
        "1000_a.jpg#1\tA girl going into a wooden building .\n"
        "1000_a.jpg#0\tA child in a pink dress is climbing up stairs .\n"
        "1000_a.jpg#2 A space where the tab belongs .\n"
        "2258_b.jpg.1#0\tthe file is called .jpg\n"
        "2258_b.jpg.1#1\tthe file is called .jpg\n"
        "3000_c.jpg#0\tno file has this one\n"
        "3000_c.jpg#1\t\n"
        "not a line of it\n"
        "4000_d.jpg#0\tdev #1 caption\twith a tab\n"
    )
    put(
        tmp_path,
        {
            "Flickr8k_text/Flickr8k.token.txt": lines.encode(),
            "Flickr8k_text/Flickr8k.lemma.token.txt": b"1000_a.jpg#0\tgirl go into\n",
            "Flickr8k_text/CrowdFlowerAnnotations.txt": b"1000_a.jpg\t2_b.jpg#2\t0.3\t1\t2\n",
            "Flickr8k_text/readme.txt": b"read me",
            "Flickr8k_text/Flicker8k_Dataset/1000_a.jpg": JPEG,
            "Flickr8k_text/Flicker8k_Dataset/2258_b.jpg": JPEG,
            "Flickr8k_text/Flicker8k_Dataset/4000_d.jpg": JPEG,
        },
    )
    folder = tmp_path / "Flickr8k_text"
    split = open_split("image-text", folder, "train")
    assert listed(split) == {
        "1000_a.jpg": (
            "A child in a pink dress is climbing up stairs .",
            "A girl going into a wooden building .",
            "A space where the tab belongs .",
        ),
        "2258_b.jpg": ("the file is called .jpg",),
        "3000_c.jpg": ("no file has this one",),
        "4000_d.jpg": ("dev #1 caption\twith a tab",),
    }
    assert split.notes == ("1 lines without an image and a caption, left out; the first: line 8",)
    found = {sample.name: sample for sample in split.samples}
    assert split.read(found["2258_b.jpg"]) == JPEG
    with pytest.raises(DecodeError, match=r"^no such file$"):
        split.read(found["3000_c.jpg"])
    put(folder, {"Flickr_8k.trainImages.txt": b"1000_a.jpg\n", "Flickr_8k.devImages.txt": b"4000_d.jpg\r\n"})
    assert list(listed(open_split("image-text", folder, "train"))) == ["1000_a.jpg"]
    assert list(listed(open_split("image-text", folder, "val"))) == ["4000_d.jpg"]
    with pytest.raises(InputError, match="one list of split test expected"):
        open_split("image-text", folder, "test")


def test_flickr30k_with_the_line_that_lost_its_mark(tmp_path: Path) -> None:
    lines = (
        "image_name| comment_number| comment\n"
        "1.jpg| 0| Two young guys with shaggy hair .\n"
        "1.jpg| 1| A | in the caption .\n"
        "2199200615.jpg| 4   A dog runs across the grass .\n"
    )
    split = with_list(
        tmp_path, "results.csv", lines, "flickr30k_images/flickr30k_images/1.jpg", "flickr30k_images/x.jpg"
    )
    assert listed(split) == {
        "1.jpg": ("Two young guys with shaggy hair .", "A | in the caption ."),
        "2199200615.jpg": ("A dog runs across the grass .",),
    }
    assert split.read(split.samples[0]) == JPEG
    put(tmp_path, {"results_20130124.token": b"1.jpg#0\tTwo .\n"})
    assert listed(open_split("image-text", tmp_path, "train")) == {"1.jpg": ("Two .",)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Train_GCC.tsv", "a very nice sofa\ttrain/0/a.jpg\na \"quoted\" cat\ttrain/0/b.jpg\n"),
        ("Train-GCC_output.csv", "title\tfilepath\na very nice sofa\ttrain/0/a.jpg\n"
                                 '"a ""quoted"" cat"\ttrain/0/b.jpg\n'),
        ("openclip.csv", 'filepath,title\r\ntrain/0/a.jpg,a very nice sofa\r\ntrain/0/b.jpg,"a ""quoted"" cat"\r\n'),
        ("captions.txt", "image,caption\ntrain/0/a.jpg,a very nice sofa\ntrain/0/b.jpg,a \"quoted\" cat\n"),
        ("list.jsonl", '{"image": "train/0/a.jpg", "caption": "a very nice sofa"}\n\n'
                       '{"file_name": "./train/0/b.jpg", "text": "a \\"quoted\\" cat", "x": 1}\n'),
        ("list.json", '[{"image": "train/0/a.jpg", "caption": ["a very nice sofa"]},\n'
                      ' {"image": "train/0/b.jpg", "captions": ["a \\"quoted\\" cat", "a \\"quoted\\" cat"]}]'),
        ("semicolon.csv", "Filename;Caption\ntrain/0/a.jpg;a very nice sofa\ntrain/0/b.jpg;a \"quoted\" cat\n"),
    ],
)  # fmt: skip
def test_every_kind_of_list_says_the_same(tmp_path: Path, name: str, content: str) -> None:
    split = with_list(tmp_path / "cc3m", name, content, "train/0/a.jpg", "train/0/b.jpg")
    assert listed(split) == {"train/0/a.jpg": ("a very nice sofa",), "train/0/b.jpg": ('a "quoted" cat',)}
    assert split.notes == ()
    for encoded in ("\ufeff" + content).encode(), content.encode("utf-16"):
        again = with_list(tmp_path / "cc3m", name, encoded)
        assert listed(again) == listed(split)


def test_captions_in_several_columns_are_all_of_the_image(tmp_path: Path) -> None:
    split = with_list(tmp_path, "metadata.csv", "file_name,split,caption_0,caption_1\na.jpg,train,one,two\n", "a.jpg")
    assert listed(split) == {"a.jpg": ("one", "two")}


def test_tars_by_img2dataset_are_read_and_what_is_beside_them_is_not(tmp_path: Path) -> None:
    record = {"caption": "a cat", "url": "http://x", "key": "000000000", "status": "success", "width": 32}
    members = {"000000000.jpg": JPEG, "000000000.txt": b"a cat", "000000000.json": json.dumps(record).encode()}
    put(tmp_path, {"00000.tar": tarred(members), "00000.parquet": b"PAR1", "00000_stats.json": b"{}"})
    for raw in (tmp_path, f"{tmp_path}/{{00000..00000}}.tar"):
        split = open_split("image-text", raw, "train")
        assert listed(split) == {"000000000.jpg": ("a cat",)}
        assert split.read(split.samples[0]) == JPEG


# ---- traps


def test_quotes_that_do_not_close_stay_in_their_line(tmp_path: Path) -> None:
    content = (
        "filepath,title\n"
        'a.jpg,a 6" ruler, on a desk\n'
        'b.jpg,"two\nlines, one ""cell"""\n'
        'c.jpg,"never closed\n' + "".join(f"{number}.jpg,caption, with comma {number}\n" for number in range(30))
    )
    split = with_list(tmp_path, "list.csv", content, "a.jpg")
    assert listed(split) == {
        "a.jpg": ('a 6" ruler, on a desk',),
        "b.jpg": ('two\nlines, one "cell"',),
        "c.jpg": ('"never closed',),
    } | {f"{number}.jpg": (f"caption, with comma {number}",) for number in range(30)}


def test_strange_letters_and_line_ends_come_through(tmp_path: Path) -> None:
    content = "filepath\ttitle\rcaf\u00e9.jpg\tun caf\u00e9\u2028sur la table\x0b\rwin\\dows.jpg\tbackslash\r"
    split = with_list(tmp_path, "list.tsv", content, "cafe\u0301.jpg", "win/dows.jpg")
    assert listed(split) == {"caf\u00e9.jpg": ("un caf\u00e9\u2028sur la table",), "win\\dows.jpg": ("backslash",)}
    assert [split.read(sample) for sample in split.samples] == [JPEG, JPEG]
    latin = with_list(tmp_path / "latin", "list.tsv", b"a.jpg\tcaf\xe9 noir\n", "a.jpg")
    assert listed(latin) == {"a.jpg": ("caf\ufffd noir",)}
    assert latin.notes == ("1 lines with bytes that are not UTF-8, shown as \ufffd; the first: line 1",)


def test_paths_that_leave_the_folder_are_excluded_and_those_into_it_are_not(tmp_path: Path) -> None:
    put(tmp_path, {"outside.jpg": JPEG})
    lines = [
        tmp_path / "raw/in.jpg",
        "../outside.jpg",
        tmp_path / "outside.jpg",
        "x/../../outside.jpg",
        "x/../in.jpg",
        "a\0b.jpg",
    ]
    split = with_list(
        tmp_path / "raw", "list.tsv", "".join(f"{line}\ttext {n}\n" for n, line in enumerate(lines)), "in.jpg"
    )
    read = {}
    for sample in split.samples:
        try:
            read[sample.name] = split.read(sample)
        except DecodeError as error:
            read[sample.name] = str(error)
    assert read == {
        "in.jpg": JPEG,
        "../outside.jpg": "a path out of the folder of the images",
        f"{tmp_path}/outside.jpg": "a path out of the folder of the images",
        "a\0b.jpg": "no such file",
    }
    assert listed(split)["in.jpg"] == ("text 0", "text 4")


def test_the_list_is_found_or_must_be_named(tmp_path: Path) -> None:
    put(tmp_path, {"my_train.csv": b"a.jpg,one", "my_val.csv": b"a.jpg,two", "notes.txt": b"x", "a.jpg": JPEG})
    assert listed(open_split("image-text", tmp_path, "train")) == {"a.jpg": ("one",)}
    assert listed(open_split("image-text", tmp_path, "val")) == {"a.jpg": ("two",)}
    with pytest.raises(
        InputError, match=r"one list of split test .*found: my_train.csv, my_val.csv, notes.txt; .* --list"
    ):
        open_split("image-text", tmp_path, "test")
    chosen = open_split("image-text", tmp_path, "test", list_file=tmp_path / "my_val.csv")
    assert listed(chosen) == {"a.jpg": ("two",)}
    assert listed(open_split("image-text", None, "x", list_file=tmp_path / "my_val.csv")) == {"a.jpg": ("two",)}
    assert listed(open_split("image-text", tmp_path, "x", list_file=Path("my_val.csv"))) == {"a.jpg": ("two",)}
    put(tmp_path, {"other.csv": b"a.jpg,three", "train/list.tsv": b"b.jpg\tfour", "train/b.jpg": JPEG})
    assert listed(open_split("image-text", tmp_path, "train")) == {"b.jpg": ("four",)}
    with pytest.raises(InputError, match="goes by no list"):
        open_split("folder", tmp_path, "train", list_file=tmp_path / "my_val.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.tsv", "", "an empty file found"),
        ("l.tsv", "only one column\n", r"line 1: an image and a caption with a tab, .* 'only one column' found"),
        ("l.tsv", "one\ttwo\nthree\tfour\n", "a column of image names beside one of captions expected"),
        ("l.tsv", "cat\thttp://x/1.jpg\ndog\thttps://x/2.jpg\n", "URLs found; fetch the images with img2dataset"),
        ("l.json", "{}", "an array of objects expected, dict found"),
        ("l.json", "[" * 100_000, "not JSON"),
        ("l.json", "[1" * 10, "not JSON"),
        ("l.jsonl", "1\n[]\n{}\n", "images and captions expected, none found"),
        ("l.tsv", "x" * 2**20, "line 1: at most 1,048,576 characters expected; is it a list?"),
        ("l.tsv", "b.jpg\tmissing\nc.jpg\tmissing\n", "names b.jpg, but none of its first 2 images is in .* 0 folders"),
        ("l.csv", "file_name,label\na.jpg,cat\n", None),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, name: str, content: str, message: str | None) -> None:
    if message is None:  # a header of which one name is known
        assert listed(with_list(tmp_path, name, content, "a.jpg")) == {"a.jpg": ("cat",)}
        return
    with pytest.raises(InputError, match=message):
        _ = with_list(tmp_path, name, content, "a.jpg").samples


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        open_split("image-text", tmp_path, "train", list_file=tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="a folder expected"):
        open_split("image-text", tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match=r"found: none; name the right one with --list"):
        open_split("image-text", tmp_path, "train")


def _check_fuzz(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["l.csv", "l.tsv", "l.jsonl", "l.json", "l.txt"]))
    pieces = [
        "a.jpg",
        "b.jpg.1",
        "#0",
        "\t",
        ",",
        "|",
        ";",
        '"',
        "\n",
        "\r\n",
        "image",
        "caption",
        "{",
        "}",
        "[",
        "]",
        ":",
        "\\ud800",
        " ",
        "1",
    ]
    text = "".join(data.draw(st.lists(st.one_of(st.sampled_from(pieces), st.text(max_size=5)), max_size=40)))
    content = data.draw(st.one_of(st.just(text.encode("utf-8", "surrogatepass")), st.binary(max_size=100)))
    (folder / name).write_bytes(content)
    (folder / "a.jpg").write_bytes(JPEG)
    try:
        for sample in open_split("image-text", folder, "train", list_file=folder / name).samples:
            json.dumps([sample.name, *sample.captions], ensure_ascii=False).encode()
    except (InputError, ShardError):
        pass
    try:
        list(read_captions(folder / name, Remarks()))
    except InputError:
        return


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_list_gives_our_errors_or_samples(tmp_path: Path, data: st.DataObject) -> None:
    _check_fuzz(tmp_path, data)


@pytest.mark.slow
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_lists_give_our_errors_or_samples(tmp_path: Path, data: st.DataObject) -> None:
    _check_fuzz(tmp_path, data)


@settings(deadline=None, max_examples=80)
@given(caption=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=40))
@example(caption='"')
@example(caption='"x"')
def test_a_caption_written_as_json_comes_back(tmp_path_factory: pytest.TempPathFactory, caption: str) -> None:
    path = tmp_path_factory.getbasetemp() / "captions.jsonl"
    path.write_text(json.dumps({"image": "a.jpg", "caption": caption}) + "\n", encoding="utf-8")
    assert [found.captions for found in read_captions(path, Remarks())] == [[caption]]


# ---- real captions, built


def test_cocos_captions_as_a_table_are_built_into_txt_and_json(real_data: Path, tmp_path: Path) -> None:
    annotations = json.loads((real_data / "coco" / "annotations" / "captions_val2017.json").read_text())
    images = real_data / "coco" / "val2017"
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    there = {path.name for path in images.iterdir()}
    expected: dict[str, list[str]] = {}
    lines = []
    for annotation in annotations["annotations"]:
        name, caption = names[annotation["image_id"]], annotation["caption"]
        if name in there:
            expected.setdefault(name, []).append(" ".join(caption.split()))
            lines.append(f"{' '.join(caption.split())}\t{name}")
    put(tmp_path, {"captions.tsv": "\n".join(lines).encode()})
    manifest = build(
        "image-text",
        raw=str(images),
        out=tmp_path / "out",
        options=BuildOptions(samples_per_shard=16, list_file=tmp_path / "captions.tsv"),
    )[0]
    assert manifest.members == ["jpg", "txt", "json"]
    found = {}
    for path in sorted((tmp_path / "out/image-text/train").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    found[member.name.replace(".json", ".jpg")] = json.load(tar.extractfile(member))["captions"]  # type: ignore[arg-type]
    assert found == {name: list(dict.fromkeys(captions)) for name, captions in expected.items()}
    assert load_manifest(tmp_path / "out/image-text/train").num_samples == len(expected) > 10
