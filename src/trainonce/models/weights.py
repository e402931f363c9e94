"""Files of weights from elsewhere: state dicts, read without running anything that a file holds."""

import hashlib
import struct
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainonce.errors import UserError
from trainonce.files import check_zip

DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64}

_FILE_ERRORS = (  # what torch raises on a damaged or foreign file, by format and by where the damage is
    *(RuntimeError, UnpicklingError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(OverflowError, AssertionError, MemoryError, struct.error),
)
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_NUMBERS: list[Any] = [
    *((_SCALAR, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")),
    *(np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}),
]
"""What a checkpoint needs that has numbers of numpy's beside its weights: they hold bytes and run nothing."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What torch's wrappers (DataParallel, compile) put before every name."""


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a file, on the CPU: `.safetensors`, or what `torch.save` wrote.

    Of the latter a dict may have it as "state_dict", "model_state_dict" or "model", beside numbers of numpy's; it is
    read by `torch.load(weights_only=True)`, which runs no code of the file. What `DataParallel` or `torch.compile`, or
    one around the other, put before all names is left out. Warns of a file without sums (torch's earlier format), in
    which damage cannot be told.
    Raises `UserError` that says what is wrong with the file: damaged, or no state dict of ordinary tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for name, value in found.items():
        if not isinstance(name, str) or not (is_counter(name) or _is_weight(value)):
            raise UserError(f"{path} holds no state dict of weights: what it has as {str(name)[:100]!r} is none")
    while wrapper := next((one for one in _WRAPPERS if found and all(name.startswith(one) for name in found)), None):
        found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
    return dict(found)


def check_weights(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str) -> None:
    """Raise `UserError` unless every tensor wanted is given, with its shape and finite, and no other.

    `where` begins the sentence: "x.pt is not a resnet18".
    """
    _refuse(where, "it lacks", [name for name in wanted if name not in given])
    _refuse(where, "it also has", [name for name in given if name not in wanted])
    for name, tensor in wanted.items():
        if given[name].shape != tensor.shape:
            raise UserError(f"{where}: {name} is {tuple(given[name].shape)} in it, not {tuple(tensor.shape)}")
        if not given[name].to(torch.float32).isfinite().all():
            raise UserError(f"{where}: {name} in it is not finite")


def file_sha256(path: str | Path) -> str:
    """The hash of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_counter(name: str) -> bool:
    """Whether a tensor counts a batch norm's batches: nothing depends on it."""
    return name.endswith("num_batches_tracked")


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged, or no file of weights: {str(error)[:160]}") from error


def _read_torch(path: Path) -> Mapping[str, Tensor]:
    """Torch compares no sums, so that is done first."""
    checked = check_zip(path)
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_NUMPY_NUMBERS):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except _FILE_ERRORS as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path} is damaged, or no file of weights: {reason}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} holds no state dict")
    if not checked:
        warnings.warn(f"{path} has no sums: whether its weights are whole cannot be checked", stacklevel=4)
    return found


def _is_weight(value: object) -> bool:
    """Whether it is an ordinary tensor, as a module's state dict has them, with its own number for every entry.

    One number that stands for many would let a small file ask for any amount of memory.
    """
    if type(value) is not Tensor or value.is_nested or value.layout is not torch.strided:
        return False
    whole = value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    return value.device.type == "cpu" and value.dtype in DTYPES and whole


def _refuse(where: str, what: str, names: Iterable[str]) -> None:
    first, *others = names or [""]
    if first:
        raise UserError(f"{where}: {what} {first}" + (f" and {len(others)} more" if others else ""))
