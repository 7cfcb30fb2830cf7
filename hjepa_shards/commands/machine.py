"""Commands about the machine itself: doctor, bench."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hjepa_shards.base.shown_text import size
from hjepa_shards.base.terminal import console, escape

if TYPE_CHECKING:
    from hjepa_shards.base.machine_limits import Disk
    from hjepa_shards.commands.doctor import Examination, Speed


def doctor_command(
    folder: Annotated[Path, typer.Option(help="where shards are or will be")] = Path("data/shards"),
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Versions, decoders and their speed, cores, memory, disk, GPU; and what would make it faster. Takes 20 seconds."""
    from hjepa_shards.commands.doctor import examine

    if as_json:
        print(json.dumps(asdict(examine(folder)), indent=1, default=str))
        return
    with console.status("measuring"):
        found = examine(folder)
    _print_speeds(found)
    _print_machine(found)
    console.print(", ".join(f"{name} {version}" for name, version in found.versions.items()), markup=False)
    table = Table.grid(padding=(0, 1))
    for advice in found.advice:
        table.add_row("[yellow]advice[/yellow]", f"{escape(advice.what)}\n[dim]because {escape(advice.why)}[/dim]")
    console.print(table if found.advice else "[green]right[/green] nothing to advise")


def bench_command(
    config: Annotated[Path, typer.Argument(help="mix.yaml: a run, or its data section alone")],
    images: Annotated[int, typer.Option(help="how many at a time", min=64)] = 2048,
    rounds: Annotated[int, typer.Option(help="the median of this many", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Images a second that the loader delivers of this mixture, beside the decoder alone, and what limits it."""
    from hjepa_shards.loader.bench import TARGETS, bench_loader
    from hjepa_shards.mixture.mixture import load_mixture_file

    mixture = load_mixture_file(config)
    if as_json:
        print(json.dumps(asdict(bench_loader(mixture, images=images, rounds=rounds)), indent=1))
        return
    with console.status("measuring") as status:
        found = bench_loader(
            mixture, images=images, rounds=rounds, say=lambda what: status.update(f"measuring: {what}")
        )
    table = Table("", "images/s", "of the decoder")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row(f"decoder alone, {found.threads} threads", f"{found.decoder:,.0f}", "")
    table.add_row("loader", f"{found.loader:,.0f}", f"{found.share:.0%}")
    if found.cold is not None:
        table.add_row("loader, shards not in memory", f"{found.cold:,.0f}", f"{found.cold / found.decoder:.0%}")
    console.print(table)
    shares = ", ".join(f"{stage} {share:.0%}" for stage, share in found.stages.items())
    console.print(f"the threads' time: {shares}\n{found.limit}", highlight=False)
    for name, needed in TARGETS.items():
        enough = "[green]enough[/green]" if found.loader >= needed else "[yellow]too slow[/yellow]"
        console.print(
            f"{enough} for the project's target on {name}: {needed:,} images/s in training, "
            f"{found.loader / needed:.1f}x",
            highlight=False,
        )


def _print_speeds(found: "Examination") -> None:
    table = Table("a JPEG of 500 x 375", "images/s a core", "")
    table.columns[1].justify = "right"
    parts = (("decode", found.decoders), ("crop to 224", found.resizers), ("build, 256 pixels", found.encoders))
    for what, speeds in parts:
        for speed in speeds:
            table.add_row(f"{what}: {speed.name}", _rate(speed), escape(speed.remark))
        table.add_section()
    console.print(table)


def _rate(speed: "Speed") -> str:
    return "-" if speed.images_per_s is None else f"{speed.images_per_s:,.0f}"


def _print_machine(found: "Examination") -> None:
    table = Table("this process has", "")
    cores, files = found.cores, found.open_files
    quota = "" if cores.quota is None else f", time of {cores.quota:g}"
    table.add_row("cores", f"{cores.usable:g} ({cores.machine} in the machine, {cores.allowed} allowed{quota})")
    limit = "" if found.memory.limit is None else f", limited to {size(found.memory.limit)}"
    table.add_row("memory", f"{size(found.memory.machine)}{limit}")
    soft, hard = ("any number" if n < 0 else f"{n:,}" for n in (files.soft, files.hard))
    table.add_row("open files", f"{soft} (up to {hard})")
    table.add_row("disk of the shards", _disk(found.shards))
    table.add_row("temporary files", _disk(found.temporary))
    table.add_row("GPU", escape(_gpu(found)))
    console.print(table)


def _disk(disk: "Disk") -> str:
    parts = [f"{disk.folder}:", disk.kind, f"{size(disk.free_bytes)} free"]
    parts += [f"reads {size(disk.read_bytes_per_s)}/s"] if disk.read_bytes_per_s is not None else []
    parts += [f"({disk.remark})"] if disk.remark else []
    return escape(" ".join(part for part in parts if part))


def _gpu(found: "Examination") -> str:
    torch = found.torch
    seen = "; ".join(found.gpus) or ("Apple's, through MPS" if torch.get("mps") else "none")
    if not torch or "error" in torch:
        return seen
    built = f"CUDA {torch['cuda build']}" if torch["cuda build"] else "no CUDA"
    return f"{seen}; PyTorch is built with {built} and sees {', '.join(torch['devices']) or 'none'}"
