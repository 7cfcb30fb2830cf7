"""Commands that show what is there or will be: sources, info, plan."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from hjepa_shards.base.shown_text import size
from hjepa_shards.base.terminal import console, escape, visible
from hjepa_shards.commands.tables import print_manifests, print_remarks, splits_below
from hjepa_shards.errors import InputError

if TYPE_CHECKING:
    from hjepa_shards.mixture.forecast import Forecast
    from hjepa_shards.mixture.mixture import Mixture
    from hjepa_shards.shards.location import Place
    from hjepa_shards.shards.manifest import Manifest

_SECTIONS = ("run", "data", "backbone", "objective", "training", "evaluation", "logging")
"""Of a run's file. `hjepa-train run` refuses every unknown key in them."""
_NUMBERS = ("epochs", "global_batch")
"""The keys of `training` that are used here."""


def sources_command() -> None:
    """The raw datasets that `build` knows."""
    from hjepa_shards.sources.registry import SOURCES

    for source in SOURCES.values():
        console.print(f"[bold]{source.name}[/bold]  {escape(source.description)}")
        facts = {
            "--raw": source.layout or "none needed",
            "classes": source.classes,
            "images": source.images,
            "download": source.download,
            "stored as": source.pixels,
        }
        table = Table.grid(padding=(0, 2))
        for what, value in facts.items():
            table.add_row(f"  {what}", Text(value, overflow="fold"))
        console.print(table)


def info_command(
    folders: Annotated[list[str], typer.Argument(path_type=str, help="built splits, or what is above them; also URLs")],
) -> None:
    """What is in built splits."""
    from hjepa_shards.shards.location import manifest_at

    found = [(place, manifest_at(place)) for place in splits_below(folders)]
    print_manifests(found)
    for folder, manifest in found if len(found) == 1 else ():
        _print_details(folder, manifest)


def plan_command(
    config: Annotated[Path, typer.Argument(help="mix.yaml: a run, or its data section alone")],
    epochs: Annotated[int | None, typer.Option(help="epochs of the run (default: training.epochs, or 1)")] = None,
    global_batch: Annotated[
        int | None, typer.Option(help="images of a step on all ranks (default: training.global_batch, or 256)")
    ] = None,
    ranks: Annotated[int, typer.Option(help="processes that share a global batch")] = 1,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="another value, such as data.epoch_samples=50000")
    ] = None,
    proof: Annotated[int | None, typer.Option(help="print the order proof after this many images", min=0)] = None,
    expect: Annotated[
        str | None, typer.Option(help="with --proof: the proof that a run reported; exit code 1 where it is another")
    ] = None,
) -> None:
    """What a run will see, before it starts: steps, and samples, passes, repeats, never seen by source."""
    from hjepa_shards.config import load_yaml, overridden
    from hjepa_shards.mixture.forecast import forecast
    from hjepa_shards.mixture.mixture import mixture_of

    content = overridden(load_yaml(config), changes or (), str(config))
    mixture = mixture_of(content, str(config))
    _require_known_keys(content, config)
    if proof is not None or expect is not None:
        return _print_proof(mixture, _number(content, config, "run", "seed", otherwise=0), proof, expect)
    if epochs is None:
        epochs = _number(content, config, "training", "epochs", otherwise=1)
    if global_batch is None:
        global_batch = _number(content, config, "training", "global_batch", otherwise=256)
    if "epochs" not in (content.get("training") or {"epochs": 1}):
        console.print(f"[yellow]note[/yellow] {escape(str(config))}: no training.epochs there: one epoch is planned")
    print_forecast(forecast(mixture, epochs=epochs, global_batch=global_batch, ranks=ranks), mixture)


def _require_known_keys(content: dict[str, Any], config: Path) -> None:
    """InputError for a section that no run has, and for what may be meant as one of the numbers that are used here."""
    if "data" not in content:
        return
    training = content.get("training")
    suspects = [(str(key), "", _SECTIONS, 0.0) for key in content]
    suspects += [(str(key), "training.", _NUMBERS, 0.8) for key in (training if isinstance(training, dict) else ())]
    for key, section, known, likeness in suspects:
        near = difflib.get_close_matches(key, known, n=1, cutoff=likeness)
        if near and key not in known:
            raise InputError(f"{config}: unknown key `{section}{key}`; did you mean `{section}{near[0]}`?")


