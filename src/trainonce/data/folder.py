"""The reader of image folders: one sub-folder for each class, JPEG, PNG, WebP, BMP and TIFF of any size."""

import math
import os
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainonce.data.decode import KINDS, decode_image
from trainonce.data.formats import refuse_missing_class
from trainonce.data.listing import LeftOut, Names, class_files, split_folders
from trainonce.data.picture import Interpolation
from trainonce.data.splits import Published, Split
from trainonce.data.stream import ImageFiles, default_workers
from trainonce.errors import UserError
from trainonce.limits import memory_bytes, refuse_beyond_memory
from trainonce.names import printable

PROGRESS_FROM = 2000  # images; fewer are decoded before a bar would help
CHUNK = 64  # images that one thread decodes at a time
MEMORY_SHARE = 0.25  # of the memory there is; images that would take more are streamed
MOST_NAMED = 5  # broken images that a sentence names, of each of so many kinds


def read_folder(
    path: str | Path,
    *,
    image_size: int,
    grey: bool,
    stream: bool | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
    skipped: Collection[str] = (),
    interpolation: Interpolation = "bilinear",
) -> Published:
    """Read a folder of images into splits of uint8 [N, C, image_size, image_size], C 1 if `grey` else 3.

    Either `path/<class>/*` or `path/train/<class>/*`, with `path/val/<class>/*` and `path/test/<class>/*`
    where they are given (validate, validation, valid, training and testing are understood too). Classes are
    numbered by sorted name. Each image becomes what `square_picture` says, resized by `interpolation`. What lies there
    and is not read is counted in a warning.
    With `stream` the images stay on disk and `workers` processes decode them as they are needed (None: one
    for each core but one; 0: none, this process does); without, all are decoded now. None streams where
    they would take more than `MEMORY_SHARE` of the memory there is. The pixels are the same.
    The files `skipped`, named by paths below `path`, are left out. With `skip_broken` all others are decoded once
    and those that are broken are left out as well; what is given names them all.
    Raises `UserError` on an empty class folder, no images, fewer than two classes, splits whose classes differ,
    images that would not fit into memory, and broken images, all that there are; when streaming, a broken one is
    named when it is needed.
    """
    path = Path(path)
    workers = default_workers() if workers is None else workers
    splits, class_names = _listed(path, image_size, grey, workers, interpolation)
    splits = {name: _without(split, _rows_of(skipped, split, path)) for name, split in splits.items()}
    needed = sum(math.prod(split.shape) for split in splits.values())
    if stream is None:
        stream = needed > MEMORY_SHARE * memory_bytes()
    if not stream:
        refuse_beyond_memory(2 * needed, f"the images of {path}, while they are divided into splits,")
    if not stream or skip_broken:
        splits, broken = _looked_at(splits, keep=not stream)
        if broken and not skip_broken:
            raise UserError(_broken_sentence(broken))
        skipped = sorted({*skipped, *(printable(str(file.relative_to(path.absolute()))) for file in broken)})
    for name, split in splits.items():
        refuse_missing_class(split, class_names, where=f"{path}: {name}, without the files that are skipped,")
    if skipped:
        warnings.warn(f"{path}: left out as broken ({len(skipped)}): {_first(list(skipped), ', ')}", stacklevel=3)
    return Published(
        class_names=class_names,
        train=splits["train"],
        validate=splits.get("validate"),
        test=splits.get("test"),
        skipped=tuple(skipped),
    )


