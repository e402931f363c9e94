"""What `worth.py` holds ours against: networks trained alone, a plain ResNet, scikit-learn's classifiers.

Time is CPU seconds of the process (see `worth.py`), and every network trains until its seconds are used up.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.nn import functional as F

from common import channels_last
from trainonce.data import DataSet
from trainonce.data.augment import augment
from trainonce.data.splits import Split
from trainonce.evaluation.evaluator import score
from trainonce.recipes import RECIPES, Augmentation, Crop, Flip
from trainonce.space import derived_seed
from trainonce.training.optimizers import optimizer_for, stepper_for

BATCH = 64
WARM_UP = 0.25
"""Share of the time over which the one cycle's rate rises."""
WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.1
MILD_CROPS = (0.6, 1.0)

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a rival came to: top-1 in percent, CPU seconds, and training steps (0 where there are none)."""

    validate: float
    test: float
    seconds: float
    steps: int
    settings: str = ""


@dataclass(frozen=True, kw_only=True)
class Images:
    """What a network reads: square images of `size` pixels, with so many channels and classes."""

    size: int
    channels: int
    classes: int


# Networks trained alone


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How networks alone are trained: an optimizer, "adamw" or "muon", and its highest rate."""

    optimizer: str = "adamw"
    rate: float

    def __str__(self) -> str:
        return f"rate {self.rate:g}" if self.optimizer == "adamw" else f"{self.optimizer}, rate {self.rate:g}"

    def of(self, network: nn.Module) -> tuple[torch.optim.Optimizer, Callable[[], object]]:
        """The optimizer for a network, and what takes its steps; "muon" has the settings of `quick`."""
        if self.optimizer == "adamw":
            optimizer: torch.optim.Optimizer = _adamw(network)
            return optimizer, optimizer.step
        recipe = RECIPES["quick"].model_copy(update={"optimizer": self.optimizer})
        optimizer = optimizer_for(network, recipe, recipe.phases[0])
        return optimizer, stepper_for(optimizer)


def train_alone(network: nn.Module, data: DataSet, *, seconds: float, steps: Steps, seed: int) -> Trained:
    """Train a network from the weights that it has for so many CPU seconds, its scoring on validate included.

    One cycle over the time, label smoothing, crops of 60 to 100% of the area, mirrored where the library mirrors
    the set. The time of scoring is measured first, which counts as well; the test images are scored outside of it.
    """
    began = time.process_time()
    score(network, data.validate, data)
    reserve = time.process_time() - began
    length = max(seconds - 2 * reserve, 0.0)
    optimizer, step = steps.of(network)
    batches = _batches(data, seed)
    start, taken = time.process_time(), 0
    network.train()
    while (done := (time.process_time() - start) / max(length, 1e-9)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = steps.rate * one_cycle(done)
        x_BCHW, y_B = next(batches)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(x_BCHW), y_B, label_smoothing=LABEL_SMOOTHING))
        step()
        taken += 1
    validate = score(network, data.validate, data).top1
    took = time.process_time() - began
    return Trained(validate=validate, test=score(network, data.test, data).top1, seconds=took, steps=taken)


def one_cycle(done: float) -> float:
    """The rate's share of its highest after a share `done`, 0 to 1, of the time: up in a line, down a cosine."""
    if done < WARM_UP:
        return 0.04 + 0.96 * done / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _adamw(network: nn.Module) -> torch.optim.AdamW:
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, fused=True)


