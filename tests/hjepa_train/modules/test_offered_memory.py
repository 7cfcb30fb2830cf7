from typing import final

import torch
from torch import Tensor, nn

from hjepa_train.modules.offered_memory import OfferedMemory, commit_all, computing_again, is_offered


@final
class Count(OfferedMemory):
    """Rows that were seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.offered = 0

    seen: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        self.offered += len(rows) * is_offered()
        return rows

    def commit(self, is_finite: Tensor) -> None:
        self.seen += self.offered * is_finite
        self.offered = 0


def test_every_memory_of_a_network_takes_what_it_was_offered_or_drops_it() -> None:
    network = nn.Sequential(Count(), nn.ModuleDict({"inner": Count()}))
    for _ in range(2):
        network[0](torch.zeros(3))
    network[1]["inner"](torch.zeros(4))
    assert network[0].seen == network[1]["inner"].seen == 0
    commit_all(network, torch.tensor(True))
    assert (network[0].seen, network[1]["inner"].seen) == (6, 4)
    network[0](torch.zeros(3))
    commit_all(network, torch.tensor(False))
    commit_all(network, torch.tensor(True))
    assert network[0].seen == 6


def test_nothing_is_offered_while_something_is_computed_again() -> None:
    count = Count()
    with computing_again():
        count(torch.zeros(3))
        with computing_again():
            pass
        assert not is_offered()
    assert is_offered()
    assert count.offered == 0
