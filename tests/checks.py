"""Conformance checks: what every loader, every backbone and every objective must do, whatever it is."""

import copy
import json
import pickle
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hjepa_shards import Batch as Loaded
from hjepa_shards.errors import InputError
from hjepa_shards.loader.loader import Loader
from hjepa_shards.mixture.sample_order import add_proofs
from hjepa_train.backbones.base import Backbone, require_parts
from hjepa_train.backbones.registry import BACKBONES, build_backbone
from hjepa_train.modules.batch_norm import BatchNorm
from hjepa_train.modules.layers import ComputedAgain
from hjepa_train.modules.offered_memory import commit_all
from hjepa_train.objectives.base import Batch, Objective, rows_of
from hjepa_train.training.diagnosis import diagnosis


def assert_backbone_contract(build: Callable[[], Backbone], image_size: int) -> None:
    """build: the same weights at each call; of a backbone that drops something in training."""
    backbone = build().eval()
    images, noise = torch.randn(2, 2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    patches = backbone.embed(images)
    cells = (image_size // backbone.patch_size) ** 2
    assert patches.grid**2 == cells
    assert patches.tokens_BND.shape == (2, cells, backbone.embed_width)
    assert torch.equal(patches.index_BN, torch.arange(cells).expand(2, -1))
    features = backbone.encode(patches)
    assert features.grid == image_size // backbone.stride
    assert features.tokens_BND.shape == (2, features.grid**2, backbone.width)
    assert features.pooled_BD.shape == (2, backbone.width)
    assert features.stages == ()
    assert features.prefix_BRD is None or features.prefix_BRD.shape[::2] == (2, backbone.width)
    assert list(backbone.block_list())

    # what was requested does not change what comes out
    every = tuple(range(1, backbone.num_stages + 1))
    staged = backbone.encode(patches, every)
    assert torch.equal(staged.tokens_BND, features.tokens_BND)
    assert len(staged.stages) == backbone.num_stages
    assert all(stage.shape[0] == 2 and stage.ndim == 3 for stage in staged.stages)
    assert torch.equal(backbone.encode(patches, every[-1:]).stages[0], staged.stages[-1])
    assert staged.stages[-1].shape[1] == features.tokens_BND.shape[1]

    # a replaced patch leaves no trace
    hidden = torch.rand(2, cells, generator=torch.Generator().manual_seed(1)) < 0.7
    token = torch.randn(backbone.embed_width, generator=torch.Generator().manual_seed(3))
    others = torch.where(hidden[..., None], backbone.embed(noise).tokens_BND, patches.tokens_BND)
    assert torch.equal(
        backbone.encode(patches.replace(hidden, token)).tokens_BND,
        backbone.encode(replace(patches, tokens_BND=others).replace(hidden, token)).tokens_BND,
    )

    # the weights are a function of the seed, and all of them are in the state
    again = build()
    assert again.state_dict().keys() >= dict(again.named_parameters()).keys()
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), backbone.state_dict().values(), strict=True)
    )
    copied = copy.deepcopy(again).double().eval()
    assert copied.encode(copied.embed(images.double())).tokens_BND.dtype == torch.float64
    assert torch.equal(again.eval().encode(again.embed(images)).pooled_BD, features.pooled_BD)

    if backbone.takes_parts:
        _assert_takes_parts(backbone, images, noise)
    else:
        with pytest.raises(ValueError, match=f"the whole grid: {cells} patches expected, {cells - 1} found"):
            backbone.encode(patches.take(torch.arange(cells - 1).expand(2, -1)))
        with pytest.raises(InputError, match=f"{type(backbone).__name__} found, which needs the whole grid"):
            require_parts(backbone, "mae")
    _assert_drops_are_those_of_the_image(build().train(), images)
    _assert_recomputed_the_same(build, images)
    _assert_a_bad_step_leaves_no_trace(build().train(), images)


def awake(backbone: Backbone) -> Backbone:
    """The last norm of a branch may begin at 0: nothing of it would be seen."""
    for part in backbone.modules():
        if isinstance(part, BatchNorm):
            torch.nn.init.ones_(part.weight)
    return backbone


