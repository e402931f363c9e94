"""How well predicted latencies agree with measured ones."""

import statistics
from collections.abc import Sequence
from typing import Self

from pydantic import Field

from trainonce.names import plain
from trainonce.settings import Settings

SHORTEST_MS = 1e-9


class PredictionError(Settings):
    """How predictions compare with measurements of whole networks that they were not made from."""

    networks: int = Field(ge=1)
    """How many networks were measured."""
    mean: float = Field(ge=0)
    """The mean of |predicted - measured| / measured."""
    worst: float = Field(ge=0)
    """The largest of them."""
    spearman: float | None = Field(None, ge=-1, le=1)
    """Spearman's rank correlation of predicted and measured; none where all are equal."""
    kendall: float | None = Field(None, ge=-1, le=1)
    """Kendall's tau-b of them; none where all are equal."""
    fastest_ms: float = Field(gt=0)
    """The shortest time measured, in milliseconds."""
    slowest_ms: float = Field(gt=0)
    """The longest time measured, in milliseconds."""
    factor: float = Field(gt=0)
    """The median of measured / predicted: how much slower this machine is now than the table says."""
    scaled_mean: float = Field(ge=0)
    """The mean error once all predictions are multiplied by that factor: what the machine's pace does not explain."""

    @classmethod
    def of(cls, predicted: Sequence[float], measured: Sequence[float]) -> Self:
        """Compare predictions with measurements, in the same order, both in milliseconds and above 0."""
        from scipy import stats  # a second of importing, which timing alone need not wait for

        errors = _relative(predicted, measured)
        factor = statistics.median(m / max(p, SHORTEST_MS) for p, m in zip(predicted, measured, strict=True))
        distinct = min(len(set(predicted)), len(set(measured))) > 1
        return cls(
            networks=len(errors),
            mean=statistics.fmean(errors),
            worst=max(errors),
            spearman=_bounded(stats.spearmanr(predicted, measured).statistic) if distinct else None,
            kendall=_bounded(stats.kendalltau(predicted, measured).statistic) if distinct else None,
            fastest_ms=min(measured),
            slowest_ms=max(measured),
            factor=factor,
            scaled_mean=statistics.fmean(_relative([factor * p for p in predicted], measured)),
        )

    def __str__(self) -> str:
        ranks = "" if self.spearman is None else f", Spearman {self.spearman:.3f}, Kendall {self.kendall:.3f}"
        return (
            f"mean error {100 * self.mean:.1f}%, worst {100 * self.worst:.1f}%{ranks}, over {self.networks} networks "
            f"of {plain(self.fastest_ms, 3)} to {plain(self.slowest_ms, 3)} ms"
        )


def _relative(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    return [abs(p - m) / m for p, m in zip(predicted, measured, strict=True)]


def _bounded(correlation: float) -> float:
    return max(-1.0, min(1.0, float(correlation)))  # rounding may leave the range
