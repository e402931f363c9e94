"""Images of whole batches, varied on their device as `trainonce.recipes.augmentation` says, from an explicit generator.

Nothing here waits for the device, loops over images or touches a global generator.
Shapes: B images, C channels, H x W pixels.
"""

import math
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from trainonce.data.trivial import GREY_WEIGHTS, trivially_augmented
from trainonce.errors import UserError
from trainonce.names import import_named
from trainonce.nn import native
from trainonce.parallel.distributed import BatchShard
from trainonce.recipes import (
    MIXES,
    Augmentation,
    Colour,
    Crop,
    CutMix,
    Erase,
    Flip,
    Mixup,
    Own,
    TrivialAugment,
    Variation,
)

CROP_TRIES = 10  # as torchvision's RandomResizedCrop, before it falls back to the largest box
ERASED_AREA = (0.02, 1 / 3)  # of the image, and the aspects: as torchvision's RandomErasing
ERASED_ASPECT = (0.3, 3.3)


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
    augmentation: Augmentation,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    generator: torch.Generator,
    shard: BatchShard | None = None,
) -> Tensor:
    """Vary a batch of uint8 images at random, in the order of `augmentation`, and normalise it; float32 [B, C, H, W].

    In which order the numbers lie in memory depends on how it was done.

    `generator` must be on the images' device. Without any it is `normalise` to the last bit and
    nothing is drawn. With `shard` the images are those rows of a larger batch, and each becomes what it would
    in the whole of it. What makes one image of two (`Mixup`, `CutMix`) is passed over: that is `mix`'s.
    Raises `UserError` for images of another type or shape, and for an own function that cannot be imported or gives
    another shape.
    """
    refuse_other_images(images_BCHW)
    augmentation = tuple(one for one in augmentation if not isinstance(one, MIXES))
    if not augmentation:
        return _normalise_(images_BCHW.to(torch.float32), mean, std)
    if shard is None:
        shard = BatchShard(0, len(images_BCHW), len(images_BCHW))
    assert len(shard) == len(images_BCHW), (shard, images_BCHW.shape)
    draw = _ShardNumbers(generator, shard, images_BCHW.device)
    if _in_one_pass(augmentation) and native.varies(images_BCHW):
        return _varied_in_one_pass(images_BCHW, augmentation, draw, mean, std)
    x_BCHW = images_BCHW.to(torch.float32)  # stays in 0..255 until the end
    for one in augmentation:
        x_BCHW = _varied(x_BCHW, one, draw, mean)
    return _normalise_(x_BCHW, mean, std)


def _in_one_pass(augmentation: Augmentation) -> bool:
    """Whether the native kernels can do all of it at once: a crop, then perhaps a flip, then perhaps colours."""
    kinds = [type(one) for one in augmentation]
    return kinds[:1] == [Crop] and kinds[1:] in ([], [Flip], [Colour], [Flip, Colour])


