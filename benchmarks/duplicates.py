"""How many of CIFAR-10's known duplicates are found, how many of the found ones are duplicates, and how fast?

    python benchmarks/duplicates.py SHARDS/cifar10 --raw cifar-10-batches-py --known duplicates_cifar10.csv

Known: the list published with ciFAIR (Barz and Denzler 2020, github.com/cvjena/cifair, folder `meta`): 286 test images
with a near duplicate (judgment 1) or a very similar picture (2) among the training images, found by CNN features and
confirmed by people. `--sheet FILE.png` shows the leaks that are not on the list, for one's own eyes: duplicates that
the list misses, and pictures that are none. `--hashes N` times the search alone among N random hashes.
"""

import argparse
import csv
import time
from pathlib import Path

import cv2
import numpy as np

from hjepa_shards.base.thread_map import num_cores
from hjepa_shards.commands.tables import splits_below
from hjepa_shards.duplicates.find_duplicates import DEFAULT_NEAR, Duplicates, find_duplicates
from hjepa_shards.duplicates.hamming_pairs import near_pairs
from hjepa_shards.loader.sample_reader import SampleReader
from hjepa_shards.loader.shard_store import LocalStore
from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.shards.raw_sample import plain_key
from hjepa_shards.sources.registry import open_split

_SIDE, _COLUMNS = 64, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--known", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--near", type=int, default=DEFAULT_NEAR)
    parser.add_argument("--hashes", type=int)
    options = parser.parse_args()
    if options.hashes:
        time_search(options.hashes, options.near)
    if options.folders:
        folders = splits_below(options.folders)
        began = time.perf_counter()
        found = find_duplicates(folders, near=options.near, workers=num_cores())
        took_s = time.perf_counter() - began
        print(f"{found.num_samples:,} images in {took_s:.1f} s: {found.num_samples / took_s:,.0f} images/s")
        for relation in found.relations:
            print(f"{'leak ' * relation.leak}{relation.first} and {relation.second}: {relation.images}")
        listed = compare(found, options.known, options.raw) if options.known else set()
        if options.sheet:
            draw(found, folders, listed, options.sheet)


def time_search(num_hashes: int, near: int) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, num_hashes, dtype=np.uint64)
    began = time.perf_counter()
    pairs = near_pairs(hashes, 0, near, num_cores())
    took_s = time.perf_counter() - began
    print(
        f"{num_hashes:,} random hashes, {near} bits: {took_s:.0f} s, {len(pairs.first):,} pairs, {pairs.cut:,} skipped"
    )


def compare(found: Duplicates, known: Path, raw: Path) -> set[str]:
    """Print the recall by judgment; gives the keys of the test images that are on the list."""
    keys = {}
    for sample in open_split("cifar10", raw, "test").samples:
        keys[sample.index] = plain_key(sample.name)
    leaked = {
        copy.key: group.kind for group in found.groups if group.leak for copy in group.samples if copy.split == "test"
    }
    with known.open() as file:
        rows = [(keys[int(row["TestID"])], int(row["Judgment"])) for row in csv.DictReader(file)]
    for judgment, name in ((0, "exact"), (1, "near"), (2, "very similar")):
        listed = [key for key, judged in rows if judged == judgment]
        print(f"listed as {name}: {sum(key in leaked for key in listed)} of {len(listed)} found")
    others = [key for key in leaked if key not in dict(rows)]
    print(f"leaking groups hold {len(leaked)} test images, {len(others)} of them not on the list")
    return {key for key, _ in rows}


def draw(found: Duplicates, folders: list[Path], listed: set[str], path: Path) -> None:
    """Pairs of a held-out image and its first duplicate in training, without the listed ones."""
    readers = {}
    for folder in folders:
        manifest = load_manifest(folder)
        readers[manifest.source, manifest.split] = SampleReader(LocalStore(folder, manifest), manifest)
    cells = []
    for group in found.groups:
        first, others = group.samples[0], [copy for copy in group.samples if copy.split == "train"]
        if not group.leak or first.key in listed:
            continue
        cell = np.full((_SIDE + 14, 2 * _SIDE + 8, 3), 255, np.uint8)
        for index, copy in enumerate((first, others[0])):
            reader = readers[copy.source, copy.split]
            pixels = cv2.resize(reader.pixels(reader.locate(copy.index)), (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
            cell[:_SIDE, index * (_SIDE + 1) :][:, :_SIDE] = pixels
        text = f"{others[0].kind} {others[0].distance}"
        cells.append(cv2.putText(cell, text, (0, _SIDE + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % _COLUMNS) if cells else []
    rows = [np.hstack(cells[start : start + _COLUMNS]) for start in range(0, len(cells), _COLUMNS)]
    if rows:
        cv2.imwrite(str(path), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    main()
