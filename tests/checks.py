"""Conformance checks: what every loader, every backbone and every objective must do, whatever it is."""

import json
import pickle
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hjepa_shards import Batch as Loaded
from hjepa_shards.loader.loader import Loader
from hjepa_shards.mixture.sample_order import add_proofs
from hjepa_train.backbones.base import Backbone
from hjepa_train.objectives.base import Batch, Objective, rows_of
from hjepa_train.training.diagnosis import diagnosis


def assert_backbone_contract(build: Callable[[], Backbone], image_size: int) -> None:
    """For backbones that accept dropped patches. build: the same weights at each call."""
    backbone = build().eval()
    grid = image_size // backbone.patch_size
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    patches = backbone.embed(images)
    assert patches.grid == grid
    assert patches.tokens_BND.shape[:2] == patches.index_BN.shape == (2, grid * grid)
    assert torch.equal(patches.index_BN, torch.arange(grid * grid).expand(2, -1))
    features = backbone.encode(patches)
    assert features.tokens_BND.shape == (2, grid * grid, backbone.width)
    assert features.pooled_BD.shape == (2, backbone.width)
    assert features.stages == ()

    # what was requested does not change what comes out
    every = tuple(range(1, backbone.num_stages + 1))
    staged = backbone.encode(patches, every)
    assert torch.equal(staged.tokens_BND, features.tokens_BND)
    assert len(staged.stages) == backbone.num_stages
    assert torch.equal(backbone.encode(patches, every[-1:]).stages[0], staged.stages[-1])

    # patches carry their location: their order in the sequence means nothing, their location everything
    order = torch.randperm(grid * grid, generator=torch.Generator().manual_seed(1)).expand(2, -1)
    shuffled = backbone.encode(patches.take(order)).tokens_BND
    torch.testing.assert_close(shuffled, features.tokens_BND.gather(1, order[..., None].expand_as(shuffled)))
    moved = backbone.encode(replace(patches, index_BN=order)).tokens_BND
    assert not torch.allclose(moved, features.tokens_BND, atol=1e-3)

    # dropped and replaced patches leave no trace
    kept = order[:, : grid * grid // 3].sort(1).values
    hidden = torch.ones(2, grid * grid, dtype=torch.bool).scatter(1, kept, False)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    pixels = hidden.view(2, 1, grid, grid)
    pixels = pixels.repeat_interleave(backbone.patch_size, 2).repeat_interleave(backbone.patch_size, 3)
    perturbed = backbone.embed(torch.where(pixels, noise, images))
    assert torch.equal(backbone.encode(patches.take(kept)).tokens_BND, backbone.encode(perturbed.take(kept)).tokens_BND)
    token = torch.randn(patches.tokens_BND.shape[-1], generator=torch.Generator().manual_seed(3))
    assert torch.equal(
        backbone.encode(patches.replace(hidden, token)).tokens_BND,
        backbone.encode(perturbed.replace(hidden, token)).tokens_BND,
    )

    # the weights are a function of the seed, and all of them are in the state
    again = build()
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), backbone.state_dict().values(), strict=True)
    )
    assert again.double().encode(again.embed(images.double())).tokens_BND.dtype == torch.float64


def assert_objective_contract(build: Callable[[], Objective], batch: Batch) -> None:
    """build: the same objective at each call."""
    objective = build()
    objective.before_step([batch])
    loss, metrics = objective(batch)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert metrics["loss_B"].shape == (len(batch.labels_B),)
    assert not any(value.requires_grad for value in metrics.values())
    loss.backward()
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained.values())
    assert all(isinstance(encoder, Backbone) for encoder in objective.encoders().values())

    assert_looking_on_leaves_no_trace(objective, batch)
    assert_signals_are_those_of_any_split(objective, batch)

    # the state is the whole memory
    with torch.no_grad():
        for parameter in trained.values():
            parameter -= 0.1 * parameter.grad
    objective.after_step(0, torch.tensor(True))
    other = build()
    with torch.no_grad():
        for value in (*other.parameters(), *other.buffers()):
            if value.is_floating_point():
                value += 1
    own = {name: value.clone() for name, value in objective.state_dict().items()}
    other.load_state_dict(own)
    for name, buffer in objective.named_buffers():
        if name not in own:  # computed again from the configuration
            other.get_buffer(name).copy_(buffer)
    losses = []
    for each in (objective, other):
        each.before_step([batch])
        losses.append(each(batch)[0])
    assert torch.equal(losses[0], losses[1])


def loaded_of(batch: Batch, start: int, stop: int) -> Loaded:
    """What `batch` may have been made of: a rank's part of the global batch at [start, stop)."""
    positions = batch.positions_B.cpu().numpy()
    return Loaded(
        images=np.zeros((len(positions), 1, 1, 3), np.uint8),
        labels=positions,
        entries=positions * 0,
        samples=positions,
        positions=positions,
        valid=np.ones(len(positions), np.bool_),
        position=start,
        next_position=stop,
        proof=0,
    )


