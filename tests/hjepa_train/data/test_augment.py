import cv2
import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from hjepa_shards.base.keyed_random import derive_key
from hjepa_train.base.keyed_integers import draw_integers
from hjepa_train.data.augment import augment, normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def photos(num: int = 12) -> torch.Tensor:
    photo = torch.from_numpy(np.array(load_sample_images().images[0]))
    return photo.unfold(0, 32, 32).unfold(1, 32, 32).flatten(0, 1).permute(0, 2, 3, 1)[:num].contiguous()


def test_without_augmentation_pixels_are_normalised_and_channels_come_first() -> None:
    images = photos()
    found = augment(images, torch.arange(12), seed=0, horizontal_flip=False, color_jitter=0.0, mean=MEAN, std=STD)
    expected = (images.numpy().transpose(0, 3, 1, 2) / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[
        :, None, None
    ]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert found.dtype == torch.float32


def test_half_of_the_images_are_mirrored() -> None:
    images = photos(1).expand(2000, -1, -1, -1)
    found = augment(images, torch.arange(2000), seed=0, horizontal_flip=True, color_jitter=0.0, mean=MEAN, std=STD)
    plain = normalise(images[:1].permute(0, 3, 1, 2).float(), mean=MEAN, std=STD)
    mirrored = (found == plain.flip(3)).all((1, 2, 3))
    assert ((found == plain).all((1, 2, 3)) ^ mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_jitter_equals_its_formula_written_with_loops() -> None:
    images, positions, j = photos(4), torch.tensor([3, 10**9, 0, 7]), 0.4
    found = augment(images, positions, seed=5, horizontal_flip=False, color_jitter=j, **IDENTITY) * 255
    draws = draw_integers(derive_key(5, "jitter"), positions, 3)
    luma = np.array([0.299, 0.587, 0.114])
    for b in range(4):
        brightness, contrast, saturation = (1 - j + 2 * j * draw / 2**31 for draw in draws[b].tolist())
        pixels = np.clip(brightness * images[b].numpy().astype(np.float64), 0, 255)
        mean = (pixels @ luma).mean()
        pixels = np.clip(mean + contrast * (pixels - mean), 0, 255)
        gray = (pixels @ luma)[..., None]
        pixels = np.clip(gray + saturation * (pixels - gray), 0, 255)
        np.testing.assert_allclose(found[b].permute(1, 2, 0).numpy(), pixels, atol=1e-3)
    assert not torch.allclose(found, images.permute(0, 3, 1, 2).float(), atol=5)


def test_jitter_is_torchvisions_with_the_same_factors_in_the_same_order() -> None:
    from torchvision.transforms.v2 import functional as theirs  # seconds, for this test alone

    images, positions, j = photos(12), torch.arange(12) + 40, 0.8
    images[0], images[1, :16] = 255, 0
    found = augment(images, positions, seed=2, horizontal_flip=False, color_jitter=j, **IDENTITY)
    factors = 1 - j + 2 * j * draw_integers(derive_key(2, "jitter"), positions, 3) / 2**31
    clamped = 0.0
    for image, jittered, (brightness, contrast, saturation) in zip(images, found, factors.tolist(), strict=True):
        expected = theirs.to_dtype(image.permute(2, 0, 1), torch.float32, scale=True)
        clamped += (expected * brightness > 1).float().mean().item()
        expected = theirs.adjust_brightness(expected, brightness)
        expected = theirs.adjust_saturation(theirs.adjust_contrast(expected, contrast), saturation)
        assert (jittered - expected).abs().max() < 5e-4, "their red is 0.2989, ours 0.299"
    assert clamped > 1, "images"


def test_an_image_is_the_same_in_every_batch() -> None:
    settings = {"seed": 1, "horizontal_flip": True, "color_jitter": 0.3, "mean": MEAN, "std": STD, "view": 2}
    settings |= {"grayscale": 0.2, "blur": 0.5, "hue": 0.2, "jitter_share": 0.8, "solarize": 0.2, "erase": 0.5}
    images, positions = photos(12), torch.arange(12) * 1_000_003
    together = augment(images, positions, **settings)
    for rows in ([0], [5, 6, 7], [11, 2]):
        assert torch.equal(augment(images[rows], positions[rows], **settings), together[rows])
    assert not torch.equal(augment(images, positions + 1, **settings), together)


def test_the_first_view_has_the_draws_that_it_has_alone_and_others_have_their_own() -> None:
    positions = torch.arange(2000)
    flipped = draw_integers(derive_key(7, "flip"), positions, 1)[:, 0] < 2**30
    images = photos(1).expand(2000, -1, -1, -1)
    plain = {"seed": 7, "horizontal_flip": True, "color_jitter": 0.0, "mean": MEAN, "std": STD}
    views = [augment(images, positions, **plain, view=view) for view in range(3)]
    assert torch.equal(views[0], augment(images, positions, **plain))
    unmoved = normalise(images[:1].permute(0, 3, 1, 2).float(), mean=MEAN, std=STD)
    mirrored = [(view != unmoved).any((1, 2, 3)) for view in views]
    assert torch.equal(mirrored[0], flipped)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (mirrored[one] == mirrored[other]).float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("purpose", ["grayscale", "blur", "solarize", "erase"])
def test_the_requested_share_is_changed_and_the_others_are_not(purpose: str, view: int) -> None:
    images = photos(1).expand(2000, -1, -1, -1)
    settings = {"seed": 2, "horizontal_flip": False, "color_jitter": 0.0, "view": view, **IDENTITY}
    changed = augment(images, torch.arange(2000), **settings, **{purpose: 0.2})
    untouched = (changed == augment(images, torch.arange(2000), **settings)).all((1, 2, 3))
    assert 1 - untouched.float().mean().item() == pytest.approx(0.2, abs=0.04)
    every = augment(images, torch.arange(2000), **settings, **{purpose: 1.0})
    same = (every == augment(images, torch.arange(2000), **settings)).all((1, 2, 3)).float().mean().item()
    assert same < (0.1 if purpose == "blur" else 1e-9), "the narrowest Gaussians round to nothing"


def test_a_gray_image_has_the_luma_of_its_pixels() -> None:
    images = photos(4)
    settings = {"seed": 0, "horizontal_flip": False, "color_jitter": 0.0, "grayscale": 1.0, **IDENTITY}
    found = augment(images, torch.arange(4), **settings) * 255
    expected = (images.numpy() @ np.array([0.299, 0.587, 0.114]))[:, None].repeat(3, 1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("side", [32, 100])
def test_a_blur_is_opencvs_gaussian_of_the_drawn_width(side: int) -> None:
    photo = torch.from_numpy(np.array(load_sample_images().images[1]))
    images, positions = torch.stack([photo[at : at + side, at : at + side] for at in (0, 50, 200)]), torch.arange(3) + 9
    settings = {"seed": 4, "horizontal_flip": False, "color_jitter": 0.0, "blur": 1.0, **IDENTITY}
    found = augment(images, positions, **settings, view=1) * 255
    draws = draw_integers(derive_key(4, "blur", 1), positions, 2)[:, 1]
    taps = 2 * (side // 20) + 1
    for image, blurred, draw in zip(images, found, draws.tolist(), strict=True):
        sigma = 0.1 + 1.9 * draw / 2**31
        expected = cv2.GaussianBlur(image.numpy().astype(np.float64), (taps, taps), sigma)
        np.testing.assert_allclose(blurred.permute(1, 2, 0).numpy(), expected, atol=1e-3)


def test_the_hue_is_turned_as_torchvision_turns_it() -> None:
    from torchvision.transforms.v2 import functional as theirs  # seconds, for this test alone

    images, positions = photos(12), torch.arange(12) + 40
    images[0], images[1, :16], images[2, :, :, 0] = 255, 0, 77
    settings = {"seed": 2, "horizontal_flip": False, "color_jitter": 0.0, **IDENTITY}
    found = augment(images, positions, **settings, hue=0.4)
    turns = 0.8 * (draw_integers(derive_key(2, "hue"), positions, 1)[:, 0] / 2**31 - 0.5)
    for image, turned, turn in zip(images, found, turns.tolist(), strict=True):
        expected = theirs.adjust_hue(theirs.to_dtype(image.permute(2, 0, 1), torch.float32, scale=True), turn)
        torch.testing.assert_close(turned, expected, atol=1e-4, rtol=0)
    kept = augment(images, positions, **settings, hue=0.4, jitter_share=0.0)
    assert torch.equal(kept, augment(images, positions, **settings))


def test_a_solarized_image_is_torchvisions() -> None:
    from torchvision.transforms.v2 import functional as theirs  # seconds, for this test alone

    images = photos(4)
    settings = {"seed": 0, "horizontal_flip": False, "color_jitter": 0.0, "solarize": 1.0, **IDENTITY}
    found = augment(images, torch.arange(4), **settings) * 255
    torch.testing.assert_close(found, theirs.solarize(images.permute(0, 3, 1, 2), 128).float(), atol=1e-3, rtol=0)


def test_three_augment_changes_each_image_in_one_of_three_ways() -> None:
    images, positions = photos(1).expand(900, -1, -1, -1), torch.arange(900)
    settings = {"seed": 0, "horizontal_flip": False, "color_jitter": 0.0, **IDENTITY}
    found = augment(images, positions, **settings, three_augment=True)
    ways = [augment(images, positions, **settings, **{way: 1.0}) for way in ("grayscale", "blur", "solarize")]
    is_each = torch.stack([(found == way).all((1, 2, 3)) for way in ways])
    assert is_each.any(0).all()
    assert is_each.float().mean(1).tolist() == pytest.approx([1 / 3] * 3, abs=0.06)


def test_an_erased_rectangle_is_normal_noise_of_a_tenth_or_so_of_the_area() -> None:
    images, positions = photos(1).expand(400, -1, -1, -1), torch.arange(400)
    settings = {"seed": 0, "horizontal_flip": False, "color_jitter": 0.0, **IDENTITY}
    found, plain = augment(images, positions, **settings, erase=1.0), augment(images, positions, **settings)
    erased_BHW = (found != plain).any(1)
    for one in erased_BHW[:50]:
        assert torch.equal(one, one.any(1)[:, None] & one.any(0)[None]), "a rectangle"
    areas = erased_BHW.float().mean((1, 2))
    assert 0.015 < areas.min() < 0.04
    assert 0.28 < areas.max() < 0.36
    noise = found.permute(0, 2, 3, 1)[erased_BHW]
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert noise.isfinite().all()
    heights, widths = erased_BHW.any(2).sum(1), erased_BHW.any(1).sum(1)
    assert 2.5 < float((heights / widths).max()) < 4
    assert 2.5 < float((widths / heights).max()) < 4
