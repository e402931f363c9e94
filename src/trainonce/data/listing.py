"""What lies in a folder of images: the files that are read, by class, and a word about everything else."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt

from trainonce.data.decode import KINDS, SUFFIXES
from trainonce.errors import UserError
from trainonce.names import printable

Names = npt.NDArray[np.bytes_]
"""Paths below a folder, in the file system's bytes."""

_LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX"})
"""What systems leave behind and nobody means; only this, and names that begin with ._, is passed over in silence."""
_MOST_KINDS = 12
_MOST_BESIDE, _BESIDE_EACH = 50_000, 10
"""How many entries that are no images a walk goes past, and how many more for each image that it finds."""

_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validate": ("validate", "validation", "valid", "val"),
    "test": ("test", "testing"),
}


class LeftOut:
    """What a folder holds beside the images that are read, counted by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, kind: str) -> None:
        """Count one more."""
        self.counts[kind] += 1

    def __str__(self) -> str:
        most = self.counts.most_common(_MOST_KINDS)
        others = self.counts.total() - sum(count for _, count in most)
        words = [f"{count} {printable(kind if count == 1 else _several(kind))}" for kind, count in most]
        return ", ".join([*words, f"{others} of other kinds"] if others else words)


def _several(kind: str) -> str:
    """The plural of a kind; endings such as .txt have none."""
    return re.sub(r"^(hidden |dangling )?(file|folder|link)", r"\g<0>s", kind)


class _Patience:
    """Ends a walk through what is no folder of images, such as a whole disk."""

    def __init__(self, root: Path) -> None:
        self.root, self.left = root, _MOST_BESIDE

    def found_image(self) -> None:
        """Note one."""
        self.left += _BESIDE_EACH

    def found_other(self) -> None:
        """Note something else. Raises `UserError` where there is too much of it."""
        self.left -= 1
        if self.left < 0:
            raise UserError(
                f"{printable(str(self.root))} holds over {_MOST_BESIDE:,} files and folders that are not images, and "
                "hardly any that are: name a folder of images"
            )


def split_folders(path: Path, left_out: LeftOut) -> dict[str, Path]:
    """The folder of each split; where there is no division, `path` itself as train.

    A folder counts as a split where it has sub-folders; so a class may be called 'train'.
    """
    children = {child.name.lower(): child for child in _subfolders(path, LeftOut()) if _subfolders(child, LeftOut())}
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
    for child in _subfolders(path, left_out):
        if child not in roots.values():
            left_out.add(f"folder beside the splits ({child.name})")
    return roots


def class_files(root: Path, left_out: LeftOut) -> dict[str, Names]:
    """Each class's image files as paths below `root`; classes and files in sorted order.

    Raises `UserError` where there are no images at all, hardly any, or none of a class, and where the name of a class
    is not UTF-8.
    """
    files, empty, patience = {}, [], _Patience(root)
    for folder in _subfolders(root, left_out):
        here = LeftOut()
        names = sorted(_image_names(folder, here, patience), key=lambda name: name.split("/"))
        left_out.counts += here.counts
        if not names:
            passed_over = f", only {here}" if here.counts else ""
            empty.append(f"the class folder {printable(str(folder))} holds no {KINDS} images{passed_over}")
        files[_class_name(folder)] = np.array([os.fsencode(f"{folder.name}/{name}") for name in names], dtype=np.bytes_)
    if len(empty) == len(files):
        raise UserError(
            f"{root} holds no images: it must have a folder of {KINDS} files for each class"
            + "".join(f"; {reason}" for reason in empty[:1])
        )
    if empty:
        more = f", and so do {len(empty) - 1} more" if len(empty) > 1 else ""
        raise UserError(f"{empty[0]}{more}: put images there, or remove such folders")
    return files


def _class_name(folder: Path) -> str:
    """A folder's name as text, whatever the locale."""
    try:
        return os.fsencode(folder.name).decode()
    except UnicodeDecodeError:
        raise UserError(
            f"the class folder {printable(str(folder))} has a name that is not UTF-8, as old archives have: rename it"
        ) from None


def _subfolders(path: Path, left_out: LeftOut) -> list[Path]:
    folders = []
    for entry in _entries(path):
        kind = _kind(entry)
        if kind != "folder":
            left_out.add("file outside class folders" if kind == "file" else kind)
        elif entry.name.startswith("."):
            left_out.add("hidden folder")
        else:
            folders.append(path / entry.name)
    return sorted(folders)


def _image_names(folder: Path, left_out: LeftOut, patience: _Patience, below: str = "") -> Iterator[str]:
    """The image files in a folder and in its sub-folders, as paths below it; links to folders are not followed."""
    for entry in _entries(folder):
        kind, suffix = _kind(entry), PurePath(entry.name).suffix.lower()
        if kind == "file" and suffix in SUFFIXES:
            patience.found_image()
        else:
            patience.found_other()
        if kind == "folder" and not entry.is_symlink():
            yield from _image_names(folder / entry.name, left_out, patience, f"{below}{entry.name}/")
        elif kind != "file":
            left_out.add("link to a folder" if kind == "folder" else kind)
        elif entry.name.startswith("."):
            left_out.add("hidden file")
        elif suffix not in SUFFIXES:
            left_out.add(suffix or "file without an ending")
        else:
            yield below + entry.name


def _kind(entry: "os.DirEntry[str]") -> str:
    """What an entry is or links to, in words."""
    if entry.is_symlink():  # asked of the path, which does not mind a link that leads in circles
        path = Path(entry.path)
        return "folder" if path.is_dir() else "file" if path.is_file() else "dangling link"
    return "folder" if entry.is_dir() else "file" if entry.is_file() else "neither file nor folder"


def _entries(path: Path) -> "list[os.DirEntry[str]]":
    """All that lies in a folder but litter. Raises `UserError` where it cannot be read."""
    try:
        with os.scandir(path) as entries:
            return [entry for entry in entries if entry.name not in _LITTER and not entry.name.startswith("._")]
    except FileNotFoundError as error:
        raise UserError(f"{printable(str(path))} does not exist") from error
    except OSError as error:
        raise UserError(f"{printable(str(path))} cannot be read as a folder: {error.strerror or error}") from error
