"""What the loss says of how much each weight counts."""

import torch
from torch import Tensor
from torch.nn import functional as F

from trainonce.data import DataSet
from trainonce.data.augment import normalise
from trainonce.models import Supernet
from trainonce.nn.lending import modes_kept

CHUNK = 50


def loss_gradients(net: Supernet, data: DataSet) -> dict[Tensor, Tensor]:
    """The gradient of each parameter: of the largest subnet's mean loss on the calibrate split, in evaluation mode.

    Zero where the largest subnet does not use a parameter. Gradients that the parameters have are dropped.
    """
    largest, split = net.space.largest(), data.calibrate
    net.zero_grad()
    with modes_kept(net):
        net.eval()
        for _, images_BCHW, labels_B in split.in_order(CHUNK):
            logits_BK = net(normalise(images_BCHW, mean=data.mean, std=data.std), largest)
            torch.autograd.backward(F.cross_entropy(logits_BK, labels_B, reduction="sum") / len(split))
    gradients: dict[Tensor, Tensor] = {p: torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()}
    net.zero_grad()
    return gradients
