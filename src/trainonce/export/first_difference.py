"""Which layer of an exported file is the first to compute something else than the network it was made from."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainonce.export.compare import TOLERANCE, ratios
from trainonce.export.description import Opened
from trainonce.export.tools import layer_names
from trainonce.settings import Record


class FirstDifference(Record):
    """A layer by its module's name, how far its output is off at most, and its largest output in size.

    The difference is None where the output is of another shape or not finite.
    """

    layer: str
    largest_difference: float | None
    largest_value: float


@torch.inference_mode()
def layer_outputs(network: nn.Module, names: Sequence[str], x_BCHW: Tensor) -> dict[str, Tensor]:
    """What the named modules of a network give for images [B, C, H, W]."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        def note(_module: nn.Module, _args: object, output: Tensor) -> None:
            found[name] = output

        return network.get_submodule(name).register_forward_hook(note)

    handles = [keep(name) for name in names]
    try:
        network(x_BCHW)
    finally:
        for handle in handles:
            handle.remove()
    return found


def first_difference(
    network: nn.Module, opened: Opened, x_BCHW: Tensor, tolerance: float = TOLERANCE
) -> FirstDifference | None:
    """The first layer, in the order of execution, whose outputs are further off than the tolerance of logits allows.

    It applies to each image and layer: the tolerance times the largest output in size, or times 1 where that is less.
    Everything before agrees, so the layer itself is at fault, not what it is given. None where no layer is, and where
    the file does not let one look inside.
    """
    if opened.layers is None:
        return None
    names = [
        name for name in layer_names(network) if not opened.description.layers or name in opened.description.layers
    ]
    if not names:
        return None
    expected = layer_outputs(network, names, x_BCHW)
    found = opened.layers(x_BCHW, names)
    for name in names:
        scale = float(expected[name].abs().max())
        if expected[name].shape != found[name].shape or not found[name].isfinite().all():
            return FirstDifference(layer=name, largest_difference=None, largest_value=scale)
        if (ratios(expected[name], found[name], tolerance) > 1).any():
            off = float((expected[name] - found[name]).abs().max())
            return FirstDifference(layer=name, largest_difference=off, largest_value=scale)
    return None
