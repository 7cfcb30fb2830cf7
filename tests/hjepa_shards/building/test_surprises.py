"""What real data holds, built from files to shards: each surprise comes through, or is excluded by a named rule."""

import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import InputError
from hjepa_shards.images.encode import JPEG_256, KEEP, PNG, EncodeSettings
from hjepa_shards.images.image_formats import MAX_PIXELS, Codec, codec_of, inspect, opened
from hjepa_shards.images.rgb_pixels import to_rgb
from hjepa_shards.shards.manifest import Manifest
from hjepa_shards.shards.raw_sample import decode_key
from tests.conftest import Command
from tests.hjepa_shards.images.test_image_formats import HEIGHT, WIDTH, saved, scene, turned

SETTINGS = {"keep": KEEP, "png": PNG, "jpeg": JPEG_256}

DAMAGED = "damaged: "
CUT_SHORT = "cut short"
BOMB = "a decompression bomb: "
UNKNOWN = "no image of a known format"

ODD_EXCLUDED = {
    "bmp_b_badbitcount.bmp": DAMAGED + "OSError: Unsupported BMP pixel depth",
    "bmp_b_badheadersize.bmp": DAMAGED + "OSError: Unsupported BMP header type",
    "bmp_b_badpalettesize.bmp": DAMAGED + "OSError: Unsupported BMP Palette size",
    "bmp_b_badwidth.bmp": BOMB,
    "broken.png": UNKNOWN,
    "broken_data_stream.png": DAMAGED + "OSError: unrecognized data stream contents",
    "decompression_bomb.gif": BOMB,
    "truncated_image.png": CUT_SHORT,
    "truncated_jpeg.jpg": CUT_SHORT,
    "zero_width.gif": UNKNOWN,
}
"""Of the real odd files, those that no decoder reads, and the rule; all others come through."""


def built(raw: Path, out: Path, settings: EncodeSettings) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest, and the stored images by name (with the extension that they are stored under)."""
    options = BuildOptions(settings=settings, samples_per_shard=32)
    manifest = build("folder", raw=raw, out=out, options=options)[0]
    stored = {}
    for path in sorted((out / "folder" / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.rpartition(".")
                if extension in ("jpg", "png", "webp"):
                    name = manifest.renamed[key][0] if key in manifest.renamed else decode_key(key)
                    stored[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    assert len(stored) == manifest.num_samples
    return manifest, stored


def reasons(manifest: Manifest) -> dict[str, str]:
    return {exclusion["name"]: exclusion["reason"] for exclusion in manifest.exclusions}


def rgb(data: bytes) -> np.ndarray:
    with opened(data) as image:
        return np.asarray(to_rgb(image)).astype(int)


# ---- 77 real ones


@pytest.mark.parametrize("pixels", SETTINGS)
def test_every_odd_image_comes_through_or_is_excluded_by_its_rule(real_data: Path, tmp_path: Path, pixels: str) -> None:
    manifest, stored = built(real_data / "odd", tmp_path, SETTINGS[pixels])
    raw = {path.name: path.read_bytes() for path in (real_data / "odd").iterdir() if path.name != "LICENSE.txt"}
    found = reasons(manifest)
    assert set(found) == set(ODD_EXCLUDED)
    assert all(found[name].startswith(rule) for name, rule in ODD_EXCLUDED.items()), found
    by_stem = {Path(name).stem: data for name, data in stored.items()} | stored
    for name in sorted(set(raw) - set(ODD_EXCLUDED)):
        data = by_stem[name] if name in by_stem else by_stem[Path(name).stem]
        before, after = rgb(raw[name]), rgb(data)
        if pixels == "keep" and codec_of(raw[name]) in (Codec.JPEG, Codec.PNG, Codec.WEBP):
            assert data == raw[name], name
        elif pixels == "jpeg":
            assert codec_of(data) == Codec.JPEG, name
            assert min(after.shape[:2]) == min(256, *before.shape[:2]), name
        else:
            assert np.array_equal(before, after), name
        assert inspect(data).orientation == 1 or pixels == "keep"


# ---- made by hand, so that everybody has them


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def flat_png(width: int, height: int, bits: int = 1, colour: int = 0, rows: int | None = None) -> bytes:
    """A black PNG of any size, made without its pixels: the file of a bomb."""
    row = bytes(1 + (width * bits * {0: 1, 2: 3, 6: 4}[colour] + 7) // 8)
    stream = zlib.compressobj(9)
    packed = b"".join([*(stream.compress(row) for _ in range(height if rows is None else rows)), stream.flush()])
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def many_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose second scan is there `scans` times more: each costs a pass over all blocks."""
    data = saved(Image.new("L", (width, height), 128), "JPEG", progressive=True, quality=50)
    starts = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    tables = [at for at in range(len(data)) if data.startswith(b"\xff\xc4", at)]
    first = max(at for at in tables if at < starts[1])
    last = min(at for at in [*tables, *starts, len(data) - 2] if at > starts[1])
    return data[:last] + data[first:last] * scans + data[last:]


