"""The decoder of one image file: the same pixels whether all are held in memory or streamed from disk."""

import os
import re
import struct
import threading
import zlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from trainonce.data.picture import Interpolation, square_picture
from trainonce.errors import UserError
from trainonce.limits import refuse_beyond_memory
from trainonce.names import printable

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""The ends of the names of files that are read as images, in small letters."""
KINDS = "JPEG, PNG, WebP, BMP or TIFF"
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")

MOST_PIXELS = 89_478_485
"""The most pixels that are decoded of a picture, unless the image size asks for more: where Pillow begins to warn."""
PIXELS_FOR_ONE = 4
"""A picture may always have so many pixels for each pixel of the image that it becomes."""
LARGE_PIXELS = 1 << 24
"""Pictures of more pixels are decoded one at a time, each if there is the memory for it."""
_BYTES_OF_A_PIXEL = 12  # as read, as RGBA, and over white

# What Pillow raises on a broken file, by format and by where the break is.
_IMAGE_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, KeyError, AttributeError),
    *(OverflowError, ZeroDivisionError, MemoryError, RuntimeError, struct.error, zlib.error),
)
_UNREAD_BYTES = re.compile(r" \(\d+ bytes not processed\)")  # other ones in every file that is cut off
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_one_large = threading.Lock()


def decode_image(
    path: str | Path, *, image_size: int, grey: bool, interpolation: Interpolation = "bilinear"
) -> npt.NDArray[np.uint8]:
    """Decode one JPEG, PNG, WebP, BMP or TIFF file (of several pictures the first) as `square_picture` says.

    Gives uint8 [C, image_size, image_size], C 1 if `grey` else 3. Raises `UserError` naming the file where it is
    broken, of another kind, or of more pixels than `MOST_PIXELS` and the image size allow.
    """
    try:
        with _pillows_limit:
            opened = Image.open(path, formats=_FORMATS)
        with opened, _turn_of(opened, image_size):
            square = square_picture(opened, image_size, "L" if grey else "RGB", interpolation)
    except FileNotFoundError as error:
        raise UserError(f"{printable(str(path))} does not exist") from error
    except UserError as error:
        raise UserError(f"{printable(str(path))}: {error}") from error
    except _IMAGE_ERRORS as error:
        raise UserError(f"{printable(str(path))} cannot be read as a {KINDS} image: {_reason(path, error)}") from error
    array = np.asarray(square)
    return array[None] if grey else array.transpose(2, 0, 1)


class _PillowsLimit:
    """Inside, Pillow's own limit on pixels is lifted: it knows neither of JPEGs decoded smaller nor of the image size.

    Any number of threads may be inside; when the last leaves, the limit is what it was.
    """

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.before: int | None = None

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                Image.MAX_IMAGE_PIXELS = self.before


_pillows_limit = _PillowsLimit()


def _turn_of(opened: Image.Image, image_size: int) -> AbstractContextManager[object]:
    """What to hold while an opened picture is decoded: for a large one, the turn to be the only large one.

    Raises `UserError` where it is too large.
    """
    if opened.width * opened.height <= LARGE_PIXELS:
        return nullcontext()
    opened.draft(None, (2 * image_size, 2 * image_size))  # then its size is what will be decoded
    pixels, most = opened.width * opened.height, max(MOST_PIXELS, PIXELS_FOR_ONE * image_size**2)
    size = f"its {opened.width} x {opened.height} pixels"
    if pixels > most:
        raise UserError(f"{size} are more than the {most:,} that images of {image_size} x {image_size} are made of")
    if pixels <= LARGE_PIXELS:
        return nullcontext()
    refuse_beyond_memory(_BYTES_OF_A_PIXEL * pixels, size)
    return _one_large


def _reason(path: str | Path, error: Exception) -> str:
    """What Pillow says, without the path, which it spells in its own way."""
    if isinstance(error, UnidentifiedImageError):
        if _begins_with(path, _LFS_POINTER):
            return "it is the place-holder that Git LFS leaves until `git lfs pull` fetches the file itself"
        return "it is of another kind, or its beginning is broken"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return _UNREAD_BYTES.sub("", str(error)) or type(error).__name__


def _begins_with(path: str | Path, start: bytes) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return False
