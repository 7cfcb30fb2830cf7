"""A frozen network stays what it was, is not saved, and is told from another."""

import copy

import pytest
import torch
from torch import nn

from hjepa_shards.errors import ResumeMismatch
from hjepa_train.modules.frozen_network import FrozenNetwork, digest_of


class Student(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        inner = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.teacher = FrozenNetwork(inner, "objective.distill.teacher")
        self.head = nn.Linear(4, 3)


def test_it_is_neither_trained_nor_saved_and_always_in_evaluation_mode() -> None:
    student = Student(0).train()
    assert {name for name, _ in student.named_parameters()} == {"head.weight", "head.bias"}
    assert set(student.state_dict()) == {"teacher.digest", "head.weight", "head.bias"}
    images = torch.randn(6, 4, requires_grad=True)
    first = student.teacher(images)
    assert not first.requires_grad
    assert torch.equal(student.teacher(images), first), "no dropout, and no moments that move"
    assert not student.teacher.network.training


def test_it_goes_where_its_holder_goes() -> None:
    student = Student(0).double()
    assert student.teacher(torch.zeros(2, 4, dtype=torch.float64)).dtype == torch.float64
    assert student.to("meta").teacher.network[0].weight.device.type == "meta"


def test_another_network_is_refused_by_name_and_the_same_is_not() -> None:
    student, same, other = Student(0), Student(0), Student(1)
    same.load_state_dict(student.state_dict())
    copy.deepcopy(same).load_state_dict(student.state_dict())
    with pytest.raises(ResumeMismatch, match=r"objective\.distill\.teacher: the frozen weights \w+ that the run began"):
        other.load_state_dict(student.state_dict())


def test_the_digest_is_of_all_of_it() -> None:
    weights = {"a": torch.arange(6.0), "b": torch.tensor(3)}
    expected = digest_of(weights)
    assert digest_of(dict(reversed(weights.items()))) == expected
    for changed in (
        {"a": torch.arange(6.0).view(2, 3)},
        {"a": torch.arange(6.0).double()},
        {"c": torch.tensor(3)},
        {"b": torch.tensor(4)},
    ):
        assert digest_of(weights | changed) != expected
