"""A predictor of top-1 from the architecture, and how good it is on subnets that it has not seen.

It learns from scores that are recorded. Whether it may be used follows from its rank correlation on held-out subnets;
where it is not good enough, a search makes true scores instead.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from trainonce.cost.macs import CostModel
from trainonce.search.genome import features
from trainonce.search.problem import Scores
from trainonce.settings import Number, Record, Whole
from trainonce.space import Architecture

LEAST_SUBNETS = 30
"""With fewer scores nothing is learnt: the rank correlation of six held-out subnets says next to nothing."""
GOOD_TAU = 0.3
"""The held-out Kendall rank correlation from which on a predictor is used: of three pairs it orders two correctly. Of
draws of 30 subnets without any relation 1 in 100 has as much. What it proposes gets true scores all the same."""
FOLDS = 5

Floats = NDArray[np.float64]

Model = Any
"""A regressor of scikit-learn: `fit(seen, top1)`, `predict(seen)`."""


def models(seed: int) -> dict[str, Callable[[], Model]]:
    """What is chosen from by cross-validation: makers of models, by name."""
    from sklearn.ensemble import GradientBoostingRegressor  # takes a second to import
    from sklearn.linear_model import Ridge

    def boosting() -> Model:
        return GradientBoostingRegressor(
            n_estimators=150, max_depth=2, learning_rate=0.1, subsample=0.7, random_state=seed % 2**32
        )

    ridges: dict[str, Callable[[], Model]] = {
        f"ridge, alpha {alpha:g}": partial(Ridge, alpha=alpha) for alpha in (1.0, 10.0, 100.0)
    }
    return ridges | {"gradient boosting": boosting}


class Accuracy(Record):
    """How well numbers predicted for subnets agree with their true top-1."""

    subnets: Whole
    tau: Number | None
    """Kendall's tau-b, -1 to 1; None where either has no order."""
    rho: Number | None
    """Spearman's rank correlation, -1 to 1; None where either has no order."""
    mean_error: Number
    """The mean absolute error in points of top-1."""


class PredictorReport(Record):
    """Which model was chosen by what was recorded, how good it is, and whether it is used."""

    subnets: Whole
    """How many scores it learnt from."""
    model: str | None
    """The model of least mean error on held-out subnets; None where there were too few."""
    held_out: Accuracy | None
    """On every subnet within the limits, predicted by a model that had not seen it (five-fold cross-validation)."""
    mean_alone: Number | None
    """The mean absolute error of predicting each fold by the mean of the others, in points."""
    macs_alone_tau: Number | None
    """The Kendall rank correlation of MACs alone with top-1: what needs no predictor."""
    used: bool
    why: str
    """Why it is used or not, as a sentence."""


class Predictor:
    """Predicts top-1 in percent."""

    def __init__(self, cost: CostModel, model: Model) -> None:
        self.cost = cost
        self.model = model

    def __call__(self, archs: Sequence[Architecture]) -> list[float]:
        """The predicted top-1 of each subnet."""
        return [float(value) for value in self.model.predict(features(self.cost, archs))] if archs else []


def accuracy_of(predicted: Sequence[float] | Floats, true: Sequence[float] | Floats) -> Accuracy:
    """How well predictions agree with the truth. Both have at least one number."""
    a, b = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    ordered = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
    return Accuracy(
        subnets=len(a),
        tau=float(stats.kendalltau(a, b, variant="b").statistic) if ordered else None,
        rho=float(stats.spearmanr(a, b).statistic) if ordered else None,
        mean_error=float(np.abs(a - b).mean()),
    )


def learn(
    cost: CostModel, scores: Scores, *, seed: int, feasible: Callable[[Architecture], bool] = lambda _: True
) -> tuple[Predictor | None, PredictorReport]:
    """The predictor that these scores allow, None where it is not good enough, and the report on it.

    It learns from all scores; how good it is, is judged by those that are `feasible`, among which it is to choose.
    Follows from the scores and the seed alone, whatever the scores' order.
    """
    archs = sorted(scores, key=str)
    asked = np.array([feasible(arch) for arch in archs], dtype=bool)
    if asked.sum() < LEAST_SUBNETS:
        why = f"{asked.sum()} scores within the limits are too few to judge by (at least {LEAST_SUBNETS}): true "
        return None, _report(len(scores), why=why + "scores are used")
    seen, top1 = features(cost, archs), np.array([scores[arch] for arch in archs])
    if np.ptp(top1[asked]) == 0:
        return None, _report(
            len(scores), why="all scores are the same, so there is nothing to learn: true scores are used"
        )
    made = models(seed)
    held_out = {name: _held_out(make, seen, top1, seed)[asked] for name, make in made.items()}
    true = top1[asked]
    name = min(held_out, key=lambda name: float(np.abs(held_out[name] - true).mean()))
    found = accuracy_of(held_out[name], true)
    used = found.tau is not None and found.tau >= GOOD_TAU
    tau = "undefined" if found.tau is None else f"{found.tau:.2f}"
    outcome = "so it is used" if used else "so it is not used: true scores are"
    report = _report(
        len(scores),
        model=name,
        held_out=found,
        mean_alone=float(np.abs(_mean_alone(top1, seed)[asked] - true).mean()),
        macs_alone_tau=accuracy_of(seen[asked, -1], true).tau,
        used=used,
        why=f"its rank correlation (Kendall) on held-out subnets is {tau}, where {GOOD_TAU} is asked for, {outcome}",
    )
    if not used:
        return None, report
    return Predictor(cost, made[name]().fit(seen, top1)), report


def _report(
    subnets: int,
    *,
    why: str,
    model: str | None = None,
    held_out: Accuracy | None = None,
    mean_alone: float | None = None,
    macs_alone_tau: float | None = None,
    used: bool = False,
) -> PredictorReport:
    return PredictorReport(
        subnets=subnets,
        model=model,
        held_out=held_out,
        mean_alone=mean_alone,
        macs_alone_tau=macs_alone_tau,
        used=used,
        why=why,
    )


def _folds(count: int, seed: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    from sklearn.model_selection import KFold

    return list(KFold(FOLDS, shuffle=True, random_state=seed % 2**32).split(np.zeros(count)))


def _held_out(make: Callable[[], Model], seen: Floats, top1: Floats, seed: int) -> Floats:
    """Each subnet's top-1 as predicted by a model of the other folds."""
    predicted = np.zeros(len(top1))
    for learnt, held in _folds(len(top1), seed):
        predicted[held] = make().fit(seen[learnt], top1[learnt]).predict(seen[held])
    return predicted


def _mean_alone(top1: Floats, seed: int) -> Floats:
    predicted = np.zeros(len(top1))
    for learnt, held in _folds(len(top1), seed):
        predicted[held] = top1[learnt].mean()
    return predicted
