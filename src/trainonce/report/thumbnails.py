"""Small pictures of a person's images, where these are still in the folder that a run was trained on."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from trainonce.data.decode import decode_image
from trainonce.errors import UserError
from trainonce.report.parts import Thumbnail

SIDE = 72
"""Pixels, as many as the page shows."""
QUALITY = 80


def thumbnail(folder: str | Path, file: str, about: str) -> Thumbnail | None:
    """The image at `file` below `folder`, as a network sees it but for its size; `about` says what it shows.

    None where it is no longer there, not below the folder, or no picture.
    """
    folder = Path(folder)
    path = folder / file
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            return None
        pixels_CHW = decode_image(path, image_size=SIDE, grey=False)
    except (UserError, ValueError):  # a path that can be none is a ValueError
        return None
    written = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0))).save(written, "JPEG", quality=QUALITY)
    return Thumbnail(written.getvalue(), about)