def _varied_in_one_pass(
    images_BCHW: Tensor, augmentation: Augmentation, draw: "_ShardNumbers", mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """What `_varied` and `_normalise_` make of them one after the other."""
    _refuse_numbers(images_BCHW, mean, std)
    brightness_B = saturation_B = None
    for one in augmentation:
        u = draw.for_kind(one.kind)
        match one:
            case Crop():
                columns_BW, rows_BH = _places(images_BCHW, one, u[:, 5:], place_B2=u[:, :2])
            case Flip():
                columns_BW = torch.where(_flipped(u)[:, None], columns_BW.flip(1), columns_BW)
            case Colour():
                brightness_B, saturation_B = _colour_factors(images_BCHW, one, u)
    return native.vary(
        *(images_BCHW, columns_BW, rows_BH),
        brightness_B=brightness_B,
        saturation_B=saturation_B,
        grey=GREY_WEIGHTS,
        mean=mean,
        std=std,
    )


class _ShardNumbers:
    """Draws numbers for the images of a shard out of a generator: those that the whole batch would give them.

    Crop, flip and colour share one draw for each image, made first.
    """

    def __init__(self, generator: torch.Generator, shard: BatchShard, device: torch.device) -> None:
        self.generator, self.shard, self.device = generator, shard, device
        self.shared = self(5 + 2 * CROP_TRIES)
        self.used: set[str] = set()

    def __call__(self, count: int) -> Tensor:
        """Numbers [B, count], uniform in 0 to 1."""
        return torch.rand(self.shard.total, count, generator=self.generator, device=self.device, dtype=torch.float32)[
            self.shard.rows
        ]

    def for_kind(self, kind: str) -> Tensor:
        """The shared draw, drawn anew for the second of a kind."""
        if kind in self.used:
            self.shared, self.used = self(5 + 2 * CROP_TRIES), set()
        self.used.add(kind)
        return self.shared


def _varied(x_BCHW: Tensor, one: Variation, draw: _ShardNumbers, mean: Sequence[float]) -> Tensor:
    """Images in 0..255, varied in one way; perhaps in place."""
    match one:
        case Crop():
            u = draw.for_kind(one.kind)
            return _crop(x_BCHW, one, u[:, 5:], place_B2=u[:, :2])
        case Flip():
            return torch.where(_flipped(draw.for_kind(one.kind))[:, None, None, None], x_BCHW.flip(3), x_BCHW)
        case Colour():
            return _coloured(x_BCHW, one, draw.for_kind(one.kind))
        case Erase():
            return _erase_(x_BCHW, one.share, draw(5), mean) if one.share else x_BCHW
        case TrivialAugment():
            return trivially_augmented(x_BCHW, draw(3))
        case Own():
            return _by_own(x_BCHW, one, draw)
        case _:
            raise AssertionError(one)  # `mix` makes one image of two


def _by_own(x_BCHW: Tensor, one: Own, draw: Callable[[int], Tensor]) -> Tensor:
    found = import_named(one.function, "function", ())(x_BCHW, draw, **one.settings)
    if not isinstance(found, Tensor) or found.shape != x_BCHW.shape or found.dtype != x_BCHW.dtype:
        raise UserError(f"{one.function} must give float32 images of the shape that it was given, {list(x_BCHW.shape)}")
    return found


def _flipped(u: Tensor) -> Tensor:
    return u[:, 2] < 0.5


def _colour_factors(x_BCHW: Tensor, one: Colour, u: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Of brightness and of saturation, which does nothing to one channel; None where nothing is done."""
    brightness_B = 1 + one.brightness * (2 * u[:, 3] - 1) if one.brightness > 0 else None
    saturated = one.saturation > 0 and x_BCHW.shape[1] == 3
    return brightness_B, 1 + one.saturation * (2 * u[:, 4] - 1) if saturated else None


def _coloured(x_BCHW: Tensor, one: Colour, u: Tensor) -> Tensor:
    """Brightness, then saturation; each is cut off at the ends of pixels."""
    brightness_B, saturation_B = _colour_factors(x_BCHW, one, u)
    if brightness_B is not None:
        x_BCHW = x_BCHW.mul_(brightness_B[:, None, None, None]).clamp_(0, 255)
    if saturation_B is not None:
        x_BCHW = _saturate_(x_BCHW, saturation_B[:, None, None])
    return x_BCHW


def drawn_mix(augmentation: Augmentation, *, known: float, rng: random.Random) -> Mixup | CutMix | None:
    """How a batch is mixed; None for not at all.

    Of several ways one is drawn, and then whether it is done, by its share of the batches where networks classify the
    share `known` of the images of batches that are not mixed correctly.
    """
    ways = [one for one in augmentation if isinstance(one, MIXES)]
    if not ways:
        return None
    way = rng.choice(ways)
    share = way.share_at(known)
    return None if share < 1 and rng.random() >= share else way


def mix(
    x_BCHW: Tensor, y_B: Tensor, way: Mixup | CutMix | None, *, classes: int, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Make each image of a whole batch one of two, in this way, and the labels [B, classes].

    The other image is the one at the same place from the batch's end. Without a way images stay as they are, and labels
    become zeros and ones.
    """
    labels_BK = (y_B[:, None] == torch.arange(classes, device=y_B.device)).to(x_BCHW.dtype)
    if way is None:
        return x_BCHW, labels_BK
    kept = rng.betavariate(way.alpha, way.alpha)
    if isinstance(way, Mixup):
        x_BCHW = kept * x_BCHW + (1 - kept) * x_BCHW.flip(0)
    else:
        x_BCHW, kept = _with_other_box(x_BCHW, kept, rng)
    return x_BCHW, kept * labels_BK + (1 - kept) * labels_BK.flip(0)


def _with_other_box(x_BCHW: Tensor, kept: float, rng: random.Random) -> tuple[Tensor, float]:
    """A box of the batch's other end put into the images, at one place in all; and the share of an image that stays."""
    size = [round(side * math.sqrt(1 - kept)) for side in x_BCHW.shape[2:]]
    middle = [rng.randrange(side) for side in x_BCHW.shape[2:]]
    (top, bottom), (left, right) = (
        (max(0, m - s // 2), min(side, m - s // 2 + s))
        for m, s, side in zip(middle, size, x_BCHW.shape[2:], strict=True)
    )
    mixed_BCHW = x_BCHW.clone()
    mixed_BCHW[:, :, top:bottom, left:right] = x_BCHW.flip(0)[:, :, top:bottom, left:right]
    return mixed_BCHW, 1 - (bottom - top) * (right - left) / (x_BCHW.shape[2] * x_BCHW.shape[3])


def _normalise_(x_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn 0..255 into (x / 255 - mean) / std, in place.

    By numbers and channel by channel: a tensor made from `mean` would make a GPU wait for the copy.
    """
    _refuse_numbers(x_BCHW, mean, std)
    for x_BHW, m, s in zip(x_BCHW.unbind(1), mean, std, strict=True):
        if m != 0:
            x_BHW.sub_(255 * m)
        x_BHW.div_(255 * s)
    return x_BCHW


def _refuse_numbers(x_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    if not len(mean) == len(std) == x_BCHW.shape[1]:
        raise UserError(f"images of {x_BCHW.shape[1]} channels need as many numbers of mean and of std")


def _saturate_(x_BCHW: Tensor, factor_B11: Tensor) -> Tensor:
    """Blend each image with its grey: factor 0 is grey, 1 the image, over 1 more vivid; in place."""
    red, green, blue = x_BCHW.unbind(1)
    grey_BHW = (GREY_WEIGHTS[0] * red).add_(green, alpha=GREY_WEIGHTS[1]).add_(blue, alpha=GREY_WEIGHTS[2])
    grey_BHW.mul_(1 - factor_B11)
    return x_BCHW.mul_(factor_B11[:, None]).add_(grey_BHW[:, None]).clamp_(0, 255)


def _erase_(x_BCHW: Tensor, chance: float, u_B5: Tensor, mean: Sequence[float]) -> Tensor:
    """Set a random box of so many of the images to their mean, which is 0 once they are normalised; in place."""
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
    for x_BHW, m in zip(x_BCHW.unbind(1), mean, strict=True):
        x_BHW.masked_fill_(box_BHW, 255 * m)
    return x_BCHW


def _crop(x_BCHW: Tensor, crop: Crop, u_BT: Tensor, *, place_B2: Tensor) -> Tensor:
    """Cut a random box out of each image and resize it to H x W, bilinearly.

    The same pixels as cropping first and resizing then: what lies outside a box never bleeds in.
    """
    _, _, height, width = x_BCHW.shape
    x_BW, y_BH = _places(x_BCHW, crop, u_BT, place_B2=place_B2)
    x_BHW, y_BHW = (t.expand(-1, height, width) for t in (x_BW[:, None, :], y_BH[:, :, None]))
    grid_BHW2 = torch.stack((x_BHW, y_BHW), dim=3)
    return F.grid_sample(x_BCHW, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)


def _places(x_BCHW: Tensor, crop: Crop, u_BT: Tensor, *, place_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Where H x W samples of a random box of each image lie: columns [B, W] and rows [B, H].

    From -1 to 1, the outer edges of the outer pixels, as grid_sample has them.
    """
    _, _, height, width = x_BCHW.shape
    h_B, w_B = _box_sizes(height, width, crop, u_BT)
    top_B = (place_B2[:, 0] * (height - h_B + 1)).floor().minimum(height - h_B)
    left_B = (place_B2[:, 1] * (width - w_B + 1)).floor().minimum(width - w_B)
    y_BH = _sample_at(top_B, h_B, height)
    x_BW = _sample_at(left_B, w_B, width)
    return (2 * x_BW + 1) / width - 1, (2 * y_BH + 1) / height - 1


def _box_sizes(height: int, width: int, crop: Crop, u_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the height and width, whole pixels as float32 [B], of a box inside each image.

    The first of `CROP_TRIES` draws that fits counts; if none does, the largest box of a permitted aspect
    (as torchvision, which then also puts it in the centre).
    """
    low, high = crop.scale
    log_low, log_high = (math.log(aspect) for aspect in crop.aspect)
    area_BT = height * width * (low + (high - low) * u_BT[:, :CROP_TRIES])
    root_aspect_BT = torch.exp(0.5 * (log_low + (log_high - log_low) * u_BT[:, CROP_TRIES:]))
    side_BT = area_BT.sqrt()
    w_BT = (side_BT * root_aspect_BT).round()
    h_BT = (side_BT / root_aspect_BT).round()
    fits_BT = (w_BT >= 1) & (w_BT <= width) & (h_BT >= 1) & (h_BT <= height)
    first_B1 = fits_BT.to(torch.uint8).argmax(dim=1, keepdim=True)
    fits_B = fits_BT.any(dim=1)
    aspect = min(max(width / height, crop.aspect[0]), crop.aspect[1])
    h_else, w_else = min(height, round(width / aspect)), min(width, round(height * aspect))
    h_B = torch.where(fits_B, h_BT.gather(1, first_B1)[:, 0], float(max(1, h_else)))
    w_B = torch.where(fits_B, w_BT.gather(1, first_B1)[:, 0], float(max(1, w_else)))
    return h_B, w_B


def _sample_at(start_B: Tensor, length_B: Tensor, size: int) -> Tensor:
    """Give the pixel coordinates [B, size] at which `size` outputs sample a box of `length` pixels."""
    centre = torch.arange(size, device=start_B.device, dtype=torch.float32) + 0.5
    inside_BS = (centre * (length_B / size)[:, None] - 0.5).clamp_min(0).minimum((length_B - 1)[:, None])
    return inside_BS + start_B[:, None]
