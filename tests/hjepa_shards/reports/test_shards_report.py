"""The page: what it shows is what the shards hold, and no text can do anything in it."""

import base64
import hashlib
import io
import json
import re
import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.building.index_tars import index_tars
from hjepa_shards.duplicates.find_duplicates import find_duplicates
from hjepa_shards.loader.read_split import read_split
from hjepa_shards.mixture.mixture import load_mixture_file
from hjepa_shards.reports import shards_report
from hjepa_shards.reports.shards_report import write_report
from hjepa_shards.shards.manifest import load_manifest, save_manifest
from hjepa_shards.sources.own.bundled import inside_sklearn
from tests.conftest import Command
from tests.hjepa_shards.reports.test_split_survey import picture
from tests.hjepa_shards.reports.test_svg_bars import HOSTILE
from tests.hjepa_shards.sources.layouts import jpeg, put
from tests.hjepa_shards.stand_in import save_stand_in
from tests.hjepa_shards.test_cli import refused, yaml_of
from tests.hjepa_shards.verifying.test_verify_split import flip

TAGS = """html head meta title style body div header h1 h2 h3 h4 p dl dt dd nav ul li a main section span svg rect text
table thead tbody tr th td figure figcaption b details summary code img footer"""


class Page(HTMLParser):
    """A page taken apart: elements with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.bytes = path.read_bytes()
        self.feed(self.bytes.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, name: str, tag: str = "") -> list[str]:
        return [found[name] for element, found in self.elements if name in found and tag in ("", element)]

    @property
    def images(self) -> list[bytes]:
        return [base64.b64decode(source.partition("base64,")[2]) for source in self.attributes("src", "img")]

    def assert_harmless(self) -> None:
        """Nothing but our own elements; no script, no handler, no style of an element, no address outside the page."""
        assert {tag for tag, _ in self.elements} <= set(TAGS.split())
        for _, attributes in self.elements:
            assert not any(name.startswith("on") or name in ("style", "srcdoc", "action") for name in attributes)
        assert all(re.fullmatch(r"#[a-z0-9-]+", target) for target in self.attributes("href"))
        assert all(re.fullmatch(r"data:image/(png|jpeg);base64,[\w+/=]+", source) for source in self.attributes("src"))
        policy = next(found["content"] for _, found in self.elements if "http-equiv" in found)
        assert "default-src 'none'" in policy
        assert "script" not in policy
        style = self.bytes.partition(b"<style>")[2].partition(b"</style>")[0]
        digest = base64.b64encode(hashlib.sha256(style).digest()).decode()
        assert f"style-src 'sha256-{digest}'" in policy
        assert b"url(" not in style
        assert b"@import" not in style


def page_of(path: Path, *folders: Path, **more: Any) -> Page:
    write_report(folders, path, **more)
    page = Page(path)
    page.assert_harmless()
    return page


def number_of(page: Page, name: str) -> list[str]:
    """What is under a heading of the rows of numbers, page first, then split by split."""
    return re.findall(rf"<dt>{name}</dt><dd[^>]*>([^<]+)</dd>", page.bytes.decode())


def test_the_page_shows_counts_classes_sizes_origin_and_images_of_every_split(shards: Path, tmp_path: Path) -> None:
    folders = [shards / "digits" / "train", shards / "photos" / "train", shards / "scattered" / "train"]
    page = page_of(tmp_path / "out" / "page.html", *folders)
    assert number_of(page, "images") == ["500", "200", "100", "200"]
    assert number_of(page, "excluded") == ["0"] * 4
    for folder in folders:
        manifest = load_manifest(folder)
        for expected in (manifest.name, manifest.order_digest, manifest.content_digest, manifest.provenance["licence"]):
            assert expected in page.text
        assert manifest.encoder
        assert manifest.encoder["canary"] in page.text
    assert "64 × 64" in page.text
    assert len(page.images) == 180
    for data in page.images:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    assert all(alt for alt in page.attributes("alt", "img"))
    assert all(label for label in page.attributes("aria-label", "svg"))


def test_the_same_shards_make_the_same_page(shards: Path, tmp_path: Path) -> None:
    for name in "ab":
        write_report([shards / "digits" / "train"], tmp_path / f"{name}.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_class_counts_are_those_of_the_labels(shards: Path, tmp_path: Path) -> None:
    page = page_of(tmp_path / "page.html", shards / "scattered" / "train")
    rows = re.findall(r'<th scope="row" title="(\d)">.*?</svg></td><td>([\d,]+)</td>', page.bytes.decode(), re.DOTALL)
    labels = [
        label
        for batch in read_split(shards / "scattered" / "train", image_size=8, batch=64)
        for label in batch.labels[batch.valid].tolist()
    ]
    assert dict(rows) == {str(label): str(count) for label, count in Counter(labels).items()}
    assert len(rows) == 10


def test_many_classes_are_one_chart_and_a_table(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / "raw" / f"class {number:02d}").mkdir(parents=True)
        for copy in range(1 + number % 3):
            (tmp_path / "raw" / f"class {number:02d}" / f"{copy}.jpg").write_bytes(picture(20, 20))
    build("folder", raw=tmp_path / "raw", out=tmp_path, options=BuildOptions(samples_per_shard=32))
    page = page_of(tmp_path / "page.html", tmp_path / "folder" / "train")
    assert "40 classes, images of each: 1 to 3" in page.text
    assert "All 40 classes" in page.text
    assert "class 38: 3 (3.8%)" in page.text


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, list[str]]:
    """A split whose classes, names, captions and exclusions are all attacks, and the texts of these."""
    raw, names = tmp_path / "raw", [*HOSTILE[:4], "right\u202eleft", "n" * 200, "{{ 7 * 7 }}", "{% raw %}"]
    names = [name.replace("/", "_") for name in names]
    for number, name in enumerate(names):
        (raw / name).mkdir(parents=True)
        (raw / name / f"{number}{name[:60]}.jpg").write_bytes(picture(60, 40))
        (raw / name / f"bad {name[:60]}.jpg").write_bytes(b"not an image: " + name.encode())
    build("folder", raw=raw, out=tmp_path, options=BuildOptions(samples_per_shard=8))
    return tmp_path / "folder" / "train", names


def test_hostile_class_names_and_file_names_stay_text(hostile: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, names = hostile
    page = page_of(tmp_path / "page.html", folder, raw={"folder": str(tmp_path / "raw")})
    titles = "\n".join(page.attributes("title"))
    for name in names:
        if "\u202e" not in name:
            assert name in titles, "the class name of an image, whole"
            assert f"bad {name[:60]}.jpg" in page.text, "the name of an excluded file"
    assert "right\\u202eleft" in page.text
    assert "\u202e" not in page.bytes.decode()
    assert "49" not in page.attributes("title")


@pytest.mark.parametrize("text", [*HOSTILE, "\u202egnp.exe", "x" * 50_000, "\\ud800", "caf\u00e9"])
def test_hostile_captions_stay_text(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "mine" / "train"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, data in {
            "a.jpg": picture(30, 30),
            "a.txt": text.encode(),
            "a.json": json.dumps({"captions": [text, 'x"' + text]}).replace("\\\\ud800", "\\ud800").encode(),
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    index_tars(folder)
    page = page_of(tmp_path / "page.html", folder)
    assert len(page.bytes) < 60_000
    if text in HOSTILE:
        assert text in page.text
    assert 'x"' in page.text


def test_hostile_provenance_stays_text(shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards / "photos" / "train", tmp_path / "photos" / "train"))
    manifest = load_manifest(folder)
    save_manifest(
        folder,
        replace(
            manifest,
            provenance={"upstream": "javascript:alert(1)", "licence": HOSTILE[0], "x" * 5000: HOSTILE[1]},
            notes=[HOSTILE[1]],
            settings={HOSTILE[2]: [HOSTILE[0]]},
        ),
    )
    page = page_of(tmp_path / "page.html", folder)
    for text in (*HOSTILE[:3], "javascript:alert(1)"):
        assert text in page.text


def test_exclusions_are_under_their_reason_with_what_can_still_be_seen(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    whole = picture(400, 300)
    (raw / "whole.jpg").write_bytes(whole)
    (raw / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (raw / "text.jpg").write_bytes(b"no image at all")
    build("folder", raw=raw, out=tmp_path, options=BuildOptions(samples_per_shard=8))
    folder = tmp_path / "folder" / "train"
    reasons = {exclusion["name"]: exclusion["reason"] for exclusion in load_manifest(folder).exclusions}
    page = page_of(tmp_path / "page.html", folder, raw={"folder": str(raw)})
    assert number_of(page, "excluded") == ["2", "2"]
    for name, reason in reasons.items():
        assert name in page.text
        assert reason in page.text
    assert "cut.jpg" in page.attributes("alt", "img")
    assert "text.jpg" not in page.attributes("alt", "img")
    without = page_of(tmp_path / "page.html", folder)
    assert "cut.jpg" in without.text
    assert "cut.jpg" not in without.attributes("alt", "img")


def test_raw_data_that_is_not_there_is_a_note_not_the_end(hostile: tuple[Path, list[str]], tmp_path: Path) -> None:
    notes = write_report([hostile[0]], tmp_path / "page.html", raw={"folder": str(tmp_path / "nowhere")})
    assert "folder-train" in notes[0]
    assert "nowhere" in notes[0]


def test_thousands_of_exclusions_are_counted_and_the_first_ones_named(shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards / "photos" / "train", tmp_path / "photos" / "train"))
    exclusions = [{"name": f"name {n}", "index": n, "reason": f"reason {n % 100}"} for n in range(20_000)]
    save_manifest(folder, replace(load_manifest(folder), exclusions=exclusions))
    page = page_of(tmp_path / "page.html", folder)
    assert number_of(page, "excluded") == ["20,000"] * 2
    assert "60 other reasons" in page.text
    assert len(page.bytes) < 800_000


def test_a_split_without_a_sample_is_a_page_too(tmp_path: Path) -> None:
    save_stand_in(tmp_path, "nothing", [])
    page = page_of(tmp_path / "page.html", tmp_path / "nothing" / "train")
    assert number_of(page, "images") == ["0", "0"]


def test_damaged_samples_are_shown_as_such(shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards / "photos" / "train", tmp_path / "photos" / "train"))
    for offset in range(600, 200_000, 4000):
        flip(folder / "photos-train-000000.tar", offset)
    page = page_of(tmp_path / "page.html", folder)
    assert "crc32" in page.text


def test_images_take_no_more_than_their_bytes(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [shards / "photos" / "train", shards / "scattered" / "train"]
    monkeypatch.setattr(shards_report, "MAX_IMAGE_BYTES", 60_000)
    page = page_of(tmp_path / "page.html", *folders)
    assert sum(map(len, page.images)) <= 60_000
    sheets = page.bytes.decode().split('<section id="split-')[1:]
    assert all(sheet.count("<img") > 5 for sheet in sheets), "each split has its part"


def test_duplicates_are_shown_leaks_first(command: Command, shards: Path, tmp_path: Path) -> None:
    def copy(source: str, split: str, index: int, label: int) -> dict[str, Any]:
        return {"source": source, "split": split, "index": index, "key": f"{HOSTILE[0]}{index}", "label": label}

    groups = [
        {"kind": "near", "leak": False, "samples": [copy("digits", "train", 0, 1), copy("digits", "train", 5, 1)]},
        {"kind": HOSTILE[1], "leak": True, "samples": [copy("digits", "train", 1, 2), copy("digits", "test", 2, 3)]},
        {"kind": "exact", "leak": False, "samples": [copy("gone", "train", 1, -1), copy("digits", "test", 10**9, -1)]},
    ]
    relation = {"first": "digits/test", "second": HOSTILE[2], "leak": True, "images": {"exact": [7, 9], "near": [0, 1]}}
    counts = {"samples": 5555, "groups": 3, "leaking_groups": 1, "excluded": 2, "relations": [relation]}
    path = tmp_path / "dup.json"
    path.write_text(json.dumps({"groups": groups, "counts": counts, "remarks": [HOSTILE[3]]}))
    folders = (shards / "digits" / "train", shards / "digits" / "test")
    page = page_of(tmp_path / "page.html", *folders, duplicates=path)
    assert [number_of(page, name) for name in ("leaks", "labels differ", "duplicates to exclude")] == [
        ["1"],
        ["1"],
        ["2"],
    ]
    section = page.bytes.decode().partition('<section id="duplicates">')[2]
    assert section.count("<img") == 4
    assert section.index(">labels differ</span>") < section.index(">near</span>")
    assert "among 5,555 images" in page.text
    assert "<td>7</td><td>0</td><td>7</td>" in section
    assert all(text in page.text for text in HOSTILE[:4])


def test_labels_of_duplicates_differ_by_name_and_not_by_number(tmp_path: Path) -> None:
    """The page of an earlier version's file has the names of the manifests."""
    other, ant, bee = (jpeg(number, 64) for number in (0, 90, 170))
    images = {"train/ant/1.jpg": other, "train/bee/1.jpg": bee, "val/ant/2.jpg": ant, "val/bee/3.jpg": bee}
    put(tmp_path / "raw", {**images, "test/bee/1.jpg": bee, "test/bee/2.jpg": ant})
    folders = []
    for split in ("train", "val", "test"):
        build("folder", raw=tmp_path / "raw" / split, out=tmp_path / split, options=BuildOptions(name="mine"))
        folder = tmp_path / split / "mine" / "train"
        save_manifest(folder, replace(load_manifest(folder), split=split))
        folders.append(folder)
    found = find_duplicates(folders, near=0)
    assert {copy.class_name for group in found.groups for copy in group.samples} == {"ant", "bee"}
    found.save_report(tmp_path / "dup.json")
    text = (tmp_path / "dup.json").read_text()
    for written in (text, text.replace('"class_name": "ant", ', "").replace('"class_name": "bee", ', "")):
        (tmp_path / "dup.json").write_text(written)
        page = page_of(tmp_path / "page.html", *folders, duplicates=tmp_path / "dup.json")
        assert number_of(page, "labels differ") == ["1"], "the ant that test calls a bee, by the number 0"


