"""Our BatchNorm beside PyTorch's, over ranks, in a step that failed, and where a block is computed again."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from hjepa_train.base.distributed import average_gradients
from hjepa_train.modules.batch_norm import BatchNorm, replace_batch_norm
from hjepa_train.modules.layers import ComputedAgain
from hjepa_train.modules.offered_memory import commit_all, computing_again
from hjepa_train.objectives.base import adds_up
from tests.processes import start_ranks

YES, NO = torch.tensor(True), torch.tensor(False)


def images(rows: slice = slice(None), dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (3 * torch.randn(8, 5, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1)[rows].to(
        dtype
    )


def pair(dtype: torch.dtype = torch.float64) -> tuple[BatchNorm, nn.BatchNorm2d]:
    ours, theirs = BatchNorm(5, eps=1e-3, momentum=0.2).to(dtype), nn.BatchNorm2d(5, eps=1e-3, momentum=0.2).to(dtype)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += torch.rand(5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.train(), theirs.train()


@pytest.mark.parametrize("shape", [(8, 5, 4, 4), (8 * 16, 5), (8, 5, 16)])
def test_it_is_pytorchs_in_training_and_in_evaluation(shape: tuple[int, ...]) -> None:
    ours = pair()[0]
    theirs = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(5, eps=1e-3, momentum=0.2).double()
    theirs.load_state_dict(ours.state_dict())
    for step in range(3):
        values = images().reshape(shape) * (step + 1)
        found, expected = (values.clone().requires_grad_() for _ in range(2))
        out, reference = ours(found), theirs(expected)
        torch.testing.assert_close(out, reference, rtol=1e-10, atol=1e-10)
        for loss in (out, reference):
            loss.pow(3).sum().backward()
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-8, atol=1e-8)
        commit_all(ours, YES)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.eval()(images().reshape(shape)), theirs.eval()(images().reshape(shape)))


def test_nothing_moves_before_the_step_is_over_and_nothing_of_one_that_failed() -> None:
    ours, _ = pair()
    before = {name: buffer.clone() for name, buffer in ours.named_buffers()}
    out = ours(images())
    assert torch.equal(ours.running_mean, before["running_mean"])
    assert ours.num_offered == 1
    commit_all(ours, NO)
    assert all(torch.equal(buffer, before[name]) for name, buffer in ours.named_buffers())
    commit_all(ours, YES)  # nothing was seen since
    assert all(torch.equal(buffer, before[name]) for name, buffer in ours.named_buffers())
    assert torch.equal(ours(images()), out)
    ours(images() * torch.nan)
    commit_all(ours, NO)
    assert all(torch.equal(buffer, before[name]) for name, buffer in ours.named_buffers())


def test_moments_of_a_step_are_the_mean_over_its_micro_batches() -> None:
    ours, _ = pair()
    parts = [images(slice(0, 4)), images(slice(4, 8))]
    for part in parts:
        ours(part)
    commit_all(ours, YES)
    means = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    variances = torch.stack([part.transpose(0, 1).flatten(1).var(1) for part in parts]).mean(0)
    torch.testing.assert_close(ours.running_mean, 0.2 * means)
    torch.testing.assert_close(ours.running_var, 0.8 + 0.2 * variances)
    assert ours.num_batches_tracked == 1


def test_what_is_computed_again_offers_nothing() -> None:
    ours, _ = pair()
    with computing_again():
        ours(images())
    assert ours.num_offered == 0
    ours.forward = ComputedAgain(ours.forward)
    ours(images().requires_grad_()).square().sum().backward()
    assert ours.num_offered == 1


def test_looking_on_in_evaluation_offers_nothing() -> None:
    ours, _ = pair()
    ours.eval()(images())
    ours.train()
    assert ours.num_offered == 0


def rank_main(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    ours, _ = pair()
    mine = images(slice(4 * number, 4 * number + 4)).requires_grad_()
    out = ours(mine)
    (out.pow(3).sum((1, 2, 3)) * (1 + torch.arange(8.0)[4 * number : 4 * number + 4])).mean().backward()
    average_gradients(ours.parameters())
    commit_all(ours, YES)
    found = {"out": out.detach(), "image": mine.grad, "weight": ours.weight.grad, "state": ours.state_dict()}
    torch.save(found, f"{folder}/{number}.pt")
    dist.destroy_process_group()


def test_two_ranks_have_the_moments_and_gradients_of_one_with_all_images(tmp_path: Path) -> None:
    start_ranks(rank_main, tmp_path)
    _, theirs = pair()
    whole = images().requires_grad_()
    out = theirs(whole)
    (out.pow(3).sum((1, 2, 3)) * (1 + torch.arange(8.0))).mean().backward()
    for number in (0, 1):
        found = torch.load(tmp_path / f"{number}.pt")
        rows = slice(4 * number, 4 * number + 4)
        torch.testing.assert_close(found["out"], out[rows].detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found["image"], 2 * whole.grad[rows], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found["weight"], theirs.weight.grad, rtol=1e-8, atol=1e-8)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(found["state"][name], value, rtol=1e-9, atol=1e-9)


def test_pytorchs_are_replaced_with_their_weights_and_an_objective_with_ours_does_not_add_up() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.Sequential(nn.BatchNorm2d(5, eps=0.5)), nn.BatchNorm1d(5, momentum=0.3)
    )
    nn.init.uniform_(network[2].weight)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    assert replace_batch_norm(network)
    assert [type(network[1][0]), type(network[2])] == [BatchNorm, BatchNorm]
    assert (network[1][0].eps, network[2].momentum) == (0.5, 0.3)
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not replace_batch_norm(network)
    network.is_additive = True
    assert not adds_up(network)
    assert adds_up(type("Plain", (nn.Linear,), {"is_additive": True})(1, 1))
