"""What happens to pixels on the device: flip, colour jitter, normalisation.

Every draw is keyed by (seed, purpose, position) and every mean is an exact integer, so an image comes out the
same in any batch, on any rank. Cropping has happened before, while decoding.

Axes: B images, H W pixels, C channels (RGB).
"""

import torch
from torch import Tensor

from hjepa_shards import derive_key
from hjepa_train.draws import BITS, draw_integers

GRAY = (299, 587, 114)
"""ITU-R 601 luma, in thousandths"""


def augment(
    images_BHWC: Tensor,
    positions_B: Tensor,
    *,
    seed: int,
    horizontal_flip: bool,
    color_jitter: float,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Tensor:
    """[B, C, H, W] float, normalised; from uint8.

    horizontal_flip: mirror half of the images.  color_jitter: brightness, contrast and saturation factors are
    uniform in [1 - j, 1 + j], in this order.  mean, std: of pixels in [0, 1].
    """
    images = images_BHWC.permute(0, 3, 1, 2)
    if horizontal_flip:
        flipped_B = draw_integers(derive_key(seed, "flip"), positions_B, 1)[:, 0] < 1 << (BITS - 1)
        images = torch.where(flipped_B[:, None, None, None], images.flip(3), images)
    if color_jitter > 0:
        integers_B3 = draw_integers(derive_key(seed, "jitter"), positions_B, 3)
        factors_B3 = 1 - color_jitter + 2 * color_jitter * (integers_B3.float() / 2**BITS)
        return normalise(_jitter(images, factors_B3), mean=mean, std=std)
    return normalise(images.float(), mean=mean, std=std)


def normalise(images_BCHW: Tensor, *, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """Float pixels in [0, 255] to zero mean and unit variance."""
    scale = images_BCHW.new_tensor(std)[:, None, None] * 255
    return (images_BCHW - images_BCHW.new_tensor(mean)[:, None, None] * 255) / scale


def _jitter(images_BCHW: Tensor, factors_B3: Tensor) -> Tensor:
    """uint8 to float in [0, 255]. Contrast keeps the image's mean gray, saturation each pixel's."""
    brightness, contrast, saturation = factors_B3[..., None, None, None].unbind(1)
    gray = torch.tensor(GRAY, device=images_BCHW.device)[:, None, None]
    total_B = (images_BCHW.sum((2, 3), dtype=torch.int64)[..., None, None] * gray).sum((1, 2, 3))
    mean_B111 = (total_B.double() / (1000 * images_BCHW[0, 0].numel())).float()[:, None, None, None]
    images = (contrast * (images_BCHW - mean_B111) + mean_B111) * brightness
    images = images.clamp(0, 255)
    pixel = (images * (gray / 1000)).sum(1, keepdim=True)
    return (saturation * (images - pixel) + pixel).clamp(0, 255)
