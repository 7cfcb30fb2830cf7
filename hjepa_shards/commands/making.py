"""Commands that make shards or what is beside them: build, merge, repair, index."""

import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

import typer

from hjepa_shards.base.progress_bar import Advance, progress_bar, rate
from hjepa_shards.base.shown_text import size
from hjepa_shards.base.terminal import console, escape
from hjepa_shards.base.thread_map import num_cores
from hjepa_shards.commands.tables import commands_for, print_manifests, print_next, print_remarks
from hjepa_shards.errors import InputError

if TYPE_CHECKING:
    from hjepa_shards.building.build import BuiltSplit
    from hjepa_shards.images.encode import EncodeSettings
    from hjepa_shards.shards.manifest import Manifest

BUILT_WITH_EXCLUSIONS = 3
"""Exit code: all is built, but for images that no decoder reads."""

_Raw = Annotated[str | None, typer.Option(help="folder of the raw data; or tars, as 'x-{000..012}.tar'")]
_Classes = Annotated[Path | None, typer.Option(help="file with one class a line")]
_ListFile = Annotated[Path | None, typer.Option("--list", help="file of images and captions")]
_Image = Annotated[str | None, typer.Option(help="of tars: the member that is the image, as left.jpg of 0000.left.jpg")]
_Workers = Annotated[int, typer.Option(help="processes")]
_CORES = num_cores()


def build_command(
    source: Annotated[str, typer.Argument(help="one of `hjepa-shards sources`")],
    raw: _Raw = None,
    out: Annotated[str, typer.Option(help="root of all shards: a folder, or a URL as s3://bucket/x")] = "data/shards",
    split: Annotated[list[str] | None, typer.Option(help="only this split (may be repeated)")] = None,
    pixels: Annotated[
        Literal["keep", "png", "jpeg"] | None,
        typer.Option(help="how to store pixels (default: the source's)"),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="original bytes: --pixels keep")] = False,
    shorter_side: Annotated[int | None, typer.Option(help="scale larger images down to this")] = None,
    quality: Annotated[int | None, typer.Option(help="of JPEG (default: 90)")] = None,
    encoder: Annotated[
        Literal["turbo", "pillow", "pillow-simd"], typer.Option(help="what decodes and scales; their bytes differ")
    ] = "turbo",
    shard_mb: Annotated[int, typer.Option(help="aimed size of a shard, MiB")] = 180,
    samples_per_shard: Annotated[int | None, typer.Option(help="instead of --shard-mb")] = None,
    seed: Annotated[int, typer.Option(help="of the shuffle over shards")] = 0,
    limit: Annotated[
        int | None, typer.Option(help="only this many samples of each split, drawn over all of it")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="build it under another name, such as a second folder of your own")
    ] = None,
    classes: _Classes = None,
    list_file: _ListFile = None,
    no_classes: Annotated[
        bool, typer.Option("--no-classes", help="folder: all images of any tree of folders, without labels")
    ] = False,
    image: _Image = None,
    exclude: Annotated[Path | None, typer.Option(help="samples to exclude, as `duplicates --out` writes them")] = None,
    check_input: Annotated[
        bool, typer.Option("--check-input", help="read all raw data of what is built, and compare it with the build's")
    ] = False,
    workers: _Workers = _CORES,
    cluster: Annotated[
        str | None, typer.Option(help="do the work on this Ray cluster: auto, host:6379 or ray://host:10001")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="i/n: only the i-th of n parts, from 1; `merge` puts them together")
    ] = None,
) -> None:
    """Turn a raw dataset into shards. Killed? The same command continues. Exit code 3: images had to be excluded."""
    from hjepa_shards.building.build import BuildOptions, Part, build_part, build_splits

    options = BuildOptions(
        settings=_settings(source, "keep" if keep and pixels is None else pixels, shorter_side, quality, encoder),
        shard_mb=shard_mb,
        samples_per_shard=samples_per_shard,
        seed=seed,
        limit=limit,
        classes=classes,
        list_file=list_file,
        no_classes=no_classes,
        image=image,
        name=name,
        exclude=exclude,
        check_input=check_input,
        workers=workers,
        cluster=cluster,
    )
    if keep and pixels not in (None, "keep"):
        raise InputError(f"--keep and --pixels {pixels}: one of them expected")
    if part is None:
        with _timed() as start:
            built = build_splits(source, raw=raw, out=out, splits=split or (), options=options, start=start)
        return _end(built)
    chosen = Part.parse(part)
    with _timed() as start:
        parts = build_part(source, raw=raw, out=out, part=chosen, splits=split or (), options=options, start=start)
    for one in parts:
        verb = "is built already, nothing to do" if one.was_built else "is built"
        console.print(f"part {part} {verb}: {one.num_shards} of {one.of_shards} shards of {one.where}", markup=False)
    whole = f"{str(out).rstrip('/')}/{name or source}"
    print_next(f"hjepa-shards merge {shlex.quote(whole)}", when="when all parts are built")