def noise(width: int = 300, height: int = 200, channels: int = 3) -> Image.Image:
    generator = np.random.Generator(np.random.Philox(7))
    return Image.fromarray(generator.integers(0, 256, (height, width, channels), dtype=np.uint8))


def deep(colour: int) -> bytes:
    """A 16-bit PNG of the scene, gray (0), RGB (2) or RGBA (6): Pillow writes the first only."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    pixels = np.asarray(scene().convert({0: "L", 2: "RGB", 6: "RGBA"}[colour])).reshape(HEIGHT, -1, 1)
    words = np.concatenate([pixels, np.full_like(pixels, 0x5A)], -1).reshape(HEIGHT, WIDTH * channels * 2)
    rows = b"".join(b"\0" + row.tobytes() for row in words)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, colour, 0, 0, 0)
    packed = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + packed + chunk(b"IEND", b"")


def animated(codec: str) -> bytes:
    return saved(scene(), codec, save_all=True, append_images=[scene().rotate(180), Image.new("RGB", (WIDTH, HEIGHT))])


def tampered(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


SEEN_AS = {
    "gray.jpg": "L",
    "gray alpha.png": "L",
    "sixteen bits gray.png": "L",
    "sixteen bits.tif": "L",
    "bilevel.png": "1",
}
"""What the scene lost before it was saved."""


def come_through() -> dict[str, bytes]:
    """File name -> bytes that are a picture of the scene, however odd."""
    return {
        "gray.jpg": saved(scene().convert("L"), "JPEG"),
        "cmyk.jpg": saved(scene().convert("CMYK"), "JPEG"),
        "progressive.jpg": saved(scene(), "JPEG", progressive=True),
        "a PNG.JPEG": saved(scene(), "PNG"),
        "a JPEG.png": saved(scene(), "JPEG", quality=95),
        "a GIF.bmp": saved(scene(), "GIF"),
        **{f"turned{orientation}.jpg": turned(orientation, "JPEG", quality=95) for orientation in range(2, 9)},
        "turned6.webp": turned(6, "WEBP", quality=95),
        "turned8.png": turned(8, "PNG"),
        "sixteen bits gray.png": deep(0),
        "sixteen bits RGB.png": deep(2),
        "sixteen bits RGBA.png": deep(6),
        "sixteen bits.tif": saved(Image.fromarray(np.asarray(scene().convert("L")).astype(np.uint16) << 8), "TIFF"),
        "bilevel.png": saved(scene().convert("1"), "PNG"),
        "palette.png": saved(scene().convert("P"), "PNG"),
        "palette with transparency.png": saved(scene().convert("P"), "PNG", transparency=0),
        "alpha.png": saved(scene().convert("RGBA"), "PNG"),
        "gray alpha.png": saved(scene().convert("LA"), "PNG"),
        "colour key.png": saved(scene(), "PNG", transparency=(250, 0, 0)),
        "animated.gif": animated("GIF"),
        "animated.webp": animated("WEBP"),
        "animated.png": animated("PNG"),
        "cmyk.tif": saved(scene().convert("CMYK"), "TIFF"),
        "junk after the end.jpg": saved(scene(), "JPEG") + b"appended by a web server",
        "broken exif.jpg": saved(scene(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"),
        "a wrong profile.png": saved(scene(), "PNG", icc_profile=b"no profile"),
    }


def bad_images() -> dict[str, tuple[bytes, str]]:
    """File name -> bytes that give no picture, and the rule."""
    jpeg, png, webp = saved(noise(), "JPEG"), saved(noise(), "PNG"), saved(noise(), "WEBP")
    huge = tampered(saved(Image.new("1", (16, 16)), "BMP"), 18, struct.pack("<II", 20000, 20000))
    return {
        "empty.jpg": (b"", "an empty file"),
        "text.jpg": (b"just text", UNKNOWN),
        "error page.png": (b"<!DOCTYPE html><html>404</html>", UNKNOWN),
        "AppleDouble.jpg": (b"\0\x05\x16\x07\0\x02\0\0Mac OS X" + bytes(4000), UNKNOWN),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", UNKNOWN),
        "half.jpg": (jpeg[: len(jpeg) // 2], CUT_SHORT),
        "no end.jpg": (jpeg[:-2], CUT_SHORT),
        "half.png": (png[: len(png) // 2], CUT_SHORT),
        "half.webp": (webp[: len(webp) // 2], DAMAGED),
        "header.jpg": (jpeg[:20], UNKNOWN),
        "header.png": (png[:40], UNKNOWN),
        "no pixels.png": (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 9, 8, 2, 0, 0, 0)), UNKNOWN),
        "bomb.png": (flat_png(50_000, 50_000, rows=1), BOMB),
        "slightly too large.png": (flat_png(MAX_PIXELS // 8000 + 1, 8000, rows=1), BOMB),
        "bomb.bmp": (huge, BOMB),
        "bomb.gif": (tampered(saved(scene(), "GIF"), 6, b"\xff\xff\xff\xff"), BOMB),
        "bomb.jpg": (_jpeg_of_size(jpeg, 65_000, 65_000), BOMB),
        "scans.jpg": (many_scans(1024, 1024, 2000), BOMB),
        "texts.png": (png[:33] + _text_bomb() + png[33:], DAMAGED + "ValueError: Too much memory used in text"),
    }


def _jpeg_of_size(data: bytes, width: int, height: int) -> bytes:
    return tampered(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def _text_bomb() -> bytes:
    return b"".join(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20), 9)) for _ in range(80))


@pytest.fixture(scope="module")
def surprises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them in two classes, and a class without an image."""
    raw = tmp_path_factory.mktemp("surprises")
    files = come_through() | {name: data for name, (data, _) in bad_images().items()}
    for folder, names in (("good", come_through()), ("bad", bad_images()), ("nothing", ())):
        (raw / folder).mkdir()
        for name in names:
            (raw / folder / name).write_bytes(files[name])
    return raw


