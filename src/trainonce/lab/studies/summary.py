"""What the arms of a study came to, in numbers for a table; and what is concluded from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainonce.files import write_atomic
from trainonce.lab.studies.built_in import conclude
from trainonce.lab.studies.results import FinishedRun, RecordedConclusion, RecordedStudy, StudyResult
from trainonce.lab.studies.run_study import StudyDirectory
from trainonce.lab.studies.study import Arm
from trainonce.records import to_json


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """An arm over its finished runs. Accuracies are top-1 in percent: the mean of each seed's mean over subnets.

    The subnets are those of its population; its probes where it has none.
    """

    arm: str
    seeds: int
    subnets: int
    top1: float
    lowest_seed: float
    highest_seed: float
    train_seconds: float
    passes: float


def arm_summaries(
    arms: Sequence[Arm], results: Sequence[StudyResult], times: Sequence[FinishedRun]
) -> list[ArmSummary]:
    """One summary for each arm that has finished runs, in the arms' order."""
    summaries = []
    for arm in arms:
        own = [line for line in results if line.arm == arm.name]
        lines = [line for line in own if not line.probe] or own
        timed = [line for line in times if line.arm == arm.name]
        by_seed: dict[int, list[float]] = {}
        for line in lines:
            by_seed.setdefault(line.seed, []).append(line.top1)
        if not by_seed or not timed:
            continue
        means = [float(np.mean(values)) for values in by_seed.values()]
        summaries.append(
            ArmSummary(
                arm=arm.name,
                seeds=len(by_seed),
                subnets=len({line.arch for line in lines}),
                top1=float(np.mean(means)),
                lowest_seed=min(means),
                highest_seed=max(means),
                train_seconds=float(np.mean([line.train_seconds for line in timed])),
                passes=float(np.mean([line.passes for line in timed])),
            )
        )
    return summaries


def write_conclusion(directory: StudyDirectory) -> RecordedConclusion:
    """Write what follows from a study's results, and give it."""
    found = conclusion_of(directory)
    write_atomic(directory.conclusion_file, to_json(found.to_json()))
    return found


def conclusion_of(directory: StudyDirectory) -> RecordedConclusion:
    """What follows from a study's results so far, as conclusion.json has it; nothing is written."""
    study = RecordedStudy.read(directory.recorded(), where=str(directory.study_file))
    return conclude(study, directory.results(), directory.finished()).recorded()
