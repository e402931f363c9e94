"""Score a subnet: extract a copy, recalibrate its batch norms, count what it classifies correctly.

The supernet is not touched. Its batch-norm statistics are a mixture over all the subnets trained, so a copy
gets statistics of its own first: the mean over batches of the batch mean and variance (OFA's code;
arXiv 2204.09210 uses 2,000 augmented training images in batches of 200).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from trainonce.data import DataSet
from trainonce.data.augment import normalise
from trainonce.data.splits import Split
from trainonce.errors import NotFiniteError, UserError
from trainonce.evaluation.chain import Chain
from trainonce.files import fits_record
from trainonce.limits import refuse_beyond_memory
from trainonce.models import Supernet
from trainonce.nn import native
from trainonce.settings import Settings, refuse_subclass
from trainonce.space import Architecture, derived_seed

CPU_PIXELS = 1 << 19
"""Pixels of the images that a CPU scores at once, of which there are at most 200."""

SplitName = Literal["validate", "test"]


@final
class EvaluateSettings(Settings):
    """How subnets are calibrated and scored."""

    calibration_images: int = Field(2000, ge=2)
    """Augmented images of the calibrate split that the batch norms are recalibrated on; a smaller split is gone
    through several times."""
    calibration_batch: int = Field(200, ge=2)
    """Images in a batch of calibration."""
    score_batch: int | None = Field(None, ge=1)
    """Images in a batch of scoring; None for what suits the device. The score does not depend on it."""
    seed: int = Field(0, ge=0)
    """Seed of the calibration images' choice and augmentation."""


def wilson(top1: float, images: int) -> tuple[float, float]:
    """The 95% interval of a top-1 on so many images, in percent, as if they were drawn at random (Wilson, JASA 1927).

    It says how far other images of the same kind would move the figure; not what another training would give.
    """
    share, n, z = top1 / 100, images, 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


@dataclass(frozen=True, kw_only=True)
class Score:
    """`top1`: percent classified correctly of `images`; `loss`: mean cross-entropy."""

    top1: float
    loss: float
    images: int

    def interval(self) -> tuple[float, float]:
        """The 95% interval of top-1, in percent: `wilson`'s."""
        return wilson(self.top1, self.images)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.top1:.2f}% (95% interval {low:.1f} to {high:.1f}, {self.images} images)"


