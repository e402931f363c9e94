"""What computes: torch's device and threads, and how many workers are worth it."""

import os
import re
import time
from collections.abc import Callable

import torch

from trainonce.errors import UserError
from trainonce.parallel.distributed import ranks_in
from trainonce.parallel.fan_out import LOCAL, TORCHRUN
from trainonce.training.devices import check_device

WORTH_WORKERS_S = 30.0
"""How much work it takes until starting workers, of some seconds each, is worth it."""
START_UP_S = 4.0
"""About how long workers take to start: they import torch, all at once, and calibrate."""


def use_threads(threads: int | None) -> None:
    """Let torch compute with so many threads; None: as it would."""
    if threads is not None:
        torch.set_num_threads(threads)


def device_named(name: str) -> str:
    """The torch device of that name, `auto` being a GPU if there is one. Raises `UserError` where it cannot train."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if macs := re.fullmatch(r"([0-9.]+)M", name):
        raise UserError(f"--device is where it is computed; a network's limit in million MACs is --max-macs {macs[1]}")
    check_device(name)
    return "cpu" if torch.device(name).type == "cpu" else name


def cluster_chosen(cluster: str, workers: int | None) -> tuple[str, int | None]:
    """Who is to work: what the options say, or torchrun's ranks. Raises `UserError` where it is asked for both."""
    size = ranks_in(os.environ, "cpu").size
    if size == 1:
        return cluster, workers
    if workers is not None or cluster != LOCAL:
        raise UserError("under torchrun the ranks do the work: --workers and --cluster cannot be given as well")
    return TORCHRUN, size


def planned_workers(
    score_one: Callable[[], object], count: int, workers: int | None, *, cluster: str, device: str
) -> tuple[int, float]:
    """How many workers are to score `count` subnets, and about how many seconds they take; one subnet is timed.

    Without a number asked for: one for each CPU thread where that is worth it, else this process alone.
    """
    threads = torch.get_num_threads()
    if count == 0:
        return workers or 1, 0.0
    if workers is None and cluster != LOCAL:
        raise UserError("how many workers the cluster has room for is not known beforehand: name --workers")
    if workers is None or workers == 1:
        alone = _seconds(score_one) * count
        if workers == 1 or threads == 1 or device != "cpu" or alone < WORTH_WORKERS_S:
            return 1, alone
        workers = threads
    workers = min(workers, count)
    torch.set_num_threads(max(1, threads // workers) if cluster == LOCAL else 1)
    try:
        return workers, START_UP_S + _seconds(score_one) * -(-count // workers)
    finally:
        torch.set_num_threads(threads)


def _seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
