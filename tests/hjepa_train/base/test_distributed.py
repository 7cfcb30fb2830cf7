import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hjepa_shards import open_loader
from hjepa_shards.errors import InputError, TooMuchDamage
from hjepa_train.base.distributed import (
    StopVote,
    all_reduce,
    average_gradients,
    gather,
    gather_rows,
    joined,
    mean_over_ranks,
    rank,
    world_size,
)
from tests.hjepa_shards.loader.test_elastic import damage
from tests.hjepa_shards.loader.test_loader import mix
from tests.processes import start_ranks


def test_ranks_on_mps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"torchrun: one process expected on MPS"), joined(torch.device("mps"), 1):
        pass


def test_one_process_is_left_alone() -> None:
    assert (rank(), world_size()) == (0, 1)
    tensor = torch.ones(3, requires_grad=True)
    assert all_reduce(tensor) is tensor
    assert gather_rows(tensor) is tensor
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
    row = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T + 10 * number  # not contiguous
    row.requires_grad_()
    rows = gather_rows(row)
    ((number + 1) * rows.square().sum(1) @ torch.tensor([1.0, 10.0, 100.0, 1000.0])).backward()
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))]
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    parameters[0].grad = torch.tensor([2.0, 4.0]) * number
    if number == 0:
        parameters[1].grad = torch.ones(3, dtype=torch.float64)
    average_gradients([*parameters, frozen])
    agreed = StopVote()
    found = {
        "agreed": [agreed([0, mine][number]) for mine in (0, 7, 0, 0)],
        "world": (rank(), world_size()),
        "total": total.detach(),
        "gradient": tensor.grad,
        "rows": rows.detach(),
        "row gradient": row.grad,
        "averages": [p.grad for p in parameters],
        "frozen": frozen.grad,
        "means": mean_over_ranks({"loss": 1.0 + 2 * number, "norm": 5.0}),
    }
    torch.save(found, f"{folder}/{number}.pt")
    dist.destroy_process_group()


def test_two_ranks_sum_values_and_gradients_and_average_parameters(tmp_path: Path) -> None:
    start_ranks(rank_main, tmp_path)
    for number in (0, 1):
        found = torch.load(tmp_path / f"{number}.pt")
        assert found["agreed"] == [0, 0, 7, 0], "what the other said, one call later"
        assert found["world"] == (number, 2)
        assert found["total"].tolist() == [3, 5]
        # d/dx of (1 + 2) * total^2, which both ranks' losses add up to
        assert found["gradient"].tolist() == [18, 30]
        assert found["rows"].tolist() == [[1, 3], [2, 4], [11, 13], [12, 14]]
        # 2 x of the ranks' losses together, (1 + 2) times the weight of the row
        expected = [[[6, 18], [120, 240]], [[6600, 7800], [72000, 84000]]][number]
        assert found["row gradient"].tolist() == expected
        assert found["averages"][0].tolist() == [1, 2]
        assert found["averages"][1].tolist() == [0.5, 0.5, 0.5]
        assert found["frozen"] is None
        assert found["means"] == {"loss": 2, "norm": 5}


def damage_main(number: int, folder: str) -> None:
    """Both ranks read damaged shards and report to each other after every second batch what they found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    received: list[object] = []
    with open_loader(
        mix(f"{folder}/shards"), seed=3, global_batch=32, rank=number, world=2, stops_alone=False
    ) as loader:
        try:
            for step in range(200):
                batch = next(loader)
                if step % 2:
                    found = {name: sorted(samples) for name, samples in loader.damaged.items()}
                    loader.merge_damage(gather(loader.damaged))
                    received.append((step, found, loader.state_dict(batch)["damaged"]))
        except TooMuchDamage as error:
            received.append((step, str(error)))
    torch.save(received, f"{folder}/{number}.pt")
    dist.destroy_process_group()


def test_all_ranks_list_the_same_damage_and_stop_at_the_same_step(shards: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(shards, tmp_path / "shards"))
    damage(root, {"digits": [(shard, row) for shard in range(4) for row in range(0, 40, 14)]})
    start_ranks(damage_main, tmp_path)
    first, second = (torch.load(tmp_path / f"{number}.pt") for number in (0, 1))
    assert first[-1] == second[-1], "they stop at the same step and say the same"
    assert "damaged samples found, 10 allowed" in first[-1][1]
    assert len(first) > 2
    together = 0
    for (step, mine, ours), (other_step, theirs, also_ours) in zip(first[:-1], second[:-1], strict=True):
        assert (step, ours) == (other_step, also_ours)
        for name in ours:
            assert ours[name] == sorted(set(mine.get(name, [])) | set(theirs.get(name, [])))
            together += mine.get(name) != theirs.get(name)
    assert together, "no rank had found what the other had not"
