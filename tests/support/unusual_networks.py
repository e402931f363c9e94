"""Three unusual networks, written after the tracer and not to be tuned to: what it makes of a stranger's network."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


class Hourglass(nn.Module):
    """Down and up again by a transposed convolution and a pixel shuffle, with concatenated skips; then classes."""

    def __init__(self, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.first, self.second, self.middle = (
            _block(3, width),
            _block(width, 2 * width),
            _block(2 * width, 4 * width),
        )
        self.up = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.third = _block(4 * width, 2 * width)
        self.shuffled = nn.Sequential(nn.Conv2d(2 * width, 4 * width, 1), nn.PixelShuffle(2))
        self.fourth = _block(2 * width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(F.max_pool2d(first, 2))
        middle = self.middle(F.max_pool2d(second, 2))
        third = self.third(torch.cat([self.up(middle), second], 1))
        fourth = self.fourth(torch.cat([self.shuffled(third), first], 1))
        out: Tensor = self.head(fourth.amax((2, 3)))
        return out


class MixerLayer(nn.Module):
    """Places are mixed, then channels, by a gated layer; each branch is scaled by what is learned."""

    def __init__(self, places: int, width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.unmix = nn.Linear(places, 32), nn.Linear(32, places)
        self.gated, self.back = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.unmix(F.gelu(self.mix(self.first_norm(x).transpose(1, 2)))).transpose(1, 2)
        x = x + self.scale * mixed
        value, gate = self.gated(self.second_norm(x)).chunk(2, -1)
        out: Tensor = x + self.scale * self.back(value * F.gelu(gate))
        return out


class Mixer(nn.Module):
    """Patches whose places are mixed by linear layers (MLP-Mixer), with gates."""

    def __init__(self, classes: int = 10, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.layers = nn.Sequential(*(MixerLayer(64, width) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.norm(self.layers(x)).mean(1))
        return out


class TwoStreams(nn.Module):
    """Two resolutions that exchange, attention across ordered channels, maxout, and products of channels by einsum."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.SiLU())
        self.coarse = nn.Sequential(nn.Conv2d(3, 48, 3, 2, 1, bias=False), nn.BatchNorm2d(48), nn.SiLU())
        self.down, self.up = nn.Conv2d(24, 48, 3, 2, 1), nn.Conv2d(48, 24, 1)
        self.across = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.pieces = nn.Conv2d(24, 64, 3, padding=1)
        self.left, self.right = nn.Conv2d(32, 16, 1), nn.Conv2d(48, 12, 1)
        self.head = nn.Linear(16 * 12, classes)

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.fine(x), self.coarse(x)
        joined = coarse + self.down(fine)
        weights = self.across(joined.mean((2, 3)).unsqueeze(1)).sigmoid()
        joined = joined * weights.transpose(1, 2).unsqueeze(-1)
        one, other = self.pieces(fine + F.interpolate(self.up(coarse), scale_factor=2.0)).chunk(2, 1)
        left = F.avg_pool2d(self.left(torch.maximum(one, other)), 2).flatten(2)
        products = torch.einsum("bct,bdt->bcd", left, self.right(joined).flatten(2))
        out: Tensor = self.head(products.flatten(1))
        return out
