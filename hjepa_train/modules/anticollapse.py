"""Terms that keep the online encoder's features from collapsing, on its output z, without an expander.

Features are first freed of their position: r_bi = z_bi - μ_i, μ_i the mean over the images in which i is
visible. Otherwise a position code would satisfy every one of them. All means are over the global batch, so
the terms are the same for any split over ranks; every rank holds the whole value, and `all_reduce` carries
the gradient. There is no invariance term: two images are never pulled together.

Axes: B images, K context patches, N cells of the grid, D width, S slices, T points of the characteristic
function.
"""

import torch
from torch import Tensor

from hjepa_train.base.distributed import all_reduce
from hjepa_train.base.keyed_integers import BITS, draw_integers

TOKEN_SPREAD = 0.7
"""target standard deviation of the residuals; 1 cannot be reached after a LayerNorm, which the position shares"""
IMAGE_SPREAD = 0.5
"""the same of an image's mean residual"""
NUM_SLICES = 256
"""random directions on which SIGReg looks at the features"""


def vicreg(tokens_BKD: Tensor, index_BK: Tensor, num_positions: int) -> tuple[Tensor, Tensor]:
    """(variance, covariance) terms of VICReg (arXiv 2105.04906), each the sum over token and image residuals.

    Unbiased covariances: Σ_i (n_i - 1) degrees of freedom for tokens, as many means as positions were taken
    out.
    """
    residuals_BKD, freedom = _without_position(tokens_BKD, index_BK, num_positions)
    flat, images_BD = residuals_BKD.flatten(0, 1), residuals_BKD.mean(1)
    D = flat.shape[1]
    moments = torch.cat([flat.T @ flat, images_BD.T @ images_BD, images_BD.sum(0)[None]])
    tokens_DD, images_DD, sum_1D = all_reduce(moments).split([D, D, 1])
    num_images = all_reduce(flat.new_full((), len(images_BD)))
    images_DD = images_DD - sum_1D.T @ sum_1D / num_images
    variance = covariance = flat.new_zeros(())
    for scatter_DD, degrees, spread in (
        (tokens_DD, freedom, TOKEN_SPREAD),
        (images_DD, (num_images - 1).clamp(min=1), IMAGE_SPREAD),
    ):
        cov_DD = scatter_DD / degrees
        var_D = cov_DD.diagonal()
        variance = variance + (spread - (var_D + 1e-4).sqrt()).relu().mean()
        covariance = covariance + (cov_DD.square().sum() - var_D.square().sum()) / D
    return variance, covariance


def sigreg(tokens_BKD: Tensor, index_BK: Tensor, num_positions: int, key: int, step_1: Tensor) -> Tensor:
    """SIGReg (LeJEPA, arXiv 2511.08544): on random directions the images' mean residuals should be normal.

    Epps-Pulley statistic per direction, mean over directions, with the paper's 17 points on [0, 3] and its
    Gaussian window. The normal aimed at has the standard deviation IMAGE_SPREAD instead of 1: there is no
    projector here. key, step_1: of the directions; every rank and micro-batch of a step must pass the same.
    """
    residuals_BKD, _ = _without_position(tokens_BKD, index_BK, num_positions)
    images_BD = residuals_BKD.mean(1) / IMAGE_SPREAD
    points_T = torch.linspace(0, 3, 17, dtype=images_BD.dtype, device=images_BD.device)
    normal_T = (-points_T.square() / 2).exp()
    weight_T = torch.full_like(points_T, 2 * 3 / 16) * normal_T  # trapezoid on both sides of 0
    weight_T = torch.cat([weight_T[:1] / 2, weight_T[1:-1], weight_T[-1:] / 2])
    angle_BST = (images_BD @ _directions(images_BD.shape[1], key, step_1).to(images_BD))[..., None] * points_T
    num_images = all_reduce(images_BD.new_full((), len(images_BD)))
    real_ST, imaginary_ST = all_reduce(torch.stack([angle_BST.cos().sum(0), angle_BST.sin().sum(0)])) / num_images
    error_ST = (real_ST - normal_T).square() + imaginary_ST.square()
    return (error_ST @ weight_T).mean() * num_images


def _without_position(tokens_BKD: Tensor, index_BK: Tensor, num_positions: int) -> tuple[Tensor, Tensor]:
    """(residuals_BKD, degrees of freedom Σ_i max(0, n_i - 1)) of the global batch."""
    D = tokens_BKD.shape[-1]
    tokens, index = tokens_BKD.flatten(0, 1), index_BK.flatten()
    counted = torch.cat([tokens, tokens.new_ones(len(tokens), 1)], 1)
    sums = all_reduce(tokens.new_zeros(num_positions, D + 1).index_add(0, index, counted))
    sum_ND, count_N1 = sums.split([D, 1], 1)
    mean_ND = sum_ND / count_N1.clamp(min=1)
    freedom = (count_N1.detach() - 1).clamp(min=0).sum().clamp(min=1)
    return (tokens - mean_ND.index_select(0, index)).view_as(tokens_BKD), freedom


def _directions(width: int, key: int, step_1: Tensor) -> Tensor:
    """[D, S] unit columns, isotropic, the same on every device up to rounding."""
    integers = draw_integers(key, step_1, width * NUM_SLICES).view(width, NUM_SLICES) >> (BITS - 23)
    uniform = (integers.float() + 0.5) / 2**22 - 1  # exact in float32, never -1 or 1
    normal = torch.erfinv(uniform)
    return normal / normal.norm(dim=0)
