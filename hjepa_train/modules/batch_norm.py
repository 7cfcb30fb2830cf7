"""Batch normalisation (arXiv 1502.03167) that leaves no trace of a step that failed, and is the same on any ranks.

PyTorch's own moves its running moments in forward: of steps that are not finite, and twice where a block is computed
again. Its synchronised form does not run on CPU ranks. Here moments are those of one micro-batch on all ranks; the
running ones follow in `commit`, by the mean over the step's micro-batches. Images meet, so another number of them
together is another recipe.

Names and numbers in the state_dict() are those of torch.nn.BatchNorm2d.

Axes: B images, C channels, ... space.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hjepa_train.base.distributed import all_reduce, world_size
from hjepa_train.modules.offered_memory import OfferedMemory, is_offered


@final
class BatchNorm(OfferedMemory):
    """[B, C, ...] to the same shape."""

    def __init__(self, num_channels: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        """momentum: the way that running moments go in a step."""
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))
        self.register_buffer("offered_2C", torch.zeros(2, num_channels), persistent=False)
        self.register_buffer("num_offered", torch.zeros(()), persistent=False)

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    offered_2C: Tensor
    num_offered: Tensor

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(images, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        count = images.numel() // images.shape[1] * world_size()
        if world_size() == 1:
            out, mean_C, inverse_C = torch.native_batch_norm(
                images, self.weight, self.bias, None, None, True, 0.0, self.eps
            )
            variance_C = inverse_C.detach() ** -2 - self.eps
        else:
            out, mean_C, variance_C = self._over_ranks(images, count)
        if is_offered():
            with torch.no_grad():
                self.offered_2C += torch.stack([mean_C, variance_C * (count / max(1, count - 1))])
                self.num_offered += 1
        return out

    def _over_ranks(self, images: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """(normalised, mean [C], variance [C]) of the images of all ranks; the gradient passes between them."""
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        axes, shape = [0, *range(2, images.ndim)], (1, -1, *[1] * (images.ndim - 2))
        mean_C = all_reduce(wide.sum(axes)) / count
        centred = wide - mean_C.view(shape)
        variance_C = all_reduce(centred.square().sum(axes)) / count
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        out = centred * scale_C.view(shape) + self.bias.view(shape)
        return out.to(images.dtype), mean_C, variance_C

    @torch.no_grad()
    def commit(self, is_finite: Tensor) -> None:
        """An optimizer step's moments; nothing where no image was seen."""
        if not self.training:
            return
        seen = is_finite & (self.num_offered > 0)
        mean_2C = self.offered_2C / self.num_offered.clamp(min=1)
        way = seen.to(mean_2C.dtype) * self.momentum
        for running, found in zip((self.running_mean, self.running_var), mean_2C, strict=True):
            running.copy_(torch.where(seen, running.lerp(found, way), running))
        self.num_batches_tracked += seen
        self.offered_2C.zero_()
        self.num_offered.zero_()


_THEIRS = (nn.BatchNorm1d, nn.BatchNorm2d)


def replace_batch_norm(network: nn.Module) -> bool:
    """Put ours in place of each of PyTorch's, with its weights. Returns whether there was one."""
    found = False
    for part in list(network.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, _THEIRS) and type(child) in _THEIRS:
                ours = BatchNorm(child.num_features, eps=child.eps, momentum=child.momentum or 0.1)
                ours.load_state_dict(child.state_dict())
                setattr(part, name, ours)
                found = True
    return found