class Evaluator:
    """Scores subnets of one supernet on one split. Calibration images are augmented once and shared.

    Subnets scored one after the other share the work of the segments with which they both begin (see
    `trainonce.evaluation.chain`): score those that begin alike together.
    """

    def __init__(self, data: DataSet, split: SplitName = "validate", settings: EvaluateSettings | None = None) -> None:
        self.data = data
        self.split_name = split
        refuse_empty(data, split)
        self.split: Split = _named(data, split)
        self.settings = settings or EvaluateSettings()
        refuse_subclass(self.settings, EvaluateSettings)
        _, channels, height, width = data.calibrate.shape
        if data.calibrate.device.type == "cpu":
            images = self.settings.calibration_images
            needed = 4 * images * channels * height * width
            refuse_beyond_memory(needed, f"{images} calibration images of {height} x {width} pixels")
        self.calibration_batches = list(self._calibration())
        self.forget()

    def forget(self) -> None:
        """Let go of what is kept for subnets to come that begin alike, up to a gigabyte."""
        self._chain = Chain(lambda: self.calibration_batches, self._scored)

    def _calibration(self) -> Iterator[Tensor]:
        split, settings = self.data.calibrate, self.settings
        generator = torch.Generator().manual_seed(derived_seed(settings.seed, "calibrate"))
        rounds = -(-settings.calibration_images // len(split))
        rows = torch.cat([torch.randperm(len(split), generator=generator) for _ in range(rounds)])
        rows = rows[: settings.calibration_images].to(split.labels.device)
        augmenting = torch.Generator(split.device)
        augmenting.manual_seed(derived_seed(settings.seed, "calibrate", "augment"))
        batches = list(torch.split(rows, settings.calibration_batch))
        if len(batches[-1]) == 1:  # a single image has no variance on a 1 x 1 map
            batches[-2:] = [torch.cat(batches[-2:])]
        for batch in split.batches(batches):
            yield self.data.vary(batch.images_BCHW, augmenting)

    def recalibrated(self, net: Supernet, arch: Architecture) -> nn.Module:
        """The extracted subnet with batch-norm statistics of its own, in evaluation mode."""
        plain = net.extract(arch)
        recalibrate(plain, self.calibration_batches)
        return plain

    def score(self, plain: nn.Module) -> Score:
        """Score a network on the whole split, without augmentation."""
        return score(plain, self.split, self.data, batch=self.settings.score_batch)

    def __call__(self, net: Supernet, arch: Architecture) -> Score:
        """Extract, recalibrate, score, throw the copy away."""
        return self.score_recalibrated(net.extract(arch))

    def score_recalibrated(self, plain: nn.Module) -> Score:
        """Recalibrate and score a plain network, which is taken apart: give a copy with weights of its own."""
        return score_of(self._chain.logits(plain), self.split)

    def _scored(self) -> Iterator[Tensor]:
        return _normalised(self.split, self.data, self.settings.score_batch)


def refuse_empty(data: DataSet, *splits: SplitName) -> None:
    """Raise `UserError` where one of these splits has no images."""
    without = [name for name in splits if len(_named(data, name)) == 0]
    if without:
        raise UserError(f"{data.name} has no {' and no '.join(without)} images, which this needs: give it some")


def _named(data: DataSet, split: SplitName) -> Split:
    return {"validate": data.validate, "test": data.test}[split]


@torch.no_grad()
@native.large_maps_kept()
def recalibrate(plain: nn.Module, batches: list[Tensor]) -> None:
    """Replace the batch-norm statistics by the mean over batches of batch mean and (unbiased) variance.

    `batches` are normalised images [B, C, H, W]. The network is left in evaluation mode.
    """
    plain.eval()
    norms = [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    device = next(plain.parameters()).device
    for batch_BCHW in batches:
        plain(batch_BCHW.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    plain.eval()


@torch.inference_mode()
def score(plain: nn.Module, split: Split, data: DataSet, *, batch: int | None = None) -> Score:
    """Score a network, in evaluation mode, on a split of `data`."""
    return score_of(logits_of(plain, split, data, batch=batch), split)


@torch.inference_mode()
def logits_of(plain: nn.Module, split: Split, data: DataSet, *, batch: int | None = None) -> Iterator[Tensor]:
    """The logits [B, classes] of a network, put into evaluation mode, for each batch of a split of `data`."""
    plain.eval()
    device = next(plain.parameters()).device
    with native.large_maps_kept():
        for x_BCHW in _normalised(split, data, batch):
            yield plain(x_BCHW.to(device))


def finite(found: Score, split: str) -> Score:
    """The score of a network on a split. Raises `NotFiniteError` where its loss is no number that records can hold."""
    if not fits_record(found.loss):
        raise NotFiniteError(f"the scores are not finite: the loss on {split} is {found.loss:g}; nothing was written")
    return found


def score_batch(split: Split) -> int:
    """How many images are scored at once where nobody says: a GPU wants many; on a CPU many large ones take time to
    find memory for, and nothing is gained."""
    _, _, height, width = split.shape
    return 2000 if split.device.type != "cpu" else min(200, max(1, CPU_PIXELS // (height * width)))


def _normalised(split: Split, data: DataSet, size: int | None) -> Iterator[Tensor]:
    for _, images_BCHW, _ in split.in_order(size or score_batch(split)):
        x_BCHW = normalise(images_BCHW, mean=data.mean, std=data.std)
        yield x_BCHW.contiguous(memory_format=torch.channels_last)


def score_of(logits: Iterable[Tensor], split: Split) -> Score:
    """Compare logits [B, classes], batch by batch in a split's order, with its labels; waits for the device once."""
    sums: list[Tensor] = []
    done = 0
    for logits_BK in logits:
        y_B = split.labels[done : done + len(logits_BK)].to(logits_BK.device)
        done += len(logits_BK)
        loss = nn.functional.cross_entropy(logits_BK, y_B, reduction="sum")
        sums.append(torch.stack(((logits_BK.argmax(1) == y_B).sum().to(torch.float64), loss.to(torch.float64))))
    assert done == len(split), (done, len(split))
    correct, loss_sum = torch.stack(sums).sum(0).tolist()
    return Score(top1=100 * correct / len(split), loss=loss_sum / len(split), images=len(split))
