"""Commands that make shards or what stands beside them: build, index."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from hjepa_shards.build import DEFAULT_SHARD_MB, BuildOptions, build, default_settings
from hjepa_shards.commands.tables import print_manifests, print_remarks
from hjepa_shards.config import parse
from hjepa_shards.encode import EncodeSettings
from hjepa_shards.errors import InputError
from hjepa_shards.index import index_tars
from hjepa_shards.terminal import progress_bar


def build_command(
    source: Annotated[str, typer.Argument(help="one of `hjepa-shards sources`")],
    raw: Annotated[Path | None, typer.Option(help="folder of the raw data")] = None,
    out: Annotated[Path, typer.Option(help="root of all shards")] = Path("data/shards"),
    split: Annotated[list[str] | None, typer.Option(help="only this split (may be repeated)")] = None,
    pixels: Annotated[
        Literal["keep", "png", "jpeg"] | None,
        typer.Option(help="how to store pixels [default: the source's]"),
    ] = None,
    shorter_side: Annotated[int | None, typer.Option(help="scale larger images down to this")] = None,
    quality: Annotated[int, typer.Option(help="of JPEG")] = 90,
    encoder: Annotated[
        Literal["pillow", "pillow-simd"], typer.Option(help="must be the one installed; their bytes differ")
    ] = "pillow",
    shard_mb: Annotated[int, typer.Option(help="aimed size of a shard, MiB")] = DEFAULT_SHARD_MB,
    samples_per_shard: Annotated[int | None, typer.Option(help="instead of --shard-mb")] = None,
    seed: Annotated[int, typer.Option(help="of the shuffle over shards")] = 0,
    limit: Annotated[int | None, typer.Option(help="only so many samples of each split")] = None,
    classes: Annotated[Path | None, typer.Option(help="file with one class a line")] = None,
    workers: Annotated[int, typer.Option(help="processes")] = 1,
) -> None:
    """Turn a raw dataset into shards. Killed? The same command goes on."""
    if pixels is None and shorter_side is not None:
        raise InputError("--shorter-side: say --pixels jpeg or --pixels png with it")
    settings = default_settings(source)
    if pixels is not None:
        chosen = {"pixels": pixels, "shorter_side": shorter_side, "quality": quality}
        settings = parse(EncodeSettings, chosen, "how to store pixels")
    options = BuildOptions(
        settings=settings.model_copy(update={"encoder": encoder}),
        shard_mb=shard_mb,
        samples_per_shard=samples_per_shard,
        seed=seed,
        limit=limit,
        classes=classes,
        workers=workers,
    )
    with progress_bar("images") as start:
        manifests = build(source, raw=raw, out=out, splits=split or (), options=options, progress=start(source))
    print_manifests([(out / source / manifest.split, manifest) for manifest in manifests])
    for manifest in manifests:
        print_remarks(manifest)


def index_command(
    folder: Annotated[Path, typer.Argument(help="folder with somebody else's *.tar")],
    source: Annotated[str | None, typer.Option(help="name [default: the folder above]")] = None,
    split: Annotated[str | None, typer.Option(help="name [default: this folder]")] = None,
) -> None:
    """Make WebDataset tars usable: sidecars and a manifest beside them, the tars untouched."""
    with progress_bar("shards") as start:
        manifest = index_tars(folder, source=source, split=split, progress=start(f"index {folder}"))
    print_manifests([(folder, manifest)])
    print_remarks(manifest)
