"""What exposure says of architectures: how much training one got, and how far what is trained is from what is used."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainonce.cost.macs import CostModel, CostTerm
from trainonce.run.exposure import ExposureTable, jensen_shannon, total_variation
from trainonce.space import Architecture


def mean_exposure(cost: CostModel, arch: Architecture, table: ExposureTable) -> float:
    """The exposure of an architecture's weights, averaged over its parameters.

    Each block's parameters are divided among the values that add them: what the block has at its smallest, then what
    each larger value adds, one choice after the other. What no choice changes was active in every step.
    """
    weighted, params = 0.0, 0
    for term in cost.terms:
        for exposure, added in _parts(cost, term, arch, table):
            weighted += exposure * added
            params += added
    return weighted / params


def _parts(cost: CostModel, term: CostTerm, arch: Architecture, table: ExposureTable) -> list[tuple[float, int]]:
    """The exposure of each part of a term's parameters in `arch`, and how many they are."""
    there = [name for name in term.choices if name in arch]
    if not there:
        return [(table.lr_sum, term.cost(*(None for _ in term.choices)).params)]
    values: dict[str, int | None] = dict.fromkeys(term.choices)
    values |= {name: cost.space[name].values[0] for name in there}
    done = term.cost(*values.values()).params
    parts = [(min(table.of(name, cost.space[name].values[0]) for name in there), done)]
    for name in there:
        for value in cost.space[name].values:
            if cost.space[name].values[0] < value <= arch[name]:
                values[name] = value
                now = term.cost(*values.values()).params
                parts.append((table.of(name, value), now - done))
                done = now
    return parts


@dataclass(frozen=True, kw_only=True)
class SelectionBias:
    """How far the MACs of the subnets trained are from those of the subnets evaluated: 0 alike, 1 disjoint."""

    total_variation: float
    """The share of the training that would have to go to other MACs."""
    jensen_shannon: float
    """Their Jensen-Shannon divergence, in bits."""


def selection_bias(table: ExposureTable, macs: Sequence[float]) -> SelectionBias:
    """Compare the MACs trained with those of evaluated subnets, in the bins of the table.

    Raises `UserError` where nothing was trained or evaluated.
    """
    inside = np.clip(macs, table.macs_edges[0], table.macs_edges[-1])
    evaluated, _ = np.histogram(inside, table.macs_edges)
    return SelectionBias(
        total_variation=total_variation(table.macs_passes, evaluated),
        jensen_shannon=jensen_shannon(table.macs_passes, evaluated),
    )
