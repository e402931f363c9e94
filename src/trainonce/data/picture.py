"""From a picture of any kind to the square that a network looks at.

The model card of a subnet quotes `square_picture` as it stands here, so it needs Pillow and numpy alone.
"""

from typing import Literal

import numpy as np
from PIL import Image, ImageOps

Interpolation = Literal["bilinear", "bicubic"]
"""How a picture is resized, always with antialiasing."""


def square_picture(picture: Image.Image, size: int, mode: str, interpolation: str = "bilinear") -> Image.Image:
    """The central square of an opened picture as `size` x `size` pixels of mode "L" or "RGB".

    Turned upright (EXIF) and resized with antialiasing, "bilinear" or "bicubic". What is transparent lies over white;
    of 16 bits the upper 8 count. Raises `ValueError` where the numbers of the picture have no known range.
    """
    picture.draft(None, (2 * size, 2 * size))  # a JPEG that is much larger is decoded at a half, quarter or eighth
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, and what is white among them is not known")
    if picture.mode.startswith("I"):  # grey in 16 bits, which Pillow itself would cut off at 255
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels are numbers beyond 16 bits, and what is white among them is not known")
        if "transparency" in picture.info:
            values = np.where(values == picture.info["transparency"], 65535, values)
        picture = Image.fromarray((values >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("RGB")
    if picture.mode != mode:
        picture = picture.convert(mode)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side)).resize(
        (size, size), Image.Resampling[interpolation.upper()]
    )
