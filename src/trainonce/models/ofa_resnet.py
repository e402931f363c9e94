"""OFA's supernet of ResNet-50 (its code: `OFAResNets`), as a network that is traced and has OFA's choices.

A deep stem with one block that can be left out, four stages of bottlenecks whose shortcuts pool before they project.
Elastic are the widths of stem and stages, the depths of stages, and the inner channels of each bottleneck, in percent
of its stage's width. Narrower layers have the first channels of wider ones.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from trainonce.cost.macs import Cost, CostModel, CostTerm, cached_term
from trainonce.models.layout import make_divisible
from trainonce.models.traced.resolutions import RESOLUTION
from trainonce.models.traced.supernet import Traced, TracedSettings
from trainonce.space import Architecture, Choice, SearchSpace

STEM = 64
STAGES = (256, 512, 1024, 2048)
"""Channels that leave the stem and each stage at full width."""
LEAST_DEPTHS = (2, 2, 4, 2)
"""The fewest blocks of each stage; there are up to two more."""
WIDTHS = (65, 80, 100)
EXPAND_RATIOS = (20, 25, 35)
"""Percent of the full widths, and of a stage's channels inside of its bottlenecks."""


def _layer(inside: int, out: int, kernel_size: int = 1, stride: int = 1) -> nn.ModuleDict:
    conv = nn.Conv2d(inside, out, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.ModuleDict({"conv": conv, "bn": nn.BatchNorm2d(out)})


def _run(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.ModuleDict)
    normed: Tensor = layer["bn"](layer["conv"](x))
    return normed


class _Bottleneck(nn.Module):
    def __init__(self, inside: int, middle: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1, self.conv2, self.conv3 = (
            _layer(inside, middle),
            _layer(middle, middle, 3, stride),
            _layer(middle, out),
        )
        self.downsample = _layer(inside, out) if inside != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(_run(self.conv2, F.relu(_run(self.conv1, x))))
        if self.downsample is not None:
            pooled = F.avg_pool2d(x, self.stride, self.stride, ceil_mode=True) if self.stride > 1 else x
            x = _run(self.downsample, pooled)
        return F.relu(_run(self.conv3, y) + x)


class LargestResNet(nn.Module):
    """The largest subnet, whose tensors have OFA's shortest names."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        half = STEM // 2
        inner = nn.ModuleDict({"conv": _layer(half, half, 3)})
        self.input_stem = nn.ModuleList([_layer(3, half, 3, 2), inner, _layer(half, STEM, 3)])
        blocks, inside = [], STEM
        for stage, (out, least) in enumerate(zip(STAGES, LEAST_DEPTHS, strict=True)):
            for block in range(least + 2):
                stride = 2 if stage and not block else 1
                blocks.append(_Bottleneck(inside, _middle(out, EXPAND_RATIOS[-1]), out, stride))
                inside = out
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.ModuleDict({"linear": nn.Linear(inside, num_classes)})

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] to logits [B, classes]."""
        first, inner, last = self.input_stem
        assert isinstance(inner, nn.ModuleDict)
        x = F.relu(_run(first, x))
        x = F.relu(_run(inner["conv"], x)) + x
        x = F.max_pool2d(F.relu(_run(last, x)), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier["linear"](x.mean((2, 3)))
        return logits


def _out(stage: int, width: int) -> int:
    return make_divisible(STAGES[stage] * width / 100)


def _middle(out: int, expand_ratio: int) -> int:
    return make_divisible(round(out * expand_ratio / 100))


class Rule(NamedTuple):
    """What a choice of the traced network is, as it follows from OFA's choices: None where it does not exist."""

    choices: tuple[str, ...]
    value: Callable[..., int | None]


class OFAResNetSettings(TracedSettings):
    """The operations of the largest subnet. `load_ofa` makes them."""

    stages: bool = True
    least_depth: int = 0


class OFAResNet(Traced):
    """The supernet of OFA's ResNet-50."""

    family = "ofa_resnet"
    settings_type = OFAResNetSettings
    settings: OFAResNetSettings

    def __init__(self, settings: OFAResNetSettings, *, seed: int = 0) -> None:
        super().__init__(settings, seed=seed)
        traced = self.space
        self.space = _space(settings.resolutions)
        self.rules = {RESOLUTION: Rule((RESOLUTION,), lambda side: side), **dict(self._rules())}
        assert {choice.name for choice in traced.choices} <= set(self.rules)
        self.cost = CostModel(self.space, tuple(map(self._term, self.cost.terms)))

    def _rules(self) -> Iterator[tuple[str, Rule]]:
        """By the choices of the traced network."""
        depths = {self.layout.residuals.stages[at].residuals[0].out: name for at, name in self.layout.depths.items()}
        by_stage = dict(zip(("stem", "stage1", "stage2", "stage3", "stage4"), depths.values(), strict=True))
        for at, name in by_stage.items():
            less = 0 if at == "stem" else 1  # the first block of a stage projects: it is never left out
            yield name, Rule((f"{at}.depth",), lambda depth, less=less: depth - less)
        axes = {width.axis: width.choice for width in self.layout.widths}
        made_by = {name: axes.get(parts[0][0].axis) for name, parts in self.layout.dimensions.items() if len(parts) > 1}
        yield made_by["input_stem.0.conv.weight"] or "", Rule(("stem.inner.width",), lambda channels: channels)
        yield made_by["input_stem.2.conv.weight"] or "", Rule(("stem.width",), lambda channels: channels)
        for number, (stage, block) in enumerate(_blocks()):
            width, expand = f"stage{stage + 1}.width", f"stage{stage + 1}.block{block + 1}.expand_ratio"
            yield (
                made_by[f"blocks.{number}.conv3.conv.weight"] or "",
                Rule((width,), lambda percent, stage=stage: _out(stage, percent)),
            )
            for layer in ("conv1", "conv2"):
                yield (
                    made_by[f"blocks.{number}.{layer}.conv.weight"] or "",
                    Rule(
                        (width, expand),
                        lambda percent, ratio, stage=stage: ratio and _middle(_out(stage, percent), ratio),
                    ),
                )

    def _inside(self, arch: Architecture) -> Architecture:
        values = ((name, rule.value(*map(arch.get, rule.choices))) for name, rule in self.rules.items())
        return Architecture(tuple((name, value) for name, value in values if value is not None))

    def _kept_widths(self, kept: SearchSpace, choice: str) -> tuple[int, ...]:
        rule = self.rules[choice]
        found = {rule.value(*values) for values in product(*(kept[name].values for name in rule.choices))}
        return tuple(sorted(value for value in found if value is not None))

    def _term(self, term: CostTerm) -> CostTerm:
        """A term of the traced network's cost by OFA's choices."""
        rules = [self.rules[name] for name in term.choices]
        choices = tuple(dict.fromkeys(name for rule in rules for name in rule.choices))

        def cost(*values: int | None) -> Cost:
            known = dict(zip(choices, values, strict=True))
            return term.cost(*(rule.value(*map(known.get, rule.choices)) for rule in rules))

        return cached_term(choices, cost)


def _blocks() -> Iterator[tuple[int, int]]:
    """The stage of each block, and its place there, from 0."""
    for stage, least in enumerate(LEAST_DEPTHS):
        yield from ((stage, block) for block in range(least + 2))


def _space(resolutions: tuple[int, ...]) -> SearchSpace:
    choices = [Choice(name=RESOLUTION, values=resolutions)] if len(resolutions) > 1 else []
    stem = sorted({make_divisible(STEM * width / 100) for width in WIDTHS})
    choices.append(Choice(name="stem.inner.width", values=tuple(sorted({make_divisible(c // 2) for c in stem}))))
    choices.append(Choice(name="stem.depth", values=(0, 1)))
    choices.append(Choice(name="stem.width", values=tuple(stem)))
    for stage, least in enumerate(LEAST_DEPTHS, start=1):
        depths = (least, least + 1, least + 2)
        choices.append(Choice(name=f"stage{stage}.width", values=WIDTHS))
        choices.append(Choice(name=f"stage{stage}.depth", values=depths))
        for block in range(1, least + 3):
            allowed = {depth: EXPAND_RATIOS for depth in depths if depth >= block}
            name = f"stage{stage}.block{block}.expand_ratio"
            choices.append(Choice(name=name, values=EXPAND_RATIOS, parent=f"stage{stage}.depth", allowed=allowed))
    return SearchSpace(tuple(choices))
