"""Configurations that are written: their numbers are the plan's, their text reads back, wrong wishes are refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hjepa_shards.config import expanded, parse
from hjepa_shards.loader.read_split import read_split
from hjepa_shards.mixture.mixture import DataConfig, load_mixture_file
from hjepa_shards.mixture.source_shares import dataset_stats
from hjepa_shards.mixture.write_mixture import SCALES, default_image_size, parse_source, write_mixture
from tests.conftest import Command
from tests.hjepa_shards.stand_in import save_stand_in
from tests.hjepa_shards.test_cli import refused


def wanted(root: Path, *sources: str, **more: Any) -> DataConfig:
    content = {
        "root": str(root),
        "strategy": "weighted",
        "sources": [parse_source(text).model_dump() for text in sources],
    }
    return parse(DataConfig, content | more, "test")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_stand_in(tmp_path / "shards", "big", [300, 300, 250])
    save_stand_in(tmp_path / "shards", "small", [10, 15])
    save_stand_in(tmp_path / "shards", "small", [40], split="extra")
    return tmp_path / "shards"


def test_the_file_reads_back_as_the_requested_mixture(root: Path, tmp_path: Path) -> None:
    data = wanted(root, "big=0.7", "small=0.2", "small:extra=0.1", epoch_samples=2000)
    write_mixture(tmp_path / "mine.yaml", data)
    assert load_mixture_file(tmp_path / "mine.yaml").config == data


@pytest.mark.parametrize("strategy", ["weighted", "balanced", "concat"])
def test_what_is_written_beside_a_source_is_what_the_plan_draws_from_it(
    root: Path, tmp_path: Path, strategy: str
) -> None:
    weights = ["big=7", "small=3"] if strategy == "weighted" else ["big", "small"]
    written = write_mixture(tmp_path / "mine.yaml", wanted(root, *weights, strategy=strategy))
    mixture = load_mixture_file(tmp_path / "mine.yaml")
    stats = dataset_stats(mixture)
    assert written.stats == stats
    planned = mixture.make_plan(0).samples(0, mixture.epoch_samples)
    for number, entry in enumerate(mixture.entries):
        draws = int(np.sum(planned.source == number))
        assert stats[entry.name].epoch_samples == pytest.approx(draws, abs=1)
        line = next(line for line in (tmp_path / "mine.yaml").read_text().splitlines() if f"name: {entry.name}" in line)
        numbers = line.partition("#")[2].split()
        assert numbers[1:3] == [f"{entry.num_samples:,}", f"{stats[entry.name].epoch_samples:,.0f}"]
        assert float(numbers[3]) == pytest.approx(draws / entry.num_samples, abs=0.06)


def test_the_mini_mixture_draws_what_its_description_says(tmp_path: Path) -> None:
    sources, epoch_samples = SCALES["mini"]
    written = write_mixture(tmp_path / "mini.yaml", wanted(tmp_path, *sources, epoch_samples=epoch_samples))
    draws = {name: stats.epoch_samples for name, stats in written.stats.items()}
    assert draws == pytest.approx({"imagenet100": 165_600, "stl10-unlabeled": 82_800, "cifar100": 27_600})


def test_crops_are_as_large_as_the_images_unless_said_otherwise(shards: Path) -> None:
    root = str(shards)
    assert default_image_size(root, [parse_source("digits=1")]) == 32  # 8 pixels: the least that H-JEPA has levels for
    assert default_image_size(root, [parse_source("digits=1"), parse_source("photos=1")]) == 64
    assert default_image_size(root, [parse_source("digits=1"), parse_source("imagenet=1")]) == 224  # not built yet


@pytest.mark.parametrize("scale", SCALES)
def test_what_is_not_built_yet_is_written_with_the_command_that_builds_it(
    command: Command, tmp_path: Path, scale: str
) -> None:
    path = tmp_path / f"{scale}.yaml"
    code, out, _ = command("mix", "--scale", scale, "--root", tmp_path / "shards", "--out", path)
    assert code == 0
    said = " ".join(out.split())
    data = DataConfig.model_validate(yaml.safe_load(path.read_text())["data"])
    for source in data.sources:
        build = f"hjepa-shards build {source.name} --raw DIR --out {tmp_path / 'shards'}"
        assert f"#   {build}" in path.read_text()
        assert f"note {source.entry_name} is not built yet: " in said
    assert sum(source.weight or 0 for source in data.sources) == pytest.approx(1)


def test_one_source_that_is_missing_leaves_the_others_their_numbers(root: Path, tmp_path: Path) -> None:
    data = wanted(root, "big=0.6", "cifar10=0.4", epoch_samples=1000)
    stats = write_mixture(tmp_path / "mine.yaml", data).stats
    assert (stats["big"].epoch_samples, stats["big"].passes) == (600, pytest.approx(600 / 850))
    assert (stats["cifar10"].samples, stats["cifar10"].epoch_samples, stats["cifar10"].passes) == (None, 400, None)
    data = wanted(root, "big", "cifar10", strategy="concat")
    assert write_mixture(tmp_path / "other.yaml", data).stats["big"].share is None


@pytest.mark.parametrize(
    "name", ["my shards: #1", "it's", "yes/no", "äöü", "~", "12", "a: b", "- x", 'quo"te', "1e3/x"]
)
def test_any_printable_root_reads_back(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    save_stand_in(root, "big", [30])
    write_mixture(tmp_path / "mine.yaml", wanted(root, "big=1"))
    assert load_mixture_file(tmp_path / "mine.yaml").config.root == str(root)
    write_mixture(tmp_path / "other.yaml", wanted(Path(name), "cifar10=1"))  # a relative one, not built
    assert yaml.safe_load((tmp_path / "other.yaml").read_text())["data"]["root"] == expanded(name)


@pytest.mark.parametrize("weight", ["1e-7", "0.1", "3", "1e9", "0.3000001"])
def test_any_weight_reads_back(root: Path, tmp_path: Path, weight: str) -> None:
    data = wanted(root, f"big={weight}", "small=1")
    write_mixture(tmp_path / "mine.yaml", data)
    content = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert content["data"]["sources"][0]["weight"] == float(weight)


def test_settings_of_the_data_survive(root: Path, tmp_path: Path) -> None:
    data = wanted(
        root,
        "big=1",
        image_size=64,
        augmentation={"crop_scale": [0.3, 1], "crop_ratio": [0.5, 2], "horizontal_flip": False, "color_jitter": 0}
        | {"views": 2, "grayscale": 0.2, "blur": 0.5},
        pixel_mean=[0.5, 0.25, 0.125],
    )
    write_mixture(tmp_path / "mine.yaml", data)
    assert load_mixture_file(tmp_path / "mine.yaml").config == data


def test_the_means_in_the_comment_are_those_of_the_pixels(shards: Path, tmp_path: Path) -> None:
    write_mixture(tmp_path / "mine.yaml", wanted(shards, "photos=1", image_size=64))
    comment = re.search(r"own: \[([\d., ]+)\] and \[([\d., ]+)\]", (tmp_path / "mine.yaml").read_text())
    assert comment
    mean, deviation = ([float(number) for number in part.split(",")] for part in comment.groups())
    batches = read_split(shards / "photos" / "train", image_size=64, batch=100, crop_share=1)
    pixels = np.concatenate([batch.images[batch.valid] for batch in batches]).reshape(-1, 3) / 255
    assert mean == pytest.approx(pixels.mean(0), abs=0.02)
    assert deviation == pytest.approx(pixels.std(0), abs=0.02)


def test_a_run_is_long_enough_for_its_target_network_and_named_after_its_file(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "my first (mixture).yaml"
    write_mixture(path, wanted(shards, "digits=1", image_size=32))
    content = yaml.safe_load(path.read_text())
    assert content["run"]["name"] == "my-first-mixture"
    assert content["training"]["epochs"] * 200 // content["training"]["global_batch"] >= 2000
    assert content["evaluation"]["source"] == "digits"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source", "imagenet10=1"], ["imagenet10", "did you mean imagenet100?"]),
        (["--source", "digitz=1"], ["digitz", "did you mean digits?"]),
        (["--source", "qqqq=1"], ["qqqq", "known: ", "cifar10"]),
        (["--source", "stl10:unlabelled=1"], ["'unlabelled'", "did you mean unlabeled?"]),
        (["--source", "digits"], ["digits=0.5", "--strategy balanced"]),
        (["--source", "digits=many"], ["digits=many", "a number expected", "'many'"]),
        (["--source", "digits="], ["a number expected"]),
        (["--source", "digits=nan"], ["digits=nan", "a number of at least 0"]),
        (["--source", "digits=-1"], ["digits=-1", "-1"]),
        (["--source", "digits=0"], ["above 0"]),
        (["--source", "=1"], ["--source =1", "name"]),
        (["--source", "../x=1"], ["name"]),
        (["--source", "digits=1", "--source", "digits=2"], ["two sources are called digits"]),
        (["--source", "digits=1", "--strategy", "balanced"], ["balanced", "takes no weights"]),
        (["--source", "digits=1", "--scale", "mini"], ["--scale", "both found"]),
        (["--scale", "mini", "--strategy", "concat"], ["--scale mini", "concat"]),
        ([], ["--source", "--scale", "neither found"]),
        (["--source", "digits=1", "--image-size", "100"], ["--image-size", "100", "98"]),
        (["--source", "digits=1", "--image-size", "0"], ["image_size"]),
        (["--source", "digits=1", "--epoch-samples", "0"], ["epoch_samples"]),
        (["--source", "digits=1", "--root", "a\nb: c"], ["--root", "printable"]),
    ],
)
def test_wrong_wishes_are_one_line_and_write_nothing(
    command: Command, tmp_path: Path, arguments: list[str], said: list[str]
) -> None:
    refused(command("mix", *arguments, "--out", tmp_path / "mine.yaml"), *said)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_replaced_only_with_force(command: Command, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "mine.yaml"
    arguments = ["mix", "--source", "big=1", "--root", root, "--image-size", "32", "--out", path]
    assert command(*arguments)[0] == 0
    path.write_text("mine")
    refused(command(*arguments), str(path), "--force")
    assert path.read_text() == "mine"
    assert command(*arguments, "--force")[0] == 0
    assert command("plan", path)[0] == 0


def test_a_damaged_manifest_is_named(command: Command, root: Path, tmp_path: Path) -> None:
    manifest = root / "big" / "train" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-9])
    refused(command("mix", "--source", "big=1", "--root", root, "--out", tmp_path / "mine.yaml"), "manifest.json")
