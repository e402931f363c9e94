"""Hand independent tasks to workers, and take back the results: one way for processes here, Ray and torchrun.

Workers only compute. The caller alone records, so nothing is recorded twice, and a lost worker's task is simply
done again.
"""

import textwrap
import warnings
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch

from trainonce.errors import RunError
from trainonce.parallel.local import LocalPool
from trainonce.parallel.on_ray import RAY, RayPool
from trainonce.parallel.ranks import over_ranks, ranks_at_work
from trainonce.parallel.worker import Died, Failed, Pool

__all__ = ["LOCAL", "RAY", "TORCHRUN", "fan_out", "ranks_at_work"]

LOCAL, TORCHRUN = "local", "torchrun"
LIVES = 3
"""How many workers a task may cost before it is given up."""
POLL_S = 0.2
"""How long it can take until `should_stop` is asked again."""
SETTING_UP = -1

Task = TypeVar("Task")
Result = TypeVar("Result")


def fan_out(
    make_worker: Callable[[], Callable[[Task], Result]],
    tasks: Sequence[Task],
    *,
    on_result: Callable[[Task, Result], None],
    workers: int | None = None,
    cluster: str = LOCAL,
    gpus: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Do every task, calling `on_result` here for each as it ends, in any order; gives whether all were done.

    `make_worker` is called once in each worker and gives the function that does a task; it, the tasks and the
    results must pickle. `cluster` says where workers are:

    - `local`: `workers` processes on this machine that share torch's CPU threads. One, or None, means this process
      itself, one task after another. With more, the program's main module is imported in each, so a script
      needs its `if __name__ == "__main__":`.
    - `ray`, or the address of a Ray cluster: `workers` actors of one CPU, one thread and `gpus` GPUs each; None
      means as many as there is room for.
    - `torchrun`: the ranks, inside `ranks_at_work`; nothing to choose.

    Where a worker dies, a warning says so and a fresh one does its task. A task that costs three workers raises
    `RunError`, as does a worker that cannot be set up; an exception of the work itself is raised here. Then, and
    where `should_stop` says so, tasks being done are given up and all workers are ended (torchrun's after their
    round).
    """
    if not tasks:
        return True
    if cluster == TORCHRUN:
        return over_ranks(make_worker, tasks, on_result, should_stop)
    if cluster != LOCAL:
        with RayPool(make_worker, workers, cluster, gpus) as pool:
            return _drive(pool, tasks, on_result, should_stop)
    workers = min(workers or 1, len(tasks))
    if workers == 1:
        return _here(make_worker(), tasks, on_result, should_stop)
    with LocalPool(make_worker, workers, max(1, torch.get_num_threads() // workers)) as pool:
        return _drive(pool, tasks, on_result, should_stop)


def _here(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    on_result: Callable[[Task, Result], None],
    should_stop: Callable[[], bool],
) -> bool:
    for task in tasks:
        if should_stop():
            return False
        on_result(task, work(task))
    return True


def _drive(
    pool: Pool, tasks: Sequence[Any], on_result: Callable[[Any, Any], None], should_stop: Callable[[], bool]
) -> bool:
    """Keep the pool's workers busy until every task is done."""
    waiting = deque(range(len(tasks)))
    busy: dict[Hashable, int] = {}  # what each worker that owes an answer is at: the number of a task, or SETTING_UP
    idle: list[Hashable] = []
    deaths: Counter[int] = Counter()
    left = len(tasks)
    while left > 0:
        while waiting and idle:
            worker = idle.pop()
            busy[worker] = waiting.popleft()
            pool.give(worker, tasks[busy[worker]])
        if should_stop():
            return False
        for _ in range(min(pool.size, left) - len(busy) - len(idle)):
            busy[pool.start()] = SETTING_UP
        for worker, answer in pool.wait(POLL_S):
            if worker in idle:  # it can only have died
                idle.remove(worker)
                continue
            number = busy.pop(worker)
            if isinstance(answer, Failed):
                raise answer.error
            if isinstance(answer, Died):
                deaths[number] += 1
                _refuse_more(deaths[number], answer.how, None if number == SETTING_UP else tasks[number])
                if number != SETTING_UP:
                    waiting.append(number)  # last, so that the others are done should it cost more workers
                continue
            idle.append(worker)
            if number == SETTING_UP:
                deaths[SETTING_UP] = 0
            else:
                on_result(tasks[number], answer.value)
                left -= 1
    return True


def _refuse_more(deaths: int, how: str, task: object | None) -> None:
    """Warn of a worker's death. Raises `RunError` where it is one too many."""
    if deaths < LIVES:
        warnings.warn(f"a worker died ({how}); what it was at is done again", RuntimeWarning, stacklevel=4)
    elif task is None:
        raise RunError(
            f"{deaths} workers in a row died while they were set up ({how}); fewer of them need less memory, and "
            "a script that starts workers needs its `if __name__ == '__main__':`"
        )
    else:
        raise RunError(
            f"{deaths} workers died over the same task ({how}), which is given up: "
            f"{textwrap.shorten(str(task), 400)}; if memory ran out, fewer workers need less"
        )
