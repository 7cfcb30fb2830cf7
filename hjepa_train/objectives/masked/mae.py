"""MAE: reconstruct the hidden patches from the visible ones (arXiv 2111.06377).

The encoder sees a quarter of the patches and nothing of the others; a small decoder, thrown away afterwards, gets its
tokens with one mask token for each hidden position, and says what the pixels there are. Which patches are hidden is a
function of (seed, position), their number is fixed.

Axes: B images, N patches, K visible ones, M hidden ones, D encoder width, P decoder width, V numbers of a patch.
"""

from typing import final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.config import Strict
from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone, require_parts
from hjepa_train.base.keyed_integers import draw_integers
from hjepa_train.base.mixture_facts import NO_FACTS, Facts
from hjepa_train.modules import flop_count
from hjepa_train.modules.layers import Block, StackConfig, initialise, sincos_positions
from hjepa_train.objectives.base import Batch, Objective, Sketch
from hjepa_train.objectives.recipe import Recipe


class DecoderConfig(StackConfig):
    """Size of the decoder; the paper's for every size of encoder."""

    width: int = Field(default=512, gt=0, le=2**16)
    depth: int = Field(default=8, gt=0, le=256)
    heads: int = Field(default=16, gt=0)


class MaeConfig(Strict):
    """Everything that defines MAE but the encoder."""

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """share of the patches that is hidden"""
    decoder: DecoderConfig = DecoderConfig()
    """what reconstructs them"""
    normalise_patches: bool = True
    """ask for each patch's pixels minus their mean, over their standard deviation: better features"""


