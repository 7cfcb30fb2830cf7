"""Numbers that show whether a joint-embedding model learns, and the alarms on them.

A JEPA's loss does not show it: it falls under collapse too. Every function here takes detached features;
`Alarms` takes plain floats. Norms and variances after a scale-free normalisation are constant by
construction and are never used.

Axes: B images, N cells of a level, M blocks, C target cells, K context patches, D width.
"""

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def loss_ratio(loss_BMC: Tensor, targets_BND: Tensor, index_BMC: Tensor, share_BMC: Tensor) -> Tensor:
    """ρ: the loss over that of predicting each position's mean target. Below 1 the image itself was used."""
    mean_ND = targets_BND.mean(0)
    own = at_cells(targets_BND, index_BMC)
    baseline = F.smooth_l1_loss(mean_ND[index_BMC], own, reduction="none").mean(-1)
    return (loss_BMC * share_BMC).sum() / (baseline * share_BMC).sum()


def cross_sample_gap(predictions_BMCD: Tensor, targets_BND: Tensor, index_BMC: Tensor, share_BMC: Tensor) -> Tensor:
    """Cosine to the image's own target minus that to another image's at the same position. 0: only position used."""
    own = F.cosine_similarity(predictions_BMCD, at_cells(targets_BND, index_BMC), dim=-1)
    other = F.cosine_similarity(predictions_BMCD, at_cells(targets_BND.roll(1, 0), index_BMC), dim=-1)
    return ((own - other) * share_BMC).sum(-1).mean()


def positional_share(targets_BND: Tensor) -> Tensor:
    """The part of the targets' variance that the position alone explains, in [0, 1]."""
    return targets_BND.mean(0).var(0).sum() / targets_BND.flatten(0, 1).var(0).sum()


def within_position_sd(tokens_BKD: Tensor, index_BK: Tensor, num_positions: int) -> Tensor:
    """Standard deviation between images at the same position, pooled over positions, mean over dimensions."""
    tokens, index = tokens_BKD.flatten(0, 1).float(), index_BK.flatten()
    count_N = index.new_zeros(num_positions).index_add_(0, index, torch.ones_like(index))
    sum_ND = tokens.new_zeros(num_positions, tokens.shape[1]).index_add_(0, index, tokens)
    residuals = tokens - (sum_ND / count_N.clamp(min=1)[:, None])[index]
    freedom = (count_N - 1).clamp(min=0).sum().clamp(min=1)
    return (residuals.square().sum(0) / freedom).sqrt().mean()


def rank_me(features_BD: Tensor) -> Tensor:
    """Effective rank exp(H(σ/Σσ)) of the centred features (arXiv 2210.02885). At most min(B - 1, D). On the CPU."""
    features_BD = features_BD.float().cpu()  # MPS has no svdvals
    if not features_BD.isfinite().all():
        return features_BD.new_tensor(float("nan"))
    sigma = torch.linalg.svdvals(features_BD - features_BD.mean(0))
    share = sigma / sigma.sum().clamp(min=torch.finfo(sigma.dtype).tiny)
    return torch.special.entr(share).sum().exp()


def alignment(first_BD: Tensor, second_BD: Tensor) -> Tensor:
    """Mean squared distance of two views of an image on the unit sphere (arXiv 2005.10242). 0: the views are one."""
    return (first_BD - second_BD).square().sum(1).mean()


def uniformity(features_BD: Tensor) -> Tensor:
    """Log of the mean of exp(-2 d²) over pairs of images on the unit sphere (arXiv 2005.10242). 0: all are one.

    On the CPU: MPS has no pdist.
    """
    return torch.pdist(features_BD.cpu()).square().mul(-2).exp().mean().log()


def parameter_distance(target: nn.Module, online: nn.Module) -> Tensor:
    """Relative L2 distance between two copies of one network."""
    pairs = list(zip(target.parameters(), online.parameters(), strict=True))
    apart = torch.stack([(a - b).float().square().sum() for a, b in pairs]).sum()
    return (apart / torch.stack([b.float().square().sum() for _, b in pairs]).sum()).sqrt()


def at_cells(targets_BND: Tensor, index_BMC: Tensor) -> Tensor:
    """[B, M, C, D]: the targets of the cells."""
    first_row = torch.arange(len(targets_BND), device=index_BMC.device) * targets_BND.shape[1]
    return F.embedding(index_BMC + first_row[:, None, None], targets_BND.flatten(0, 1))


@final
class Alarms:
    """Names of what is going wrong, judged after warm-up when it is so on 3 log points in a row.

    No alarm suffices alone: without stop-gradient and momentum the first two fire while the rank rises; with
    a fast target and no regulariser the rank falls while ρ and gap look best.
    """

    def __init__(self, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps
        self._reference: dict[str, float] = {}
        self._in_a_row: dict[str, int] = {}

    def judge(self, step: int, values: dict[str, float]) -> tuple[str, ...]:
        """The alarms that are on after this log point. The first call's values are the reference."""
        if not self._reference:
            self._reference = {name: values[name] for name in ("sd", "rankme") if name in values}
        if not self.judges(step):
            return ()
        wrong = {
            "predicts the position, not the image": (
                not values.get("gap_l0", 1.0) >= 0.03 or not values.get("rho_l0", 0.0) < 1
            ),
            "features shrink": self._fell(values, "sd", 0.2),
            "dimensions collapse": self._fell(values, "rankme", 0.7),
        }
        self._in_a_row = {name: self._in_a_row.get(name, 0) + 1 for name, is_so in wrong.items() if is_so}
        return self.on_at(step)

    def on_at(self, step: int) -> tuple[str, ...]:
        """The alarms that were on at the last log point, if warm-up is over at this step."""
        return tuple(name for name, count in self._in_a_row.items() if count >= 3) if self.judges(step) else ()

    def judges(self, step: int) -> bool:
        """Whether warm-up is over."""
        return step >= self.warmup_steps

    def state_dict(self) -> dict[str, Any]:
        return {"reference": dict(self._reference), "in_a_row": dict(self._in_a_row)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._reference, self._in_a_row = dict(state["reference"]), dict(state["in_a_row"])

    def _fell(self, values: dict[str, float], name: str, share: float) -> bool:
        """NaN has fallen too."""
        return name in values and name in self._reference and not values[name] >= share * self._reference[name]