def test_what_duplicates_writes_is_shown(command: Command, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with Image.open(inside_sklearn("datasets/images/china.jpg")) as photo:
        photo.save(tmp_path / "raw" / "a.jpg")
        photo.resize((320, 214)).save(tmp_path / "raw" / "b.jpg")
    (tmp_path / "raw" / "c.jpg").write_bytes((tmp_path / "raw" / "a.jpg").read_bytes())
    build("folder", raw=tmp_path / "raw", out=tmp_path, options=BuildOptions(samples_per_shard=8))
    assert command("duplicates", tmp_path / "folder", "--report", tmp_path / "dup.json")[0] == 0
    page = page_of(tmp_path / "page.html", tmp_path / "folder" / "train", duplicates=tmp_path / "dup.json")
    assert number_of(page, "groups of duplicates") == ["1"]
    assert page.bytes.decode().partition('<section id="duplicates">')[2].count("<img") == 3


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "not json", '{"groups": 3}', '{"groups": [{"kind": "x"}]}', '{"groups": []}']
)
def test_a_file_that_is_no_list_of_duplicates_is_one_line(
    command: Command, shards: Path, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "dup.json"
    path.write_text(text)
    arguments = ["report", shards / "digits", "--html", tmp_path / "page.html", "--duplicates", path]
    refused(command(*arguments), "dup.json", "duplicates --report")
    assert not (tmp_path / "page.html").exists()


def test_shares_of_a_mixture_are_drawn_beside_the_sizes(command: Command, shards: Path, tmp_path: Path) -> None:
    data = (
        f"{{root: '{shards}', strategy: weighted, sources: [{{name: digits, weight: 3}}, {{name: photos, weight: 1}}]}}"
    )
    mix = yaml_of(tmp_path, f"data: {data}")
    page_path = tmp_path / "page.html"
    code, out, _ = command("report", shards / "digits", shards / "photos", "--html", page_path, "--mix", mix)
    assert code == 0
    assert "3 splits" in out
    page = Page(page_path)
    page.assert_harmless()
    mixture = load_mixture_file(mix)
    assert f"{mixture.epoch_samples:,} images an epoch" in page.text
    assert "digits: 75.00%" in page.text
    assert f"digits: {200 / 300:.2%}" in page.text
    assert "1.12" in page.text, "passes of digits: .75 * 300 / 200"


def test_wrong_arguments_of_report_are_one_line(command: Command, shards: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    refused(command("report", tmp_path, "--html", page), str(tmp_path), "manifest.json")
    refused(command("report", shards, "--html", page, "--duplicates", tmp_path / "no.json"), "no.json")
    refused(command("report", shards, "--html", page, "--mix", tmp_path / "no.yaml"), "no.yaml")
    refused(command("report", shards, "--html", page, "--raw", "somewhere"), "--raw somewhere", "digits")
    refused(command("report", shards / "digits", "--html", "/dev/null/x.html"), "/dev/null")
    refused(command("report", shards / "photos", shards / "photos", "--html", page), "photos-train", "once")
    assert not page.exists()
