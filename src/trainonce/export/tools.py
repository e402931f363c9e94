"""What the exporters share: turning refusals into sentences, and keeping the libraries' chatter off the terminal."""

import hashlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from torch import nn
from torch.export import Dim

from trainonce.errors import UserError

REFUSALS: tuple[type[Exception], ...] = (RuntimeError, ValueError, TypeError)
"""What a runtime raises on a file or on images that it cannot take."""

TERMINAL = (1, 2)
"""The descriptors of standard output and error."""


def any_batch() -> tuple[dict[int, Dim]]:
    """Of a network's one input: its first dimension is not fixed. The first call imports SymPy, which takes 0.2 s."""
    return ({0: Dim("batch", min=1)},)


@contextmanager
def sentence(what: str, refusals: tuple[type[Exception], ...] = REFUSALS, *, line: int = 0) -> Iterator[None]:
    """Inside, what a runtime raises is a `UserError` that begins with `what`; the message's `line` says why."""
    try:
        yield
    except UserError:
        raise
    except refusals as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{what}: {why[line]}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, warnings and log lines below an error are not shown: the libraries warn about their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def hushed() -> Iterator[None]:
    """Inside, nothing that a library writes to the terminal by itself, past Python, is shown."""
    with Path(os.devnull).open("wb") as nowhere, _written_to(nowhere):
        yield


def printed(call: Callable[[], object]) -> str:
    """What a library writes to the terminal by itself, past Python, when it is called."""
    with TemporaryFile() as kept:
        with _written_to(kept):
            call()
        kept.seek(0)
        return kept.read().decode(errors="replace")


@contextmanager
def _written_to(file: IO[bytes]) -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(place) for place in TERMINAL]
    try:
        for place in TERMINAL:
            os.dup2(file.fileno(), place)
        yield
    finally:
        for place, kept in zip(TERMINAL, before, strict=True):
            os.dup2(kept, place)
            os.close(kept)


def layer_names(network: nn.Module) -> list[str]:
    """The parts of a plain network that have weights, in the order of execution: stem, blocks.0, …, classifier."""
    names = []
    for name, child in network.named_children():
        inside = [f"{name}.{i}" for i in range(len(child))] if isinstance(child, nn.ModuleList) else [name]
        names += [part for part in inside if any(True for _ in network.get_submodule(part).parameters())]
    return names


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 of the names and values of a network's weights and statistics."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
