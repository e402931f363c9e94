"""What the subnets of a trained supernet do to each other: the measures put together for `trainonce measure`.

Everything works on a copy of the network; the trained one and its statistics are as before.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.data import DataSet, Split
from trainonce.data.augment import normalise
from trainonce.errors import RunError, UserError
from trainonce.evaluation.evaluator import EvaluateSettings, Evaluator
from trainonce.files import fits_record
from trainonce.lab.measures.batch_norm import batch_norm_shift, mean_shift, statistics_of
from trainonce.lab.measures.gradients import gradient_agreement
from trainonce.lab.measures.recorded import (
    GradientMeasures,
    Interference,
    ShiftMeasures,
    StatisticsMeasures,
    TransferMeasures,
)
from trainonce.lab.measures.transfer import loss_transfer
from trainonce.models import Supernet
from trainonce.names import plain
from trainonce.nn.dropout import dropouts
from trainonce.settings import Settings
from trainonce.space import Architecture
from trainonce.training.batches import generator_on

Images = tuple[Tensor, Tensor]
"""Normalised images [B, C, H, W] and their labels [B]."""


class MeasureSettings(Settings):
    """How interference is measured."""

    batches: int = Field(100, ge=2)
    """Batches of augmented training images that gradients are taken on; and as many held-out ones."""
    batch_size: int = Field(64, ge=2)
    """Images in a batch; fewer where there are not so many training images."""
    lr: float = Field(0.01, gt=0)
    """Length of the steps whose effect on other losses is measured: a learning rate."""
    calibration_images: int = Field(2000, ge=2)
    """Images that batch norms are recalibrated on."""
    seed: int = Field(0, ge=0)
    """Seed of the images and their augmentation."""


def measure(
    net: Supernet, data: DataSet, probes: Sequence[Architecture], *, step: int, settings: MeasureSettings | None = None
) -> Interference:
    """Gradient agreement, loss transfer, batch-norm shift and scores of probes, as `interference.json` has them.

    Beside each figure from batches stands its standard error, by the jackknife over the batches. Losses are
    cross-entropies with the batch's own statistics, as in training, without dropout. `net` must be trained and on the
    device of `data`; it stays as it is. Raises `UserError` for fewer than two probes or too few images, and `RunError`
    for a probe whose loss is not finite.
    """
    chosen = settings or MeasureSettings()
    if len(probes) < 2:
        raise UserError("interference is between subnets: it takes at least two different probes")
    chosen = chosen.model_copy(update={"batch_size": min(chosen.batch_size, len(data.train))})
    if chosen.batch_size < 2:
        raise UserError(f"{len(data.train)} training images are too few: gradients are taken on at least two")
    if len(data.validate) < 2:
        raise UserError(f"{len(data.validate)} validation images are too few: steps are judged on at least two")
    # Statistics first: that refuses a probe without a score.
    bn_shift, statistics = _by_statistics(net, data, probes, chosen)
    gradient, transfer = _by_gradients(net, data, probes, chosen)
    return Interference(
        step=step,
        probes=[str(probe) for probe in probes],
        macs=[net.cost_of(probe).macs for probe in probes],
        labels=[_label(net, probe) for probe in probes],
        seed=chosen.seed,
        batches=chosen.batches,
        batch_size=chosen.batch_size,
        gradient=gradient,
        transfer=transfer,
        bn_shift=bn_shift,
        statistics=statistics,
    )


def _by_gradients(
    net: Supernet, data: DataSet, probes: Sequence[Architecture], settings: MeasureSettings
) -> tuple[GradientMeasures, TransferMeasures]:
    lab = copy.deepcopy(net).train()
    for layer in dropouts(lab):
        layer.eval()
    losses = [_loss(lab, probe) for probe in probes]
    parameters = dict(lab.named_parameters())
    batches = partial(_training, data, settings)
    gradients = gradient_agreement(losses, parameters, batches, group=net.part_of)
    pairs = zip(batches(), _held_out(data.validate, data, settings), strict=True)
    transfer = loss_transfer(losses, parameters, pairs, lr=settings.lr)
    return (
        GradientMeasures(
            agreement=to_json(gradients.agreement),
            agreement_error=to_json(gradients.agreement_error),
            mean=number(gradients.mean),
            mean_error=number(gradients.mean_error),
            control=to_json(gradients.control),
            control_error=to_json(gradients.control_error),
            conflict=to_json(gradients.conflict),
            conflict_error=to_json(gradients.conflict_error),
            layers={name: to_json(cosines) for name, cosines in gradients.layers.items()},
            layers_error={name: to_json(errors) for name, errors in gradients.layers_error.items()},
        ),
        TransferMeasures(
            lr=settings.lr,
            z=to_json(transfer.z),
            z_error=to_json(transfer.z_error),
            r=to_json(transfer.r),
            r_error=to_json(transfer.r_error),
            mean_r=number(transfer.mean_r),
            mean_r_error=number(transfer.mean_r_error),
            harmful=transfer.harmful().tolist(),
            helpful=transfer.helpful().tolist(),
        ),
    )


def _by_statistics(
    net: Supernet, data: DataSet, probes: Sequence[Architecture], settings: MeasureSettings
) -> tuple[ShiftMeasures, StatisticsMeasures]:
    lab = copy.deepcopy(net).eval()
    calibration = EvaluateSettings(calibration_images=settings.calibration_images, seed=settings.seed)
    evaluator = Evaluator(data, "validate", calibration)
    own = [evaluator.recalibrated(lab, probe) for probe in probes]
    shift = batch_norm_shift([statistics_of(lab, plain, probe) for plain, probe in zip(own, probes, strict=True)])
    return (
        ShiftMeasures(layers={name: to_json(s) for name, s in shift.items()}, mean=to_json(mean_shift(shift))),
        StatisticsMeasures(
            top1_supernet=[evaluator.score(lab.extract(probe)).top1 for probe in probes],
            top1_recalibrated=[_top1(evaluator, plain, probe) for plain, probe in zip(own, probes, strict=True)],
        ),
    )


def _top1(evaluator: Evaluator, plain: nn.Module, probe: Architecture) -> float:
    """Top-1 of a recalibrated probe. Raises `RunError` that names it where its loss is no number."""
    score = evaluator.score(plain)
    if not fits_record(score.loss):
        raise RunError(f"there is nothing to measure: the loss of the probe {probe} is {score.loss:g}")
    return score.top1


def _loss(net: Supernet, arch: Architecture) -> Callable[[Images], Tensor]:
    return lambda batch: F.cross_entropy(net(batch[0], arch), batch[1])


def _label(net: Supernet, arch: Architecture) -> str:
    if arch in (net.space.smallest(), net.space.largest()):
        return "smallest" if arch == net.space.smallest() else "largest"
    return f"{plain(net.cost_of(arch).macs / 1e6, 3)} M"


def _training(data: DataSet, settings: MeasureSettings) -> Iterator[Images]:
    """Augmented training batches, of which no two share an image; where there are too few, each drawn by itself.

    Both give products of two batches' gradients the mean that is asked for: the first over all images that might have
    been trained on, the second over those that were.
    """
    generator = _generator("cpu", settings, "images")
    size, count = settings.batch_size, settings.batches
    rows = torch.randperm(len(data.train), generator=generator)
    if size * count > len(data.train):
        rows = torch.cat([torch.randperm(len(data.train), generator=generator)[:size] for _ in range(count)])
    device = data.train.labels.device
    augmenting = _generator(data.train.device, settings, "augment")
    for batch in data.train.batches(rows[i * size : (i + 1) * size].to(device) for i in range(count)):
        yield data.vary(batch.images_BCHW, augmenting), batch.labels_B


def _held_out(split: Split, data: DataSet, settings: MeasureSettings) -> Iterator[Images]:
    """Held-out batches, not augmented; they share images where the split is small."""
    generator = _generator("cpu", settings, "held out")
    rounds = math.ceil(settings.batches * settings.batch_size / len(split))
    rows = torch.cat([torch.randperm(len(split), generator=generator) for _ in range(rounds)])
    size = min(settings.batch_size, len(split))
    for i in range(settings.batches):
        _, images_BCHW, y_B = split.batch(rows[i * size : (i + 1) * size].to(split.labels.device))
        x_BCHW = normalise(images_BCHW, mean=data.mean, std=data.std)
        yield x_BCHW.contiguous(memory_format=torch.channels_last), y_B


def _generator(device: torch.device | str, settings: MeasureSettings, what: str) -> torch.Generator:
    return generator_on(device, settings.seed, "measure", what)


def to_json(array: NDArray[np.float64]) -> list[Any]:
    """Nested lists, with None where there is no number that a record can hold."""
    return [to_json(row) if row.ndim else number(float(row)) for row in array]


def number(value: float) -> float | None:
    """The value, or None where it is no number that a record can hold."""
    return value if fits_record(value) else None


def verdict(found: Interference) -> str:
    """What the transfer between probes means, in a sentence."""
    names, transfer = found.labels, found.transfer
    pairs = [(a, b) for a in range(len(names)) for b in range(len(names)) if a != b]
    harmed = [(transfer.z[a][b], a, b) for a, b in pairs if transfer.harmful[a][b]]
    helped = sum(transfer.helpful[a][b] for a, b in pairs)
    if harmed:
        _, a, b = min(harmed)
        return (
            f"Interference at this step: in {len(harmed)} of {len(pairs)} pairs a step for the one raises the loss of "
            f"the other beyond noise (most: {names[b]} that of {names[a]}); in {helped} it lowers it."
        )
    if helped == len(pairs):
        return f"No interference at this step: a step for any of these {len(names)} subnets helps each of the others."
    return (
        f"No interference was seen beyond noise at this step: in {helped} of {len(pairs)} pairs a step for the one "
        "helps the other, in the rest one cannot tell. More --batches narrow it down."
    )
