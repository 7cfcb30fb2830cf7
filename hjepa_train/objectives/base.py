"""What an objective is to the trainer: a batch in, a loss and numbers out; its memory is its state_dict().

How losses add up. An optimizer step has `rows` images on each rank, in one or more micro-batches. `forward`
returns the mean over its micro-batch; the trainer calls backward on loss * (micro-batch rows / rows) for each
of them and averages gradients over ranks with `average_gradients`. The sum is then the mean over the global
batch, for every split of it.

A loss in which images meet each other (`is_additive` False) brings together those of one micro-batch on all ranks:
`all_reduce` and `gather_rows` let it, and carry the gradient back. Its value is then the same for any number of ranks
with as many images together, and a run continues with as many.

How signals are made (training/diagnosis.py runs it at log points). They are functions of K images of the global batch,
however these are split: `survey` gives sums over some of them, and what it keeps of them for `observe`, which makes a
row of numbers for each and has the sums over all; `diagnose` makes scalars of all K rows. A family whose signals need
no sums has no `survey`; one without signals has none of the three. What is kept stays on its rank's device until all
are seen: tokens, not activations. Rows are gathered: an image's features may be in one, those of its patches not.

Axes: B images, C channels, H W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hjepa_train.backbones.base import Backbone
from hjepa_train.modules.batch_norm import BatchNorm
from hjepa_train.modules.offered_memory import commit_all
from hjepa_train.objectives.recipe import ADAMW, Recipe


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


def rows_of(micro_batches: Sequence[Batch], rows: Sequence[int]) -> Batch:
    """These of a rank's images as one batch.  rows: ascending, numbered through all micro-batches."""
    parts: list[tuple[Batch, Tensor]] = []
    first = 0
    for batch in micro_batches:
        last = first + len(batch.positions_B)
        if inside := [row - first for row in rows if first <= row < last]:
            parts.append((batch, torch.tensor(inside, device=batch.positions_B.device)))
        first = last

    def picked(column: Callable[[Batch], Tensor]) -> Tensor:
        return torch.cat([column(batch)[index] for batch, index in parts])

    return Batch(
        images_BCHW=picked(lambda batch: batch.images_BCHW),
        labels_B=picked(lambda batch: batch.labels_B),
        positions_B=picked(lambda batch: batch.positions_B),
        entry_B=picked(lambda batch: batch.entry_B),
        rows=len(rows),
        other_views=tuple(
            picked(lambda batch, view=view: batch.other_views[view])
            for view in range(len(micro_batches[0].other_views))
        ),
    )


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


def adds_up(objective: "Objective") -> bool:
    """Whether a step's loss is the same for every split into micro-batches: of the objective and of its networks."""
    return objective.is_additive and not any(isinstance(part, BatchNorm) for part in objective.modules())


@runtime_checkable
class Classifies(Protocol):
    """An objective with classifiers of its own."""

    class_names: tuple[str, ...]
    """K of them."""

    def classify(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Encoder, as `Objective.encoders` names it -> [B, K] logits."""
        ...


@runtime_checkable
class Aligns(Protocol):
    """An objective that puts images and texts into one space."""

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """[B, D] unit vectors."""
        ...

    def embed_texts(self, tokens_BT: Tensor) -> Tensor:
        """[B, D] unit vectors."""
        ...


@runtime_checkable
class Describes(Protocol):
    """An objective that says in words what an image shows."""

    def describe(self, images_BCHW: Tensor, length: int) -> Tensor:
        """[B, length] int64: the likeliest words one after another."""
        ...


class Objective(nn.Module, ABC):
    """One way to train a backbone: its heads, its targets, its loss."""

    num_views = 1
    """Crops of an image that it takes (data.augmentation.views)."""

    is_additive = True
    """Whether a step's loss is the same for every split of its images into micro-batches."""

    additive_with = ""
    """The setting that would make it so; nothing where none does."""

    rows_together = 1
    """So many consecutive images belong together: a number that divides micro-batches and ranks' parts of a batch."""

    recipe: ClassVar[Recipe] = ADAMW
    """Optimizer settings for keys that a run's file leaves out."""

    recipes_by_backbone: ClassVar[Mapping[str, Recipe]] = {}
    """Others, by the backbone's name in the registry, where they depend on it."""

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(scalar loss, detached metrics); "loss_B" is each image's own loss, which the trainer groups by source."""

    def before_step(self, micro_batches: Sequence[Batch]) -> None:
        """See all micro-batches of the step before the first forward, under its autocast. Nothing by default."""

    def after_step(self, step: int, is_finite: Tensor) -> None:
        """Move what gradients do not: momentum targets, queues, centres. By default what its networks were offered.

        step: updates before this one.  is_finite: on the device; where it is false the step is to leave no trace.
        """
        del step
        commit_all(self, is_finite)

    def followed(self, step: int, num_steps: int) -> dict[str, float]:
        """Its own numbers that follow the length of a run, by their keys: what they are at a step of one this long."""
        del step, num_steps
        return {}

    def survey(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(sums over these images, in float32 or wider; what `observe` is given of them again). None by default.

        In evaluation mode, without gradient, as `observe`; both change nothing and draw nothing.
        """
        del batch
        return {}, {}

    def observe(self, batch: Batch, kept: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What signals are made of: [B, ...] each, a row for each image. None by default.

        kept: of these images, by `survey`.  sums: its sums over all K images.
        """
        del batch, kept, sums
        return {}

    def diagnose(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars that show whether it learns. None by default; called where `observe` gives something.

        rows: [K, ...] each, K of 2 or more: `observe` of all images, float64 on the CPU, in the order of the global
        batch, the same on all ranks.
        """
        del rows
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