def merge_command(
    folders: Annotated[list[str], typer.Argument(help="splits that were built in parts, or what is above them")],
) -> None:
    """Write the manifests of splits of which all parts are built."""
    from hjepa_shards.building.build import BuiltSplit
    from hjepa_shards.building.merge_parts import merged, unmerged_below

    built = []
    for where in (where for folder in folders for where in unmerged_below(folder)):
        manifest, was_built = merged(where)
        built.append(BuiltSplit(where=where, manifest=manifest, was_built=was_built))
    _end(built)


def repair_command(
    folder: Annotated[Path, typer.Argument(help="a built split")],
    raw: _Raw = None,
    classes: _Classes = None,
    list_file: _ListFile = None,
    workers: _Workers = _CORES,
) -> None:
    """Make broken and missing shards again, from raw, byte for byte what the manifest says."""
    from hjepa_shards.verifying.repair import repair

    with progress_bar("images") as start:
        done = repair(
            folder,
            raw=raw,
            classes=classes,
            list_file=list_file,
            workers=workers,
            progress=start(f"repair {folder}"),
        )
    for name in done.repaired:
        console.print(f"[green]repaired[/green] {escape(name)}")
    for problem in done.left:
        console.print(f"[red]wrong[/red] {escape(f'{problem.path}: {problem.what}')}")
    if done.left:
        raise InputError(f"{folder}: {len(done.left)} files are not right, and no build makes them so")
    console.print(f"[green]right[/green] {escape(str(folder))}")