@pytest.mark.parametrize("pixels", SETTINGS)
def test_surprises_by_hand_come_through_or_are_excluded_by_their_rule(
    surprises: Path, tmp_path: Path, pixels: str
) -> None:
    manifest, stored = built(surprises, tmp_path, SETTINGS[pixels])
    found = reasons(manifest)
    assert set(found) == {f"bad/{name}" for name in bad_images()}
    for name, (_, rule) in bad_images().items():
        assert found[f"bad/{name}"].startswith(rule), (name, found[f"bad/{name}"])
    assert list(manifest.class_names) == ["bad", "good", "nothing"]
    assert list(manifest.notes) == ["classes without an image: nothing"]
    shown = {name.removeprefix("good/"): data for name, data in stored.items() if name.startswith("good/")}
    for name in come_through():
        after = rgb(shown.get(name) or shown[Path(name).stem])
        expected = np.asarray(scene().convert(SEEN_AS.get(name, "RGB")).convert("RGB")).astype(int)
        assert after.shape == expected.shape, name
        assert np.abs(after - expected).mean() < 20, name


def test_the_reasons_are_the_same_for_any_setting(surprises: Path, tmp_path: Path) -> None:
    found = [reasons(built(surprises, tmp_path / name, settings)[0]) for name, settings in SETTINGS.items()]
    assert found[0] == found[1] == found[2]


# ---- names


def test_names_of_every_kind_come_back_from_their_keys(tmp_path: Path) -> None:
    names = [
        "caf\u00e9.png",
        "cafe.png",
        "\u732b\u5199\u771f/\U0001f408.png",
        "with space, comma; and 'quotes'.png",
        "per%cent%20.png",
        "dots.in.name.png",
        "new\nline.png",
        "back\\slash.png",
        "x" * 120 + "/" + "y" * 200 + ".png",
        "same.png",
        "same.PNG",
        "same.jpg",
        "Same.png",
        "-rf.png",
        "~.png",
    ]
    raw = tmp_path / "raw"
    for number, name in enumerate(names):
        path = raw / "class" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(saved(Image.new("RGB", (9, 9), (number, 0, 0)), "PNG"))
    (raw / "class" / os.fsdecode(b"not utf-8 \xff.png")).write_bytes(saved(Image.new("RGB", (9, 9), (99, 0, 0)), "PNG"))
    manifest, stored = built(raw, tmp_path / "out", PNG)
    assert manifest.exclusions == []
    found = {
        name if "." in Path(name).name[-4:] else f"{name}.png": rgb(data)[0, 0, 0] for name, data in stored.items()
    }
    expected = {f"class/{name}": number for number, name in enumerate(names)} | {"class/not utf-8 \\xff.png": 99}
    assert found == expected
    assert all(len(key) <= 90 for key in manifest.renamed)
    assert len(json.dumps(manifest.exclusions)) == 2


