"""What a study came to, as a value; and what the studies' conclusions share: picking, aligning and comparing lines."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from trainonce.lab.statistics import Interval, SeedComparison, compare, points, spread
from trainonce.lab.studies.results import RecordedConclusion, RecordedStudy, StudyResult

Row: TypeAlias = dict[str, Any]
"""A row of a table, whose columns are each study's own."""
BySeed: TypeAlias = dict[int, dict[str, float]]
"""Top-1 of each architecture, by seed."""

CANNOT_TELL = "cannot tell"
MARGIN = 0.5
"""Points of top-1 below which a difference counts as none."""


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What the numbers of a study force."""

    study: str
    sentence: str
    verdict: str
    """One word or two for the study's question; "cannot tell" is always possible."""
    comparisons: tuple[SeedComparison, ...] = ()
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    """Rows of equal keys, by table."""
    notes: tuple[str, ...] = ()
    """What a reader must know to judge the sentence."""

    def recorded(self) -> RecordedConclusion:
        """The conclusion as conclusion.json has it."""
        values = asdict(self) | {"tables": {name: list(rows) for name, rows in self.tables.items()}}
        return RecordedConclusion.read(_without_nan(values), where=self.study)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def undecided(study: RecordedStudy, reason: str) -> Conclusion:
    """The conclusion of a study that lacks what its question needs."""
    return Conclusion(study=study.name, sentence=f"Cannot tell: {reason}.", verdict=CANNOT_TELL)


def population_lines(study: RecordedStudy, results: Iterable[StudyResult]) -> list[StudyResult]:
    """The lines of subnets drawn into buckets, on the study's split; its probes are left out."""
    split = study.evaluate.split
    return [x for x in results if x.split == split and x.bucket is not None and not x.probe]


def probe_lines(study: RecordedStudy, results: Iterable[StudyResult]) -> list[StudyResult]:
    """The lines of probes on the study's split."""
    split = study.evaluate.split
    return [x for x in results if x.split == split and x.probe]


def where(lines: Iterable[StudyResult], **factors: Any) -> list[StudyResult]:
    """The lines whose factors have these values."""
    return [x for x in lines if all(str(x.factors.get(name)) == str(value) for name, value in factors.items())]


def by_seed(lines: Iterable[StudyResult]) -> BySeed:
    """Top-1 by seed and architecture; of lines that repeat, the last counts."""
    found: BySeed = {}
    for line in lines:
        found.setdefault(line.seed, {})[line.arch] = line.top1
    return found


def aligned(a: BySeed, b: BySeed) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    """The values of seeds that both have, in one order of the architectures that both have.

    A seed without any in common keeps all of both: `compare` then has no pairs of subnets, but still pairs of seeds.
    """
    left: dict[int, list[float]] = {}
    right: dict[int, list[float]] = {}
    for seed in sorted(set(a) & set(b)):
        common = sorted(set(a[seed]) & set(b[seed]))
        left[seed] = [a[seed][arch] for arch in common or a[seed]]
        right[seed] = [b[seed][arch] for arch in common or b[seed]]
    return left, right


def compare_lines(a: Iterable[StudyResult], b: Iterable[StudyResult], names: tuple[str, str]) -> SeedComparison | None:
    """Compare the lines of two arms over the seeds they share; None where they share none."""
    left, right = aligned(by_seed(a), by_seed(b))
    return compare(left, right, margin=MARGIN, names=names) if left else None


def says(found: SeedComparison, *, better: str, worse: str, equivalent: str, cannot_tell: str) -> str:
    """The text of the comparison's verdict, `{}` in it replaced by the size of the difference; then the interval.

    The texts of "equivalent" and "cannot tell" are followed by the signed difference.
    """
    text = {"better": better, "worse": worse, "equivalent": equivalent, CANNOT_TELL: cannot_tell}[found.verdict]
    if found.verdict in ("better", "worse"):
        return f"{text.format(points(abs(found.difference)))} ({spread(found)})"
    return f"{text} ({points(found.difference, sign=True)}, {spread(found)})"


def sentence_of(*clauses: str) -> str:
    """One sentence of clauses."""
    text = "; ".join(clause for clause in clauses if clause)
    return f"{text[:1].upper()}{text[1:]}."


def flat(found: SeedComparison, **more: Any) -> Row:
    """A comparison as a row of a table, with further columns before it."""
    return more | {name: value for name, value in asdict(found).items() if name != "names"}


def interval_columns(found: Interval) -> Row:
    """An interval as columns."""
    return {"low": found.low, "high": found.high}


def seeds_note(seeds: int) -> str:
    """What so many seeds can show."""
    if seeds < 2:
        return "One seed says nothing about how seeds differ: nothing can be told from it."
    return f"Tests and intervals are Student's over {seeds} paired seeds, at 95% where nothing else is said."


def needed_notes(found: SeedComparison) -> tuple[str, ...]:
    """How many seeds it takes to show that there is no difference that matters; nothing of one seed."""
    if found.sd is None:
        return ()
    return (
        f"{found.names[0]} less {found.names[1]} has a standard deviation of {points(found.sd)} between seeds: to show "
        f"that there is no difference beyond ±{found.margin:g} takes {found.seeds_needed:,} seeds (80% power).",
    )


HOLM_NOTE = (
    "Where a p is called corrected it is so for all comparisons beside it (Holm), and the verdict rests on that; tests "
    "of equivalence are not corrected."
)