def _batches(data: DataSet, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches without end, epoch after epoch in a new order."""
    mild: Augmentation = (Crop(scale=MILD_CROPS), *(one for one in data.augmentation if isinstance(one, Flip)))
    generator = torch.Generator().manual_seed(derived_seed(seed, "alone"))
    size = min(BATCH, len(data.train))
    while True:
        order = torch.randperm(len(data.train), generator=generator)
        for batch in data.train.batches(torch.split(order[: len(order) // size * size], size)):
            x_BCHW = augment(batch.images_BCHW, mild, mean=data.mean, std=data.std, generator=generator)
            yield channels_last(x_BCHW), batch.labels_B


class _Block(nn.Module):
    """Two 3 x 3 convolutions around which the input is led, by a 1 x 1 convolution where shapes differ."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(inside, out, 3, stride)
        self.second = _conv_norm(out, out, 3, 1)
        same = stride == 1 and inside == out
        self.around: nn.Module = nn.Identity() if same else _conv_norm(inside, out, 1, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map [B, inside, H, W] to [B, out, H / stride, W / stride]."""
        return F.relu(self.second(F.relu(self.first(x_BCHW))) + self.around(x_BCHW))


def _conv_norm(inside: int, out: int, kernel: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inside, out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


def plain_resnet(width: int, images: Images) -> nn.Sequential:
    """A ResNet of three stages of one block, `width` channels and twice as many in each next stage (He 2016).

    The stem has stride 2 from 64 pixels on.
    """
    stem = nn.Sequential(_conv_norm(images.channels, width, 3, 2 if images.size >= 64 else 1), nn.ReLU())
    blocks = (_Block(width, width, 1), _Block(width, 2 * width, 2), _Block(2 * width, 4 * width, 2))
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, images.classes))


def matched_width(macs: int, images: Images) -> int:
    """The largest width, at least 4, whose ResNet has at most these MACs on such images (see `plain_resnet`)."""
    width = 4
    while True:
        with torch.device("meta"):
            larger = plain_resnet(width + 1, images)
        if counted_macs(larger, images.channels, images.size) > macs:
            return width
        width += 1


def counted_macs(network: nn.Module, channels: int, side: int) -> int:
    """MACs of a network's convolutions and linear layers for one image, counted while it runs."""
    counts: list[int] = []

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counts.append(out[0].numel() * layer.weight[0].numel())

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    was, device = network.training, next(network.parameters()).device
    with torch.no_grad():
        network.eval()(torch.zeros(1, channels, side, side, device=device))
    network.train(was)
    for handle in handles:
        handle.remove()
    return sum(counts)


# scikit-learn


def hog(grey_NHW: Floats, *, cell: int, bins: int = 9) -> Floats:
    """Histograms of oriented gradients [N, features] (Dalal and Triggs 2005): blocks of 2 x 2 cells, L2-normalised."""
    dy, dx = np.gradient(grey_NHW, axis=(1, 2))
    size = np.hypot(dy, dx)
    place = np.arctan2(dy, dx) % np.pi * (bins / np.pi)
    low = np.floor(place).astype(np.int64)
    above = place - low
    count, height, width = grey_NHW.shape
    cells = np.empty((count, bins, height // cell, width // cell), np.float32)
    for number in range(bins):
        votes = size * np.where(low % bins == number, 1 - above, np.where((low + 1) % bins == number, above, 0))
        cells[:, number] = votes.reshape(count, height // cell, cell, width // cell, cell).sum((2, 4))
    corners = (cells[:, :, :-1, :-1], cells[:, :, 1:, :-1], cells[:, :, :-1, 1:], cells[:, :, 1:, 1:])
    blocks = np.concatenate(corners, axis=1)
    blocks /= np.sqrt((blocks**2).sum(1, keepdims=True) + 1e-4)
    return blocks.reshape(count, -1)


def colours(images_NCHW: Floats, *, levels: int = 4) -> Floats:
    """The square root of the share of pixels in each of `levels`^C colours, [N, levels^C]; pixels are 0 to 1."""
    level = np.minimum((images_NCHW * levels).astype(np.int64), levels - 1)
    channels = images_NCHW.shape[1]
    colour = sum(level[:, channel] * levels**channel for channel in range(channels))
    shares = [np.bincount(np.ravel(image), minlength=levels**channels) / image.size for image in np.asarray(colour)]
    found: Floats = np.sqrt(np.stack(shares)).astype(np.float32)
    return found


def pixels(split: Split, side: int) -> Iterator[Floats]:
    """A split's images at a side, float32 from 0 to 1, [up to 500, C, side, side] at a time."""
    for _, images_BCHW, _ in split.in_order(500):
        x_BCHW = images_BCHW.to(torch.float32) / 255
        yield F.interpolate(x_BCHW, size=(side, side), mode="bilinear", antialias=True, align_corners=False).numpy()


def shapes_and_colours(split: Split) -> Floats:
    """HOG of 8 x 8 cells, and for images in colour the histogram of their colours: [N, features]."""
    side = 64 if split.shape[3] >= 64 else 32
    parts = []
    for x_NCHW in pixels(split, side):
        found = hog(x_NCHW.mean(1), cell=side // 8)
        parts.append(np.concatenate((found, colours(x_NCHW)), axis=1) if x_NCHW.shape[1] == 3 else found)
    return np.concatenate(parts)


def flat_pixels(split: Split) -> Floats:
    """The pixels of the images at 32 x 32: [N, features]."""
    return np.concatenate([x_NCHW.reshape(len(x_NCHW), -1) for x_NCHW in pixels(split, 32)])


def classical(data: DataSet, features: Callable[[Split], Floats], models: Sequence[tuple[str, Any]]) -> Trained:
    """Fit named models on features of the training images; the one that is best on validate is kept.

    Features, all fits and all scoring on validate count; those on test do not.
    """
    began = time.process_time()
    x_NF, y_N = features(data.train), data.train.labels.numpy()
    validate_NF, validate_N = features(data.validate), data.validate.labels.numpy()
    found = []
    for name, model in models:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x_NF, y_N)
        found.append((100 * float(model.score(validate_NF, validate_N)), name, model))
    validate, name, model = max(found, key=lambda one: one[0])
    took = time.process_time() - began
    test = 100 * float(model.score(features(data.test), data.test.labels.numpy()))
    return Trained(validate=validate, test=test, seconds=took, steps=0, settings=name)


def svm(data: DataSet) -> Trained:
    """A support vector machine on HOG and colours, C chosen on validate."""
    models = [(f"C {c}", make_pipeline(StandardScaler(), SVC(C=c))) for c in (1, 10)]
    return classical(data, shapes_and_colours, models)


def logistic(data: DataSet) -> Trained:
    """Logistic regression on the pixels at 32 x 32, at most 200 iterations, C chosen on validate."""
    models = [
        (f"C {c}", make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=200))) for c in (0.001, 0.01, 0.1)
    ]
    return classical(data, flat_pixels, models)
