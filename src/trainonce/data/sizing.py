"""Images brought to the size and colours that are asked for."""

import torch
from torch import Tensor
from torch.nn import functional as F

from trainonce.data.picture import Interpolation
from trainonce.data.splits import Published, Split
from trainonce.data.trivial import GREY_WEIGHTS
from trainonce.limits import refuse_beyond_memory

FIT_CHUNK = 1000  # images turned into float32 at a time, or fewer of large ones
FIT_BYTES = 1 << 30


def sized(images: Tensor, *, image_size: int | None, grey: bool, interpolation: Interpolation = "bilinear") -> Tensor:
    """Turn uint8 images [N, C, H, W] grey if asked, and to `image_size` if given.

    Grey is ITU-R 601. The central square is resized with antialiasing. In chunks, and rounded
    back to uint8.
    """
    height, width = images.shape[2:]
    side = min(height, width)
    turn_grey = grey and images.shape[1] == 3
    size = side if image_size is None else image_size
    resize = image_size is not None and not height == width == size
    if not turn_grey and not resize:
        return images
    top, left = (height - side) // 2, (width - side) // 2
    chunks = []
    of_one = 4 * images.shape[1] * max(height * width, size**2)
    for chunk in torch.split(images, min(FIT_CHUNK, max(1, FIT_BYTES // of_one))):
        x_BCHW = chunk.to(torch.float32)
        if turn_grey:
            x_BCHW = torch.einsum("bchw,c->bhw", x_BCHW, torch.tensor(GREY_WEIGHTS))[:, None]
        if resize:
            square = x_BCHW[:, :, top : top + side, left : left + side]
            x_BCHW = F.interpolate(square, (size, size), mode=interpolation, antialias=True)
        chunks.append(x_BCHW.round_().clamp_(0, 255).to(torch.uint8))
    return torch.cat(chunks)


def fitted(
    published: Published,
    *,
    image_size: int | None,
    grey: bool,
    where: str,
    interpolation: Interpolation = "bilinear",
) -> Published:
    """Bring all images to the size and colours asked for, if they would fit into memory."""
    needed = 0
    for _, split in published.given():
        count, channels, height, width = split.shape
        needed += count * (1 if grey else channels) * (min(height, width) if image_size is None else image_size) ** 2
    copies = 1 if image_size is None and not grey else 2  # beside what is held already: changed, and divided
    refuse_beyond_memory(copies * needed, f"the images of {where}, while they are divided into splits,")

    def brought(split: Split) -> Split:
        return Split(sized(split.images, image_size=image_size, grey=grey, interpolation=interpolation), split.labels)

    return Published(
        class_names=published.class_names,
        train=brought(published.train),
        validate=brought(published.validate) if published.validate is not None else None,
        test=brought(published.test) if published.test is not None else None,
    )
