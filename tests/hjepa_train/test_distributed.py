from pathlib import Path

import torch
import torch.distributed as dist

from hjepa_train.distributed import all_reduce, average_gradients, rank, world_size
from tests.processes import start_ranks


def test_one_process_is_left_alone() -> None:
    assert (rank(), world_size()) == (0, 1)
    tensor = torch.ones(3, requires_grad=True)
    assert all_reduce(tensor) is tensor
    parameter = torch.nn.Parameter(torch.ones(2))
    average_gradients([parameter])
    assert parameter.grad is None


def rank_main(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    tensor = torch.tensor([1.0, 2.0]) + number
    tensor.requires_grad_()
    total = all_reduce(tensor)
    ((number + 1) * total.square()).sum().backward()
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))]
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    parameters[0].grad = torch.tensor([2.0, 4.0]) * number
    if number == 0:
        parameters[1].grad = torch.ones(3, dtype=torch.float64)
    average_gradients([*parameters, frozen])
    found = {
        "world": (rank(), world_size()),
        "total": total.detach(),
        "gradient": tensor.grad,
        "averages": [p.grad for p in parameters],
        "frozen": frozen.grad,
    }
    torch.save(found, f"{folder}/{number}.pt")
    dist.destroy_process_group()


def test_two_ranks_sum_values_and_gradients_and_average_parameters(tmp_path: Path) -> None:
    start_ranks(rank_main, tmp_path)
    for number in (0, 1):
        found = torch.load(tmp_path / f"{number}.pt")
        assert found["world"] == (number, 2)
        assert found["total"].tolist() == [3, 5]
        # d/dx of (1 + 2) * total^2, which both ranks' losses add up to
        assert found["gradient"].tolist() == [18, 30]
        assert found["averages"][0].tolist() == [1, 2]
        assert found["averages"][1].tolist() == [0.5, 0.5, 0.5]
        assert found["frozen"] is None
