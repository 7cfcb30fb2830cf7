"""What a run will see, before it starts. Exact, because the order is a function.

Nothing is simulated: the counts at the last position follow from the segment in a few integer operations.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from hjepa_shards.base.notebook_html import share_bar, table
from hjepa_shards.base.shown_text import counted, listed, size
from hjepa_shards.errors import InputError
from hjepa_shards.mixture.mixture import Mixture
from hjepa_shards.mixture.sample_order import add_proofs, order_proof, slice_size

_PROVED_AT_ONCE = 1 << 16
_MANY_PASSES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class EntryForecast:
    """What a run takes from one entry."""

    name: str
    share: float
    """Of the mixture."""
    samples: int
    """In the entry."""
    epoch_draws: float
    """Mean draws an epoch."""
    draws: int
    """In the whole run."""
    passes: float
    repeats: int
    """Draws of a sample that was drawn before."""
    never_seen: int
    draw_bytes: int
    """Image and header bytes read in the whole run."""
    window_bytes: int
    """Bytes of the open window of each lane: what should fit into memory or on a fast disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a run takes from its mixture."""

    epochs: int
    epoch_samples: int
    global_batch: int
    ranks: int
    steps: int
    """Optimizer steps; each rank makes as many."""
    samples: int
    entries: tuple[EntryForecast, ...]
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        found = [f"{entry.name} {entry.draws:,}" for entry in self.entries]
        return f"<{self._title()}: {listed(found)}; {counted(len(self.warnings), 'warning', 'warnings')}>"

    def _repr_html_(self) -> str:
        rows = [
            (
                entry.name,
                f"{entry.share:.2%}",
                share_bar(entry.share),
                f"{entry.samples:,}",
                f"{entry.epoch_draws:,.0f}",
                f"{entry.draws:,}",
                f"{entry.passes:.2f}",
                f"{entry.repeats:,}",
                f"{entry.never_seen:,}",
                size(entry.draw_bytes),
            )
            for entry in self.entries
        ]
        columns = ("entry", "share", "", "samples", "an epoch", "in the run", "passes", "repeats", "never seen", "read")
        return table(self._title(), columns, rows, self.warnings)

    def _title(self) -> str:
        return (
            f"Forecast of {counted(self.epochs, 'epoch', 'epochs')}: {counted(self.steps, 'step', 'steps')} of "
            f"{self.global_batch:,} on {counted(self.ranks, 'rank', 'ranks')}, {self.samples:,} samples"
        )


def forecast(mixture: Mixture, *, epochs: int, global_batch: int, ranks: int = 1) -> Forecast:
    """Exact counts of a run of `mixture` over `epochs`, in steps of `global_batch` samples shared by `ranks` processes.

    InputError for numbers below 1 and ranks that do not divide the batch.
    """
    for what, value in (("epochs", epochs), ("global batch", global_batch), ("ranks", ranks)):
        if value < 1:
            raise InputError(f"{what}: a positive number expected, {value} found")
    slice_size(global_batch, ranks)
    plan = mixture.make_plan(seed=0)  # the seed permutes samples; the counts do not depend on it
    steps = plan.num_steps(epochs, global_batch)
    total = steps * global_batch
    draws = plan.counts(total)
    entries = []
    for entry, manifest, weight, drawn in zip(mixture.entries, mixture.manifests, mixture.weights, draws, strict=True):
        share = drawn / total if mixture.staircase else weight / sum(mixture.weights)
        num_bytes = int(manifest.shard_bytes.sum())
        lanes, window = mixture.config.order.lanes, mixture.config.order.window
        open_shards = (
            manifest.num_shards if mixture.config.order.shuffle == "full" else min(manifest.num_shards, lanes * window)
        )
        entries.append(
            EntryForecast(
                name=entry.name,
                share=share,
                samples=entry.num_samples,
                epoch_draws=share * mixture.epoch_samples,
                draws=drawn,
                passes=drawn / entry.num_samples,
                repeats=max(0, drawn - entry.num_samples),
                never_seen=max(0, entry.num_samples - drawn),
                draw_bytes=round(num_bytes / entry.num_samples * drawn),
                window_bytes=2 * num_bytes * open_shards // manifest.num_shards,
            )
        )
    return Forecast(
        epochs=epochs,
        epoch_samples=mixture.epoch_samples,
        global_batch=global_batch,
        ranks=ranks,
        steps=steps,
        samples=total,
        entries=tuple(entries),
        warnings=tuple(_warnings(mixture, entries, epochs, ranks)),
    )


def planned_proof(mixture: Mixture, *, seed: int, samples: int) -> int:
    """The order proof of the first `samples` images of a run in which none is damaged. About 6 µs an image."""
    plan, proof = mixture.make_plan(seed), 0
    names = [entry.name for entry in plan.entries]
    for start in range(0, samples, _PROVED_AT_ONCE):
        planned = plan.samples(start, min(start + _PROVED_AT_ONCE, samples))
        proof = add_proofs(proof, order_proof(planned.position, [names[i] for i in planned.source], planned.sample))
    return proof


def _warnings(mixture: Mixture, entries: Sequence[EntryForecast], epochs: int, ranks: int) -> list[str]:
    found = []
    for entry in entries:
        if entry.share == 0:
            found.append(f"{entry.name} has weight 0: it is never drawn")
        elif entry.never_seen:
            found.append(
                f"{entry.name}: {entry.never_seen:,} of {entry.samples:,} samples are never seen; give it a larger "
                "weight or train longer"
            )
        if entry.passes > _MANY_PASSES:
            found.append(f"{entry.name} is repeated {entry.passes:,.0f} times in the run; more images would teach more")
        elif entry.passes > 3 * epochs:
            found.append(
                f"{entry.name} is repeated {entry.passes / epochs:.1f} times an epoch; a smaller weight repeats it less"
            )
    window_bytes = sum(entry.window_bytes for entry in entries)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if window_bytes > memory_bytes // 2:
        found.append(
            f"open and next windows hold {window_bytes / 2**30:.1f} GiB, memory is {memory_bytes / 2**30:.1f} GiB: "
            "keep the shards on an SSD, or set a smaller data.order.window"
        )
    lanes = mixture.config.order.lanes
    if lanes > 1 and ranks % lanes:
        found.append(f"{lanes} lanes do not divide {ranks} ranks: their locality is lost")
    return found
