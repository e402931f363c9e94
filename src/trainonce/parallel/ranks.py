"""Workers that torchrun started: the first rank leads, all of them work, in rounds of one task each."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from trainonce.errors import RunError
from trainonce.parallel.distributed import local_rank, process_group
from trainonce.parallel.worker import Done, Failed, MakeWorker, Worker

PATIENCE = timedelta(hours=12)
"""How long a rank waits for the tasks of the others; where one dies, torchrun ends them all at once."""


@contextmanager
def ranks_at_work() -> Iterator[bool]:
    """Whether this process leads. Enter it around all that a command does, and do nothing where it says no.

    Under torchrun the first rank leads: it alone reads, records and prints. The others work for its `fan_out`
    until it is done, and then come out with False. Without torchrun a process leads, alone.
    """
    with process_group("cpu", timeout=PATIENCE) as ranks:
        if ranks.alone:
            yield True
            return
        if torch.cuda.is_available():  # each rank has a GPU of its own; they talk by the CPU
            torch.cuda.set_device(local_rank() % torch.cuda.device_count())
        if not ranks.first:
            _follow()
            yield False
            return
        try:
            yield True
        finally:
            _say(None)


def over_ranks(
    make_worker: MakeWorker,
    tasks: Sequence[Any],
    on_result: Callable[[Any, Any], None],
    should_stop: Callable[[], bool],
) -> bool:
    """What `fan_out` does, by all ranks, on the one that leads. A rank that dies ends them all with a `RunError`."""
    worker = Worker()
    size = dist.get_world_size()
    _say(("set up", make_worker))
    _raise_first(_gathered(worker.set_up(make_worker, None)))
    for start in range(0, len(tasks), size):
        if should_stop():
            return False
        round_of = tasks[start : start + size]
        _say(("do", round_of))
        answers = _gathered(worker.do(round_of[0]))
        for task, answer in zip(round_of, answers, strict=False):  # in the last round, some ranks rest
            if isinstance(answer, Done):
                on_result(task, answer.value)
        _raise_first(answers)
    return True


def _follow() -> None:
    """Do what the first rank says until it says no more. It alone acts on Ctrl-C and SIGTERM, between rounds."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    worker, rank = Worker(), dist.get_rank()
    while (order := _heard()) is not None:
        what, content = order
        if what == "set up":
            _gathered(worker.set_up(content, None))
        else:
            _gathered(worker.do(content[rank]) if rank < len(content) else Done(None))


def _raise_first(answers: Sequence[Done | Failed]) -> None:
    for answer in answers:
        if isinstance(answer, Failed):
            raise answer.error


def _say(order: tuple[str, Any] | None) -> None:
    with _peers_there():
        dist.broadcast_object_list([order], src=0)


def _heard() -> Any:
    orders = [None]
    with _peers_there():
        dist.broadcast_object_list(orders, src=0)
    return orders[0]


def _gathered(answer: Done | Failed) -> list[Any]:
    """Every rank's answer, by rank, on the first one; nothing of use elsewhere."""
    answers = [None] * dist.get_world_size()
    with _peers_there():
        dist.gather_object(answer, answers if dist.get_rank() == 0 else None, dst=0)
    return answers


@contextmanager
def _peers_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError("another rank has died; what is recorded is safe: run it again to go on") from error
