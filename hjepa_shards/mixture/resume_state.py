"""What a run must remember of its data: plain JSON of O(sources) size, whatever the size of the data.

The state at a position is a pure function of the plan and that position, plus two reports: the proof of
order and the damaged samples. On resume it is compared with the mixture of today. What the order does not
depend on (folders, batch size, ranks, threads) is not in it. What is different is refused with both values,
unless the caller accepts it:

    seed, order version                   never accepted
    weights                               `accept_mixture`: a new segment at this position
    entry added or removed                `accept_mixture`: the added one starts at draw 0
    samples, shards or keys of an entry   `accept_mixture`: its next generation, at draw 0; the others continue
    lanes, window, shuffle                `accept_mixture`: the next generation of all, at draw 0
    pixels alone                          `accept_content`: the same order continues
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hjepa_shards.config import Strict, parse
from hjepa_shards.errors import ResumeMismatch
from hjepa_shards.mixture.mixture import Mixture
from hjepa_shards.mixture.sample_order import OrderSettings, Plan, Written
from hjepa_shards.mixture.source_counts import MAX_WEIGHT_SUM, Segment
from hjepa_shards.shards.manifest import ORDER_VERSION

FORMAT = 1
_Count = Annotated[int, Field(ge=0, lt=2**53, strict=True)]
_Some = Annotated[int, Field(ge=1, lt=2**53, strict=True)]
"""What any computer could count, and any JSON can hold."""
Flag = Literal["--accept-mixture", "--accept-content"]


class SegmentState(Strict):
    """`counting.Segment`, in the order of the sources' names."""

    start: _Count
    weights: tuple[_Count, ...]
    draws: tuple[_Count, ...]
    owed: tuple[Annotated[int, Field(ge=-(2**40), le=2**40)], ...]


class SourceState(Strict):
    """An entry as it was when the state was taken."""

    order_digest: str
    content_digest: str
    samples: _Some
    generation: _Count


class LoaderState(Strict):
    """Everything that the order after `position` depends on."""

    format: int
    order_version: int
    seed: int
    order: OrderSettings
    position: _Count
    proof: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Proof of order of all positions before this one, hex."""
    weights: Written
    """What the configuration said; the run may have set others since, those of `segment`."""
    segment: SegmentState
    sources: dict[str, SourceState] = Field(min_length=1)
    damaged: dict[str, tuple[_Count, ...]]
    """A report: samples of each entry that were replaced. It decides nothing."""

    @model_validator(mode="after")
    def _consistent(self) -> "LoaderState":
        segment, num_sources = self.segment, len(self.sources)
        if {len(segment.weights), len(segment.draws), len(segment.owed), len(self.weights)} != {num_sources}:
            raise ValueError(f"segment: {num_sources} weights, draws and owed expected, one a source")
        if not 0 < sum(segment.weights) <= MAX_WEIGHT_SUM:
            raise ValueError(f"segment: weights that sum to 1..{MAX_WEIGHT_SUM} expected")
        if segment.start > self.position:
            raise ValueError(f"segment: a start of at most position {self.position} expected, {segment.start} found")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What is not as the state says."""

    what: str
    """Place, value of the state, value found."""
    accept: Flag | None
    """The flag that continues anyway; None where nothing does."""

    def __str__(self) -> str:
        return f"{self.what} ({f'{self.accept} continues' if self.accept else 'nothing can continue from here'})"


def plan_state(plan: Plan, position: int, proof: int, damaged: Mapping[str, Iterable[int]]) -> dict[str, Any]:
    """The state of `plan` at `position`, as JSON: it and all positions after it are not delivered yet.

    proof: of the order up to there.  damaged: samples found so, by entry. Raises nothing.
    """
    state = LoaderState(
        format=FORMAT,
        order_version=ORDER_VERSION,
        seed=plan.seed,
        order=plan.order,
        position=position,
        proof=f"{proof:032x}",
        weights=plan.written,
        segment=SegmentState(**dataclasses.asdict(plan.segment_at(position))),
        sources={
            entry.name: SourceState(
                order_digest=entry.order_digest,
                content_digest=entry.content_digest,
                samples=entry.num_samples,
                generation=entry.generation,
            )
            for entry in plan.entries
        },
        damaged={name: tuple(sorted(set(samples))) for name, samples in sorted(damaged.items())},
    )
    return state.model_dump(mode="json")


