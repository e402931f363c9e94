"""Fan-out: every task done once, whoever dies, by processes here and by Ray alike; and nobody left behind."""

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import trainonce
from trainonce.errors import RunError, UserError
from trainonce.parallel.fan_out import LOCAL, RAY, fan_out
from trainonce.parallel.worker import Done, Failed, Worker

HERE = Path(__file__).parents[1] / "support"
SOON_S = 10.0
NO_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not installed")
WITH_RAY = pytest.param(RAY, marks=[pytest.mark.ray, NO_RAY])
EVERYWHERE = pytest.mark.parametrize("cluster", [LOCAL, WITH_RAY])


@pytest.fixture(scope="module")
def work() -> Iterator[Any]:
    """The module `fanout_work`, where workers find it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(Path(trainonce.__file__).parent.parent)]))
        yield importlib.import_module("fanout_work")


@pytest.fixture(scope="module")
def ray_here(work: Any) -> Iterator[Any]:
    """A Ray on this machine that the program has started itself."""
    ray = pytest.importorskip("ray")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> str:
    """Where the workers are; on Ray, with one started."""
    if request.param == RAY:
        request.getfixturevalue("ray_here")
    return str(request.param)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return not stat.parent.parent.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def blocks(pid: int, number: signal.Signals) -> bool:
    """Whether a process's first thread has the signal blocked, where the system tells (Linux)."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return True
    mask = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigBlk:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def all_gone(pids: list[int]) -> bool:
    """Whether the processes have all ended, or do so soon."""
    end = time.monotonic() + SOON_S
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


class Record:
    """What the caller is given."""

    def __init__(self) -> None:
        self.results: list[tuple[int, tuple[int, int, int]]] = []

    def __call__(self, task: int, result: tuple[int, int, int]) -> None:
        self.results.append((task, result))

    @property
    def tasks(self) -> list[int]:
        return sorted(task for task, _ in self.results)


@EVERYWHERE
def test_a_lost_workers_task_is_done_again(work: Any, cluster: str, tmp_path: Path) -> None:
    squares, record = work.Squares(tmp_path, kill_at=5), Record()
    with pytest.warns(RuntimeWarning, match=r"a worker died \(.*\); what it was at is done again"):
        assert fan_out(squares, range(20), on_result=record, workers=2, cluster=cluster)
    assert record.tasks == list(range(20))
    assert all(result[0] == task**2 for task, result in record.results)
    assert len(list(tmp_path.glob("at-5-*"))) == 2
    assert len(list(tmp_path.glob("at-*"))) == 21  # no other task was done twice
    assert {result[2] for _, result in record.results} == {1}
    workers = squares.processes()
    assert os.getpid() not in workers
    assert len(workers) <= 3
    assert all_gone(workers)


@EVERYWHERE
def test_a_task_that_costs_three_workers_is_named(work: Any, cluster: str, tmp_path: Path) -> None:
    squares, record = work.Squares(tmp_path, kill_at=777, kills=99), Record()
    with (
        pytest.warns(RuntimeWarning, match="done again"),
        pytest.raises(RunError, match=r"3 workers died over the same task \(.*\), which is given up: 777;"),
    ):
        fan_out(squares, [1, 777, 2, 3], on_result=record, workers=2, cluster=cluster)
    assert record.tasks == [1, 2, 3]
    assert len(list(tmp_path.glob("at-777-*"))) == 3
    assert all_gone(squares.processes())


@EVERYWHERE
def test_an_error_of_the_work_ends_all(work: Any, cluster: str, tmp_path: Path) -> None:
    squares, record = work.Squares(tmp_path, raise_at=2, error=KeyError("seven"), slow_from=3), Record()
    with pytest.raises(KeyError) as raised:
        fan_out(squares, range(6), on_result=record, workers=2, cluster=cluster)
    assert raised.value.args == ("seven",)
    assert any("fanout_work.py" in note for note in raised.value.__notes__)
    assert set(record.tasks) <= {0, 1}
    assert all_gone(squares.processes())


@EVERYWHERE
def test_stopping_gives_up_what_is_being_done(work: Any, cluster: str, tmp_path: Path) -> None:
    squares, record = work.Squares(tmp_path, slow_from=4), Record()
    began: list[float] = []

    def should_stop() -> bool:
        if len(record.results) == 4 and not began:
            began.append(time.monotonic())
        return bool(began)

    assert not fan_out(squares, range(9), on_result=record, workers=2, cluster=cluster, should_stop=should_stop)
    assert record.tasks == [0, 1, 2, 3]
    assert all_gone(squares.processes())
    assert time.monotonic() - began[0] < SOON_S


@EVERYWHERE
def test_a_worker_that_cannot_be_set_up(work: Any, cluster: str) -> None:
    with pytest.raises(UserError, match="there is nothing to work on"):
        fan_out(work.refuse, [1, 2], on_result=Record(), workers=2, cluster=cluster)


def test_workers_that_die_while_they_are_set_up(work: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RunError, match=r"3 workers in a row died while they were set up \(.*\); fewer of them"):
            fan_out(work.die, [1, 2, 3], on_result=Record(), workers=3)