def signals_of(objective: Objective, batch: Batch, micro_batch: int | None = None) -> dict[str, float]:
    """What a log point shows of a global batch, consecutive positions, on one rank."""
    size = len(batch.positions_B)
    at_once = micro_batch or size
    micro_batches = [rows_of([batch], range(first, min(first + at_once, size))) for first in range(0, size, at_once)]
    start = int(batch.positions_B[0])
    return diagnosis(objective, micro_batches, loaded_of(batch, start, start + size))


def assert_signals_are_those_of_any_split(objective: Objective, batch: Batch, *micro_batches: int) -> None:
    """To 1e-6, or 1e-10 in float64."""
    expected = signals_of(objective, batch)
    tolerance = 1e-10 if next(objective.parameters()).dtype == torch.float64 else 1e-6
    for micro_batch in micro_batches or (1, len(batch.positions_B) - 1):
        assert signals_of(objective, batch, micro_batch) == pytest.approx(expected, rel=tolerance, abs=tolerance)


def assert_looking_on_leaves_no_trace(objective: Objective, batch: Batch) -> None:
    """No generator, no buffer or parameter, no part's mode and no gradient is another after signals were taken."""

    def state() -> tuple[Any, ...]:
        tensors = [*objective.parameters(), *objective.buffers(), *(p.grad for p in objective.parameters())]
        generators = random.getstate(), pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()
        modes = [part.training for part in objective.modules()]
        return [None if one is None else one.detach().clone() for one in tensors], generators, modes

    tensors, *others = state()
    signals_of(objective, batch)
    tensors_after, *others_after = state()
    assert others_after == others
    for before, after in zip(tensors, tensors_after, strict=True):
        assert before is after is None or torch.equal(before, after)


def assert_flops_are_those_counted(objective: Objective, batch: Batch) -> None:
    """Forward and backward as PyTorch counts them, operation by operation: within half a percent of the formula."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused kernels compute some twice
        objective.before_step([batch])
        objective(batch)[0].backward()
    assert objective.flops_per_image() == pytest.approx(counter.get_total_flops() / len(batch.labels_B), rel=5e-3)


def assert_images_do_not_meet(build: Callable[[], Objective], batch: Batch) -> None:
    """Each image's own loss does not know who else is in the batch.  batch: an even number of images."""
    objective = build()
    objective.before_step([batch])
    expected = objective(batch)[1]["loss_B"]
    half = len(batch.labels_B) // 2
    parts = []
    for rows in (slice(0, half), slice(half, None)):
        tensors = {name: getattr(batch, name)[rows] for name in ("images_BCHW", "labels_B", "positions_B", "entry_B")}
        part = Batch(**tensors, rows=half)
        objective.before_step([part])
        parts.append(objective(part)[1]["loss_B"])
    torch.testing.assert_close(torch.cat(parts), expected)


OpenLoader = Callable[..., Loader]
"""Takes global_batch, rank, world and state (None: from the start); everything else about it is fixed."""


def delivered(
    open_one: OpenLoader, stop: int, *, global_batch: int, world: int = 1, state: Mapping[str, Any] | None = None
) -> tuple[dict[int, tuple[Any, ...]], int]:
    """What `world` ranks together get before position `stop`, by position, and the proof of order there."""
    rows: dict[int, tuple[Any, ...]] = {}
    proof = 0
    for rank in range(world):
        with open_one(global_batch=global_batch, rank=rank, world=world, state=state) as loader:
            for batch in loader:
                columns = (batch.positions, batch.entries, batch.samples, batch.labels, batch.images)
                for position, entry, sample, label, image in zip(*columns, strict=True):
                    assert int(position) not in rows, f"position {position} was delivered twice"
                    rows[int(position)] = (int(entry), int(sample), int(label), image.tobytes())
                if batch.next_position >= stop:
                    assert batch.next_position == stop, f"batches of {global_batch} do not end at {stop}"
                    proof = add_proofs(proof, batch.proof)
                    break
    return rows, proof


def assert_same_batches_for_any_world_size(
    open_one: OpenLoader, stop: int, *, global_batch: int, worlds: Sequence[int]
) -> None:
    """The same global batches, image for image, whatever the number of ranks that share them."""
    expected = delivered(open_one, stop, global_batch=global_batch)
    assert sorted(expected[0]) == list(range(stop))
    for world in worlds:
        assert delivered(open_one, stop, global_batch=global_batch, world=world) == expected, f"{world} ranks"


def assert_resumes_exactly(
    open_one: OpenLoader, stop: int, *, global_batch: int, others: Sequence[tuple[int, int]] = ()
) -> None:
    """From the state of any batch (as JSON) the rest is the same, and so is the proof of order.

    others: (global batch, world) to continue with besides the one it was stopped with; each batch divides `stop`.
    """
    expected, proof = delivered(open_one, stop, global_batch=global_batch)
    states = []
    with open_one(global_batch=global_batch, rank=0, world=1, state=None) as loader:
        states.append(loader.state_dict())
        for batch in loader:
            states.append(loader.state_dict(batch))
            if batch.next_position >= stop - global_batch:
                break
    for state in states:
        position = state["position"]
        for size, world in ((global_batch, 1), *others):
            if (stop - position) % size == 0:
                rest, end = delivered(
                    open_one, stop, global_batch=size, world=world, state=json.loads(json.dumps(state))
                )
                assert rest == {at: row for at, row in expected.items() if at >= position}
                assert end == proof