def test_two_names_that_unicode_calls_equal_are_named(tmp_path: Path) -> None:
    for form in ("caf\u00e9.png", "cafe\u0301.png"):
        (tmp_path / "raw").mkdir(exist_ok=True)
        (tmp_path / "raw" / form).write_bytes(saved(scene(), "PNG"))
    if len(list((tmp_path / "raw").iterdir())) == 1:
        pytest.skip("this file system takes them for one")
    with pytest.raises(InputError, match=r"caf.*\.png' and 'caf.*\.png': two names .* rename or remove one"):
        built(tmp_path / "raw", tmp_path / "out", KEEP)


# ---- what the user sees


def test_the_summary_counts_reasons_and_the_exit_code_tells(surprises: Path, command: Command, tmp_path: Path) -> None:
    code, out, _ = command("build", "folder", "--raw", surprises, "--out", tmp_path, "--workers", 1, "--pixels", "png")
    assert code == 3
    assert f"{sum(rule == UNKNOWN for _, rule in bad_images().values())} of folder-train: {UNKNOWN}" in " ".join(
        out.split()
    )
    clean = tmp_path / "clean"
    clean.mkdir()
    (clean / "a.png").write_bytes(saved(scene(), "PNG"))
    assert command("build", "folder", "--raw", clean, "--out", tmp_path / "out", "--workers", 1)[0] == 0


# ---- bombs cost neither time nor memory

_MEASURE = """
import resource, sys, time
from pathlib import Path
from hjepa_shards.images.encode import JPEG_256, KEEP, PNG, encode
from hjepa_shards.errors import DecodeError
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
for name in sys.argv[1].split(","):
    for path in map(Path, sys.argv[2:]):
        try:
            encode(path.read_bytes(), {"keep": KEEP, "png": PNG, "jpeg": JPEG_256}[name])
        except DecodeError:
            pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - began)
"""


def cost(files: Mapping[str, bytes], folder: Path, pixels: str) -> tuple[float, float]:
    """MiB of memory and seconds of processor that encoding these files one after another takes in a fresh process."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    paths = [str(folder / name) for name in files]
    ran = subprocess.run([sys.executable, "-c", _MEASURE, pixels, *paths], capture_output=True, text=True, check=True)
    kib, seconds = map(float, ran.stdout.split())
    return kib / (1 if sys.platform == "darwin" else 1024) / (1024 if sys.platform == "darwin" else 1), seconds


def test_bombs_that_are_refused_cost_next_to_nothing(tmp_path: Path) -> None:
    bombs = {name: data for name, (data, rule) in bad_images().items() if rule == BOMB}
    assert len(bombs) >= 6
    mebibytes, seconds = cost(bombs, tmp_path, ",".join(SETTINGS))
    assert mebibytes < 50
    assert seconds < 5


@pytest.mark.slow
def test_large_images_take_16_bytes_a_pixel_at_most(tmp_path: Path) -> None:
    """16 bytes a pixel: 4 in Pillow for RGBA and again for RGB, 3 in an array, twice for a moment."""
    side = 4096
    largest = {
        ("rgba16.png", "png"): flat_png(side, side, 16, 6),
        ("turned.jpg", "jpeg"): _turned_black(side),
        ("float.tif", "png"): saved(Image.linear_gradient("L").resize((side, side)).convert("F"), "TIFF"),
    }
    for (name, pixels), data in largest.items():
        mebibytes, seconds = cost({name: data}, tmp_path, pixels)
        print(f"{name:16s} {pixels:5s} {len(data):10,d} bytes: {mebibytes:6.0f} MiB {seconds:6.2f} s")
        assert mebibytes < 16 * side**2 / 2**20, (name, pixels)
        assert seconds < 60, (name, pixels)


def _turned_black(side: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.new("RGB", (side, side)), "JPEG", exif=exif)
