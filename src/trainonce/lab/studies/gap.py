"""The stand-alone gap: what a subnet loses, or gains, by living in a supernet. The decisive quantity."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class StandAloneGap:
    """A subnet trained alone against the same subnet inside the supernet, with the same seed; top-1 in percent."""

    arch: str
    seed: int
    macs: float
    alone: float
    inside: float

    @property
    def points(self) -> float:
        """Top-1 alone less top-1 inside. Positive: sharing harms; negative: it helps."""
        return self.alone - self.inside


class SeedScore(Protocol):
    """A subnet's score in a run of a seed."""

    @property
    def arch(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def macs(self) -> float: ...
    @property
    def top1(self) -> float: ...


def stand_alone_gaps(alone: Iterable[SeedScore], inside: Iterable[SeedScore]) -> list[StandAloneGap]:
    """The gaps of all subnets that were scored both alone and inside with a seed, by seed and architecture.

    The caller's choice of lines says what is equal: the exposure of the subnet's weights, or the epochs. Of lines that
    repeat, the last counts.
    """
    within = {(line.seed, line.arch): line.top1 for line in inside}
    found = {(line.seed, line.arch): line for line in alone if (line.seed, line.arch) in within}
    return [
        StandAloneGap(arch=arch, seed=seed, macs=line.macs, alone=line.top1, inside=within[seed, arch])
        for (seed, arch), line in sorted(found.items())
    ]
