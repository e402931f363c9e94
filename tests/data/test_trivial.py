"""TrivialAugment's operations against Pillow's, one image at a time."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from trainonce.data.trivial import FARTHEST, KINDS, LARGEST_SHEAR, LARGEST_TURN, LOST_BITS, changed, trivially_augmented

SIZE = 24
STRENGTH = 0.4


def images(count: int = 6, channels: int = 3) -> Tensor:
    """Smooth images, so that ways of interpolating hardly differ."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 4, 4, generator=generator) * 200 + 20
    return torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic").clamp(0, 255).round()


def picture(image_CHW: Tensor) -> Image.Image:
    return Image.fromarray(image_CHW.permute(1, 2, 0).byte().numpy())


def in_one_way(x: Tensor, kind: str, sign: float = 1.0, strength: float = STRENGTH) -> Tensor:
    count = len(x)
    return changed(
        x, torch.full((count,), KINDS.index(kind)), torch.full((count,), strength), torch.full((count,), sign)
    )


def moved_by_pillow(image: Image.Image, kind: str, sign: float) -> Image.Image:
    """The same by Pillow's affine map, which goes from a pixel of the result to one of the image, from the corner."""
    middle = SIZE / 2
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    by = sign * STRENGTH
    if kind == "shear x":
        b = LARGEST_SHEAR * by
    elif kind == "shear y":
        d = LARGEST_SHEAR * by
    elif kind == "move x":
        c = FARTHEST * by * SIZE
    elif kind == "move y":
        f = FARTHEST * by * SIZE
    else:
        angle = LARGEST_TURN * by
        a, b, d, e = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    c += middle - a * middle - b * middle
    f += middle - d * middle - e * middle
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("kind", ["shear x", "shear y", "move x", "move y", "turn"])
def test_moves_against_pillow(kind: str, sign: float) -> None:
    x = images()
    found = in_one_way(x, kind, sign)
    for before, after in zip(x, found, strict=True):
        expected = np.asarray(moved_by_pillow(picture(before), kind, sign), dtype=np.float32)
        difference = np.abs(after.permute(1, 2, 0).numpy() - expected)
        assert np.quantile(difference, 0.85) < 2.5, "the rims of what is black are drawn otherwise"
        assert np.median(difference) < 1


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize(
    ("kind", "enhancer"),
    [("brightness", ImageEnhance.Brightness), ("saturation", ImageEnhance.Color), ("contrast", ImageEnhance.Contrast)],
)
def test_factors_against_pillow(
    kind: str, enhancer: Callable[[Image.Image], ImageEnhance._Enhance], sign: float
) -> None:
    x = images()
    found = in_one_way(x, kind, sign)
    for before, after in zip(x, found, strict=True):
        expected = np.asarray(enhancer(picture(before)).enhance(1 + sign * 0.99 * STRENGTH), dtype=np.float32)
        assert np.abs(after.permute(1, 2, 0).numpy() - expected).max() < 2.1


def test_bits_ends_and_stretch_against_pillow() -> None:
    x = images()
    bits = 8 - round(LOST_BITS * STRENGTH)
    for kind, by_pillow in (
        ("posterise", lambda image: ImageOps.posterize(image, bits)),
        ("solarise", lambda image: ImageOps.solarize(image, math.ceil(255 * (1 - STRENGTH)))),
        ("stretch", ImageOps.autocontrast),
        ("nothing", lambda image: image),
    ):
        found = in_one_way(x, kind)
        for before, after in zip(x, found, strict=True):
            expected = np.asarray(by_pillow(picture(before)), dtype=np.float32)
            assert np.abs(after.permute(1, 2, 0).numpy() - expected).max() <= 1, kind


def test_an_image_of_one_value_is_not_stretched() -> None:
    flat = torch.full((2, 3, 4, 4), 7.0)
    assert torch.equal(in_one_way(flat, "stretch"), flat)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_kind_comes_equally_often_and_pixels_stay_pixels(channels: int) -> None:
    x = images(1, channels).expand(3000, -1, -1, -1)
    u = torch.rand(3000, 3, generator=torch.Generator().manual_seed(1))
    found = trivially_augmented(x, u)
    assert found.shape == x.shape
    assert found.min() >= 0
    assert found.max() <= 255
    same = (found == x).flatten(1).all(1).float().mean()
    nothing_new = {1: 2, 3: 1}[channels]  # a grey image has no saturation
    assert float(same) == pytest.approx(nothing_new / len(KINDS), abs=0.03)
    alone = trivially_augmented(x[:5], u[:5])
    assert torch.equal(alone, found[:5]), "images do not see each other"
