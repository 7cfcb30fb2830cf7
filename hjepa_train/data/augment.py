"""What happens to pixels on the device: flip, colour jitter, grayscale, blur, normalisation.

Every draw is keyed by (seed, purpose, position, view) and every mean is of integers, so an image comes out the
same in any batch, on any rank, and its first view whether there are others or not. Cropping has happened before, while
decoding. Order and ranges are SimCLR's (arXiv 2002.05709, appendix A), without its change of hue, and with jitter in
every image instead of four in five.

Axes: B images, H W pixels, C channels (RGB), T taps of a blur.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_shards.base.keyed_random import derive_key
from hjepa_train.base.keyed_integers import BITS, draw_integers

GRAY = (299, 587, 114)
"""ITU-R 601 luma, in thousandths"""
BLUR_PIXELS = (0.1, 2.0)
"""range of the standard deviation of a blur"""
_STEPS = 2**16
"""Of a gray level, in which grays are added up."""


def augment(
    images_BHWC: Tensor,
    positions_B: Tensor,
    *,
    seed: int,
    horizontal_flip: bool,
    color_jitter: float,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    grayscale: float = 0.0,
    blur: float = 0.0,
    view: int = 0,
) -> Tensor:
    """[B, C, H, W] float, normalised; from uint8.

    horizontal_flip: mirror half of the images.  color_jitter: brightness, contrast and saturation factors are
    uniform in [1 - j, 1 + j], in this order.  mean, std: of pixels in [0, 1].  grayscale, blur: shares of the images
    that lose their colour, and are blurred.  view: which crop of its image this is; each has draws of its own.
    """

    def draw(purpose: str, count: int) -> Tensor:
        key = derive_key(seed, purpose, view) if view else derive_key(seed, purpose)
        return draw_integers(key, positions_B, count)

    images = images_BHWC.permute(0, 3, 1, 2)
    if horizontal_flip:
        images = torch.where(_in_share(0.5, draw("flip", 1)), images.flip(3), images)
    if color_jitter > 0:
        factors_B3 = 1 - color_jitter + 2 * color_jitter * (draw("jitter", 3).float() / 2**BITS)
        images = _jitter(images, factors_B3)
    else:
        images = images.float()
    if grayscale > 0:
        images = torch.where(_in_share(grayscale, draw("grayscale", 1)), _luma(images), images)
    if blur > 0:
        integers_B2, (low, high) = draw("blur", 2), BLUR_PIXELS
        sigma_B = low + (high - low) * (integers_B2[:, 1].float() / 2**BITS)
        images = torch.where(_in_share(blur, integers_B2), _blurred(images, sigma_B), images)
    return normalise(images, mean=mean, std=std)


def normalise(images_BCHW: Tensor, *, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """Float pixels in [0, 255] to zero mean and unit variance."""
    device = images_BCHW.device
    return (images_BCHW - _constant(device, *mean) * 255) / (_constant(device, *std) * 255)


def _jitter(images_BCHW: Tensor, factors_B3: Tensor) -> Tensor:
    """uint8 to float in [0, 255], to which each of the three changes is clamped, as torchvision's ColorJitter does.

    Contrast keeps the mean gray of the brightened image, saturation each pixel's gray.
    """
    brightness, contrast, saturation = factors_B3[..., None, None, None].unbind(1)
    images = (images_BCHW * brightness).clamp_(0, 255)
    mean_B111 = _mean_gray(images)
    images = images.sub_(mean_B111).mul_(contrast).add_(mean_B111).clamp_(0, 255)
    pixel = _luma(images)
    return images.sub_(pixel).mul_(saturation).add_(pixel).clamp_(0, 255)


def _mean_gray(images_BCHW: Tensor) -> Tensor:
    """[B, 1, 1, 1]: in integers of 1/_STEPS gray levels, so that no order of summing changes it."""
    whole_B1HW = (_luma(images_BCHW) * _STEPS).round_().to(torch.int32)
    total_B111 = whole_B1HW.sum((2, 3), keepdim=True, dtype=torch.int64)
    return total_B111 / (_STEPS * images_BCHW[0, 0].numel())


@cache
def _constant(device: torch.device, *values: float) -> Tensor:
    """[C, 1, 1]: a number for each channel. Copied once: a copy in each step would have the host wait for the GPU."""
    return torch.tensor(values, device=device)[:, None, None]


def _luma(images_BCHW: Tensor) -> Tensor:
    """[B, 1, H, W]: each pixel's gray."""
    gray = _constant(images_BCHW.device, *GRAY)
    return (images_BCHW * (gray / 1000)).sum(1, keepdim=True)


def _blurred(images_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """By a Gaussian of each image's own standard deviation, pixels, cut to a tenth of the side; borders are mirrored.

    Sums of shifted images, and no convolution: its algorithm, and so its rounding, would depend on the batch.
    """
    side = images_BCHW.shape[-1]
    radius = max(1, side // 20)
    away_T = torch.arange(-radius, radius + 1, device=images_BCHW.device)
    weight_BT = (-away_T.square() / (2 * sigma_B[:, None].square())).exp()
    weight_BT = weight_BT / weight_BT.sum(1, keepdim=True)
    weights = weight_BT[:, :, None, None, None].unbind(1)
    padded = F.pad(images_BCHW, (radius, radius, radius, radius), mode="reflect")
    down, across = torch.zeros_like(padded[:, :, :side]), torch.zeros_like(images_BCHW)
    for t, weight in enumerate(weights):
        down += weight * padded[:, :, t : t + side]
    for t, weight in enumerate(weights):
        across += weight * down[..., t : t + side]
    return across


def _in_share(share: float, integers_BN: Tensor) -> Tensor:
    """[B, 1, 1, 1]: whether an image's first integer is among the lowest share of them."""
    return (integers_BN[:, 0] < round(share * 2**BITS))[:, None, None, None]
