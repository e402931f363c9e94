"""The decoder of one image file: the same pixels whether all are held in memory or streamed from disk."""

import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from trainonce.errors import UserError

# What Pillow raises on a broken file, by format and by where the break is.
_IMAGE_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, KeyError),
    *(OverflowError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)


def decode_image(path: Path, *, image_size: int, grey: bool) -> npt.NDArray[np.uint8]:
    """Decode one JPEG or PNG: turned upright (EXIF), central square, antialiased resize.

    Gives uint8 [C, image_size, image_size]. Transparency is dropped. Raises `UserError` naming the file.
    """
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as opened:
            # A JPEG much larger than needed is decoded at a half, a quarter or an eighth: far faster.
            opened.draft(None, (2 * image_size, 2 * image_size))
            image = ImageOps.exif_transpose(opened)
            image = _convert(image, "L" if grey else "RGB")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except _IMAGE_ERRORS as error:
        raise UserError(f"{path} is not a whole JPEG or PNG image: {error}") from error
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    pixels = np.asarray(square.resize((image_size, image_size), Image.Resampling.BILINEAR))
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _convert(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)
