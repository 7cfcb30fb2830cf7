import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hjepa_shards.config import parse
from hjepa_shards.errors import InputError, ResumeMismatch
from hjepa_shards.mixture.mixture import DataConfig, Mixture, load_mixture
from hjepa_shards.mixture.resume_state import LoaderState, differences, load_state, plan_state, resume
from hjepa_shards.mixture.sample_order import Plan, Planned, add_proofs, order_proof
from tests.hjepa_shards.stand_in import save_stand_in

SEED = 11
WEIGHTS = {"a": 0.6, "b": 0.3, "c": 0.1}
SIZES = {"a": [9, 0, 8], "b": [7, 7, 7, 7], "c": [5]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, sizes in (SIZES | {"d": [6, 6]}).items():
        save_stand_in(tmp_path, name, sizes)
    return tmp_path


def mix(root: Path, weights: dict[str, float] = WEIGHTS, **more: Any) -> Mixture:
    sources = [{"name": name, "weight": weight} for name, weight in weights.items()]
    content = {"root": str(root), "strategy": "weighted", "sources": sources, **more}
    return load_mixture(parse(DataConfig, content, "mix.yaml"), "mix.yaml")


def proof(plan: Plan, planned: Planned) -> int:
    names = [plan.entries[source].name for source in planned.source]
    return order_proof(planned.position, names, planned.sample)


def rows(planned: Planned) -> list[tuple[int, ...]]:
    columns = (planned.position, planned.source, planned.draw, planned.pass_, planned.sample)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def saved(plan: Plan, position: int, total: int = 0, damaged: dict[str, list[int]] | None = None) -> LoaderState:
    """The state at `position`, by way of a file's text."""
    text = json.dumps(plan_state(plan, position, total, damaged or {}))
    return load_state(json.loads(text), "state.json")


def test_a_state_is_plain_json_with_exactly_the_promised_fields(root: Path) -> None:
    mixture = mix(root)
    plan = mixture.make_plan(SEED).reweighed(10, (1, 1, 2))
    content = plan_state(plan, 25, 255, {"c": [4, 1, 4], "b": []})
    entries = {entry.name: entry for entry in mixture.entries}
    assert json.loads(json.dumps(content)) == content
    assert content == {
        "format": 1,
        "order_version": 1,
        "seed": SEED,
        "order": {"lanes": 1, "window": 16, "shuffle": "window"},
        "position": 25,
        "proof": "000000000000000000000000000000ff",
        "weights": [6, 3, 1],
        "segment": {
            "start": 10,
            "weights": [1, 1, 2],
            "draws": list(plan.segment.draws),
            "owed": list(plan.segment.owed),
        },
        "sources": {
            name: {
                "order_digest": entries[name].order_digest,
                "content_digest": entries[name].content_digest,
                "samples": sum(SIZES[name]),
                "generation": 0,
            }
            for name in SIZES
        },
        "damaged": {"b": [], "c": [1, 4]},
    }


@pytest.mark.parametrize("strategy", ["weighted", "changed", "balanced", "concat"])
def test_a_run_resumes_exactly_at_every_step(root: Path, strategy: str) -> None:
    """At 0, at an epoch's first and last position and all between; with other batches and worlds: same order, same
    proof."""
    if strategy in ("balanced", "concat"):
        sources = [{"name": name} for name in SIZES]
        content = {"root": str(root), "strategy": strategy, "sources": sources}
        mixture = load_mixture(parse(DataConfig, content, "mix.yaml"), "mix.yaml")
    else:
        mixture = mix(root, {"a": 1, "b": 0.7, "c": 2} if strategy == "changed" else WEIGHTS)
    plan = mixture.make_plan(SEED)
    if strategy == "changed":
        plan = plan.reweighed(0, (1, 0, 1)).reweighed(5, mixture.weights)
    begin, stop = plan.segment.start, plan.epoch_samples + 40
    whole = plan.samples(begin, stop)
    for position in range(begin, stop):
        before = proof(plan, plan.samples(begin, position))
        state = saved(plan, position, before)
        again = resume(state, mixture, SEED)
        total, rest = int(state.proof, 16), []
        world, size = position % 4 + 1, position % 3 + 1
        for first in range(position, stop, world * size):
            ranks = [again.rank_batch(first, world * size, rank, world) for rank in range(world)]
            together = {row[0]: row for batch in ranks for row in rows(batch)}
            rest += [together[p] for p in sorted(together)]
            total = add_proofs(total, *(proof(again, batch[batch.position < stop]) for batch in ranks))
        assert rest[: stop - position] == rows(whole)[position - begin :]
        assert total == proof(plan, whole)


def test_what_the_order_does_not_depend_on_is_not_compared(root: Path, tmp_path_factory: Any) -> None:
    state = saved(mix(root).make_plan(SEED), 30)
    moved = tmp_path_factory.mktemp("elsewhere")
    for name, sizes in SIZES.items():
        save_stand_in(moved, name, sizes)
    changed = mix(moved, epoch_samples=7, threads=3, image_size=32, augmentation={"horizontal_flip": False})
    assert differences(state, changed, SEED) == []
    again = resume(state, changed, SEED)
    assert rows(again.samples(30, 200)) == rows(mix(root).make_plan(SEED).samples(30, 200))


def test_another_seed_or_order_version_is_always_refused(root: Path) -> None:
    mixture = mix(root)
    state = saved(mixture.make_plan(SEED), 30)
    with pytest.raises(ResumeMismatch, match=r"position 30: seed: 11 saved, 12 here \(nothing can continue"):
        resume(state, mixture, 12, accept_mixture=True, accept_content=True)
    older = state.model_copy(update={"order_version": 0})
    with pytest.raises(ResumeMismatch, match="order version: 0 saved, 1 here"):
        resume(older, mixture, SEED, accept_mixture=True, accept_content=True)


def test_other_weights_start_a_segment_when_accepted(root: Path) -> None:
    plan = mix(root).make_plan(SEED)
    state, changed = saved(plan, 30), mix(root, {"a": 1, "b": 1, "c": 2})
    with pytest.raises(ResumeMismatch, match=r"'a': 6, .* saved, .*'c': 2.* here \(--accept-mixture continues"):
        resume(state, changed, SEED, accept_content=True)
    again = resume(state, changed, SEED, accept_mixture=True)
    assert rows(again.samples(30, 300)) == rows(plan.reweighed(30, (1, 1, 2)).samples(30, 300))
    assert [entry.generation for entry in again.entries] == [0, 0, 0]
    assert differences(saved(again, 40), changed, SEED) == []


def test_weights_that_were_set_during_a_run_continue(root: Path) -> None:
    plan = mix(root).make_plan(SEED).reweighed(20, (1, 1, 2))
    assert differences(saved(plan, 30), mix(root), SEED) == []
    again = resume(saved(plan, 30), mix(root), SEED)
    assert rows(again.samples(30, 300)) == rows(plan.samples(30, 300))
    assert differences(saved(again, 60), mix(root), SEED) == []
    # something else is accepted: they stay; other weights in the configuration are those of today
    other_order = resume(saved(plan, 30), mix(root, order={"lanes": 2}), SEED, accept_mixture=True)
    assert other_order.segment.weights == (1, 1, 2)
    written = resume(saved(plan, 30), mix(root, {"a": 1, "b": 2, "c": 1}), SEED, accept_mixture=True)
    assert written.segment.weights == (1, 2, 1)


def test_other_pixels_continue_in_the_same_order_when_accepted(root: Path) -> None:
    plan = mix(root).make_plan(SEED)
    state = saved(plan, 30)
    save_stand_in(root, "b", SIZES["b"], pixels="sharper")
    changed = mix(root)
    with pytest.raises(ResumeMismatch, match=r"b: content: .* saved, .* here \(--accept-content continues\)"):
        resume(state, changed, SEED, accept_mixture=True)
    again = resume(state, changed, SEED, accept_content=True)
    assert again.segment == plan.segment
    assert rows(again.samples(30, 300)) == rows(plan.samples(30, 300))
    assert differences(saved(again, 40), changed, SEED) == []


@pytest.mark.parametrize("change", [{"shard_samples": [7, 7, 9]}, {"shard_samples": SIZES["b"], "keys": "x"}])
def test_an_entry_with_other_samples_begins_its_next_generation_and_others_continue(
    root: Path, change: dict[str, Any]
) -> None:
    plan = mix(root).make_plan(SEED)
    state = saved(plan, 30)
    save_stand_in(root, "b", **change)
    changed = mix(root)
    with pytest.raises(ResumeMismatch, match=r"b: 28 samples in order .* here \(--accept-mixture continues"):
        resume(state, changed, SEED, accept_content=True)
    again = resume(state, changed, SEED, accept_mixture=True)
    assert [entry.generation for entry in again.entries] == [0, 1, 0]
    before, after = plan.samples(30, 400), again.samples(30, 400)
    assert after.source.tolist() == before.source.tolist()
    others = before.source != 1
    assert after.sample[others].tolist() == before.sample[others].tolist()
    draws = after.draw[after.source == 1]
    assert draws.tolist() == list(range(len(draws)))
    fresh = changed.make_plan(SEED).samples(0, 400)
    first_pass = [planned.sample[(planned.source == 1) & (planned.pass_ == 0)].tolist() for planned in (fresh, after)]
    assert sorted(first_pass[0]) == sorted(first_pass[1])
    assert first_pass[0] != first_pass[1]
    second = resume(saved(again, 50), changed, SEED)
    assert rows(second.samples(50, 400)) == rows(again.samples(50, 400))


@pytest.mark.parametrize("order", [{"lanes": 2}, {"window": 2}, {"shuffle": "full"}])
def test_other_order_settings_begin_the_next_generation_of_all(root: Path, order: dict[str, Any]) -> None:
    plan = mix(root).make_plan(SEED)
    changed = mix(root, order=order)
    with pytest.raises(ResumeMismatch, match=r"order: .*'window': 16.* saved, .*--accept-mixture"):
        resume(saved(plan, 30), changed, SEED, accept_content=True)
    again = resume(saved(plan, 30), changed, SEED, accept_mixture=True)
    assert [entry.generation for entry in again.entries] == [1, 1, 1]
    after = again.samples(30, 400)
    assert after.source.tolist() == plan.samples(30, 400).source.tolist()
    assert [int(after.draw[after.source == source][0]) for source in range(3)] == [0, 0, 0]
    back = resume(saved(again, 60), mix(root), SEED, accept_mixture=True)
    assert [entry.generation for entry in back.entries] == [2, 2, 2]


def test_entries_come_and_go_when_accepted(root: Path) -> None:
    plan = mix(root).make_plan(SEED)
    changed = mix(root, {"b": 0.3, "c": 0.1, "d": 0.6})
    with pytest.raises(ResumeMismatch, match=r"entries: \['a', 'b', 'c'\] saved, \['b', 'c', 'd'\] here"):
        resume(saved(plan, 30), changed, SEED, accept_content=True)
    again = resume(saved(plan, 30), changed, SEED, accept_mixture=True)
    before, after = plan.samples(0, 30), again.samples(30, 2030)
    for name, old, new in (("b", 1, 0), ("c", 2, 1)):
        first = int((before.source == old).sum())
        draws = after.draw[after.source == new].tolist()
        assert draws == list(range(first, first + len(draws))), name
    assert after.draw[after.source == 2][0] == 0
    shares = np.bincount(after.source, minlength=3)
    assert np.abs(shares - [600, 200, 1200]).max() < 4


def test_all_that_differs_is_said_at_once(root: Path) -> None:
    state = saved(mix(root).make_plan(SEED), 30)
    save_stand_in(root, "c", [5], pixels="other")
    with pytest.raises(ResumeMismatch) as error:
        resume(state, mix(root, {"a": 1, "b": 1, "c": 1}, order={"lanes": 2}), 12)
    for part in ("seed: 11", "weights: ", "order: ", "c: content"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "error", "said"),
    [
        ("format", 2, ResumeMismatch, "format 1 expected, 2 found"),
        ("proof", "12", InputError, "proof"),
        ("position", -1, InputError, "position"),
        ("position", 9, InputError, "a start of at most position 9"),
        ("pasition", 1, InputError, "did you mean `position`"),
        ("sources", {}, InputError, "sources"),
        ("segment", {"start": 0, "weights": [1], "draws": [0], "owed": [0]}, InputError, "3 weights, draws"),
        ("segment", {"start": 0, "weights": [0] * 3, "draws": [0] * 3, "owed": [0] * 3}, InputError, "sum to 1"),
        ("segment", {"start": 0, "weights": [1] * 3, "draws": [0] * 3, "owed": [2**50] * 3}, InputError, "owed"),
    ],
)
def test_a_state_that_means_nothing_is_refused(
    root: Path, key: str, value: object, error: type[Exception], said: str
) -> None:
    content = plan_state(mix(root).make_plan(SEED).reweighed(10, (1, 1, 1)), 25, 0, {})
    with pytest.raises(error, match=said):
        load_state(content | {key: value}, "state.json")
