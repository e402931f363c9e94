"""What exposure says of architectures: how far what is trained is from what is used."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainonce.run.exposure import ExposureTable, jensen_shannon, total_variation


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
