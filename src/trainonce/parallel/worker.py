"""What a worker is, and what every kind of pool of workers can do."""

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any, Self

import torch

from trainonce.errors import RunError

MakeWorker = Callable[[], Callable[[Any], Any]]
"""Called once in each worker; gives its function from a task to a result. It travels, so it must pickle."""


@dataclass(frozen=True)
class Done:
    """A task is done, or a worker set up (`value` None)."""

    value: Any


@dataclass(frozen=True)
class Failed:
    """The work itself raised."""

    error: Exception


@dataclass(frozen=True)
class Died:
    """The worker is gone without an answer: killed, out of memory, crashed."""

    how: str


class Worker:
    """The inside of a worker process: set up once, then one task after another. Errors are answers too."""

    work: Callable[[Any], Any]

    def set_up(self, make_worker: MakeWorker, threads: int | None) -> Done | Failed:
        """Make the function, with that many CPU threads for torch; None leaves them as they are."""
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            self.work = make_worker()
        except Exception as error:  # noqa: BLE001 the caller raises it
            return _failed(error)
        return Done(None)

    def do(self, task: Any) -> Done | Failed:
        """Do one task."""
        try:
            return Done(self.work(task))
        except Exception as error:  # noqa: BLE001 the caller raises it
            return _failed(error)


def _failed(error: Exception) -> Failed:
    """The error with its traceback as a note; in words where it is of a kind that cannot be sent."""
    error.add_note("In a worker:\n" + traceback.format_exc())
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:  # noqa: BLE001 a class of any kind may refuse in any way
        return Failed(RunError(f"a worker raised {type(error).__name__}: {error}"))
    return Failed(error)


class Pool(ABC):
    """Worker processes that are given tasks. Leaving it ends them all, whatever they are doing."""

    size: int
    """How many workers to keep."""

    @abstractmethod
    def __enter__(self) -> Self:
        """Make ready to start workers."""

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every worker."""

    @abstractmethod
    def start(self) -> Hashable:
        """Start a worker, which sets itself up and answers `Done`; gives what it is known by."""

    @abstractmethod
    def give(self, worker: Hashable, task: Any) -> None:
        """Let a worker that has answered do a task."""

    @abstractmethod
    def wait(self, seconds: float) -> list[tuple[Hashable, Done | Failed | Died]]:
        """The answers that are there, or come within `seconds`; each asked worker answers once."""
