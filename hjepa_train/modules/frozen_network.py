"""A network that is used and never trained: a teacher, a language model, a tokenizer of images.

Its weights stand outside of parameters() and state_dict(), so that no optimizer moves them and no checkpoint holds them
again. Their digest is in the state_dict(): a run that continues with other weights is refused.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from hjepa_shards.errors import ResumeMismatch


@final
class FrozenNetwork(nn.Module):
    """Calls the network in evaluation mode, without gradient, whatever the mode of what holds it."""

    def __init__(self, network: nn.Module, name: str) -> None:
        """name: what to call it in errors."""
        super().__init__()
        self.name = name
        self._held = [network.eval().requires_grad_(False)]  # a list: no submodule
        digest = bytes.fromhex(digest_of(network.state_dict()))
        self.register_buffer("digest", torch.frombuffer(bytearray(digest), dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_refuse_others)

    digest: Tensor

    @property
    def network(self) -> nn.Module:
        return self._held[0]

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        return self._held[0](*inputs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenNetwork":
        """To another device or precision together with what holds it."""
        super()._apply(fn, recurse)
        self._held[0]._apply(fn)
        return self


def _refuse_others(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """ResumeMismatch where a state is of other frozen weights."""
    assert isinstance(module, FrozenNetwork)
    saved = state.get(f"{prefix}digest")
    if isinstance(saved, Tensor) and not torch.equal(saved.cpu(), module.digest.cpu()):
        raise ResumeMismatch(
            f"{module.name}: the frozen weights {_hex(saved)} that the run began with expected, {_hex(module.digest)} "
            "found; give it the same ones, or choose another run.name"
        )


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """Hex, of names, types, shapes and numbers, in the order of names."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hex(digest: Tensor) -> str:
    return bytes(digest.cpu().tolist()).hex()[:12]
