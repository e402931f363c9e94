"""The reader of image folders: one sub-folder for each class, JPEG and PNG of any size."""

import os
import struct
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainonce.data.formats import make_split
from trainonce.data.splits import Published, Split
from trainonce.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
PROGRESS_FROM = 2000  # images; fewer are decoded before a bar would help
CHUNK = 64  # images that one thread decodes at a time

_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validate": ("validate", "validation", "valid", "val"),
    "test": ("test", "testing"),
}
# What Pillow raises on a broken file, by format and by where the break is.
_IMAGE_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, KeyError),
    *(OverflowError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError),
)


def read_folder(path: Path, *, image_size: int, grey: bool) -> Published:
    """Read a folder of images into splits of uint8 [N, C, image_size, image_size], C 1 if `grey` else 3.

    Either `path/<class>/*` or `path/train/<class>/*`, with `path/val/<class>/*` and `path/test/<class>/*`
    where they are given (validate, validation, valid, training and testing are understood too). Classes are
    numbered by sorted name. The central square of each image is resized with antialiasing.
    Raises `UserError` on a broken image, an empty class folder, no images, fewer than two classes, or splits
    whose classes differ.
    """
    roots = _split_folders(path)
    classes = {name: _class_files(root) for name, root in roots.items()}
    class_names = tuple(classes["train"])
    if len(class_names) < 2:
        raise UserError(f"{roots['train']} holds 1 class, '{class_names[0]}'; at least 2 are needed")
    for name, files in classes.items():
        for missing in sorted(set(class_names) ^ set(files)):
            lacking, having = (name, "train") if missing in class_names else ("train", name)
            raise UserError(f"{roots[lacking]} has no class folder '{missing}', but {roots[having]} has one")
    splits = {
        name: _decode_split(list(files.values()), image_size=image_size, grey=grey) for name, files in classes.items()
    }
    return Published(
        class_names=class_names,
        train=splits["train"],
        validate=splits.get("validate"),
        test=splits.get("test"),
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


def _subfolders(path: Path) -> list[Path]:
    try:
        return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX")))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read as a folder: {error.strerror or error}") from error


def _split_folders(path: Path) -> dict[str, Path]:
    """Give the folder of each split; where there is no division, `path` itself as train.

    A folder counts as a split where it has sub-folders; so a class may be called 'train'.
    """
    children = {child.name.lower(): child for child in _subfolders(path) if _subfolders(child)}
    roots = {}
    for split, aliases in _SPLIT_FOLDERS.items():
        found = [children[alias] for alias in aliases if alias in children]
        if len(found) > 1:
            raise UserError(f"{path} has both '{found[0].name}' and '{found[1].name}', which are the same split")
        if found:
            roots[split] = found[0]
    if not roots:
        return {"train": path}
    if "train" not in roots:
        raise UserError(f"{path} has '{next(iter(roots.values())).name}' but no 'train' folder of classes")
    return roots


def _class_files(root: Path) -> dict[str, list[Path]]:
    """Give each class's image files, both in sorted order."""
    files = {folder.name: _image_files(folder) for folder in _subfolders(root)}
    if not any(files.values()):
        raise UserError(f"{root} holds no images: it must have a folder of JPEG or PNG files for each class")
    for name, paths in files.items():
        if not paths:
            raise UserError(f"the class folder {root / name} holds no JPEG or PNG images")
    return files


def _image_files(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    return sorted(file for file in files if not file.name.startswith(".") and file.is_file())


def _decode_split(files: Sequence[Sequence[Path]], *, image_size: int, grey: bool) -> Split:
    """Decode all images of a split in threads (Pillow lets go of the interpreter lock)."""
    paths = [path for of_class in files for path in of_class]
    labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files])
    images = np.empty((len(paths), 1 if grey else 3, image_size, image_size), dtype=np.uint8)

    def decode(start: int) -> int:
        chunk = paths[start : start + CHUNK]
        for offset, path in enumerate(chunk):
            images[start + offset] = decode_image(path, image_size=image_size, grey=grey)
        return len(chunk)

    shown = len(paths) > PROGRESS_FROM and sys.stderr.isatty()
    columns = (TextColumn("decoding images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)
    with bar, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        task = bar.add_task("decoding", total=len(paths))
        futures = [pool.submit(decode, start) for start in range(0, len(paths), CHUNK)]
        try:
            for future in futures:
                bar.advance(task, future.result())
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, do not decode the rest
    return make_split(images, labels)
