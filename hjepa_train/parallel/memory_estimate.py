"""How much memory a training step will take, without taking it.

The model runs forward on fake tensors, which have shapes and types but no numbers; what autograd keeps for the backward
pass is added up as it would be in memory, each storage once. An estimate: kernels' workspaces,
fragmentation, what a device's own attention kernel keeps, and the one block that is computed again with
`activation_checkpointing` are not counted.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from hjepa_train.modules.layers import ComputedAgain
from hjepa_train.objectives.base import Batch, Objective
from hjepa_train.parallel.layout import blocks_of


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on one device, by what they are for."""

    weights: int
    """trained"""
    target: int
    """parameters and buffers that no gradient moves"""
    gradients: int
    optimizer: int
    """AdamW's two moments"""
    activations: int
    """what one micro-batch's forward keeps for its backward"""
    images: int
    """of all micro-batches: bytes as loaded, and float32 as augmented"""

    @property
    def total(self) -> int:
        """All of them at once: no step needs more, most a little less."""
        return self.weights + self.target + self.gradients + self.optimizer + self.activations + self.images


def memory_of_a_step(
    objective: Objective,
    *,
    image_size: int,
    rows: int,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Memory:
    """objective: built on the meta device; it is of no other use afterwards.

    rows: images of a step on this device.  autocast: as in training on a CPU.
    """
    trained = sum(bytes_of(p) for p in objective.parameters() if p.requires_grad)
    every = sum(bytes_of(tensor) for tensor in (*objective.parameters(), *objective.buffers()))
    with on_fake_tensors(objective):
        activations = _kept_for_backward(
            objective, _empty_batch(micro_batch, rows, image_size, objective.num_views), autocast
        )
    pixels = 3 * image_size**2 * rows * objective.num_views
    return Memory(
        weights=trained,
        target=every - trained,
        gradients=trained,
        optimizer=2 * trained,
        activations=activations,
        images=pixels * (1 + 4),
    )


@contextmanager
def on_fake_tensors(module: nn.Module) -> Iterator[None]:
    """Fake tensors of the CPU in place of a module's meta ones, which autocast does not know; new ones are fake too."""
    with FakeTensorMode():
        for part in module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                setattr(part, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
            for name, buffer in list(part.named_buffers(recurse=False)):
                setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        yield


def bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _empty_batch(size: int, rows: int, image_size: int, num_views: int) -> Batch:
    positions = torch.arange(size)
    first, *others = (torch.empty(size, 3, image_size, image_size) for _ in range(num_views))
    return Batch(
        images_BCHW=first,
        other_views=tuple(others),
        labels_B=positions,
        positions_B=positions,
        entry_B=positions * 0,
        rows=rows,
    )


def _kept_for_backward(objective: Objective, batch: Batch, autocast: Callable[[], AbstractContextManager[Any]]) -> int:
    """Bytes of the storages that autograd holds at the end of the forward pass; parameters and pixels not."""
    own = {
        StorageWeakRef(tensor.untyped_storage())
        for tensor in (*objective.parameters(), *objective.buffers(), batch.images_BCHW, *batch.other_views)
    }
    kept: dict[StorageWeakRef, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if StorageWeakRef(storage) not in own:
            kept[StorageWeakRef(storage)] = storage
        return tensor

    def keep_input(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            keep(inputs[0])

    hooks = [
        block.register_forward_pre_hook(keep_input)
        for block in blocks_of(objective)
        if isinstance(block.forward, ComputedAgain)
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast():
        objective.before_step([batch])
        loss, _ = objective(batch)
    for hook in hooks:
        hook.remove()
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())
