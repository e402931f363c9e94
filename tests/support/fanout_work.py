"""Work for the tests of fan-out, in a module of its own that worker processes can import."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from trainonce.errors import UserError


class Unportable(Exception):
    """Pickles, but cannot be unpickled: it wants two arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


@dataclass(frozen=True)
class Squares:
    """Squares numbers, and does at some of them what tests want. Leaves a file for each process and each attempt."""

    folder: Path
    kill_at: int = -1
    kills: int = 1
    """How many workers are killed at `kill_at`, in the middle of their work."""
    raise_at: int = -1
    error: Exception | None = None
    slow_from: int = 10**9
    """From here on, a task takes a minute."""

    def __call__(self) -> Callable[[int], tuple[int, int, int]]:
        (self.folder / f"pid-{os.getpid()}").touch()
        return self.square

    def square(self, number: int) -> tuple[int, int, int]:
        """The square, the process and torch's threads in it."""
        attempt = len(list(self.folder.glob(f"at-{number}-*")))
        (self.folder / f"at-{number}-{attempt}").touch()
        if number == self.kill_at and attempt < self.kills:
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.raise_at and self.error is not None:
            raise self.error
        time.sleep(60 if number >= self.slow_from else 0.02)
        return number**2, os.getpid(), torch.get_num_threads()

    def processes(self) -> list[int]:
        """Every process that ever was a worker."""
        return [int(path.name[4:]) for path in self.folder.glob("pid-*")]


def refuse() -> NoReturn:
    raise UserError("there is nothing to work on")


def die() -> NoReturn:
    os._exit(3)
