"""Which layers an int8 file keeps in float32: the same search for every target that quantises.

Where more than the allowed top-1 is lost on the validate split, each layer is quantised by itself, which says what it
costs, and those that cost most stay in float32 until the loss is small enough.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from trainonce.data import Split
from trainonce.errors import UserError
from trainonce.export.description import Quantised, Run
from trainonce.export.onnx import belongs
from trainonce.export.reference import Reference

CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 64
VALIDATE_IMAGES = 2000
"""How many images of the validate split the choice of float32 layers is made on."""

Made = TypeVar("Made")


def calibration(reference: Reference) -> list[Tensor]:
    """Batches [B, C, H, W] of the calibrate split, not augmented. Raises `UserError` without the run's images."""
    if reference.data is None:
        raise UserError(f"int8 needs the run's images to calibrate with, and {reference.no_data}")
    split = reference.data.calibrate.drawn(CALIBRATION_IMAGES, seed=0)
    return [part for x_BCHW in reference.inputs(split) for part in torch.split(x_BCHW, CALIBRATION_BATCH)]


def cheapest(
    reference: Reference,
    floating: Run,
    quantised: Callable[[Callable[[str], bool]], tuple[Made, Run]],
    layers: Sequence[str],
    *,
    max_loss: float,
    images: int = VALIDATE_IMAGES,
) -> tuple[Made, Quantised]:
    """What `quantised` makes with the fewest layers in float32 that lose no more than `max_loss` points of top-1.

    `floating` is the network in float32; `quantised` is given what says by the name of a node of the ONNX file whether
    it stays so, and gives what it made and how to compute it. Every one of `layers` may end up in
    float32. `images` of the validate split are looked at.
    """
    assert reference.data is not None
    validate = reference.data.validate.drawn(images, seed=0)
    float_top1 = _top1(reference, floating, validate)

    def tried(in_float32: Callable[[str], bool]) -> tuple[Made, float]:
        made, run = quantised(in_float32)
        return made, _top1(reference, run, validate)

    made, top1 = tried(lambda _node: False)
    kept: list[str] = []
    loss_by_layer: dict[str, float] = {}
    if float_top1 - top1 > max_loss:
        lost = {
            layer: float_top1 - tried(lambda node, layer=layer: not belongs(node, layer))[1]  # type: ignore[misc]
            for layer in layers
        }
        ranked = sorted(lost, key=lambda layer: -lost[layer])
        loss_by_layer = {layer: lost[layer] for layer in ranked}
        while ranked and float_top1 - top1 > max_loss:
            kept.append(ranked.pop(0))
            made, top1 = tried(lambda node: any(belongs(node, layer) for layer in kept))
    details = Quantised(
        calibration_images=min(CALIBRATION_IMAGES, len(reference.data.calibrate)),
        validate_images=len(validate),
        validate_top1_float32=float_top1,
        validate_top1_int8=top1,
        validate_loss=float_top1 - top1,
        kept_in_float32=kept,
        loss_by_layer=loss_by_layer,
    )
    return made, details


def _top1(reference: Reference, run: Run, split: Split) -> float:
    best_N = torch.cat([run(x_BCHW).argmax(1) for x_BCHW in reference.inputs(split)])
    return 100 * int((best_N == split.labels.cpu()).sum()) / len(split)
