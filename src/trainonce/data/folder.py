"""The reader of image folders: one sub-folder for each class, JPEG and PNG of any size."""

import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainonce.data.decode import decode_image
from trainonce.data.splits import Published, Split
from trainonce.data.stream import ImageFiles, default_workers
from trainonce.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
PROGRESS_FROM = 2000  # images; fewer are decoded before a bar would help
CHUNK = 64  # images that one thread decodes at a time
MEMORY_SHARE = 0.25  # of the memory there is; images that would take more are streamed

_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validate": ("validate", "validation", "valid", "val"),
    "test": ("test", "testing"),
}


def read_folder(
    path: Path, *, image_size: int, grey: bool, stream: bool | None = None, workers: int | None = None
) -> Published:
    """Read a folder of images into splits of uint8 [N, C, image_size, image_size], C 1 if `grey` else 3.

    Either `path/<class>/*` or `path/train/<class>/*`, with `path/val/<class>/*` and `path/test/<class>/*`
    where they are given (validate, validation, valid, training and testing are understood too). Classes are
    numbered by sorted name. The central square of each image is resized with antialiasing.
    With `stream` the images stay on disk and `workers` processes decode them as they are needed (None: one
    for each core but one; 0: none, this process does); without, all are decoded now. None streams where
    they would take more than `MEMORY_SHARE` of the memory there is. The pixels are the same.
    Raises `UserError` on an empty class folder, no images, fewer than two classes, splits whose classes differ,
    and a broken image; when streaming, the last is raised when that image is needed.
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
        name: _undecoded(
            ImageFiles(
                root=roots[name].absolute(),
                names=np.concatenate(list(files.values())),
                image_size=image_size,
                grey=grey,
                workers=default_workers() if workers is None else workers,
            ),
            counts=[len(names) for names in files.values()],
        )
        for name, files in classes.items()
    }
    if stream is None:
        stream = sum(math.prod(split.shape) for split in splits.values()) > MEMORY_SHARE * memory_bytes()
    if not stream:
        splits = {name: _decoded(split) for name, split in splits.items()}
    return Published(
        class_names=class_names,
        train=splits["train"],
        validate=splits.get("validate"),
        test=splits.get("test"),
    )


def memory_bytes() -> int:
    """How much memory this process may have: the machine's, or less where a container is given less."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in _MEMORY_LIMITS:
        try:
            limit = file.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if limit.isdecimal():  # else it says max
            found = min(found, int(limit))
    return found


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


def _class_files(root: Path) -> dict[str, npt.NDArray[np.bytes_]]:
    """Give each class's image files as paths below `root`; classes and files in sorted order."""
    files = {}
    for folder in _subfolders(root):
        names = [os.fsencode(file.relative_to(root)) for file in _image_files(folder)]
        files[folder.name] = np.array(names, dtype=np.bytes_)
    if not any(map(len, files.values())):
        raise UserError(f"{root} holds no images: it must have a folder of JPEG or PNG files for each class")
    for name, paths in files.items():
        if not len(paths):
            raise UserError(f"the class folder {root / name} holds no JPEG or PNG images")
    return files


def _image_files(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    return sorted(file for file in files if not file.name.startswith(".") and file.is_file())


def _undecoded(files: ImageFiles, counts: list[int]) -> Split:
    """Give the split of files of which `counts` are of each class in turn."""
    return Split(files, torch.repeat_interleave(torch.tensor(counts)))


def _decoded(split: Split) -> Split:
    """Decode all files of a split in threads (Pillow lets go of the interpreter lock)."""
    files, total = split.pixels, len(split)
    assert isinstance(files, ImageFiles)
    images = np.empty(files.shape, dtype=np.uint8)

    def decode(start: int) -> int:
        rows = torch.arange(start, min(start + CHUNK, total))
        for row, path in zip(rows.tolist(), files.paths(rows), strict=True):
            images[row] = decode_image(Path(path), image_size=files.image_size, grey=files.grey)
        return len(rows)

    shown = total > PROGRESS_FROM and sys.stderr.isatty()
    columns = (TextColumn("decoding images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)
    with bar, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        task = bar.add_task("decoding", total=total)
        futures = [pool.submit(decode, start) for start in range(0, total, CHUNK)]
        try:
            for future in futures:
                bar.advance(task, future.result())
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, do not decode the rest
    return Split(torch.from_numpy(images), split.labels)
