"""Workers on a Ray cluster, or on a Ray started on this machine."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Hashable, Iterator
from types import TracebackType
from typing import Any, Self

from trainonce.errors import RunError, UserError
from trainonce.extras import try_import
from trainonce.parallel.worker import Died, Done, Failed, MakeWorker, Pool, Worker

RAY = "ray"
CONNECT_S = 10.0
"""How long a cluster may take to answer at all."""


class RayPool(Pool):
    """One actor a worker, of one CPU (and `gpus` GPUs) each. Ray restarts and retries nothing: the caller does.

    `address` is a cluster's, or `ray` for the one on this machine or named by RAY_ADDRESS; without one, Ray is
    started here and ended at the end. A Ray that the program has initialised itself is used and left as it is.
    Raises `UserError` for what is no address. While workers are there, what is printed to stdout goes to stderr,
    as Ray prints its messages there.
    """

    def __init__(self, make_worker: MakeWorker, workers: int | None, address: str, gpus: int) -> None:
        self.make_worker = make_worker
        self.wanted = workers
        self.address = None if address == RAY else address
        self.host, self.port = ("", 0) if address == RAY else _host_and_port(address)
        self.gpus = gpus
        self.asked: dict[Any, Any] = {}  # the reference to a worker's next answer, and the worker
        self.actors: set[Any] = set()
        self.leaving = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with try_import("working on Ray", "ray"):
            import ray
        self.ray = ray
        with contextlib.ExitStack() as leaving:
            leaving.enter_context(contextlib.redirect_stdout(sys.stderr))
            if not ray.is_initialized():
                self._connect()
                leaving.callback(ray.shutdown)
            have = ray.cluster_resources()
            room = int(min(have.get("CPU", 0), have.get("GPU", 0) / self.gpus if self.gpus else float("inf")))
            if room < 1:
                raise RunError(f"the Ray cluster has no room for a worker of 1 CPU and {self.gpus} GPUs")
            self.size = self.wanted or room
            self.parcel = ray.put(self.make_worker)
            self.actor = ray.remote(num_cpus=1, num_gpus=self.gpus, max_restarts=0, max_task_retries=0)(Worker)
            self.leaving = leaving.pop_all()
        return self

    def _connect(self) -> None:
        if self.address is not None:  # where nothing listens, Ray itself would wait many minutes
            try:
                socket.create_connection((self.host, self.port), timeout=CONNECT_S).close()
            except (OSError, OverflowError) as error:
                raise RunError(f"Ray cannot be reached at {self.address}: {error}") from error
        with _environment("RAY_USAGE_STATS_ENABLED", "0"), _own_signals():
            try:
                self.ray.init(
                    address=self.address,
                    include_dashboard=None if self.address else False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, RuntimeError, ValueError, self.ray.exceptions.RayError) as error:
                where = self.address or "this machine"
                raise RunError(f"Ray cannot be reached at {where}: {str(error).strip().splitlines()[0]}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.leaving:
            for actor in self.actors:
                self.ray.kill(actor)
            self.actors.clear()
            self.asked.clear()

    def start(self) -> Hashable:
        actor: Hashable = self.actor.remote()
        self.actors.add(actor)
        self.asked[actor.set_up.remote(self.parcel, 1)] = actor  # type: ignore[attr-defined]
        return actor

    def give(self, worker: Hashable, task: Any) -> None:
        actor: Any = worker
        self.asked[actor.do.remote(task)] = actor

    def wait(self, seconds: float) -> list[tuple[Hashable, Done | Failed | Died]]:
        ready, _ = self.ray.wait(list(self.asked), timeout=seconds)
        return [self._answer(reference, self.asked.pop(reference)) for reference in ready]

    def _answer(self, reference: Any, actor: Any) -> tuple[Hashable, Done | Failed | Died]:
        try:
            answer: Done | Failed = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # not the work's own error, which is an answer
            return actor, Failed(RunError(f"a worker's task or result cannot be sent: {error.cause}"))
        except self.ray.exceptions.RayError as error:
            self.actors.discard(actor)
            self.ray.kill(actor)
            return actor, Died(str(error).strip().splitlines()[0].rstrip("."))
        return actor, answer


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--cluster takes local, ray, or a Ray cluster's HOST:PORT or ray://HOST:PORT; not {address!r}")
    return host.strip("[]"), int(port)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Put back what SIGTERM and Ctrl-C do, which Ray changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
