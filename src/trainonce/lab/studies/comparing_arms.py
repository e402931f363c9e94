"""Arms held against each other, by population and by training time; and the conclusion of a study that is not ours."""

from collections.abc import Sequence

import numpy as np

from trainonce.lab.statistics import SeedComparison, corrected, over_seeds
from trainonce.lab.studies.conclusion import (
    HOLM_NOTE,
    Conclusion,
    Row,
    by_seed,
    compare_lines,
    flat,
    interval_columns,
    needed_notes,
    population_lines,
    probe_lines,
    seeds_note,
    sentence_of,
    undecided,
)
from trainonce.lab.studies.results import FinishedRun, RecordedStudy, StudyResult


def conclude_arms(study: RecordedStudy, results: Sequence[StudyResult], times: Sequence[FinishedRun]) -> Conclusion:
    """Every arm against the first that has results: for studies that are not ours."""
    lines = population_lines(study, results) or probe_lines(study, results)
    arms = arms_of(study, lines)
    pairs = [(arm, arms[0]) for arm in arms[1:]]
    comparisons = corrected(compare_arms(lines, pairs))
    if not comparisons:
        return undecided(study, "no two arms have results for the same seed")
    verdicts = {found.verdict for found in comparisons}
    return Conclusion(
        study=study.name,
        sentence=sentence_of(*(found.sentence for found in comparisons)),
        verdict=verdicts.pop() if len(verdicts) == 1 else "mixed",
        comparisons=tuple(comparisons),
        tables={
            "medians": medians(lines, arms),
            "buckets": by_bucket(lines, pairs),
            "seconds": seconds(arms, times),
        },
        notes=(seeds_note(comparisons[0].seeds), *needed_notes(comparisons[0]), HOLM_NOTE),
    )


def arms_of(study: RecordedStudy, lines: Sequence[StudyResult]) -> list[str]:
    """The arms that have lines, in the order of drawing."""
    there = dict.fromkeys(line.arm for line in lines)
    drawn = [arm.name for arm in study.arms if arm.name in there]
    return drawn + [arm for arm in there if arm not in drawn]


def _of(lines: Sequence[StudyResult], arm: str) -> list[StudyResult]:
    return [line for line in lines if line.arm == arm]


def compare_arms(lines: Sequence[StudyResult], pairs: Sequence[tuple[str, str]]) -> list[SeedComparison]:
    """The comparisons of pairs of arms that share a seed."""
    found = (compare_lines(_of(lines, a), _of(lines, b), (a, b)) for a, b in pairs)
    return [comparison for comparison in found if comparison is not None]


def _buckets(lines: Sequence[StudyResult]) -> list[float]:
    return sorted({line.bucket for line in lines if line.bucket is not None})


def medians(lines: Sequence[StudyResult], arms: Sequence[str]) -> list[Row]:
    """The median top-1 of each arm in each bucket: mean over seeds of a seed's median, with its interval."""
    rows = []
    for arm in arms:
        for bucket in _buckets(lines):
            values = by_seed(line for line in _of(lines, arm) if line.bucket == bucket)
            if values:
                groups = [list(found.values()) for _, found in sorted(values.items())]
                interval = over_seeds(groups, statistic=np.median)
                row = {"arm": arm, "bucket": bucket, "median": interval.estimate, **interval_columns(interval)}
                rows.append(row | {"seeds": len(groups), "subnets": sum(len(group) for group in groups)})
    return rows


def by_bucket(lines: Sequence[StudyResult], pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """Every pair in every bucket, all corrected together."""
    found = [
        (bucket, comparison)
        for bucket in _buckets(lines)
        for comparison in compare_arms([line for line in lines if line.bucket == bucket], pairs)
    ]
    family = corrected([comparison for _, comparison in found])
    return [
        flat(comparison, a=comparison.names[0], b=comparison.names[1], bucket=bucket)
        for (bucket, _), comparison in zip(found, family, strict=True)
    ]


def seconds(arms: Sequence[str], times: Sequence[FinishedRun], *, reference: str = "") -> list[Row]:
    """Training seconds of each arm, and by which factor it is faster than `reference` at the same seed.

    The reference is the first arm where none of that name is there.
    """
    taken = {(line.arm, line.seed): line for line in times}
    reference = reference if reference in arms else arms[0] if arms else ""
    rows = []
    for arm in arms:
        own = [line for (name, _), line in taken.items() if name == arm]
        if own:
            ratios = [
                taken[reference, line.seed].train_seconds / line.train_seconds
                for line in own
                if (reference, line.seed) in taken
            ]
            rows.append(
                {
                    "arm": arm,
                    "runs": len(own),
                    "seconds": float(np.mean([line.train_seconds for line in own])),
                    "passes": float(np.mean([line.passes for line in own])),
                    "reference": reference,
                    "factor": float(np.exp(np.mean(np.log(ratios)))) if ratios else None,
                    "smallest_factor": min(ratios, default=None),
                    "largest_factor": max(ratios, default=None),
                }
            )
    return rows