@final
class Mae(Objective):
    """The encoder and its decoder."""

    recipe = Recipe(
        name="MAE's",
        source="arXiv 2111.06377, and PRETRAIN.md of its authors' code",
        lr_per_256=1.5e-4,
        betas=(0.9, 0.95),
        warmup_epochs=40,
    )

    def __init__(
        self,
        backbone: Backbone,
        config: MaeConfig,
        *,
        image_size: int,
        num_steps: int,
        seed: int,
        facts: Facts = NO_FACTS,
    ) -> None:
        """image_size: side, pixels.  num_steps, facts: nothing here depends on them.  seed: of decoder and masks."""
        super().__init__()
        del num_steps, facts
        require_parts(backbone, "mae")
        self.config = config
        self.grid = image_size // backbone.patch_size
        self.num_visible = round((1 - config.mask_ratio) * self.grid**2)
        if not 0 < self.num_visible < self.grid**2:
            raise InputError(
                f"objective.mae.mask_ratio: of {self.grid**2} patches some hidden and some visible expected, "
                f"{self.num_visible} visible found; choose another ratio or a smaller backbone patch"
            )
        self.backbone = backbone
        width = config.decoder.width
        self.project = nn.Linear(backbone.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(Block(width, config.decoder.heads) for _ in range(config.decoder.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 3 * backbone.patch_size**2)
        table = sincos_positions(self.grid, width, extent=backbone.extent or self.grid)
        self.register_buffer("_positions", table, persistent=False)
        self._mask_key = derive_key(seed, "mae mask")
        generator = torch.Generator().manual_seed(derive_key(seed, "decoder") >> 65)
        nn.init.normal_(self.mask_token, std=0.02, generator=generator)
        for part in (self.project, self.blocks, self.head):
            initialise(part, generator)

    _positions: Tensor

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        visible_BK, hidden_BM = self.masks(batch.positions_B)
        patches = self.backbone.embed(batch.images_BCHW).take(visible_BK)
        features = self.backbone.encode(patches, drops=self.backbone.draws(batch.positions_B))
        predicted_BMV = self.reconstruct(features.tokens_BND, visible_BK, hidden_BM)
        wanted_BMV = self.wanted(batch.images_BCHW, hidden_BM)
        loss_B = (predicted_BMV.to(wanted_BMV) - wanted_BMV).square().mean((1, 2))
        return loss_B.mean(), {"loss_B": loss_B.detach()}

    def masks(self, positions_B: Tensor) -> tuple[Tensor, Tensor]:
        """([B, K] visible, [B, M] hidden) positions of the grid, a permutation of it an image."""
        order_BN = draw_integers(self._mask_key, positions_B, self.grid**2).argsort(dim=1, stable=True)
        return order_BN[:, : self.num_visible], order_BN[:, self.num_visible :]

    def reconstruct(self, tokens_BKD: Tensor, visible_BK: Tensor, hidden_BM: Tensor) -> Tensor:
        """[B, M, V]: the decoder's pixels of hidden patches."""
        seen = self.project(tokens_BKD) + self._at(visible_BK)
        tokens = torch.cat([seen, self._at(hidden_BM) + self.mask_token], 1)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        tokens = self.blocks[-1](
            tokens, wanted=hidden_BM.shape[1]
        )  # nothing reads what is predicted for visible patches
        return self.head(self.norm(tokens))

    def wanted(self, images_BCHW: Tensor, hidden_BM: Tensor) -> Tensor:
        """[B, M, V]: the pixels of hidden patches."""
        side = self.backbone.patch_size
        patches_BNV = F.unfold(images_BCHW, side, stride=side).transpose(1, 2)
        wanted = patches_BNV.gather(1, hidden_BM[..., None].expand(-1, -1, patches_BNV.shape[2]))
        if not self.config.normalise_patches:
            return wanted
        return (wanted - wanted.mean(2, keepdim=True)) / (wanted.var(2, keepdim=True) + 1e-6).sqrt()

    @torch.no_grad()
    def sketch(self, batch: Batch) -> Sketch:
        """The reconstruction, beside the visible patches; a normalised patch gets back its own mean and deviation."""
        images = batch.images_BCHW
        visible_BK, hidden_BM = self.masks(batch.positions_B)
        patches = self.backbone.embed(images)
        predicted_BMV = self.reconstruct(
            self.backbone.encode(patches.take(visible_BK)).tokens_BND, visible_BK, hidden_BM
        )
        side = self.backbone.patch_size
        cells_BNV = F.unfold(images, side, stride=side).transpose(1, 2)
        index_BMV = hidden_BM[..., None].expand(-1, -1, cells_BNV.shape[2])
        own_BMV = cells_BNV.gather(1, index_BMV)
        if self.config.normalise_patches:
            deviation = (own_BMV.var(2, keepdim=True) + 1e-6).sqrt()
            predicted_BMV = predicted_BMV * deviation + own_BMV.mean(2, keepdim=True)
        whole_BNV = cells_BNV.scatter(1, index_BMV, predicted_BMV.to(cells_BNV))
        hidden_BN = torch.zeros(len(images), self.grid**2, device=images.device).scatter(1, hidden_BM, 1) > 0
        return Sketch(
            grid=self.grid,
            hidden_BN=hidden_BN,
            reconstructed_BCHW=F.fold(whole_BNV.transpose(1, 2), images.shape[-2:], side, stride=side),
            features={"encoder": self.backbone.encode(patches).tokens_BND},
        )

    def flops_per_image(self) -> int:
        num_patches, width = self.grid**2, self.config.decoder.width
        num_hidden = num_patches - self.num_visible
        decoded = (
            flop_count.matrix(self.num_visible, self.backbone.width, width)
            + flop_count.stack(num_patches, width, self.config.decoder.depth, wanted=num_hidden)
            + flop_count.matrix(num_hidden, width, self.head.out_features)
        )
        encoded = self.backbone.encode_flops(self.num_visible)
        return flop_count.trained(encoded + decoded, first=self.backbone.embed_flops(num_patches))

    def encoders(self) -> dict[str, Backbone]:
        return {"encoder": self.backbone}

    def _at(self, index: Tensor) -> Tensor:
        return F.embedding(index, self._positions)
