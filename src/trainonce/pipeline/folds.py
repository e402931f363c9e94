"""What networks for the same devices came to over the folds of a cross-validation."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
from pydantic import Field
from scipy import stats

from trainonce.errors import UserError
from trainonce.files import is_there, write_atomic
from trainonce.pipeline.fitted import Fitted
from trainonce.records import to_json
from trainonce.settings import Settings

FILE = "folds.json"
"""What the folds came to, beside their runs `fold-1`, `fold-2`, …"""


@final
class OverFolds(Settings):
    """The networks for one device, each trained without the images that it is tested on."""

    max_macs: float
    """The device's budget."""
    top1: tuple[float, ...]
    """Top-1 on the test images, fold by fold."""
    mean: float
    """The mean of these, in percent."""
    low: float
    high: float
    """The 95% interval of the mean: `corrected_interval`."""
    images: int = Field(ge=1)
    """How many images were tested; each once."""
    recall: tuple[float | None, ...]
    """Of all of them, percent of each class's that are classified correctly."""


def over_folds(folds: Sequence[Sequence[Fitted]]) -> list[OverFolds]:
    """What each device's networks came to; `folds` have the same devices in the same order."""
    found = []
    for fitted in zip(*folds, strict=True):
        top1 = [one.test.top1 for one in fitted]
        low, high = corrected_interval(top1)
        confusion = sum(np.array(one.per_class.confusion) for one in fitted)
        found.append(
            OverFolds(
                max_macs=fitted[0].max_macs,
                top1=tuple(top1),
                mean=float(np.mean(top1)),
                low=low,
                high=high,
                images=sum(one.test.images for one in fitted),
                recall=tuple(
                    100 * int(row[number]) / int(row.sum()) if row.sum() else None
                    for number, row in enumerate(np.asarray(confusion))
                ),
            )
        )
    return found


def corrected_interval(top1: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the mean top-1 over K folds, in percent and within 0 to 100, for other images and trainings.

    Student's with K - 1 degrees of freedom, its variance corrected since any two trainings share images: s² times
    1/K + 1/(K - 1) instead of s²/K, where 1/(K - 1) is how many images are tested for each one that is trained on
    (Nadeau and Bengio, Machine Learning 2003, section 3; for folds Bouckaert and Frank, PAKDD 2004). No exact one is
    known (Bengio and Grandvalet, JMLR 2004).
    """
    found = np.asarray(top1, dtype=np.float64)
    count = len(found)
    spread = float(found.std(ddof=1)) * math.sqrt(1 / count + 1 / (count - 1))
    half = float(stats.t.ppf(0.975, count - 1)) * spread
    return max(0.0, float(found.mean()) - half), min(100.0, float(found.mean()) + half)


def refuse_folds(folds: int) -> None:
    """Raise `UserError` for a number of folds that is none."""
    if folds < 2:
        raise UserError(f"cross-validation needs 2 folds or more, not {folds}")


def refuse_other_folds(place: str | Path, folds: int) -> None:
    """Raise `UserError` where a directory holds a run, or more folds than these."""
    place = Path(place)
    if is_there(place / "run.json") or (place / f"fold-{folds + 1}").exists():
        raise UserError(f"{place} holds other runs than {folds} folds: name another directory with --out")


def write_folds(place: str | Path, found: Sequence[OverFolds]) -> None:
    """Write what the folds came to beside them."""
    write_atomic(Path(place) / FILE, to_json({"devices": [one.model_dump(mode="json") for one in found]}))
