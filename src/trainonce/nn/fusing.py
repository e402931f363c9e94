"""Parallel convolutions merged into one, as RepVGG (arXiv 2101.03697, section 3.3) and MobileOne (2206.04040) do.

A sum of convolutions of the same map, each with a batch norm behind it or not, and of the map itself is one convolution
in evaluation mode: a norm scales the kernels before it, a smaller kernel lies in the middle of a larger one, and a map
that is only normalised is a convolution by the identity.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trainonce.nn.plain_graph import NORM, GraphNetwork, GraphSpec, Line, TensorSpec

CONVOLUTION, SUM = "conv2d.default", "add.Tensor"
DEFAULTS: tuple[Any, ...] = (None, None, None, (1, 1), (0, 0), (1, 1), 1)
"""Of a convolution's arguments: map, weight, bias, stride, padding, dilation, groups."""


@dataclass(frozen=True)
class _Branch:
    """One term of a sum, as a line of convolution (None for the map itself) and of norm, where there is one."""

    image: str
    convolution: Line | None
    norm: Line | None


def fused(network: GraphNetwork) -> GraphNetwork:
    """The network with sums of parallel convolutions as one: the same in evaluation mode, up to rounding.

    It is the network itself where there is none. Sums of which a term is anything else stay as they are.
    """
    spec, state = network.spec, {name: tensor.detach() for name, tensor in network.state_dict().items()}
    made = {line.out: line for line in spec.lines}
    uses = Counter(name for line in spec.lines for name in line.reads)
    uses[spec.output] += 1
    lines, gone, new = [], set[str](), dict[str, Tensor]()
    for line in reversed(spec.lines):  # the last sum of a chain comes first
        if line.out in gone:
            continue
        found = _merged(line, made, uses, state)
        if found is None:
            lines.append(line)
            continue
        merged, tensors, without = found
        lines.append(merged)
        new |= tensors
        gone |= without
    if not new:
        return network
    return _with(spec, lines[::-1], state | new, new)


