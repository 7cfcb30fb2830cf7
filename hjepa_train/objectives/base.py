"""What an objective is to the trainer: a batch in, a loss and numbers out; its memory is its state_dict().

How losses add up. An optimizer step has `rows` images on each rank, in one or more micro-batches. `forward`
returns the mean over its micro-batch; the trainer calls backward on loss * (micro-batch rows / rows) for each
of them and averages gradients over ranks with `average_gradients`. The sum is then the mean over the global
batch, for every split of it.

A loss in which images meet each other (`is_additive` False) brings together those of one micro-batch on all ranks:
`all_reduce` and `gather_rows` let it, and carry the gradient back. Its value is then the same for any number of ranks
with as many images together, and a run continues with as many.

Axes: B images, C channels, H W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hjepa_train.backbones.base import Backbone


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One micro-batch, on the device."""

    images_BCHW: Tensor
    """float, normalised"""
    labels_B: Tensor
    """int64, -1 where there is none"""
    positions_B: Tensor
    """int64, samples since the run began; the key of everything random about a sample"""
    entry_B: Tensor
    """int64, which entry of the mixture an image came from"""
    rows: int
    """images of the whole optimizer step on this rank, all micro-batches together"""
    other_views: tuple[Tensor, ...] = ()
    """further crops of the same images, each as `images_BCHW`, where data.augmentation.views asks for more than one"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sketch:
    """What there is to see of a batch (image_panels.py draws it). N patches, G a side; None is what a family lacks."""

    grid: int
    """G"""
    hidden_BN: Tensor | None = None
    """bool, True where the encoder sees nothing"""
    blocks: tuple[Tensor, ...] = ()
    """a level each [B, M, n] bool: the cells that each block asks for, on a square grid of n cells"""
    reconstructed_BCHW: Tensor | None = None
    """images that the objective made, normalised"""
    features: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """encoder -> [B, N, D] what it makes of the patches of the whole image"""

    def on_cpu(self) -> "Sketch":
        """Detached and in float32 where it is not bool."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.detach().cpu() if tensor.dtype == torch.bool else tensor.detach().float().cpu()

        return Sketch(
            grid=self.grid,
            hidden_BN=None if self.hidden_BN is None else moved(self.hidden_BN),
            blocks=tuple(moved(block) for block in self.blocks),
            reconstructed_BCHW=None if self.reconstructed_BCHW is None else moved(self.reconstructed_BCHW),
            features={name: moved(tokens) for name, tokens in self.features.items()},
        )


class Objective(nn.Module, ABC):
    """One way to train a backbone: its heads, its targets, its loss."""

    num_views = 1
    """Crops of an image that it takes (data.augmentation.views)."""

    is_additive = True
    """Whether a step's loss is the same for every split of its images into micro-batches."""

    additive_with = ""
    """The setting that would make it so; nothing where none does."""

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(scalar loss, detached metrics); "loss_B" is each image's own loss, which the trainer groups by source."""

    def before_step(self, micro_batches: Sequence[Batch]) -> None:
        """See all micro-batches of the step before the first forward, under its autocast. Nothing by default."""

    def after_step(self, step: int, is_finite: Tensor) -> None:
        """Move what gradients do not: momentum targets, queues, centres.

        step: updates before this one.  is_finite: on the device; where it is false the step is to leave no trace.
        """

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars that show whether it learns, without gradient, at log points. None by default."""
        del batch
        return {}

    def sketch(self, batch: Batch) -> Sketch | None:
        """What there is to see of a few images; called without gradient, in evaluation mode, by each rank for itself.

        It must change nothing.
        """
        del batch
        return None

    @abstractmethod
    def flops_per_image(self) -> int:
        """Of an optimizer step, for each of its images: forward, backward and targets, as flop_count.py counts.

        `diagnose` is not among them: it runs at log points only.
        """

    @abstractmethod
    def encoders(self) -> dict[str, Backbone]:
        """The backbones to evaluate, by name."""
