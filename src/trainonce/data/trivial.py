"""TrivialAugment of whole batches: one operation for each image, of a random kind and strength.

Müller and Hutter 2021 (arXiv 2103.10158), wide ranges; without sharpness and equalisation. Otherwise than there,
strengths are continuous, images move by at most `FARTHEST` of their side, and pixels in between are bilinear.
Shapes: B images, C channels, H x W pixels, H = W; pixels are float32 in 0 to 255.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

FARTHEST = 0.45
"""Of the side of an image, how far it is moved at most."""
LARGEST_SHEAR = 0.99
LARGEST_TURN = math.radians(135)
LARGEST_CHANGE = 0.99
"""Of the factors of brightness, saturation and contrast, from 1."""
LOST_BITS = 6
"""Of eight, which posterising takes at most."""
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601: the luma of red, green, blue
KINDS = (
    "nothing",
    "shear x",
    "shear y",
    "move x",
    "move y",
    "turn",
    "brightness",
    "saturation",
    "contrast",
    "posterise",
    "solarise",
    "stretch",
)
MOVING = KINDS[1:6]
"""Those that move pixels; what comes in from outside is black."""


def trivially_augmented(x_BCHW: Tensor, u_B3: Tensor) -> Tensor:
    """Images, each changed in one way. Of three numbers in 0 to 1 the first says which, the second how strongly,
    the third in which direction."""
    kind_B = (u_B3[:, 0] * len(KINDS)).long().clamp_max(len(KINDS) - 1)
    strength_B, sign_B = u_B3[:, 1], torch.where(u_B3[:, 2] < 0.5, -1.0, 1.0)
    return changed(x_BCHW, kind_B, strength_B, sign_B)


def changed(x_BCHW: Tensor, kind_B: Tensor, strength_B: Tensor, sign_B: Tensor) -> Tensor:
    """Images, each changed in the way that `kind_B` counts in `KINDS`, so strongly (0 to 1), in a direction (-1, 1)."""

    def of_kind(*kinds: str) -> Tensor:
        numbers = torch.tensor([KINDS.index(kind) for kind in kinds], device=kind_B.device)
        return torch.isin(kind_B, numbers)[:, None, None, None]

    factor_B111 = (1 + LARGEST_CHANGE * sign_B * strength_B)[:, None, None, None]
    strength_B111 = strength_B[:, None, None, None]
    grey_B1HW = _grey(x_BCHW)
    for kind, result in (
        ("brightness", x_BCHW * factor_B111),
        ("saturation", torch.lerp(grey_B1HW.expand_as(x_BCHW), x_BCHW, factor_B111)),
        ("contrast", torch.lerp(grey_B1HW.mean((2, 3), keepdim=True).round().expand_as(x_BCHW), x_BCHW, factor_B111)),
        ("posterise", _posterised(x_BCHW, strength_B111)),
        ("solarise", torch.where(x_BCHW >= 255 * (1 - strength_B111), 255 - x_BCHW, x_BCHW)),
        ("stretch", _stretched(x_BCHW)),
    ):
        x_BCHW = torch.where(of_kind(kind), result.clamp(0, 255), x_BCHW)
    moved = _moved(x_BCHW, kind_B, sign_B * strength_B)
    return torch.where(of_kind(*MOVING), moved, x_BCHW)


def _grey(x_BCHW: Tensor) -> Tensor:
    if x_BCHW.shape[1] != 3:
        return x_BCHW.mean(1, keepdim=True)
    return sum(weight * x_BCHW[:, i : i + 1] for i, weight in enumerate(GREY_WEIGHTS))  # type: ignore[return-value]


def _posterised(x_BCHW: Tensor, strength_B111: Tensor) -> Tensor:
    """The upper bits of each pixel alone."""
    step_B111 = torch.exp2((LOST_BITS * strength_B111).round())
    return (x_BCHW / step_B111).floor() * step_B111


def _stretched(x_BCHW: Tensor) -> Tensor:
    """Each channel of an image from its darkest pixel at 0 to its brightest at 255; as it is where it has one value."""
    low, high = x_BCHW.amin((2, 3), keepdim=True), x_BCHW.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x_BCHW - low) * (255 / (high - low).clamp_min(1e-6)), x_BCHW)


def _moved(x_BCHW: Tensor, kind_B: Tensor, by_B: Tensor) -> Tensor:
    """Images sheared, moved or turned about their middle, by -1 to 1 of the most; others as they are."""

    def by(kind: str) -> Tensor:
        return torch.where(kind_B == KINDS.index(kind), by_B, 0.0)

    angle_B = LARGEST_TURN * by("turn")
    cos_B, sin_B = torch.cos(angle_B), torch.sin(angle_B)
    rows = (  # from a pixel of the result to one of the image; the image reaches from -1 to 1
        (cos_B, LARGEST_SHEAR * by("shear x") - sin_B, 2 * FARTHEST * by("move x")),
        (LARGEST_SHEAR * by("shear y") + sin_B, cos_B, 2 * FARTHEST * by("move y")),
    )
    theta_B23 = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    grid_BHW2 = F.affine_grid(theta_B23, list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, grid_BHW2, mode="bilinear", padding_mode="zeros", align_corners=False)
