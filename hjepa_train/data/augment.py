"""What happens to pixels on the device: flip, colour jitter, grayscale, blur, normalisation.

Every draw is keyed by (seed, purpose, position, view) and every mean is of integers, so an image comes out the
same in any batch, on any rank, and its first view whether there are others or not. Cropping has happened before, while
decoding. Order and ranges are SimCLR's (arXiv 2002.05709, appendix A), then solarization as BYOL has it, and last
random erasing (arXiv 1708.04896). `three_augment` is DeiT III's (arXiv 2204.07118).

Axes: B images, H W pixels, C channels (RGB), T taps of a blur.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_shards.base.keyed_random import derive_key
from hjepa_train.base.keyed_integers import BITS, below, draw_integers

GRAY = (299, 587, 114)
"""ITU-R 601 luma, in thousandths"""
BLUR_PIXELS = (0.1, 2.0)
"""range of the standard deviation of a blur"""
_SOLARIZED_FROM = 128
"""Of 255; brighter values are inverted."""
_ERASED_AREA, _ERASED_RATIO = (0.02, 1 / 3), 10 / 3
"""Of the rectangles that noise takes: shares of the area, and the largest ratio of their sides."""
_LARGEST = 1 - 2**-20
"""Of a uniform number in [-1, 1] whose normal one is finite in single precision."""
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
    hue: float = 0.0,
    jitter_share: float = 1.0,
    solarize: float = 0.0,
    three_augment: bool = False,
    erase: float = 0.0,
    view: int = 0,
) -> Tensor:
    """[B, C, H, W] float, normalised; from uint8.

    horizontal_flip: mirror half of the images.  color_jitter: brightness, contrast and saturation factors are
    uniform in [1 - j, 1 + j], in this order.  mean, std: of pixels in [0, 1].  grayscale, blur: shares of the images
    that lose their colour, and are blurred.  hue: uniform in [-h, h], turns of the colour circle.  jitter_share: of
    the images whose colours and hue change.  solarize, erase: shares of the images.  three_augment: each image is made
    gray, solarized or blurred.  view: which crop of its image this is; each has draws of its own.
    """

    def draw(purpose: str, count: int) -> Tensor:
        key = derive_key(seed, purpose, view) if view else derive_key(seed, purpose)
        return draw_integers(key, positions_B, count)

    images = images_BHWC.permute(0, 3, 1, 2)
    if horizontal_flip:
        images = torch.where(_in_share(0.5, draw("flip", 1)), images.flip(3), images)
    if color_jitter > 0:
        factors_B3 = 1 - color_jitter + 2 * color_jitter * (draw("jitter", 3).float() / 2**BITS)
        changed = _jitter(images, factors_B3)
    else:
        changed = images.float()
    if hue > 0:
        changed = _hue_turned(changed, 2 * hue * (draw("hue", 1)[:, 0].float() / 2**BITS - 0.5))
    if jitter_share < 1:
        changed = torch.where(_in_share(jitter_share, draw("jitter share", 1)), changed, images.float())
    images = changed
    chosen_B = below(draw("three augment", 1)[:, 0], 3) if three_augment else None
    if chosen_B is not None or grayscale > 0:
        images = torch.where(_is_one(grayscale, draw("grayscale", 1), chosen_B, 0), _luma(images), images)
    if chosen_B is not None or blur > 0:
        integers_B2, (low, high) = draw("blur", 2), BLUR_PIXELS
        sigma_B = low + (high - low) * (integers_B2[:, 1].float() / 2**BITS)
        images = torch.where(_is_one(blur, integers_B2, chosen_B, 1), _blurred(images, sigma_B), images)
    if chosen_B is not None or solarize > 0:
        solarized = torch.where(images >= _SOLARIZED_FROM, 255 - images, images)
        images = torch.where(_is_one(solarize, draw("solarize", 1), chosen_B, 2), solarized, images)
    images = normalise(images, mean=mean, std=std)
    if erase > 0:
        integers_B5 = draw("erase", 5)
        images = torch.where(
            _in_share(erase, integers_B5) & _rectangles(integers_B5, images), _noise(draw, images), images
        )
    return images


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


def _hue_turned(images_BCHW: Tensor, turns_B: Tensor) -> Tensor:
    """[0, 255] to the same: through hue, saturation and value, as torchvision's adjust_hue does."""
    red, green, blue = images_BCHW.unbind(1)
    value, low = images_BCHW.amax(1), images_BCHW.amin(1)
    chroma = value - low
    safe = torch.where(chroma == 0, 1.0, chroma)
    sixths = torch.where(
        value == red,
        (green - blue) / safe % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sixths = (sixths + 6 * turns_B[:, None, None]) % 6
    channels = [value - chroma * (torch.minimum(k, 4 - k).clamp(0, 1)) for k in ((n + sixths) % 6 for n in (5, 3, 1))]
    return torch.stack(channels, 1)


def _rectangles(integers_B5: Tensor, images_BCHW: Tensor) -> Tensor:
    """[B, 1, H, W] True inside: area 2 to 33%, sides' ratio 0.3 to 3.3, at most one pixel less than the image."""
    side = images_BCHW.shape[-1]
    share_B, ratio_B = (integers_B5[:, number].float() / 2**BITS for number in (1, 2))
    area_B = side**2 * (_ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * share_B)
    log_ratio_B = math.log(_ERASED_RATIO) * (2 * ratio_B - 1)
    sides_B2 = torch.stack([(area_B * log_ratio_B.exp()).sqrt(), (area_B / log_ratio_B.exp()).sqrt()], 1)
    sides_B2 = sides_B2.round().long().clamp(1, max(1, side - 1))
    first_B2 = below(integers_B5[:, 3:], side - sides_B2 + 1)
    at = torch.arange(side, device=images_BCHW.device)
    inside_B2S = (at >= first_B2[..., None]) & (at < (first_B2 + sides_B2)[..., None])
    return (inside_B2S[:, 0, :, None] & inside_B2S[:, 1, None, :])[:, None]


def _noise(draw: Callable[[str, int], Tensor], images_BCHW: Tensor) -> Tensor:
    """Normal numbers for every value of every image: what timm's `pixel` mode fills with."""
    integers = draw("noise", images_BCHW[0].numel()).view(images_BCHW.shape)
    uniform = (integers.to(images_BCHW.dtype) + 0.5) / 2**BITS
    return (2 * uniform - 1).clamp(-_LARGEST, _LARGEST).erfinv() * math.sqrt(2)


def _is_one(share: float, integers_BN: Tensor, chosen_B: Tensor | None, number: int) -> Tensor:
    """[B, 1, 1, 1]: whether an image is in the share, or has this number among those chosen."""
    in_share = _in_share(share, integers_BN)
    return in_share if chosen_B is None else in_share | (chosen_B == number)[:, None, None, None]


def _in_share(share: float, integers_BN: Tensor) -> Tensor:
    """[B, 1, 1, 1]: whether an image's first integer is among the lowest share of them."""
    return (integers_BN[:, 0] < round(share * 2**BITS))[:, None, None, None]
