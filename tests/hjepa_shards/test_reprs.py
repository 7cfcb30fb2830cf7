"""What an object says of itself: a line in a terminal, a table or pictures in a notebook, whatever is in the data."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hjepa_shards import Batch, DataConfig, SplitView, forecast, load_mixture, open_loader
from hjepa_shards.config import parse
from hjepa_shards.loader import shard_store
from hjepa_shards.loader.split_view import Sample
from hjepa_shards.mixture.mixture import Mixture
from hjepa_shards.shards.manifest import load_manifest
from tests.hjepa_shards.base.test_notebook_html import Parsed
from tests.hjepa_shards.loader.test_loader import mix
from tests.hjepa_shards.reports.test_svg_bars import HOSTILE
from tests.hjepa_shards.shards.test_manifest import BASE
from tests.hjepa_shards.verifying.test_verify_split import flip

TERMINAL = "\x1b]0;title\x07\x1b[2J"


def batch_of(num: int, views: int = 1) -> Batch:
    shape = (num, 16, 16, 3) if views == 1 else (num, views, 16, 16, 3)
    numbers = np.arange(num)
    return Batch(
        images=np.zeros(shape, np.uint8),
        labels=numbers % 10 - 1,
        entries=numbers % 300,
        samples=numbers,
        positions=numbers + 64,
        valid=numbers < num - 1,
        position=64,
        next_position=64 + num,
        proof=0,
    )


def many_entries(shards: Path, num: int) -> Mixture:
    sources = [{"name": "digits", "entry": f"entry-{number}", "weight": 1 + number} for number in range(num)]
    return load_mixture(parse(DataConfig, {"root": str(shards), "sources": sources}, "test"), "test")


def everything(shards: Path) -> dict[str, Any]:
    """Large, and with text that third parties wrote."""
    mixture = many_entries(shards, 300)
    manifest = replace(
        BASE,
        source=TERMINAL,
        class_names=[*HOSTILE, TERMINAL] * 1000,
        notes=HOSTILE,
        shard_samples=np.full(100_000, 1000),
        shard_bytes=np.full(100_000, 10**8),
        settings={name: name for name in HOSTILE},
        provenance={"upstream": HOSTILE[0], "licence": TERMINAL},
    )
    view = SplitView(shards / "digits" / "test")
    view.manifest = replace(view.manifest, class_names=[name + TERMINAL for name in HOSTILE * 2], source=TERMINAL)
    return {
        "manifest": manifest,
        "mixture": mixture,
        "plan": mixture.make_plan(0),
        "forecast": forecast(mixture, epochs=3, global_batch=64),
        "batch": batch_of(4096),
        "views": batch_of(64, views=3),
        "view": view,
        "sample": Sample(np.zeros((300, 400, 3), np.uint8), 3, (*HOSTILE, TERMINAL)),
        "planned": mixture.make_plan(0).samples(0, 5000),
        "entry": mixture.entries[0],
    }


def test_each_is_one_short_line(shards: Path) -> None:
    for name, thing in everything(shards).items():
        line = repr(thing)
        assert line.isprintable(), name
        assert len(line) < 400, name
        assert line.startswith("<")
        assert line.endswith(">")


def test_each_is_escaped_and_light_in_a_notebook(shards: Path) -> None:
    shown = {name: thing._repr_html_() for name, thing in everything(shards).items() if hasattr(thing, "_repr_html_")}
    assert set(shown) == {"manifest", "mixture", "plan", "forecast", "batch", "views", "view", "sample"}
    for name, page in shown.items():
        assert all(text.isprintable() for text in Parsed(page).texts), name
        assert len(page) < 250_000, name


def test_lines_say_how_much_and_where(shards: Path) -> None:
    mixture = mix(shards)
    assert repr(load_manifest(shards / "digits" / "test")).startswith(
        "<Manifest digits-test: 200 samples, 10 classes, 5 "
    )
    view = SplitView(shards / "photos" / "train", transform=str)
    assert repr(view).startswith("<SplitView photos-train: 100 samples, 3 shards of ")
    assert repr(view).endswith(f"at {shards}/photos/train, transform str>")
    assert repr(view[0]).startswith("<Sample: str, no label, 0 captions")
    assert repr(SplitView(shards / "digits" / "test")[0]).startswith("<Sample: ndarray [8, 8, 3], label ")
    assert repr(mixture) == (
        "<Mixture of 3 entries, weighted, 500 samples an epoch: digits 50.00%, photos 20.00%, scattered 30.00%>"
    )
    assert repr(mixture.make_plan(7)) == "<Plan from position 0, seed 7: weights digits 5, photos 2, scattered 3>"
    assert repr(forecast(mixture, epochs=1, global_batch=50)) == (
        "<Forecast of 1 epoch: 10 steps of 50 on 1 rank, 500 samples: digits 250, photos 100, scattered 150; 1 warning>"
    )
    with open_loader(mixture, seed=5, global_batch=10, world=2) as loader:
        batch = next(loader)
        assert repr(loader) == (
            "<Loader of digits, photos, scattered: position 10, global batch 10, rank 0 of 2, images [5, 16, 16, 3], "
            "2 threads>"
        )
    assert repr(batch).startswith("<Batch of positions 0 to 9: images uint8 [5, 16, 16, 3], ")
    assert "3 labelled, 3 valid, entries {0: 1, 1: 1, 2: 1, 3: 1}" in repr(batch_of(4))


def test_a_batch_shows_its_first_images_with_all_of_their_views() -> None:
    assert Parsed(batch_of(64)._repr_html_()).tags.count("img") == 24
    assert Parsed(batch_of(5, views=3)._repr_html_()).tags.count("img") == 15
    assert Parsed(batch_of(64, views=3)._repr_html_()).texts[-1] == "and 56 more"


def test_a_table_has_every_entry(shards: Path) -> None:
    texts = Parsed(many_entries(shards, 300)._repr_html_()).texts
    assert [f"entry-{number}" for number in range(300)] == sorted(
        (text for text in texts if text.startswith("entry-")), key=lambda text: int(text[6:])
    )


def test_a_split_shows_what_can_be_read_and_says_what_cannot(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(shards / "digits" / "test", tmp_path / "test"))
    view = SplitView(folder)
    located = view._reader.locate(3)
    flip(folder / view.manifest.shard_name(0), located.row.image_offset + 20)
    shown = Parsed(SplitView(folder)._repr_html_())
    assert shown.tags.count("img") == 23
    assert sum("crc32" in text for text in shown.texts) == 1
    (folder / view.manifest.shard_name(0)).unlink()
    monkeypatch.setattr(shard_store, "_RETRY_WAITS_S", ())
    shown = Parsed(SplitView(folder)._repr_html_())
    assert "img" not in shown.tags
    assert any("No such file" in text for text in shown.texts)


@pytest.mark.parametrize("image", [None, np.zeros((3, 8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_a_transformed_sample_is_a_line_of_text(image: Any) -> None:
    assert Sample(image, 1, ())._repr_html_() is None


def test_a_manifest_says_what_was_excluded() -> None:
    assert repr(BASE) == "<Manifest s-train: 5 samples, 2 classes, 2 shards of 3.07 kB, 1 excluded>"
