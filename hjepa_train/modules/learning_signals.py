"""Numbers that show whether a model learns, and the alarms on them.

A JEPA's loss does not show it: it falls under collapse too. The functions take detached features; `Alarms` takes plain
floats. Norms and variances after a scale-free normalisation are constant by construction and are never used.

Signals are functions of all K images that are looked at (training/diagnosis.py). Some need them side by side:
`rank_me`, `uniformity`. Others compare an image with the sums over all of them at its positions, and give a number for
each image, so that tokens are never gathered. An image is compared with the mean of the *others*: in a mean of two, its
own half would make ρ four times what it is.

Axes: K images looked at, B some of them, N positions, M blocks, C target cells, S tokens of an image, D width.
"""

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RULE = 2
"""Which images signals are of. 1 was the first micro-batch of a rank; a reference by another rule is no reference."""


def wide(tensor: Tensor) -> Tensor:
    """In float32, or float64 where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def sum_by_position(tokens_BSD: Tensor, index_BS: Tensor, num_positions: int) -> tuple[Tensor, Tensor]:
    """([N, D] sum of the tokens at each position, [N] how many there are); no position twice in an image."""
    B, _, D = tokens_BSD.shape
    by_image = tokens_BSD.new_zeros(B, num_positions, D)  # and not index_add_, which adds in any order on a GPU
    sum_ND = by_image.scatter(1, index_BS[..., None].expand_as(tokens_BSD), tokens_BSD).sum(0)
    return sum_ND, tokens_BSD.new_zeros(B, num_positions).scatter(1, index_BS, 1).sum(0)


def loss_of_position(
    targets_BND: Tensor, sum_ND: Tensor, num_images: Tensor, index_BMC: Tensor, share_BMC: Tensor
) -> Tensor:
    """[B]: the loss of predicting, at each cell, the mean target of the other images there. ρ is the loss over it.

    sum_ND: of the targets of all `num_images`.  share_BMC: each cell's share in its block's loss.
    """
    others = _mean_of_others(targets_BND, sum_ND, num_images, index_BMC)
    loss_BMC = F.smooth_l1_loss(others, at_cells(targets_BND, index_BMC), reduction="none").mean(-1)
    return (loss_BMC * share_BMC).sum((1, 2))


def gap_to_others(
    predictions_BMCD: Tensor,
    targets_BND: Tensor,
    direction_ND: Tensor,
    num_images: Tensor,
    index_BMC: Tensor,
    share_BMC: Tensor,
) -> Tensor:
    """[B]: cosine to the image's own target minus the mean cosine to the others' at the same position.

    0: only the position is used.  direction_ND: the sum over all images of the targets as unit vectors.
    """
    predicted = F.normalize(predictions_BMCD, dim=-1)
    directions_BND = F.normalize(targets_BND, dim=-1)
    own = at_cells(directions_BND, index_BMC)
    apart = own - _mean_of_others(directions_BND, direction_ND, num_images, index_BMC)
    return ((predicted * apart).sum(-1) * share_BMC).sum(-1).mean(-1)


def positional_share(within_K: Tensor, total_K: Tensor, num_positions: int) -> Tensor:
    """The part of the targets' variance that the position alone explains; 0 (or a little below) to 1.

    within_K, total_K: each image's squared distances to the means of its positions, and to the mean of all.
    """
    num_tokens = len(within_K) * num_positions
    within = within_K.sum() / (num_tokens - num_positions)
    return 1 - within / (total_K.sum() / (num_tokens - 1))


def within_position_sd(squares_KD: Tensor, freedom_K: Tensor) -> Tensor:
    """Standard deviation between images at the same position, pooled over positions, mean over dimensions.

    squares_KD: each image's squared distances to the means of its positions.  freedom_K: over its positions, the sum of
    1 - 1 / (images that have a token there).
    """
    return (squares_KD.sum(0) / freedom_K.sum()).sqrt().mean()


def rank_me(features_KD: Tensor) -> Tensor:
    """Effective rank exp(H(σ/Σσ)) of the centred features (arXiv 2210.02885). At most min(K - 1, D)."""
    if not features_KD.isfinite().all():
        return features_KD.new_tensor(float("nan"))
    sigma = torch.linalg.svdvals(features_KD - features_KD.mean(0))
    share = sigma / sigma.sum().clamp(min=torch.finfo(sigma.dtype).tiny)
    return torch.special.entr(share).sum().exp()


def rank_cap(features_KD: Tensor) -> Tensor:
    """The most that `rank_me` can be."""
    return features_KD.new_tensor(float(min(len(features_KD) - 1, features_KD.shape[1])))


def alignment(first_KD: Tensor, second_KD: Tensor) -> Tensor:
    """Mean squared distance of two views of an image on the unit sphere (arXiv 2005.10242). 0: the views are one."""
    return (first_KD - second_KD).square().sum(1).mean()


def uniformity(features_KD: Tensor) -> Tensor:
    """Log of the mean of exp(-2 d²) over pairs of images on the unit sphere (arXiv 2005.10242). 0: all are one."""
    return torch.pdist(features_KD).square().mul(-2).exp().mean().log()


def parameter_distance(target: nn.Module, online: nn.Module) -> Tensor:
    """Relative L2 distance between two copies of one network."""
    pairs = list(zip(target.parameters(), online.parameters(), strict=True))
    apart = torch.stack([(a - b).float().square().sum() for a, b in pairs]).sum()
    return (apart / torch.stack([b.float().square().sum() for _, b in pairs]).sum()).sqrt()


def at_cells(targets_BND: Tensor, index_BMC: Tensor) -> Tensor:
    """[B, M, C, D]: the targets of the cells."""
    first_row = torch.arange(len(targets_BND), device=index_BMC.device) * targets_BND.shape[1]
    return F.embedding(index_BMC + first_row[:, None, None], targets_BND.flatten(0, 1))


def _mean_of_others(own_BND: Tensor, sum_ND: Tensor, num_images: Tensor, index_BMC: Tensor) -> Tensor:
    """[B, M, C, D]: at each cell, the mean over all images but this one."""
    return (F.embedding(index_BMC, sum_ND) - at_cells(own_BND, index_BMC)) / (num_images - 1)


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
        return {"rule": RULE, "reference": dict(self._reference), "in_a_row": dict(self._in_a_row)}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Whether it goes on from there: a reference by another rule is left for that of the next log point."""
        if state.get("rule", 1) != RULE:
            return False
        self._reference, self._in_a_row = dict(state["reference"]), dict(state["in_a_row"])
        return True

    def _fell(self, values: dict[str, float], name: str, share: float) -> bool:
        """NaN has fallen too."""
        return name in values and name in self._reference and not values[name] >= share * self._reference[name]
