"""The stand-alone gap: what a subnet loses, or gains, by living in a supernet. The decisive quantity."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainonce.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A subnet trained alone against the same subnet inside the supernet, in points of top-1."""

    arch: str
    """The subnet."""
    by_seed: dict[int, float]
    """For each seed that has both: top-1 alone less top-1 inside. Positive: sharing harms; negative: it helps."""

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.by_seed.values())


def stand_alone_gaps(lines: Iterable[Mapping[str, Any]], *, alone: str, inside: str) -> list[Gap]:
    """The gaps of all subnets that were scored in both arms of a study, from the lines of its results.

    The arms say what is equal: the exposure of the subnet's weights, or the epochs. Raises `UserError` where the arms
    have no subnet and seed in common, or one scores a subnet twice with a seed.
    """
    scores: dict[tuple[str, int, str], float] = {}
    for line in lines:
        if line["arm"] in (alone, inside):
            key = (str(line["arch"]), int(line["seed"]), str(line["arm"]))
            if key in scores:
                raise UserError(f"the arm {key[2]!r} scores {key[0]} twice with seed {key[1]}")
            scores[key] = float(line["top1"])
    gaps: dict[str, dict[int, float]] = {}
    for arch, seed, arm in scores:
        if arm == alone and (arch, seed, inside) in scores:
            gaps.setdefault(arch, {})[seed] = scores[arch, seed, alone] - scores[arch, seed, inside]
    if not gaps:
        raise UserError(f"no subnet is scored with the same seed in both {alone!r} and {inside!r}")
    return [Gap(arch=arch, by_seed=dict(sorted(by_seed.items()))) for arch, by_seed in gaps.items()]
