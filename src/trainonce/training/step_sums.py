"""What training steps came to, kept on the device: a step does not wait until the host knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainonce.files import LARGEST_NUMBER, fits_record
from trainonce.space import Architecture


class StepSums:
    """Sums over the steps since the last line of metrics. They are saved with the checkpoint.

    Images that were made of two count for the loss, and for what is classified correctly where there are no others.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = 0
        self.losses = 0
        self.images = 0
        self.mixed = 0
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._correct = torch.zeros((), dtype=torch.long, device=device)
        self._mixed_correct = torch.zeros((), dtype=torch.long, device=device)

    def add(self, losses_S: Tensor, hits: Tensor, images: int, *, mixed: bool = False) -> None:
        """Count a step of S subnets on `images` images; `hits`, a scalar, were classified correctly by all of them."""
        self.steps += 1
        self.losses += len(losses_S)
        self._loss_sum += losses_S.sum()
        if mixed:
            self.mixed += len(losses_S) * images
            self._mixed_correct += hits.long()
        else:
            self.images += len(losses_S) * images
            self._correct += hits.long()

    def mean_loss(self) -> float:
        """The mean over steps and subnets. Waits for the device."""
        return float(self._loss_sum) / self.losses

    def top1(self) -> float:
        """Percent classified correctly. Waits for the device."""
        correct, of = (self._correct, self.images) if self.images else (self._mixed_correct, self.mixed)
        return 100 * int(correct) / of

    def to_json(self) -> dict[str, float]:
        """The sums as JSON. Waits for the device."""
        return {
            "steps": self.steps,
            "losses": self.losses,
            "loss_sum": float(self._loss_sum),
            "images": self.images,
            "correct": int(self._correct),
            "mixed": self.mixed,
            "mixed_correct": int(self._mixed_correct),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, float], device: torch.device) -> "StepSums":
        """The sums that `to_json` wrote."""
        sums = cls(device)
        sums.steps, sums.losses, sums.images = (int(values[name]) for name in ("steps", "losses", "images"))
        sums._loss_sum.fill_(values["loss_sum"])
        sums._correct.fill_(values["correct"])
        sums.mixed = int(values.get("mixed", 0))  # of before mixed images were counted apart
        sums._mixed_correct.fill_(values.get("mixed_correct", 0))
        return sums


class Known:
    """How many of the training images that were not mixed networks classify correctly: a moving mean.

    What is new stays on the device until `look`, due after `PER_LOOK` batches. It is saved with the checkpoint.
    """

    PER_LOOK = 10
    KEPT = 0.9
    """How much of itself the mean keeps at a look."""

    def __init__(self, device: torch.device) -> None:
        self.share = 0.0
        """Between 0 and 1; 0 to begin with."""
        self.batches = 0
        self.images = 0
        self._correct = torch.zeros((), dtype=torch.long, device=device)

    def add(self, hits: Tensor, images: int) -> None:
        """Count a batch of `images` images, of all subnets together; `hits`, a scalar, were classified correctly."""
        self.batches += 1
        self.images += images
        self._correct += hits.long()

    def look(self) -> None:
        """Take what is new into the mean, if it is due. Waits for the device then."""
        if self.batches >= self.PER_LOOK:
            self.share += (1 - self.KEPT) * (int(self._correct) / self.images - self.share)
            self.batches = self.images = 0
            self._correct.zero_()

    def to_json(self) -> dict[str, float]:
        """It as JSON. Waits for the device."""
        return {"share": self.share, "batches": self.batches, "images": self.images, "correct": int(self._correct)}

    @classmethod
    def from_json(cls, values: Mapping[str, float], device: torch.device) -> "Known":
        """What `to_json` wrote; of no values what it begins with."""
        known = cls(device)
        if values:
            known.share, known.batches, known.images = values["share"], int(values["batches"]), int(values["images"])
            known._correct.fill_(values["correct"])
        return known


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A step whose losses [S], one a subnet, the host has not looked at yet; and what an error would say of it."""

    step: int
    phase: str
    lr: float
    archs: tuple[Architecture, ...]
    rows_B: Tensor
    losses_S: Tensor


def not_finite(records: Sequence[StepRecord]) -> str | None:
    """What is to be said of the first loss that is not finite or that records cannot hold; None where all are well.

    Waits for the device, once where all is well.
    """
    if not records or bool((torch.cat([record.losses_S for record in records]).abs() < LARGEST_NUMBER).all()):
        return None
    losses = ((record, which, loss) for record in records for which, loss in enumerate(record.losses_S.tolist()))
    record, which, loss = next(found for found in losses if not fits_record(found[2]))
    return (
        f"the loss is {loss} at step {record.step} (phase {record.phase!r}, learning rate {record.lr:.3g}) for subnet "
        f"{record.archs[which]} on training images {record.rows_B[:4].tolist()}…"
    )
