"""Subnets that begin alike share what they have in common.

A segment (the stem, a block, the head) is calibrated and then runs with fixed statistics. What the segments make of the
images is kept while it fits in memory; the next subnet starts behind the last segment that is still the same. The
results are those of each subnet by itself, in any order.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from trainonce.nn import native
from trainonce.nn.segments import Segment, segments_of

KEPT_BYTES = 1 << 30


class Chain:
    """Calibrates subnets and runs them over the same images, one after the other.

    `calibration` and `images` give, each time they are called, the same normalised batches [B, C, H, W].
    """

    def __init__(
        self,
        calibration: Callable[[], Iterable[Tensor]],
        images: Callable[[], Iterable[Tensor]],
        *,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._calibration = _Flow(calibration, kept_bytes // 2)
        self._images = _Flow(images, kept_bytes // 2)
        self._segments: list[Segment] = []

    @torch.no_grad()
    def logits(self, plain: nn.Module) -> Iterator[Tensor]:
        """Calibrate the network, which is taken apart, and yield its logits [B, classes] for each batch of images."""
        fresh = segments_of(plain)
        common = 0
        while common < min(len(fresh), len(self._segments)) and fresh[common].same_as(self._segments[common]):
            common += 1
        self._segments = self._segments[:common] + fresh[common:]
        device = next(plain.parameters()).device
        with native.large_maps_kept():
            for _ in self._calibration.run([segment.calibrate for segment in self._segments], common, device):
                pass
            yield from self._images.run([_fixed(segment) for segment in self._segments], common, device)


def _fixed(segment: Segment) -> Callable[[Tensor, int], Tensor]:
    return lambda x_BCHW, _number: segment.forward(x_BCHW)


class _Flow:
    """Batches on their way through segments, kept behind each segment as far as memory allows."""

    def __init__(self, batches: Callable[[], Iterable[Tensor]], kept_bytes: int) -> None:
        self.batches = batches
        self.kept_bytes = kept_bytes
        self.kept: dict[int, list[Tensor]] = {}

    def run(
        self, segments: list[Callable[[Tensor, int], Tensor]], common: int, device: torch.device
    ) -> Iterator[Tensor]:
        """Yield each batch as it leaves the last segment; the first `common` are as they were in the last run."""
        self.kept = {place: made for place, made in self.kept.items() if place < common}
        start = max(self.kept, default=-1)
        fresh: dict[int, list[Tensor]] = {place: [] for place in range(start + 1, len(segments) - 1)}
        room = self.kept_bytes - sum(made.nbytes for batches in self.kept.values() for made in batches)
        for number, batch in enumerate(self.kept[start] if start >= 0 else self.batches()):
            x = batch.to(device)
            for place in range(start + 1, len(segments)):
                x = segments[place](x, number)
                if place in fresh:
                    fresh[place].append(x)
                    room -= x.nbytes
            while room < 0:  # give up the largest
                largest = max(fresh, key=lambda place: fresh[place][0].nbytes)
                room += sum(made.nbytes for made in fresh.pop(largest))
            yield x
        self.kept |= fresh