def _print_proof(mixture: "Mixture", seed: int, samples: int | None, expected: str | None) -> None:
    from hjepa_shards.mixture.forecast import planned_proof

    if samples is None:
        raise InputError("--expect: belongs to --proof IMAGES, which is missing")
    found = f"{planned_proof(mixture, seed=seed, samples=samples):032x}"
    if expected is None or expected.lower() == found:
        console.print(f"order proof after {samples:,} images: {found}{' as expected' if expected else ''}")
        return
    console.print(
        f"order proof after {samples:,} images: {expected} reported, {found} planned: another order, other samples, "
        "another seed, or damaged samples that were replaced"
    )
    raise typer.Exit(1)


def _number(content: dict[str, Any], config: Path, section: str, key: str, otherwise: int) -> int:
    """A number in a section that a run's file has and one for the mixture alone has not."""
    found = content.get(section)
    value = found.get(key, otherwise) if isinstance(found, dict) else otherwise
    if type(value) is not int:
        raise InputError(f"{config}: {section}.{key}: a whole number expected, {value!r} found")
    return value


def print_forecast(plan: "Forecast", mixture: "Mixture") -> None:
    """The dry run as a table with its warnings."""
    console.print(
        f"{plan.epochs:,} epochs of {plan.epoch_samples:,} samples ({mixture.config.strategy}): {plan.steps:,} steps "
        f"of {plan.global_batch} on each of {plan.ranks} ranks, {plan.samples:,} samples in all"
    )
    drawn = Table("source", "share", "samples", "an epoch", "in the run")
    comes_to = Table(
        "source",
        "passes",
        "repeats",
        "never seen",
        "read",
        "windows",
        caption="windows: keep this much in memory or on an SSD",
    )
    for column in (*drawn.columns[1:], *comes_to.columns[1:]):
        column.justify = "right"
    for entry in plan.entries:
        drawn.add_row(
            escape(entry.name),
            f"{entry.share:.2%}",
            f"{entry.samples:,}",
            f"{entry.epoch_draws:,.0f}",
            f"{entry.draws:,}",
        )
        comes_to.add_row(
            escape(entry.name),
            f"{entry.passes:.2f}",
            f"{entry.repeats:,}",
            f"{entry.never_seen:,}",
            size(entry.draw_bytes),
            size(entry.window_bytes),
        )
    console.print(drawn, comes_to)
    for warning in plan.warnings:
        console.print(f"[yellow]note[/yellow] {escape(warning)}")


def _words(facts: Mapping[str, object]) -> str:
    from hjepa_shards.config import flatten

    return ", ".join(f"{name} {value}" for name, value in flatten(facts).items())


def _print_details(place: "Place", manifest: "Manifest") -> None:
    from hjepa_shards.shards.location import is_labelled

    facts = {
        "members of a sample": ", ".join(manifest.members),
        **{key.replace("_", " "): value for key, value in manifest.settings.items()},
        "encoder": "third-party" if manifest.encoder is None else _words(manifest.encoder),
        **{key.replace("_", " "): value for key, value in manifest.provenance.items()},
        "order digest": manifest.order_digest,
        "content digest": manifest.content_digest,
    }
    for what, value in facts.items():
        console.print(visible(f"{what}: {value}"), markup=False, highlight=False)
    statistics = manifest.statistics
    if statistics.get("images") and "width" in statistics:
        width, height = statistics["width"], statistics["height"]
        console.print(f"width {width[0]}-{width[1]}, height {height[0]}-{height[1]} pixels")
        for name, (mean, square) in zip("RGB", manifest.channel_means(), strict=False):
            deviation = max(0.0, square - mean**2) ** 0.5
            console.print(f"{name}: mean {mean:.4f}, standard deviation {deviation:.4f}")
    if manifest.class_names:
        names = ", ".join(manifest.class_names[:20]) + " ..." * (len(manifest.class_names) > 20)
        console.print(visible(f"classes: {names}"), markup=False)
    elif is_labelled(place, manifest):
        console.print("classes: labels without names")
    print_remarks(manifest)
