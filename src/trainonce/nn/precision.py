"""The numbers that a network computes in while it trains. Its weights, gradients and momenta are float32 always."""

from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]
"""float32; or bfloat16 for the operations that torch's autocast gives to it, float32 for the others."""


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A stretch of computing in that precision on that device.

    Without autocast's cache of weights: nothing here uses a weight twice in one stretch, and a captured step must not
    read a copy made outside of it.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


def logits_in(precision: Precision, network: nn.Module, x_BCHW: Tensor, *arch: object) -> Tensor:
    """What `network` makes of images in that precision, float32 [B, classes], so that losses are float32 too."""
    with autocast(precision, x_BCHW.device):
        logits_BK: Tensor = network(x_BCHW, *arch)
    return logits_BK.float()