def index_command(
    folder: Annotated[Path, typer.Argument(help="folder with third-party *.tar")],
    source: Annotated[
        str | None, typer.Option(help="source to name in the manifest (default: the folder above)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="split to name in the manifest (default: this folder)")] = None,
    image: _Image = None,
) -> None:
    """Make WebDataset tars usable: sidecars and a manifest beside them, the tars untouched. Exit codes as of build."""
    from hjepa_shards.building.index_tars import index_tars
    from hjepa_shards.mixture.class_windows import sorted_by_class
    from hjepa_shards.shards.sidecar import Sidecar

    with progress_bar("shards") as start:
        manifest = index_tars(folder, source=source, split=split, image=image, progress=start(f"index {folder}"))
    print_manifests([(folder, manifest)])
    print_remarks(manifest)
    sidecars = (Sidecar(folder / f"{manifest.shard_name(i)}.index") for i in range(manifest.num_shards))
    if said := sorted_by_class([sidecar.checked_rows()["label"] for sidecar in sidecars]):
        console.print(f"[yellow]note[/yellow] {escape(said)}")
    print_next(*commands_for([(str(folder), manifest)]))
    if manifest.exclusions:
        raise typer.Exit(BUILT_WITH_EXCLUSIONS)


def _settings(
    source: str, pixels: str | None, shorter_side: int | None, quality: int | None, encoder: str
) -> "EncodeSettings":
    """The source's own way of storing pixels, or the requested one."""
    from hjepa_shards.building.build import default_settings
    from hjepa_shards.config import parse
    from hjepa_shards.images.encode import EncodeSettings

    chosen: dict[str, Any] = default_settings(source).model_dump() if pixels is None else {"pixels": pixels}
    for name, value in (("shorter_side", shorter_side), ("quality", quality)):
        if value is None:
            continue
        if chosen["pixels"] != "jpeg" and (pixels is None or name == "quality"):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option}: pixels would be stored as {chosen['pixels']}; say --pixels jpeg with it")
        chosen[name] = value
    return parse(EncodeSettings, {**chosen, "encoder": encoder}, "how to store pixels")


@contextmanager
def _timed() -> Iterator[Callable[[str], Advance]]:
    """Progress bars of splits; at the end it is said how fast all of them went."""
    with progress_bar("images") as start:
        timed = _Timed(start)
        yield timed.start
    timed.say()


@final
class _Timed:
    """What progress bars of several splits heard, together."""

    def __init__(self, start: Callable[[str], Advance]) -> None:
        self._start = start
        self._samples = self._bytes = 0
        self._began = time.monotonic()

    def start(self, name: str) -> Advance:
        bar, last = self._start(name), (0, 0)

        def advance(done: int, total: int, num_bytes: int = 0, /) -> None:
            nonlocal last
            if num_bytes == 0:  # done by an earlier run
                last = (done, 0)
                if done == total:
                    return
            self._samples += done - last[0]
            self._bytes += num_bytes - last[1]
            last = (done, num_bytes)
            bar(done, total, num_bytes)

        return advance

    def say(self) -> None:
        took_s = time.monotonic() - self._began
        if self._samples:
            console.print(
                f"{self._samples:,} images in {took_s:,.1f} s: {rate(self._samples / took_s)} images/s, "
                f"{size(self._bytes / took_s)}/s of raw data"
            )


def _end(built: Sequence["BuiltSplit"]) -> None:
    """The summary of a build; leaves with its own exit code where images had to be excluded."""
    new = [split for split in built if not split.was_built]
    if new:
        print_manifests([(split.where, split.manifest) for split in new])
    failed = 0
    for split in built:
        manifest = split.manifest
        if split.was_built:
            console.print(f"already built, nothing to do: {escape(split.where)} ({manifest.num_samples:,} images)")
        else:
            console.print(_what_was_decoded(split.where, manifest), markup=False)
        on_request = manifest.settings["list_excluded"]
        if on_request:
            console.print(f"{escape(manifest.name)}: {on_request:,} samples excluded on request")
        for reason, count in _by_reason(manifest.exclusions[on_request:]):
            console.print(f"[yellow]excluded[/yellow] {count:,} of {escape(manifest.name)}: {escape(reason)}")
        failed += len(manifest.exclusions) - on_request
        if not split.was_built:
            print_remarks(manifest)
    print_next(*commands_for([(split.where, split.manifest) for split in built]))
    if failed:
        raise typer.Exit(BUILT_WITH_EXCLUSIONS)


def _what_was_decoded(where: str, manifest: "Manifest") -> str:
    """Damage inside the compressed data of an image shows only when it is decoded."""
    from hjepa_shards.building.merge_parts import num_decoded

    total, decoded = manifest.num_samples, num_decoded(where)
    if decoded == total:
        return f"{manifest.name}: all {total:,} images were decoded"
    some = "an unknown number" if decoded is None else f"{decoded:,}" if decoded else "none"
    return (
        f"{manifest.name}: {some} of {total:,} images were decoded, the others kept as they are; "
        f"`hjepa-shards verify --deep {where}` decodes all"
    )


def _by_reason(exclusions: Sequence[Any], most: int = 10) -> list[tuple[str, int]]:
    """The commonest reasons, without the numbers in them, and how many images each has cost."""
    return Counter(re.sub(r"\d[\d,.]*", "N", entry["reason"]) for entry in exclusions).most_common(most)