def _listed(
    path: Path, image_size: int, grey: bool, workers: int, interpolation: Interpolation
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits of files that lie in a folder, and the names of its classes; warns of what is not read."""
    left_out = LeftOut()
    roots = split_folders(path, left_out)
    classes = {name: class_files(root, left_out) for name, root in roots.items()}
    class_names = _class_names(roots, classes)
    if left_out.counts:
        warnings.warn(f"{path}: not read, as only {KINDS} files in class folders are: {left_out}", stacklevel=4)
    splits = {}
    for name, files in classes.items():
        undecoded = ImageFiles(
            root=roots[name].absolute(),
            names=np.concatenate(list(files.values())),
            image_size=image_size,
            grey=grey,
            workers=workers,
            interpolation=interpolation,
        )
        counts = torch.tensor([len(names) for names in files.values()])
        splits[name] = Split(undecoded, torch.repeat_interleave(counts))
    return splits, class_names


def _class_names(roots: Mapping[str, Path], classes: Mapping[str, Mapping[str, Names]]) -> tuple[str, ...]:
    """The classes' names. Raises `UserError` where there is only one, or where the splits have others."""
    class_names = tuple(classes["train"])
    if len(class_names) < 2:
        raise UserError(f"{roots['train']} holds 1 class, '{class_names[0]}'; at least 2 are needed")
    for name, files in classes.items():
        for missing in sorted(set(class_names) ^ set(files)):
            lacking, having = (name, "train") if missing in class_names else ("train", name)
            raise UserError(f"{roots[lacking]} has no class folder '{missing}', but {roots[having]} has one")
    return class_names


def _without(split: Split, rows: Collection[int]) -> Split:
    """Give the split without the images at `rows`."""
    return split.take(np.delete(np.arange(len(split)), list(rows))) if rows else split


def _rows_of(names: Collection[str], split: Split, path: Path) -> list[int]:
    """The rows of the files whose paths below `path` are among `names`."""
    files = split.pixels
    assert isinstance(files, ImageFiles)
    if not names:
        return []
    below = files.root.relative_to(path.absolute())
    return [row for row, name in enumerate(files.names.tolist()) if printable(str(below / os.fsdecode(name))) in names]


def _looked_at(splits: Mapping[str, Split], *, keep: bool) -> tuple[dict[str, Split], dict[Path, str]]:
    """Decode the files of all splits; give the splits without the broken ones, and why each of those is broken.

    The splits are decoded where they are to `keep` their images, else of files as before.
    """
    whole: dict[str, Split] = {}
    broken: dict[Path, str] = {}
    for name, split in splits.items():
        files = split.pixels
        assert isinstance(files, ImageFiles)
        images = np.empty(files.shape, dtype=np.uint8) if keep else None
        reasons = _decode(files, images)
        decoded = split if images is None else Split(torch.from_numpy(images), split.labels, files)
        whole[name] = _without(decoded, reasons)
        paths = files.paths(torch.tensor(list(reasons), dtype=torch.int64))
        broken |= dict(zip(map(Path, paths), reasons.values(), strict=True))
    return whole, broken


def _broken_sentence(broken: Mapping[Path, str]) -> str:
    """What is said of broken files, of which each has a sentence: alike ones are told of together, the most first."""
    alike: dict[str, list[str]] = {}
    for path, sentence in broken.items():
        name = printable(str(path))
        alike.setdefault(sentence.removeprefix(name), []).append(name)
    kinds = sorted(alike.items(), key=lambda kind: -len(kind[1]))
    told = "; ".join(f"{_first(names, ', ')}{what}" for what, names in kinds[:MOST_NAMED])
    if left := sum(len(names) for _, names in kinds[MOST_NAMED:]):
        told += f"; and {left} more"
    if len(broken) == 1:
        return f"{told}: repair or remove it, or leave it out with --skip-broken"
    return f"{len(broken)} images are broken; repair or remove them, or leave them out with --skip-broken: {told}"


def _first(texts: Sequence[str], between: str) -> str:
    """The first `MOST_NAMED` texts, and how many more there are."""
    more = [f"and {len(texts) - MOST_NAMED} more"] if len(texts) > MOST_NAMED else []
    return between.join([*texts[:MOST_NAMED], *more])


def _decode(files: ImageFiles, images: npt.NDArray[np.uint8] | None) -> dict[int, str]:
    """Decode all files, into `images` if that is given, in threads (Pillow lets go of the interpreter lock).

    Gives for each row of a broken file the sentence that says so.
    """
    total = len(files.names)

    def decode(start: int) -> dict[int, str]:
        rows, reasons = torch.arange(start, min(start + CHUNK, total)), {}
        for row, path in zip(rows.tolist(), files.paths(rows), strict=True):
            try:
                image = decode_image(
                    path, image_size=files.image_size, grey=files.grey, interpolation=files.interpolation
                )
            except UserError as error:
                reasons[row] = str(error)
                continue
            if images is not None:
                images[row] = image
        return reasons

    shown_bar = total > PROGRESS_FROM and sys.stderr.isatty()
    columns = (TextColumn("decoding images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=not shown_bar, transient=True)
    broken: dict[int, str] = {}
    with bar, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        task = bar.add_task("decoding", total=total)
        futures = [pool.submit(decode, start) for start in range(0, total, CHUNK)]
        try:
            for start, future in zip(range(0, total, CHUNK), futures, strict=True):
                broken |= future.result()
                bar.advance(task, min(CHUNK, total - start))
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, do not decode the rest
    return broken
