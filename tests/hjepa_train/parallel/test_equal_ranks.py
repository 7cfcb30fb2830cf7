"""What ranks have in common: compared by name, and weights made the same."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from hjepa_shards.errors import InputError
from hjepa_train.parallel.equal_ranks import require_same, require_same_weights, share_weights
from tests.processes import start_ranks

WORLD = 3


def refusal(number: int) -> list[str]:
    """What a rank says in each case; '' where nothing is wrong."""
    network = nn.Sequential(first := nn.Linear(3, 2), nn.BatchNorm1d(2))
    network.register_buffer("table", torch.full((2, 3), number == 1).T, persistent=False)  # not contiguous
    with torch.no_grad():
        first.weight += number
    share_weights(network)
    weights = {name: value.clone() for name, value in [*network.named_parameters(), *network.named_buffers()]}
    assert not weights["table"].any(), "rank 0's, of what no state_dict holds too"

    def off_by_a_bit(name: str) -> None:
        with torch.no_grad():
            weights[name].view(torch.uint8).flatten()[0] ^= number

    def changed(name: str) -> nn.Module:
        off_by_a_bit(name)
        for key, value in [*network.named_parameters(), *network.named_buffers()]:
            value.data.copy_(weights[key])
        return network

    cases = [
        lambda: require_same_weights(network),
        lambda: require_same({"a": 1, "b": [1, {"c": 2.5}]}, "advice"),
        lambda: require_same({"a": 1 + (number == 2), "b": None}, "do this"),
        lambda: require_same({"a": number, **({"only here": 0} if number == 1 else {})}, "do this"),
        lambda: require_same({f"key {key}": number for key in range(9)}, "do this"),
        lambda: require_same_weights(changed("0.weight")),
        lambda: require_same_weights(changed("1.running_var")),
    ]
    said: list[str] = []
    for case in cases:
        try:
            case()
            said.append("")
        except InputError as error:
            said.append(str(error))
    return said


def rank_main(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=WORLD)
    torch.save(refusal(number), f"{folder}/{number}.pt")
    dist.destroy_process_group()


def test_every_rank_names_what_differs_on_which_rank_with_both_values(tmp_path: Path) -> None:
    start_ranks(rank_main, tmp_path, WORLD)
    said, *others = (torch.load(tmp_path / f"{number}.pt") for number in range(WORLD))
    assert others == [said] * (WORLD - 1), "all of them end, with the same words"
    same_weights, same_facts, one, missing, many, weight, moment = said
    assert same_weights == same_facts == ""
    assert one == "the ranks do not have the same: a: 1 on rank 0, 2 on rank 2; do this"
    assert missing == (
        "the ranks do not have the same: a: 0 on rank 0, 1 on rank 1 and 1 more; "
        "only here: None on rank 0, 0 on rank 1; do this"
    )
    assert many.endswith("key 3: 0 on rank 0, 1 on rank 1 and 1 more; and 5 more; do this")
    assert weight.startswith("the ranks do not have the same: 0.weight: '")
    assert "1.running_var: '" in moment


def test_one_process_alone_has_nothing_to_compare() -> None:
    network = nn.Linear(2, 2)
    before = network.weight.clone()
    share_weights(network)
    require_same_weights(network)
    require_same({"a": 1}, "advice")
    torch.testing.assert_close(network.weight, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.int64])
def test_any_kind_of_number_has_a_digest(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hjepa_train.parallel.equal_ranks.world_size", lambda: 2)
    network = nn.Module()
    for name, shape in (("scalar", ()), ("empty", (0, 3)), ("table", (2, 3))):
        network.register_buffer(name, torch.zeros(shape, dtype=dtype))
    require_same_weights(network)