@EVERYWHERE
def test_the_recorders_error_ends_all(work: Any, cluster: str, tmp_path: Path) -> None:
    squares = work.Squares(tmp_path, slow_from=1)

    def refuse(_task: int, _result: object) -> None:
        raise RunError("the disk is full")

    with pytest.raises(RunError, match="the disk is full"):
        fan_out(squares, range(3), on_result=refuse, workers=2, cluster=cluster)
    assert all_gone(squares.processes())


class TestHere:
    @pytest.mark.parametrize("workers", [None, 1])
    def test_one_worker_is_this_process(self, work: Any, tmp_path: Path, workers: int | None) -> None:
        squares, record = work.Squares(tmp_path), Record()
        assert fan_out(squares, [3, 1, 2], on_result=record, workers=workers)
        assert [task for task, _ in record.results] == [3, 1, 2]
        assert squares.processes() == [os.getpid()]

    def test_one_task_needs_no_second_worker(self, work: Any, tmp_path: Path) -> None:
        squares = work.Squares(tmp_path)
        assert fan_out(squares, [3], on_result=Record(), workers=8)
        assert squares.processes() == [os.getpid()]

    def test_nothing_to_do_sets_nothing_up(self, work: Any) -> None:
        assert fan_out(work.die, [], on_result=Record(), workers=2)

    def test_stopping(self, work: Any, tmp_path: Path) -> None:
        record = Record()
        stop = lambda: len(record.results) == 2  # noqa: E731
        assert not fan_out(work.Squares(tmp_path), range(5), on_result=record, should_stop=stop)
        assert record.tasks == [0, 1]


class TestWorker:
    def test_an_error_that_cannot_travel_comes_in_words(self, work: Any, tmp_path: Path) -> None:
        worker = Worker()
        error = work.Unportable("what", " it was")
        assert worker.set_up(work.Squares(tmp_path, raise_at=1, error=error), None) == Done(None)
        answer = worker.do(1)
        assert isinstance(answer, Failed)
        assert isinstance(answer.error, RunError)
        assert str(answer.error) == "a worker raised Unportable: what it was"

    def test_threads(self, work: Any, tmp_path: Path) -> None:
        before = torch.get_num_threads()
        try:
            worker = Worker()
            worker.set_up(work.Squares(tmp_path), 2)
            assert worker.do(3) == Done((9, os.getpid(), 2))
        finally:
            torch.set_num_threads(before)


ORPHANS = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from fanout_work import Squares
from trainonce.parallel.fan_out import fan_out
if __name__ == "__main__":
    fan_out(Squares(Path(sys.argv[1]), slow_from=0), range(4), on_result=print, workers=2, cluster=sys.argv[2])
"""


def caller(folder: Path, cluster: str) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A program with two workers that are both in the middle of a task, and their processes."""
    script = folder / "script.py"
    script.write_text(ORPHANS.format(here=str(HERE)))
    command = [sys.executable, str(script), str(folder), cluster]
    program = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while len(list(folder.glob("at-*"))) < 2:
        assert time.monotonic() < end
        assert program.poll() is None
        time.sleep(0.05)
    return program, [int(path.name[4:]) for path in folder.glob("pid-*")]


@pytest.mark.parametrize("where", [LOCAL, WITH_RAY])
def test_workers_die_with_the_caller(work: Any, tmp_path: Path, where: str) -> None:
    if where == RAY:
        pytest.importorskip("ray")
    program, workers = caller(tmp_path, where)
    program.kill()
    assert len(workers) == 2
    assert all_gone(workers)
    program.communicate()


def test_ctrl_c_reaches_the_caller_alone(work: Any, tmp_path: Path) -> None:
    """As in a terminal, the whole group of processes gets it; the workers are ended by the caller, and say nothing."""
    program, workers = caller(tmp_path, LOCAL)
    assert all(blocks(pid, signal.SIGINT) for pid in workers)
    os.killpg(program.pid, signal.SIGINT)
    _, said = program.communicate()
    assert program.returncode == -signal.SIGINT
    assert all_gone(workers)
    assert said.count(b"Traceback") == 1


@pytest.mark.ray
def test_a_ray_of_its_own(work: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Started and ended by `fan_out`; stdout and signals stay the program's."""
    ray = pytest.importorskip("ray")
    ray.shutdown()  # another test's
    squares, record = work.Squares(tmp_path, kill_at=1), Record()
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.warns(RuntimeWarning, match="what it was at is done again"):
        assert fan_out(squares, range(4), on_result=record, workers=2, cluster=RAY)
    assert record.tasks == [0, 1, 2, 3]
    assert not ray.is_initialized()
    assert capsys.readouterr().out == ""
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ
    assert all_gone(squares.processes())


@pytest.mark.ray
def test_no_cluster_at_the_address(work: Any) -> None:
    pytest.importorskip("ray").shutdown()
    with pytest.raises(RunError, match=r"Ray cannot be reached at 127\.0\.0\.1:1: "):
        fan_out(work.die, [1], on_result=Record(), cluster="127.0.0.1:1")
    with pytest.raises(UserError, match=r"--cluster takes local, ray, or .*; not 'loca'"):
        fan_out(work.die, [1], on_result=Record(), cluster="loca")


def test_a_ray_that_is_not_there(monkeypatch: pytest.MonkeyPatch, work: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"working on Ray needs an extra: pip install 'trainonce\[ray\]'"):
        fan_out(work.die, [1], on_result=Record(), cluster=RAY)
