"""Small networks as people write them, for making them elastic.

Each takes its widths, so that a narrower one can be built by its own class.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NormAct(nn.Module):
    """A batch norm and its activation in one, which is no `nn.BatchNorm2d`, as libraries have them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        out: Tensor = self.act(F.batch_norm(x, mean, var, self.weight, self.bias, self.training))
        return out


class Chain(nn.Module):
    """Two convolutions, and a classifier behind a flattened map."""

    def __init__(self, first: int = 32, second: int = 24) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, first, 3, padding=1, bias=False)
        self.norm1 = NormAct(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1)
        self.fc = nn.Linear(second * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.flatten(F.relu(self.conv2(self.norm1(self.conv1(x)))), 1))
        return logits


class Block(nn.Module):
    """A basic residual block."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return F.relu(out, inplace=True)


class Residual(nn.Module):
    """Blocks of a ResNet, not in a `Sequential`."""

    def __init__(self, channels: int = 16, hidden: tuple[int, ...] = (32, 32, 16), dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.blocks = nn.ModuleList(Block(channels, width) for width in hidden)
        self.dropout, self.fc = nn.Dropout(dropout), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.fc(self.dropout(x.mean((2, 3))))
        return logits


class Inverted(nn.Module):
    """An inverted bottleneck with a depthwise convolution and squeeze-excite, around which its input goes."""

    def __init__(self, channels: int = 16, hidden: int = 48, squeezed: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, stride=2, padding=1, bias=False)
        self.expand, self.norm1 = nn.Conv2d(channels, hidden, 1, bias=False), NormAct(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden, bias=False)
        self.norm2 = NormAct(hidden)
        self.reduce, self.gate = nn.Conv2d(hidden, squeezed, 1), nn.Conv2d(squeezed, hidden, 1)
        self.project, self.norm3 = nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm2(self.depthwise(self.norm1(self.expand(x))))
        y = y * torch.sigmoid(self.gate(F.silu(self.reduce(y.mean((2, 3), keepdim=True)))))
        logits: Tensor = self.fc((x + self.norm3(self.project(y))).mean((2, 3)))
        return logits


class Concatenated(nn.Module):
    """Two branches side by side, whose maps are concatenated and normalised together."""

    def __init__(self, left: int = 16, right: int = 24) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, left, 1), nn.Conv2d(1, right, 3, padding=1)
        self.norm = nn.BatchNorm2d(left + right)
        self.after = nn.Conv2d(left + right, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], dim=1)
        logits: Tensor = self.fc(F.relu(self.after(self.norm(x))).mean((2, 3)))
        return logits


class Dense(nn.Module):
    """Each layer reads the maps of all layers before it, side by side (DenseNet)."""

    def __init__(self, layers: int = 9, growth: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, growth, 1)
        self.layers = nn.ModuleList(nn.Conv2d(growth * (i + 1), growth, 3, padding=1) for i in range(layers))
        self.fc = nn.Linear(growth * (layers + 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        maps = [F.relu(self.stem(x))]
        for layer in self.layers:
            maps.append(F.relu(layer(torch.cat(maps, dim=1))))
        logits: Tensor = self.fc(torch.cat(maps, dim=1).mean((2, 3)))
        return logits


class Shuffled(nn.Module):
    """A shuffle of channels between two convolutions in groups, as a reshape that spells the channels out."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1, groups=width // 8)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = x.view(x.shape[0], 2, self.width // 2, 8, 8).transpose(1, 2).reshape(-1, self.width, 8, 8)
        logits: Tensor = self.fc(F.relu(self.second(x)).mean((2, 3)))
        return logits


class Attention(nn.Module):
    """One block of a transformer over 4 x 4 patches, with a fused query, key and value."""

    def __init__(self, heads: int = 4, hidden: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(1, 16, 2, stride=2)
        self.place = nn.Parameter(torch.zeros(1, 16, 16))
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 3 * 8 * heads), nn.Linear(8 * heads, 16)
        self.up, self.down = nn.Linear(16, hidden), nn.Linear(hidden, 16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        qkv = self.qkv(self.norm1(x)).reshape(x.shape[0], 16, 3, self.heads, 8).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape[0], 16, 8 * self.heads))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        logits: Tensor = self.fc(x.mean(1))
        return logits


class Branches(nn.Module):
    """Convolutions of two sizes and the map itself, each with its norm, summed (RepVGG)."""

    def __init__(self, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        sizes = (kernel, 1)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, size, padding=size // 2, groups=groups, bias=False) for size in sizes
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in sizes)
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.identity(x)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            total = total + norm(convolution(x))
        return F.relu(total)


class Parallel(nn.Module):
    """Blocks of parallel branches, which are one convolution when they are trained."""

    def __init__(self, channels: int = 1, groups: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Branches(16, 3, groups), Branches(16, 5, groups))
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out
