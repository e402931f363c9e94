"""Augmentation of whole batches on the device of the images, drawn from an explicit generator.

Nothing here waits for the device, loops over images or touches a global generator.
Shapes: B images, C channels, H x W pixels.
"""

import math
from collections.abc import Sequence
from typing import final

import torch
from pydantic import field_validator
from torch import Tensor
from torch.nn import functional as F

from trainonce.errors import UserError
from trainonce.parallel.distributed import BatchShard
from trainonce.recipes import AugmentationChange
from trainonce.settings import Settings, refuse_subclass

CROP_TRIES = 10  # as torchvision's RandomResizedCrop, before it falls back to the largest box
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601: the luma of red, green, blue
ERASED_AREA = (0.02, 1 / 3)  # of the image, and the aspects: as torchvision's RandomErasing
ERASED_ASPECT = (0.3, 3.3)


@final
class Augmentation(Settings):
    """How training images are varied; each image of a batch on its own.

    Closed: a value that `augment` reads. A subclass, whose own methods nothing would call, is refused where it is used.
    """

    crop_scale: tuple[float, float] | None = None
    """The range of a random crop's area as a fraction of the image's, each in (0, 1]; None for no crop."""

    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """The range of a random crop's width over its height, drawn log-uniformly."""

    flip: bool = False
    """Whether half of the images are mirrored left to right."""

    brightness: float = 0.0
    """The most that brightness is changed, a fraction in [0, 1]: the factor is uniform in 1 - b to 1 + b."""

    saturation: float = 0.0
    """The most that saturation is changed, a fraction in [0, 1]: the factor is uniform in 1 - s to 1 + s."""

    erase: float = 0.0
    """The share of images, in [0, 1], in which a random box is erased: it becomes the mean of the data set."""

    def changed(self, change: AugmentationChange, class_names: Sequence[str]) -> "Augmentation":
        """What it is with a recipe's change, for images of these classes. Changing it twice changes it no further."""
        update: dict[str, object] = {}
        if change.crop_from is not None:
            update["crop_scale"] = None if change.crop_from == 1 else (change.crop_from, 1.0)
        if change.flip == "auto":
            update["flip"] = self.flip and not all(map(_is_written, class_names))
        elif change.flip is not None:
            update["flip"] = change.flip
        if change.erase is not None:
            update["erase"] = change.erase
        return self.model_copy(update=update)

    @field_validator("crop_scale")
    @classmethod
    def _check_scale(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] <= value[1] <= 1:
            raise ValueError("must be two rising numbers over 0 and at most 1")
        return value

    @field_validator("crop_aspect")
    @classmethod
    def _check_aspect(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be two rising numbers over 0")
        return value

    @field_validator("brightness", "saturation", "erase")
    @classmethod
    def _check_fraction(cls, value: float) -> float:
        if not 0 <= value <= 1:
            raise ValueError("must be from 0 to 1")
        return value


def _is_written(class_name: str) -> bool:
    """Whether a class is named by a single letter or by a number, as classes of characters are."""
    return class_name.isdecimal() or (len(class_name) == 1 and class_name.isalpha())


def refuse_other_images(images: Tensor) -> None:
    """Raise `UserError` where images are not uint8 [N, C, H, W]."""
    if images.dtype != torch.uint8:
        raise UserError(f"images must be uint8 from 0 to 255, not {str(images.dtype).removeprefix('torch.')}")
    if images.dim() != 4:
        raise UserError(f"images must have the shape [N, C, H, W], not {list(images.shape)}")


def normalise(images_BCHW: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 images [B, C, H, W] into float32 (x / 255 - mean) / std, channel by channel.

    Raises `UserError` for images of another type or shape.
    """
    refuse_other_images(images_BCHW)
    return _normalise_(images_BCHW.to(torch.float32), mean, std)


def augment(
    images_BCHW: Tensor,
    augmentation: Augmentation | None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    generator: torch.Generator,
    shard: BatchShard | None = None,
) -> Tensor:
    """Vary a batch of uint8 images at random and normalise it; float32 [B, C, H, W].

    In this order: random resized crop, mirror, brightness, saturation (no effect on one channel), each
    clamped to the range of pixels, then `normalise`, then erasing. `generator` must be on the images' device. With
    `augmentation` None the result is `normalise` to the last bit and nothing is drawn. With `shard` the images are
    those rows of a larger batch, and each becomes what it would in the whole of it.
    Semantics: torchvision's RandomResizedCrop, RandomHorizontalFlip and ColorJitter, as the paper's code, and
    RandomErasing.
    Raises `UserError` for images of another type or shape, and for a subclass of `Augmentation`.
    """
    refuse_other_images(images_BCHW)
    x_BCHW = images_BCHW.to(torch.float32)  # stays in 0..255 until the end
    if augmentation is not None:
        refuse_subclass(augmentation, Augmentation)
        if shard is None:
            shard = BatchShard(0, len(x_BCHW), len(x_BCHW))
        assert len(shard) == len(x_BCHW), (shard, x_BCHW.shape)
        u = torch.rand(shard.total, 2 * CROP_TRIES + 5, generator=generator, device=x_BCHW.device)[shard.rows]
        if augmentation.crop_scale is not None:
            x_BCHW = _crop_and_flip(x_BCHW, augmentation, u[:, 5:], place_B2=u[:, :2], flip_B=u[:, 2])
        elif augmentation.flip:
            x_BCHW = torch.where(u[:, 2, None, None, None] < 0.5, x_BCHW.flip(3), x_BCHW)
        if augmentation.brightness > 0:
            factor_B = 1 + augmentation.brightness * (2 * u[:, 3] - 1)
            x_BCHW = x_BCHW.mul_(factor_B[:, None, None, None]).clamp_(0, 255)
        if augmentation.saturation > 0 and x_BCHW.shape[1] == 3:
            factor_B = 1 + augmentation.saturation * (2 * u[:, 4] - 1)
            x_BCHW = _saturate_(x_BCHW, factor_B[:, None, None])
    x_BCHW = _normalise_(x_BCHW, mean, std)
    if augmentation is not None and augmentation.erase > 0:
        assert shard is not None
        u_B5 = torch.rand(shard.total, 5, generator=generator, device=x_BCHW.device)[shard.rows]
        x_BCHW = _erase_(x_BCHW, augmentation.erase, u_B5)
    return x_BCHW


def _normalise_(x_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn 0..255 into (x / 255 - mean) / std, in place.

    By numbers and channel by channel: a tensor made from `mean` would make a GPU wait for the copy.
    """
    if not len(mean) == len(std) == x_BCHW.shape[1]:
        raise UserError(f"images of {x_BCHW.shape[1]} channels need as many numbers of mean and of std")
    for x_BHW, m, s in zip(x_BCHW.unbind(1), mean, std, strict=True):
        if m != 0:
            x_BHW.sub_(255 * m)
        x_BHW.div_(255 * s)
    return x_BCHW


def _saturate_(x_BCHW: Tensor, factor_B11: Tensor) -> Tensor:
    """Blend each image with its grey: factor 0 is grey, 1 the image, over 1 more vivid; in place."""
    red, green, blue = x_BCHW.unbind(1)
    grey_BHW = (GREY_WEIGHTS[0] * red).add_(green, alpha=GREY_WEIGHTS[1]).add_(blue, alpha=GREY_WEIGHTS[2])
    grey_BHW.mul_(1 - factor_B11)
    return x_BCHW.mul_(factor_B11[:, None]).add_(grey_BHW[:, None]).clamp_(0, 255)


def _erase_(x_BCHW: Tensor, chance: float, u_B5: Tensor) -> Tensor:
    """Set a random box of so many of the normalised images to 0, their mean; in place."""
    height, width = x_BCHW.shape[2:]
    low, high = ERASED_AREA
    log_low, log_high = (math.log(aspect) for aspect in ERASED_ASPECT)
    side_B = (height * width * (low + (high - low) * u_B5[:, 0])).sqrt()
    root_aspect_B = torch.exp(0.5 * (log_low + (log_high - log_low) * u_B5[:, 1]))
    h_B = (side_B / root_aspect_B).round().clamp(1, height)
    w_B = (side_B * root_aspect_B).round().clamp(1, width)
    inside = []
    for place_B, length_B, size in ((u_B5[:, 2], h_B, height), (u_B5[:, 3], w_B, width)):
        start_B1 = (place_B * (size - length_B + 1)).floor().minimum(size - length_B)[:, None]
        at_S = torch.arange(size, device=x_BCHW.device)
        inside.append((at_S >= start_B1) & (at_S < start_B1 + length_B[:, None]))
    box_BHW = inside[0][:, :, None] & inside[1][:, None, :] & (u_B5[:, 4] < chance)[:, None, None]
    return x_BCHW.masked_fill_(box_BHW[:, None], 0.0)


def _crop_and_flip(
    x_BCHW: Tensor, augmentation: Augmentation, u_BT: Tensor, *, place_B2: Tensor, flip_B: Tensor
) -> Tensor:
    """Cut a random box out of each image and resize it to H x W, bilinearly; mirror half if asked.

    The same pixels as cropping first and resizing then: what lies outside a box never bleeds in.
    """
    _, _, height, width = x_BCHW.shape
    h_B, w_B = _box_sizes(height, width, augmentation, u_BT)
    top_B = (place_B2[:, 0] * (height - h_B + 1)).floor().minimum(height - h_B)
    left_B = (place_B2[:, 1] * (width - w_B + 1)).floor().minimum(width - w_B)
    y_BH = _sample_at(top_B, h_B, height)
    x_BW = _sample_at(left_B, w_B, width)
    if augmentation.flip:
        x_BW = torch.where(flip_B[:, None] < 0.5, x_BW.flip(1), x_BW)
    # grid_sample wants (x, y) in -1..1, where -1 and 1 are the outer edges of the outer pixels
    x_BW, y_BH = (2 * x_BW + 1) / width - 1, (2 * y_BH + 1) / height - 1
    x_BHW, y_BHW = (t.expand(-1, height, width) for t in (x_BW[:, None, :], y_BH[:, :, None]))
    grid_BHW2 = torch.stack((x_BHW, y_BHW), dim=3)
    return F.grid_sample(x_BCHW, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)


def _box_sizes(height: int, width: int, augmentation: Augmentation, u_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the height and width, whole pixels as float32 [B], of a box inside each image.

    The first of `CROP_TRIES` draws that fits counts; if none does, the largest box of a permitted aspect
    (as torchvision, which then also puts it in the centre).
    """
    assert augmentation.crop_scale is not None
    low, high = augmentation.crop_scale
    log_low, log_high = (math.log(aspect) for aspect in augmentation.crop_aspect)
    area_BT = height * width * (low + (high - low) * u_BT[:, :CROP_TRIES])
    root_aspect_BT = torch.exp(0.5 * (log_low + (log_high - log_low) * u_BT[:, CROP_TRIES:]))
    side_BT = area_BT.sqrt()
    w_BT = (side_BT * root_aspect_BT).round()
    h_BT = (side_BT / root_aspect_BT).round()
    fits_BT = (w_BT >= 1) & (w_BT <= width) & (h_BT >= 1) & (h_BT <= height)
    first_B1 = fits_BT.to(torch.uint8).argmax(dim=1, keepdim=True)
    fits_B = fits_BT.any(dim=1)
    aspect = min(max(width / height, augmentation.crop_aspect[0]), augmentation.crop_aspect[1])
    h_else, w_else = min(height, round(width / aspect)), min(width, round(height * aspect))
    h_B = torch.where(fits_B, h_BT.gather(1, first_B1)[:, 0], float(max(1, h_else)))
    w_B = torch.where(fits_B, w_BT.gather(1, first_B1)[:, 0], float(max(1, w_else)))
    return h_B, w_B


def _sample_at(start_B: Tensor, length_B: Tensor, size: int) -> Tensor:
    """Give the pixel coordinates [B, size] at which `size` outputs sample a box of `length` pixels."""
    centre = torch.arange(size, device=start_B.device, dtype=torch.float32) + 0.5
    inside_BS = (centre * (length_B / size)[:, None] - 0.5).clamp_min(0).minimum((length_B - 1)[:, None])
    return inside_BS + start_B[:, None]