def _assert_takes_parts(backbone: Backbone, images: Tensor, noise: Tensor) -> None:
    patches = backbone.embed(images)
    whole, grid = backbone.encode(patches).tokens_BND, patches.grid

    # patches carry their location: their order in the sequence means nothing, their location everything
    order = torch.randperm(grid * grid, generator=torch.Generator().manual_seed(1)).expand(2, -1)
    shuffled = backbone.encode(patches.take(order)).tokens_BND
    torch.testing.assert_close(shuffled, whole.gather(1, order[..., None].expand_as(shuffled)))
    moved = backbone.encode(replace(patches, index_BN=order)).tokens_BND
    assert not torch.allclose(moved, whole, atol=1e-3)

    # each image has its own parts
    other = order.flip(1)
    mine = backbone.encode(patches.take(torch.stack([order[0], other[0]]))).tokens_BND
    torch.testing.assert_close(mine[1], whole[1][other[0]])

    # neither pixels of dropped patches nor those of replaced ones reach what is kept
    kept = order[:, : grid * grid // 3].sort(1).values
    hidden = torch.ones(2, grid * grid, dtype=torch.bool).scatter(1, kept, False)
    pixels = hidden.view(2, 1, grid, grid)
    pixels = pixels.repeat_interleave(backbone.patch_size, 2).repeat_interleave(backbone.patch_size, 3)
    perturbed = backbone.embed(torch.where(pixels, noise, images))
    assert torch.equal(backbone.encode(patches.take(kept)).tokens_BND, backbone.encode(perturbed.take(kept)).tokens_BND)


def _without_statistics(backbone: Backbone) -> None:
    """Images do not meet."""
    for part in backbone.modules():
        if isinstance(part, BatchNorm):
            part.training = False


def _assert_drops_are_those_of_the_image(backbone: Backbone, images: Tensor) -> None:
    """In any batch, in any order, and only where something is to be dropped."""
    _without_statistics(backbone)
    images = images.repeat(3, 1, 1, 1)
    positions = torch.tensor([7, 3, 11, 2, 5, 2**40])
    generator = torch.get_rng_state()

    def features(rows: Tensor, view: int = 0) -> Tensor:
        return backbone.encode(backbone.embed(images[rows]), drops=backbone.draws(positions[rows], view)).pooled_BD

    whole = features(torch.arange(6))
    assert not torch.allclose(whole[0], whole[2], rtol=1e-3)  # the same pixels at two positions
    assert not torch.allclose(whole, features(torch.arange(6), 1), rtol=1e-3)
    order = torch.tensor([4, 0, 5, 1, 3, 2])
    torch.testing.assert_close(features(order), whole[order], rtol=1e-4, atol=1e-5)
    for row in range(6):
        torch.testing.assert_close(features(torch.tensor([row])), whole[[row]], rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), generator)

    plain = backbone.encode(backbone.embed(images)).pooled_BD
    drawn = backbone.draws(positions)
    backbone.eval()
    assert backbone.draws(positions) is None
    assert torch.equal(backbone.encode(backbone.embed(images)).pooled_BD, plain)
    assert torch.equal(backbone.encode(backbone.embed(images), drops=drawn).pooled_BD, plain)
    backbone.train()


def _gradients(backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
    """Of a step in training, and what the running moments are after it."""
    drops = backbone.draws(torch.arange(len(images)))
    features = backbone.encode(backbone.embed(images), drops=drops)
    (features.tokens_BND.square().mean() + features.pooled_BD.sum()).backward()
    commit_all(backbone, torch.tensor(True))
    found = {name: parameter.grad for name, parameter in backbone.named_parameters() if parameter.grad is not None}
    return found | {name: buffer for name, buffer in backbone.named_buffers() if "running" in name}


def _assert_recomputed_the_same(build: Callable[[], Backbone], images: Tensor) -> None:
    expected, again = _gradients(build().train(), images), build().train()
    for block in again.block_list():
        block.forward = ComputedAgain(block.forward)
    found = _gradients(again, images)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def _assert_a_bad_step_leaves_no_trace(backbone: Backbone, images: Tensor) -> None:
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone.encode(backbone.embed(images * torch.inf))
    commit_all(backbone, torch.tensor(False))
    assert [name for name, buffer in backbone.named_buffers() if not torch.equal(buffer, before[name])] == []


def assert_timm_gives_the_same(backbone: Backbone, image_size: int) -> None:
    """Every weight at a random value, loaded with strict=True: features, and tokens after each stage, to 1e-5."""
    backbone.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # norms and biases that are not 1 and 0
        for tensor in backbone.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.05 * torch.rand(tensor.shape, generator=generator)
    import timm  # seconds, for tests that need it alone

    form = backbone.as_timm()
    theirs = timm.create_model(form.architecture, **form.arguments).eval()
    theirs.load_state_dict(backbone.state_dict() | dict(form.more), strict=True)
    images = torch.randn(2, 3, image_size, image_size, generator=generator)
    with torch.no_grad():
        ours = backbone.encode(backbone.embed(images), tuple(range(1, backbone.num_stages + 1)))
        torch.testing.assert_close(ours.pooled_BD, theirs(images), atol=1e-5, rtol=1e-5)
        stages = theirs.forward_intermediates(images, intermediates_only=True)
        for mine, maps in zip(ours.stages, stages, strict=True):
            torch.testing.assert_close(mine, maps.flatten(2).mT, atol=1e-5, rtol=1e-5)


def assert_flops_are_those_of_a_pass(backbone: Backbone, image_size: int) -> None:
    """Within 2% of what PyTorch counts as it computes."""
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        backbone.eval().encode(backbone.embed(images))
    cells = (image_size // backbone.patch_size) ** 2
    counted = backbone.embed_flops(cells) + backbone.encode_flops(cells)
    assert counted == pytest.approx(counter.get_total_flops() / 2, rel=0.02)


def num_parameters(name: str, config: dict[str, Any], image_size: int = 224) -> tuple[int, int]:
    """(without head, with a head of 1,000 classes) of a backbone that is not made."""
    with torch.device("meta"):
        backbone = build_backbone(name, BACKBONES[name][0].model_validate(config), image_size, seed=0)
    headless = sum(parameter.numel() for parameter in backbone.parameters())
    return headless, headless + 1000 * (backbone.width + 1)


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