def _with(spec: GraphSpec, lines: list[Line], state: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> GraphNetwork:
    read = {name for line in lines for name in line.reads}
    norms = tuple(f"{line.args[1]}." for line in lines if line.op == NORM)
    kept = [t for t in spec.tensors if t.name not in new and (t.name in read or t.name.startswith(norms))]
    added = [TensorSpec(name, tuple(tensor.shape), learned=True) for name, tensor in new.items()]
    network = replace(spec, lines=tuple(lines), tensors=(*kept, *added)).build().eval()
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network


def _merged(
    line: Line, made: Mapping[str, Line], uses: Mapping[str, int], state: Mapping[str, Tensor]
) -> tuple[Line, dict[str, Tensor], set[str]] | None:
    """A sum as a convolution, its weight and bias by name, and the lines that it stands for; None where it is none."""
    if not _is_sum(line):
        return None
    terms, inside = [], set[str]()
    waiting = list(line.reads)
    while waiting:
        name = waiting.pop()
        term = made.get(name)
        if term is not None and uses[name] == 1 and _is_sum(term):
            inside.add(name)
            waiting += term.reads
        else:
            terms.append(name)
    branches = [_branch(name, made, uses) for name in terms]
    images = {branch.image for branch in branches if branch.convolution is not None}
    if len(images) != 1:
        return None
    image = images.pop()
    branches = [_Branch(image, None, None) if name == image else b for name, b in zip(terms, branches, strict=True)]
    if any(branch.image != image for branch in branches):
        return None
    largest = max((b for b in branches if b.convolution), key=lambda b: state[_weight(b)].shape[-1])
    assert largest.convolution is not None
    kernels = [_kernel(branch, largest, state) for branch in branches]
    if any(kernel is None for kernel in kernels):
        return None
    weight, bias = (torch.stack(parts).sum(0).float() for parts in zip(*(k for k in kernels if k), strict=True))
    name = _weight(largest)
    names = (name, f"{name.rpartition('.')[0]}.bias".removeprefix("."))
    inside |= {b.norm.out for b in branches if b.norm} | {b.convolution.out for b in branches if b.convolution}
    args = (f"%{image}", *(f"%{n}" for n in names), *_arguments(largest.convolution)[3:])
    return Line(line.out, CONVOLUTION, args), dict(zip(names, (weight, bias), strict=True)), inside


def _is_sum(line: Line) -> bool:
    """Whether a line adds two values, or nothing to one."""
    return line.op == SUM and not line.kwargs and all(isinstance(a, str) or a == 0 for a in line.args)


def _branch(name: str, made: Mapping[str, Line], uses: Mapping[str, int]) -> _Branch:
    """The convolution and norm that give a term and nothing else; the term itself where it is no such thing."""
    line = made.get(name)
    if line is None or uses[name] != 1:
        return _Branch(name, None, None)
    norm = line if line.op == NORM else None
    before = line if norm is None else made.get(line.reads[0])
    if before is not None and before.op == CONVOLUTION and (norm is None or uses[before.out] == 1):
        return _Branch(before.reads[0], before, norm)
    return _Branch(name, None, None) if norm is None else _Branch(norm.reads[0], None, norm)


def _arguments(line: Line) -> tuple[Any, ...]:
    given = (*line.args, *DEFAULTS[len(line.args) :])
    return (*given[:3], *(tuple(pair) if isinstance(pair, tuple) else (pair, pair) for pair in given[3:6]), given[6])


def _weight(branch: _Branch) -> str:
    assert branch.convolution is not None
    return branch.convolution.reads[1]


def _kernel(branch: _Branch, largest: _Branch, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """A branch as kernel and bias of the size of the largest one, in 64 bits; None where it is none."""
    big = state[_weight(largest)]
    assert largest.convolution is not None
    stride, padding, dilation, groups = _arguments(largest.convolution)[3:]
    if branch.convolution is None:
        kernel, bias = _identity(len(big), groups, big.shape[1]), torch.zeros(len(big), dtype=torch.float64)
        if stride != (1, 1) or big.shape[1] * groups != len(big):
            return None
        inner = (0, 0)
    else:
        _, weight, given, *settings = _arguments(branch.convolution)
        if (settings[0], settings[2], settings[3]) != (stride, dilation, groups):
            return None
        kernel, inner = state[weight[1:]].double(), settings[1]
        bias = kernel.new_zeros(len(kernel)) if given is None else state[given[1:]].double()
    if branch.norm is not None:
        kernel, bias = _scaled(branch.norm, kernel, bias, state)
    margins = [b - s for b, s in zip(big.shape[2:], kernel.shape[2:], strict=True)]
    sides = zip(margins, dilation, padding, inner, strict=True)
    centred = all(margin % 2 == 0 and each * margin // 2 == outer - own for margin, each, outer, own in sides)
    if kernel.shape[:2] != big.shape[:2] or not centred:
        return None
    high, wide = (margin // 2 for margin in margins)
    return torch.nn.functional.pad(kernel, (wide, wide, high, high)), bias


def _identity(channels: int, groups: int, each: int) -> Tensor:
    kernel = torch.zeros(channels, each, 1, 1, dtype=torch.float64)
    kernel[torch.arange(channels), torch.arange(channels) % each] = 1
    return kernel


def _scaled(norm: Line, kernel: Tensor, bias: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What a batch norm makes of the convolution before it, by its running statistics."""
    _, name, _, eps = norm.args
    assert isinstance(eps, float)
    mean, variance = (state[f"{name}.running_{part}"].double() for part in ("mean", "var"))
    scale, shift = (state.get(f"{name}.{part}") for part in ("weight", "bias"))
    factor = (torch.ones_like(mean) if scale is None else scale.double()) / (variance + eps).sqrt()
    moved = (bias - mean) * factor + (0 if shift is None else shift.double())
    return kernel * factor[:, None, None, None], moved
