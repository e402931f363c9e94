"""Checkpoints that survive: written atomically, checksummed, without pickle.

A checkpoint is a directory `step-000123` with one safetensors file for each group of tensors, `state.json`
and, written last, `MANIFEST`: the SHA-256 of every other file. It is written beside its place under another
name and renamed into it, so that a directory of that name is whole unless the disk damaged it.
"""

import hashlib
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from trainonce.errors import RunError, UserError
from trainonce.files import put_in_place, write_synced
from trainonce.records import plain_json, read_document

KEEP = 2
"""How many checkpoints are kept: the newest, and the one before it in case the newest is damaged."""

TensorGroups = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint read whole: `tensors` by group and name, on the CPU, and the JSON `state`."""

    step: int
    path: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are missing, changed or unreadable."""


def save(
    directory: Path, step: int, tensors: TensorGroups, state: Mapping[str, Any], *, keep: int | None = KEEP
) -> Path:
    """Write the checkpoint of a step and drop all but the newest `keep`; with None, none.

    Raises `RunError` where the disk refuses; earlier checkpoints are then untouched.
    """
    path = path_of(directory, step)
    partial = directory / f".{path.name}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _bring_back(directory)
        for leftover in (*directory.glob(".step-*.partial"), *directory.glob(".step-*.before")):
            shutil.rmtree(leftover)
        partial.mkdir()
        contents = {f"{group}.safetensors": _to_bytes(named) for group, named in tensors.items()}
        contents["state.json"] = plain_json(state)
        for name, content in contents.items():
            write_synced(partial / name, content)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        write_synced(partial / "MANIFEST", plain_json(sums))
        put_in_place(partial, path)
        shutil.rmtree(partial, ignore_errors=True)  # the one that was there
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = ", ".join(p.name for p in _in_order(directory)) or "none"
        raise RunError(
            f"cannot write the checkpoint {path}: {error.strerror}; checkpoints kept so far: {kept}"
        ) from error
    if keep is not None:
        keep_newest(directory, keep)
    return path


def keep_newest(directory: Path, count: int) -> None:
    """Drop all checkpoints but the newest `count`, at least 1."""
    assert count >= 1
    for old in _in_order(directory)[:-count]:
        shutil.rmtree(old)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint, every file against its checksum. Raises `DamagedCheckpoint`."""
    try:
        sums, _ = read_document(path / "MANIFEST")
        there = {file.name for file in path.iterdir() if file.suffix in (".safetensors", ".json")}
        for name in sorted({"state.json", *there} ^ set(sums)):
            raise DamagedCheckpoint(f"the checkpoint {path} is damaged: {name} is missing or not in its MANIFEST")
        contents = {name: (path / name).read_bytes() for name in sums}
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != sums[name]:
                raise DamagedCheckpoint(f"{path / name} is damaged: its checksum is not the recorded one")
        state, _ = read_document(path / "state.json")
        groups = {Path(n).stem: c for n, c in contents.items() if n.endswith(".safetensors")}
        tensors = {group: tensors_from_bytes(content) for group, content in groups.items()}
        return Checkpoint(step=int(state["step"]), path=path, tensors=tensors, state=state)
    except DamagedCheckpoint:
        raise
    except (OSError, UserError, SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DamagedCheckpoint(f"the checkpoint {path} is damaged: {error}") from error


def load_latest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; None where there is none at all.

    Warns of each damaged one passed over. Raises `DamagedCheckpoint` where there are some and all are damaged.
    """
    found = _in_order(directory)
    for path in reversed(found):
        try:
            return load(path)
        except DamagedCheckpoint as error:
            if path == found[0]:
                raise
            warnings.warn(f"{error}; using the one before it", stacklevel=2)
    return None


def steps(directory: Path) -> list[int]:
    """The steps of the checkpoints in a directory, whole or not, in order."""
    return [_step_of(path) for path in _in_order(directory)]


def load_step(directory: Path, step: int) -> Checkpoint:
    """Read the checkpoint of a step. Raises `DamagedCheckpoint`, also where there is none."""
    return load(path_of(directory, step))


def newest_state(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest `state.json` that is as its manifest says, and its values, without reading tensors; None for none."""
    for path in reversed(_in_order(directory)):
        try:
            sums, _ = read_document(path / "MANIFEST")
            content = (path / "state.json").read_bytes()
            if hashlib.sha256(content).hexdigest() == sums.get("state.json"):
                return path / "state.json", read_document(path / "state.json")[0]
        except (OSError, UserError):  # damaged, or dropped meanwhile by a run that goes on
            continue
    return None


def newest(directory: Path) -> Path | None:
    """The newest checkpoint's directory, whole or not; None where there is none."""
    return next(reversed(_in_order(directory)), None)


def path_of(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return directory / f"step-{step:06d}"


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _bring_back(directory: Path) -> None:
    """Give checkpoints back the places that they had before a writer put them aside and died."""
    for aside in directory.glob(".step-*.before"):
        place = directory / aside.name.removeprefix(".").removesuffix(".before")
        if not place.exists():
            with suppress(OSError):  # another process has done it, or this one may not write here
                aside.rename(place)


def _in_order(directory: Path) -> list[Path]:
    _bring_back(directory)
    numbered = (path for path in directory.glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return sorted(numbered, key=_step_of)


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    return tensors_to_bytes({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
