"""Lines of records, of which a test says what matters to it."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from trainonce.lab.studies.results import FinishedRun, StudyResult
from trainonce.report.loading import PlottedScore
from trainonce.run.lines import ForgettingLine, MetricsLine, SubnetScore


def a_stretch(step: int, **values: Any) -> MetricsLine:
    """A line of metrics.jsonl."""
    plain = {"phase": "a", "epoch": 1.0, "lr": 0.1, "loss": 1.0, "top1": 50.0, "macs": 5, "arch": "d1", "passes": 1.0}
    return MetricsLine.read({"step": step} | plain | values, where="a test")


def a_look(probe: str, **values: Any) -> ForgettingLine:
    """A line of forgetting.jsonl."""
    plain = {"step": 1, "epoch": 1.0, "macs": 4e6, "top1": 50.0, "loss": 1.0, "images": 10}
    return ForgettingLine.read({"probe": probe} | plain | values, where="a test")


def a_score(**values: Any) -> SubnetScore:
    """A line of population.jsonl."""
    plain = {"arch": "d1", "macs": 5, "params": 7, "top1": 12.5, "loss": 1.5, "images": 30, "step": 3}
    return SubnetScore.read(plain | {"split": "validate"} | values, where="a test")


def a_result(**values: Any) -> StudyResult:
    """A line of a study's results.jsonl."""
    plain = {"run": "a-seed0", "arm": "a", "seed": 0, "factors": {}, "arch": "d1", "macs": 5, "params": 7, "top1": 12.5}
    plain |= {"loss": 1.5, "images": 30, "split": "test", "bucket": None, "probe": False}
    return StudyResult.read(plain | values, where="a test")


def a_finished(**values: Any) -> FinishedRun:
    """A line of a study's times.jsonl."""
    plain = {"run": "a-seed0", "arm": "a", "seed": 0, "factors": {}, "train_seconds": 1.0, "passes": 1.0, "epochs": 1.0}
    plain |= {"steps": 1, "lr_sum": 1.0, "threads": 1, "beside": 1, "device": "cpu"}
    return FinishedRun.read(plain | values, where="a test")


def a_scored(**values: Any) -> PlottedScore:
    """A score as figures draw it."""
    return replace(PlottedScore(run="r", seed=0, arch="d1", macs=4e6, params=2e6, top1=50.0), **values)


def timeless(lines: Iterable[MetricsLine]) -> list[dict[str, Any]]:
    """Lines of metrics without what no two runs have in common."""
    return [line.model_dump(exclude={"seconds"}) for line in lines]