def load_state(content: dict[str, Any], where: str) -> LoaderState:
    """The state in `content`, checked. where: what to call it in errors, usually its file."""
    if content.get("format") != FORMAT:
        raise ResumeMismatch(
            f"{where}: loader state of format {FORMAT} expected, {content.get('format')!r} found; "
            "use the hjepa-shards that wrote it"
        )
    return parse(LoaderState, content, where)


def resume(
    state: LoaderState,
    mixture: Mixture,
    seed: int,
    *,
    accept_mixture: bool = False,
    accept_content: bool = False,
) -> Plan:
    """The plan from `state.position` on. ResumeMismatch naming all that differs and is not accepted."""
    accepted = {"--accept-mixture": accept_mixture, "--accept-content": accept_content}
    found = differences(state, mixture, seed)
    refused = [difference for difference in found if not accepted.get(difference.accept or "", False)]
    if refused:
        raise ResumeMismatch(
            f"checkpoint at position {state.position}: " + "; ".join(str(difference) for difference in refused)
        )
    changed = any(difference.accept == "--accept-mixture" for difference in found)
    entries = tuple(
        dataclasses.replace(entry, generation=_generation(state, mixture, index))
        for index, entry in enumerate(mixture.entries)
    )
    segment = _next_segment(state, mixture) if changed else _segment(state)
    written = _written(mixture)
    return Plan(entries, seed, mixture.config.order, segment, mixture.epoch_samples, mixture.staircase, written)


def differences(state: LoaderState, mixture: Mixture, seed: int) -> list[Difference]:
    """All that is not as it was, empty where nothing is."""
    order = mixture.config.order
    now = {entry.name: entry for entry in mixture.entries}
    rows: list[tuple[str, object, object, Flag | None]] = [
        ("seed", state.seed, seed, None),
        ("order version", state.order_version, ORDER_VERSION, None),
        ("entries", sorted(state.sources), list(now), "--accept-mixture"),
        ("order", state.order.model_dump(), order.model_dump(), "--accept-mixture"),
    ]
    if sorted(state.sources) == list(now):
        before, after = (dict(zip(now, w, strict=True)) for w in (state.weights, _written(mixture)))
        rows.append(("weights", before, after, "--accept-mixture"))
    for name in sorted(state.sources.keys() & now.keys()):
        old, new = state.sources[name], now[name]
        before, after = _order(old.samples, old.order_digest), _order(new.num_samples, new.order_digest)
        rows.append((name, before, after, "--accept-mixture"))
        if old.order_digest == new.order_digest:
            rows.append((f"{name}: content", old.content_digest, new.content_digest, "--accept-content"))
    return [
        Difference(what=f"{name}: {before} saved, {after} here", accept=accept)
        for name, before, after, accept in rows
        if before != after
    ]


def _segment(state: LoaderState) -> Segment:
    segment = state.segment
    return Segment(start=segment.start, weights=segment.weights, draws=segment.draws, owed=segment.owed)


def _next_segment(state: LoaderState, mixture: Mixture) -> Segment:
    """A segment that starts at the state's position with the weights and entries of today.

    Weights that were set during the run stay where the configuration's are what they were.
    """
    old_names = sorted(state.sources)
    origin = [old_names.index(entry.name) if entry.name in state.sources else None for entry in mixture.entries]
    stay = state.weights == _written(mixture) and not mixture.staircase and origin == list(range(len(old_names)))
    weights = state.segment.weights if stay else mixture.weights_at(state.position)
    segment = _segment(state).rearranged(state.position, weights, origin)
    draws = tuple(0 if _restarts(state, mixture, index) else count for index, count in enumerate(segment.draws))
    return dataclasses.replace(segment, draws=draws)


def _written(mixture: Mixture) -> Written:
    return mixture.staircase.written() if mixture.staircase else mixture.weights


def _generation(state: LoaderState, mixture: Mixture, index: int) -> int:
    old = state.sources.get(mixture.entries[index].name)
    return old.generation + _restarts(state, mixture, index) if old else 0


def _restarts(state: LoaderState, mixture: Mixture, index: int) -> bool:
    """Whether an entry that continues begins a new generation."""
    entry = mixture.entries[index]
    old = state.sources.get(entry.name)
    return old is not None and (state.order != mixture.config.order or old.order_digest != entry.order_digest)


def _order(samples: int, digest: str) -> str:
    return f"{samples} samples in order {digest}"
