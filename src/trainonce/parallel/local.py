"""Worker processes on this machine."""

import os
import signal
import threading
from collections.abc import Hashable
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from trainonce.errors import RunError
from trainonce.parallel.worker import Died, Done, Failed, MakeWorker, Pool, Worker

EXIT_S = 5.0
"""How long a worker that has closed its connection may take to exit before it is killed."""


class LocalPool(Pool):
    """Processes started afresh (`spawn`: forking a process whose torch has threads can hang), one pipe to each.

    Whose task was lost is known exactly, and one that dies takes no other with it. A worker ends when this
    process does, however that ends.
    """

    def __init__(self, make_worker: MakeWorker, workers: int, threads: int) -> None:
        self.make_worker = make_worker
        self.size = workers
        self.threads = threads
        self.processes: dict[Connection, BaseProcess] = {}
        self.unmet: set[Connection] = set()
        """Workers that have not yet said that they run and can be sent what may be large."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            process.kill()
        for worker in list(self.processes):
            self._bury(worker)

    def start(self) -> Connection:
        here, there = get_context("spawn").Pipe()
        process = get_context("spawn").Process(target=_live, args=(there,), name="trainonce worker", daemon=True)
        # Ctrl-C goes to the whole group of processes, and only this one is to act on it: a blocked signal stays so.
        # The tracker first: where `start` has to start it, that unblocks the signal again (Python 3.11 to 3.13)
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            there.close()
        self.processes[here] = process
        self.unmet.add(here)
        return here

    def give(self, worker: Hashable, task: Any) -> None:
        assert isinstance(worker, Connection)
        self._send(worker, task)

    def wait(self, seconds: float) -> list[tuple[Hashable, Done | Failed | Died]]:
        answers: list[tuple[Hashable, Done | Failed | Died]] = []
        for worker in connection.wait(list(self.processes), seconds):
            assert isinstance(worker, Connection)
            try:
                answer = worker.recv()
            except (EOFError, OSError):
                answers.append((worker, Died(self._bury(worker))))
                continue
            if worker in self.unmet:
                self.unmet.remove(worker)
                self._send(worker, (self.make_worker, self.threads))
            else:
                answers.append((worker, answer))
        return answers

    def _send(self, worker: Connection, message: Any) -> None:
        try:
            worker.send(message)
        except OSError:
            return  # it has just died, which the next wait will find

    def _bury(self, worker: Connection) -> str:
        """Make sure that a worker has ended; says how."""
        self.unmet.discard(worker)
        process = self.processes.pop(worker)
        worker.close()
        process.join(EXIT_S)
        process.kill()
        process.join()
        code = process.exitcode or 0
        process.close()
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _live(caller: Connection) -> None:
    """The life of a worker process, until nobody is there to ask."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    worker = Worker()
    try:
        caller.send(None)
        make_worker, threads = caller.recv()
        _answer(caller, worker.set_up(make_worker, threads))
        while True:
            _answer(caller, worker.do(caller.recv()))
    except (EOFError, ConnectionError):
        return


def _answer(caller: Connection, answer: Done | Failed) -> None:
    try:
        caller.send(answer)
    except ConnectionError:
        raise
    except Exception as error:  # noqa: BLE001 a result of any kind may refuse to be pickled in any way
        caller.send(Failed(RunError(f"a worker's result cannot be sent between processes: {error}")))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # at once, in the middle of a task: nobody is there to take it
